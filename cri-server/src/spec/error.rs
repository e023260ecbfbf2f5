//! What can be wrong with a request for a container, or lacking on the node that is to run it.

use std::path::PathBuf;

/// Why no OCI specification can be made.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// A field of the CRI request, or of the image's configuration, holds something that cannot be run.
    #[error("invalid {field}: {reason}")]
    InvalidArgument {
        /// The field as the CRI spells it.
        field: String,
        /// What is wrong with its value.
        reason: String,
    },
    /// The request is sound, but this node or runtime handler cannot serve it.
    #[error("{feature} is asked for, but {reason}")]
    Unsupported {
        /// What was asked for.
        feature: String,
        /// What the node lacks.
        reason: String,
    },
    /// A recursive read-only mount for a handler that has none. The kubelet reads the prefix of the message.
    #[error("RROUnsupported: the runtime handler cannot mount {host_path:?} recursively read-only")]
    RroUnsupported {
        /// Source of the mount.
        host_path: String,
    },
    /// A profile or a device that the request names does not exist on the node.
    #[error("{what} {name:?} is not on this node")]
    NotFound {
        /// Kind of thing.
        what: &'static str,
        /// Its name in the request.
        name: String,
    },
    /// A Localhost seccomp profile that is not one.
    #[error("parse seccomp profile {reference:?}")]
    SeccompSyntax {
        /// The profile's reference in the request.
        reference: String,
        /// Where the text stops making sense.
        #[source]
        source: serde_json::Error,
    },
    /// A CDI device that the container cannot have.
    #[error(transparent)]
    Cdi(#[from] super::cdi::CdiError),
    /// The caller did not resolve something that the request needs. A fault of the runtime, not of the request.
    #[error("{fact} of the container is not resolved")]
    MissingFact {
        /// What is missing.
        fact: &'static str,
    },
}

impl SpecError {
    pub(super) fn invalid(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::InvalidArgument { field: field.into(), reason: reason.into() }
    }

    pub(super) fn unsupported(feature: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Unsupported { feature: feature.into(), reason: reason.into() }
    }

    pub(super) fn device_missing(path: &std::path::Path) -> Self {
        Self::NotFound { what: "device", name: PathBuf::from(path).display().to_string() }
    }
}
