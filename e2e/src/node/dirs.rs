//! Where the files of a node are.

use std::path::{Path, PathBuf};

/// Directories of a node, all below one short root.
#[derive(Clone, Debug)]
pub struct Dirs(pub(super) PathBuf);

impl Dirs {
    /// The directory of the whole node.
    #[must_use]
    pub fn top(&self) -> &Path {
        &self.0
    }

    /// The node's id: name of its directory, its host and its cgroup parent.
    #[must_use]
    pub fn id(&self) -> String {
        self.0.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// The daemon's persistent state.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.0.join("root")
    }

    /// The daemon's volatile state.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.0.join("r")
    }

    /// The CRI socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.state().join("cri.sock")
    }

    /// Where network namespaces are pinned.
    #[must_use]
    pub fn netns(&self) -> PathBuf {
        self.0.join("netns")
    }

    /// Where specification files of CDI devices may be, the second directory with priority. The daemon does not make
    /// them.
    #[must_use]
    pub fn cdi(&self) -> [PathBuf; 2] {
        [self.0.join("cdi"), self.0.join("cdi-run")]
    }

    /// CNI configuration (`net.d`), plugins (`bin`), cache and address files.
    #[must_use]
    pub fn cni(&self) -> PathBuf {
        self.0.join("cni")
    }

    /// Pod logs, as a kubelet would name them.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.0.join("logs")
    }

    /// The daemon's configuration file.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.0.join("config.toml")
    }

    /// The daemon's own log.
    #[must_use]
    pub fn daemon_log(&self) -> PathBuf {
        self.0.join("daemon.log")
    }
}
