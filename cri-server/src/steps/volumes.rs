//! What a container gets from images beside its root: other images, mounted as they are, and the `VOLUME`s of its
//! own, each a directory that begins as a copy of what the image has there.
//!
//! Both are named in the container's record before they exist. An anonymous volume lives beside that record and goes
//! with it; a container whose volumes are not filled wholly was never made, so that a half copy is never used.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path};
use std::sync::Arc;

use proto::cri::{self, ContainerConfig};
use rustix::fs::{FileType, OFlags};

use super::cri_config::{invalid, missing};
use super::pod_files::make_directory;
use crate::daemon::Daemon;
use crate::error::Error;
use crate::host::fs;
use crate::image::overlay::{Overlay, Owners};
use crate::image::unpack::Limits;
use crate::image::unpack::duplicate::{Allowance, duplicate};
use crate::image::{Image, Lease};
use crate::spec::{ImageVolume, MountSource, SourcePropagation, user_namespace};
use crate::store::container::{ContainerRecord, MountedImage};
use crate::store::sandbox::Sandbox;

/// The images that a container stands on.
pub struct Images {
    /// The one that it is made from.
    pub own: Arc<Image>,
    /// Those that the request mounts.
    pub mounted: Vec<MountedImage>,
    /// The claim on the layers of all.
    pub lease: Lease,
}

/// Finds all images of a request and claims their layers.
pub fn claim(daemon: &Daemon, config: &ContainerConfig) -> Result<Images, Error> {
    let (own, mut lease) = find(daemon, config.image.as_ref(), "config.image.image")?;
    let mut mounted = Vec::new();
    for (mount, asked) in config.mounts.iter().enumerate().filter(|(_, asked)| asked.image.is_some()) {
        let (image, claim) = find(daemon, asked.image.as_ref(), "config.mounts.image.image")?;
        lease.absorb(claim);
        mounted.push(MountedImage { mount, image_id: image.id.to_string(), layers: image.layers.clone() });
    }
    Ok(Images { own, mounted, lease })
}

fn find(
    daemon: &Daemon,
    spec: Option<&cri::ImageSpec>,
    field: &'static str,
) -> Result<(Arc<Image>, Lease), Error> {
    let name = spec.map(|spec| spec.image.as_str()).filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| missing(field))?;
    let found = daemon.images.get(name).and_then(|image| Some((image.clone(), daemon.images.lease(&image)?)));
    found.ok_or_else(|| Error::NotFound { kind: "image", id: name.into() })
}

/// Mounts the images that are volumes of the container. Blocks.
///
/// Each is an overlay without an upper directory, of a single layer too: unlike a bind mount it cannot be made
/// writable from inside, whatever the container may do.
pub fn mount_images(
    daemon: &Daemon,
    record: &ContainerRecord,
    owners: Option<Owners<'_>>,
    label: Option<&str>,
) -> Result<(), Error> {
    for image in &record.images {
        let target = daemon.paths.image_mount(&record.id, image.mount);
        for (path, mode) in [(daemon.paths.image_mounts(&record.id), 0o711), (target.clone(), 0o755)] {
            make_directory(&path, mode).map_err(Error::host(format!("make {}", path.display())))?;
        }
        let layers: Vec<_> = image.layers.iter().map(|key| daemon.images.layer_path(key)).collect();
        let overlay =
            Overlay { layers: &layers, empty: &daemon.images.empty_layer(), writable: None, owners, label };
        overlay.mount(&target).map_err(|error| failed(&image.image_id)(error.into()))?;
    }
    Ok(())
}

/// Why `image` cannot be a volume, as the kubelet wants to hear it.
pub fn failed(image: &str) -> impl FnOnce(Error) -> Error {
    let image = image.to_owned();
    move |source| Error::ImageVolume { image, source: Box::new(source) }
}

/// What a mount shows of the image that is mounted at `root`: all, or what its sub-path leads to inside the image.
///
/// The path that is found has no links left, and nobody can change it any more: the mount is read-only.
pub fn image_source(root: &Path, mount: &cri::Mount) -> Result<MountSource, Error> {
    const FIELD: &str = "config.mounts.image_sub_path";
    let wanted = Path::new(&mount.image_sub_path);
    if wanted.components().any(|part| part == Component::ParentDir) {
        return Err(invalid(FIELD, format!("expected a path without .., got {wanted:?}")));
    }
    let found = open_sub_path(root, wanted).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            Error::NotFound { kind: "path in the image", id: mount.image_sub_path.clone() }
        }
        io::ErrorKind::InvalidInput | io::ErrorKind::InvalidFilename => {
            invalid(FIELD, format!("expected a path, got {wanted:?}"))
        }
        _other => Error::host(format!("follow {wanted:?} in the image"))(error),
    })?;
    let kind = rustix::fs::fstat(&found).map(|stat| FileType::from_raw_mode(stat.st_mode));
    if !matches!(kind, Ok(FileType::Directory | FileType::RegularFile)) {
        return Err(unusable(wanted, "is neither a directory nor a file"));
    }
    let path = std::fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd()))
        .map_err(Error::host(format!("find where {wanted:?} of the image is")))?;
    if path.to_str().is_none() {
        return Err(unusable(wanted, "leads to a name that is not UTF-8"));
    }
    Ok(MountSource { path, propagation: SourcePropagation::Private })
}

fn open_sub_path(root: &Path, wanted: &Path) -> io::Result<OwnedFd> {
    let wanted = if wanted.as_os_str().is_empty() { Path::new(".") } else { wanted };
    fs::open_in_root(fs::open_root(root)?, wanted, OFlags::PATH)
}

fn unusable(path: &Path, reason: &str) -> Error {
    let id = path.display().to_string();
    Error::FailedPrecondition { kind: "path in the image", id, reason: reason.into() }
}

/// The container's anonymous volumes, as the specification takes them.
pub fn anonymous(daemon: &Daemon, record: &ContainerRecord) -> Vec<ImageVolume> {
    let volume = |(index, place): (usize, &std::path::PathBuf)| ImageVolume {
        destination: place.display().to_string(),
        source: daemon.paths.volume(&record.id, index),
    };
    record.volumes.iter().enumerate().map(volume).collect()
}

/// Makes the container's anonymous volumes: each with what its root has at that place, owners, modes and attributes
/// included; an empty directory of the pod's root where that is nothing. Gives up when the sandbox is stopped. Blocks.
pub fn fill(
    daemon: &Daemon,
    record: &ContainerRecord,
    sandbox: &Sandbox,
    rootfs: &Path,
) -> Result<(), Error> {
    if record.volumes.is_empty() {
        return Ok(());
    }
    let abort = &sandbox.abort;
    let owner = user_namespace::ids(&sandbox.fixed.config)?.map_or(0, |ids| ids.first);
    let root = fs::open_root(rootfs).map_err(Error::host(format!("open {}", rootfs.display())))?;
    let parent = daemon.paths.volumes(&record.id);
    make_directory(&parent, 0o711).map_err(Error::host(format!("make {}", parent.display())))?;
    // Volumes may overlap: all of them together may take what one layer may.
    let limits = Limits::default();
    let cancelled = || abort.is_cancelled();
    let mut allowance = Allowance { bytes: limits.bytes, entries: limits.entries, cancelled: &cancelled };
    for (index, place) in record.volumes.iter().enumerate() {
        let target = daemon.paths.volume(&record.id, index);
        make_directory(&target, 0o755)
            .and_then(|()| std::os::unix::fs::lchown(&target, Some(owner), Some(owner)))
            .map_err(Error::host(format!("make {}", target.display())))?;
        let filled = fill_one(&root, place, &target, &mut allowance);
        filled.map_err(|error| match error.kind() {
            _any if abort.is_cancelled() => Error::Aborted(format!("filling volume {}", place.display())),
            io::ErrorKind::NotADirectory => unusable(place, "is a VOLUME, but not a directory"),
            _other => Error::host(format!("fill volume {} from the image", place.display()))(error),
        })?;
    }
    Ok(())
}

fn fill_one(root: &OwnedFd, place: &Path, target: &Path, allowance: &mut Allowance<'_>) -> io::Result<()> {
    let from = match fs::open_in_root(root, place, OFlags::RDONLY | OFlags::DIRECTORY) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    duplicate(&from, &rustix::fs::open(target, flags, rustix::fs::Mode::empty())?, allowance)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use tonic::Code;

    #[test]
    fn a_sub_path_stays_in_the_image() {
        let outside = tempfile::tempdir().unwrap();
        let root = outside.path().canonicalize().unwrap().join("image");
        for directory in ["a/b/c", "etc"] {
            std::fs::create_dir_all(root.join(directory)).unwrap();
        }
        std::fs::create_dir(outside.path().join("secret")).unwrap();
        std::fs::write(root.join("etc/file"), "").unwrap();
        for (name, target) in [
            ("absolute", "/a/b"),
            ("up", "../../../../../../a"),
            ("out", "../secret"),
            ("loop", "loop"),
            ("chain", "absolute/c"),
            ("magic", "/proc/self/cwd"),
        ] {
            symlink(target, root.join(name)).unwrap();
        }
        std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
        let ask = |sub_path: &str| {
            image_source(&root, &cri::Mount { image_sub_path: sub_path.into(), ..Default::default() })
        };
        let leads = |sub_path: &str, expect: &str| {
            let source = ask(sub_path).unwrap_or_else(|error| panic!("{sub_path}: {error}"));
            assert_eq!(source.path, root.join(expect), "{sub_path}");
        };
        leads("", "");
        leads(".", "");
        leads("/", "");
        leads("etc", "etc");
        leads("/etc/file", "etc/file");
        leads("a//b/./c/", "a/b/c");
        leads("absolute", "a/b");
        leads("up", "a");
        leads("chain", "a/b/c");
        let fails = |sub_path: &str, code| {
            let error = ask(sub_path).map(|source| source.path).unwrap_err();
            assert_eq!(error.code(), code, "{sub_path:?}: {error}");
        };
        fails("none", Code::NotFound);
        fails("etc/file/x", Code::NotFound);
        fails("out", Code::NotFound);
        fails("magic", Code::NotFound);
        fails("a/../etc", Code::InvalidArgument);
        fails("../secret", Code::InvalidArgument);
        fails("a\0b", Code::InvalidArgument);
        fails(&"x".repeat(300), Code::InvalidArgument);
        fails("socket", Code::FailedPrecondition);
        fails("loop", Code::Internal);
    }
}
