//! Mounts as a kubelet asks for them, and directories of the node to mount.

use std::path::{Path, PathBuf};

use anyhow::Result;
use proto::cri as api;

use crate::cri::container;
use crate::image::set::BUSYBOX;

/// A command that lasts.
pub const SLEEP: [&str; 2] = ["sleep", "1000"];

/// An image, or a path of it, as a volume.
#[must_use]
pub fn image_mount(image: &str, sub_path: &str, place: &str) -> api::Mount {
    api::Mount {
        container_path: place.into(),
        readonly: true,
        image: Some(api::ImageSpec { image: image.into(), ..Default::default() }),
        image_sub_path: sub_path.into(),
        ..Default::default()
    }
}

/// A path of the node.
#[must_use]
pub fn bind(from: &Path, to: &str) -> api::Mount {
    api::Mount { host_path: from.display().to_string(), container_path: to.into(), ..Default::default() }
}

/// A container of the test image that sleeps, with these mounts.
#[must_use]
pub fn with_mounts(name: &str, mounts: impl IntoIterator<Item = api::Mount>) -> api::ContainerConfig {
    let mut config = container(name, BUSYBOX, &SLEEP);
    config.mounts = mounts.into_iter().collect();
    config
}

/// A directory of the node that goes with the test.
pub struct Scratch(tempfile::TempDir);

impl Scratch {
    /// An empty one.
    pub fn new() -> Result<Self> {
        Ok(Self(tempfile::tempdir()?))
    }

    /// A path in it.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A directory in it with one file, `file`.
    pub fn directory(&self, name: &str, file: &str) -> Result<PathBuf> {
        let path = self.path(name);
        std::fs::create_dir_all(&path)?;
        std::fs::write(path.join("file"), file)?;
        Ok(path)
    }
}
