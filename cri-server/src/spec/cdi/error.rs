//! What can be wrong with a CDI device that a request names.

/// Why a container cannot have a CDI device.
#[derive(Debug, thiserror::Error)]
pub enum CdiError {
    /// No specification file of the node has it.
    #[error("CDI device {name:?} is in no specification file of this node{}", not_used(unread))]
    Unknown {
        /// Its qualified name.
        name: String,
        /// Files that could not be used, each with the reason: the device may be in one of them.
        unread: Vec<String>,
    },
    /// Two files of equal priority have it.
    #[error("CDI device {name:?} is in two specification files of equal priority, {first} and {second}")]
    Conflict {
        /// Its qualified name.
        name: String,
        /// One file.
        first: String,
        /// The other file.
        second: String,
    },
    /// A device node that it needs cannot be looked up on the node.
    #[error("look at device node {path:?} of a CDI device")]
    Node {
        /// Path on the host.
        path: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A device node is of another kind than its specification says.
    #[error("device node {path:?} of a CDI device is of type {found:?}, its specification says {expected:?}")]
    OtherKind {
        /// Path on the host.
        path: String,
        /// What it is.
        found: &'static str,
        /// What the file says.
        expected: &'static str,
    },
}

fn not_used(files: &[String]) -> String {
    match files {
        [] => String::new(),
        files => format!(" (not used: {})", files.join("; ")),
    }
}
