//! Volumes of a pod with a user namespace: shown with the owners that the namespace has, where the request says so.
//!
//! Each is a mount of the daemon in the container's bundle; the container binds that. The teardown of the container
//! takes whatever is in that directory away.

use std::path::{Path, PathBuf};

use proto::cri::{self, MountPropagation};
use rustix::mount::MountPropagationFlags;

use super::pod_files::make_directory;
use crate::error::Error;
use crate::host::idmap::{self, Depth, UserNamespace};
use crate::model::id_range::IdRange;
use crate::spec::{MountSource, user_namespace};

/// Where volumes are shown, and with which owners.
pub struct MappedVolumes<'a> {
    /// The pod's user namespace.
    pub namespace: &'a UserNamespace,
    /// Its ids.
    pub ids: IdRange,
    /// A directory of the container's own.
    pub directory: &'a Path,
}

impl MappedVolumes<'_> {
    /// Attaches those of `mounts` that are to have other owners; gives all sources, in order.
    pub fn attach(
        &self,
        mounts: &[cri::Mount],
        sources: Vec<MountSource>,
    ) -> Result<Vec<MountSource>, Error> {
        let numbered = mounts.iter().zip(sources).enumerate();
        numbered
            .map(|(number, (mount, source))| match user_namespace::maps(mount, self.ids)? {
                // An image is mounted with the pod's owners already.
                true if mount.image.is_none() => self.attach_one(number, mount, source),
                _ => Ok(source),
            })
            .collect()
    }

    fn attach_one(
        &self,
        number: usize,
        mount: &cri::Mount,
        source: MountSource,
    ) -> Result<MountSource, Error> {
        let propagation = match MountPropagation::try_from(mount.propagation) {
            Ok(MountPropagation::PropagationBidirectional) => MountPropagationFlags::SHARED,
            Ok(MountPropagation::PropagationHostToContainer) => MountPropagationFlags::DOWNSTREAM,
            _ => MountPropagationFlags::PRIVATE,
        };
        let target = self.directory.join(number.to_string());
        let doing = || format!("show {} with the owners of the pod's user namespace", source.path.display());
        let copied = idmap::copy(&source.path, Depth::All, self.namespace, propagation);
        let copied = copied.map_err(|error| match error.kind() {
            std::io::ErrorKind::InvalidInput => Error::FailedPrecondition {
                kind: "volume",
                id: source.path.display().to_string(),
                reason: "its file system, or one mounted below, cannot show other owners (idmapped mounts)"
                    .into(),
            },
            _other => Error::host(doing())(error),
        })?;
        self.make_place(&source.path, &target).map_err(Error::host(format!("make {}", target.display())))?;
        idmap::attach(copied, &target).map_err(Error::host(doing()))?;
        Ok(MountSource { path: target, ..source })
    }

    fn make_place(&self, source: &PathBuf, target: &Path) -> std::io::Result<()> {
        make_directory(self.directory, 0o711)?;
        match std::fs::metadata(source)?.is_dir() {
            true => std::fs::create_dir(target),
            false => std::fs::File::create_new(target).map(drop),
        }
    }
}
