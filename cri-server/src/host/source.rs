//! What a request names on the node, looked at once: sources of mounts, devices.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::spec::{DeviceKind, HostDevice, MountSource, ResolvedDevice, SourcePropagation};

/// Deepest directory of devices that is looked into.
const DEVICE_DEPTH: usize = 4;
/// Most devices of one request.
const DEVICE_LIMIT: usize = 4096;

/// The source of a bind mount that propagates nothing, so that nobody asks what the source's mount does.
pub fn private_source(path: &Path) -> io::Result<MountSource> {
    Ok(MountSource { path: resolve(path)?, propagation: SourcePropagation::Private })
}

/// The source of a bind mount, and what the mount that it is on propagates.
pub fn propagating_source(path: &Path) -> io::Result<MountSource> {
    let path = resolve(path)?;
    let propagation = propagation(&std::fs::read_to_string("/proc/self/mountinfo")?, &path);
    Ok(MountSource { path, propagation })
}

/// Symlinks followed, a missing directory made, as kubelets have come to expect.
fn resolve(path: &Path) -> io::Result<PathBuf> {
    let unusable = |reason| Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
    if !path.is_absolute() {
        return unusable("expected an absolute path");
    }
    match std::fs::canonicalize(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if path.symlink_metadata().is_ok() {
                return unusable("expected a path that leads somewhere");
            }
            super::fs::create_open_directories(path)?;
            std::fs::canonicalize(path)
        }
        other => other,
    }
}

/// Propagation of the mount that `path` is on, from the text of `mountinfo`.
fn propagation(mountinfo: &str, path: &Path) -> SourcePropagation {
    let mut found = (0, SourcePropagation::Private);
    for line in mountinfo.lines() {
        let mut fields = line.split(' ');
        let Some(point) = fields.nth(4) else { continue };
        let length = point.len();
        if !path.starts_with(unescape(point)) || length < found.0 {
            continue;
        }
        // Optional fields follow the mount options and end with a dash.
        let optional: Vec<&str> = fields.skip(1).take_while(|field| *field != "-").collect();
        let has = |tag: &str| optional.iter().any(|field| field.starts_with(tag));
        let propagation = match (has("shared:"), has("master:")) {
            (true, _) => SourcePropagation::Shared,
            (false, true) => SourcePropagation::Slave,
            (false, false) => SourcePropagation::Private,
        };
        found = (length, propagation);
    }
    found.1
}

/// `mountinfo` writes blanks and backslashes as three octal digits.
fn unescape(field: &str) -> PathBuf {
    let mut text = field.to_string();
    for (escape, character) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        text = text.replace(escape, character);
    }
    PathBuf::from(text)
}

/// A device of the request: the node itself, or all nodes below a directory.
pub fn device(host_path: &str) -> io::Result<ResolvedDevice> {
    let host_path = match std::fs::canonicalize(host_path) {
        Ok(path) => path,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(ResolvedDevice { host_path: host_path.into(), nodes: Vec::new() });
        }
        Err(error) => return Err(error),
    };
    let mut nodes = Vec::new();
    collect(&host_path, DEVICE_DEPTH, &mut nodes)?;
    Ok(ResolvedDevice { host_path, nodes })
}

/// All devices below `/dev`, for privileged containers; what a container has of its own is left out.
pub fn all_devices() -> Vec<HostDevice> {
    let mut nodes = Vec::new();
    for entry in std::fs::read_dir("/dev").into_iter().flatten().flatten() {
        let own = ["pts", "shm", "fd", "mqueue", "console", "ptmx"];
        if own.iter().any(|name| entry.file_name() == *name) {
            continue;
        }
        if let Err(error) = collect(&entry.path(), DEVICE_DEPTH, &mut nodes) {
            tracing::debug!(path = %entry.path().display(), %error, "a device is left out");
        }
    }
    nodes
}

/// One device node of the host, symlinks followed.
pub fn device_node(path: &Path) -> io::Result<HostDevice> {
    let mut nodes = Vec::new();
    collect(&std::fs::canonicalize(path)?, 0, &mut nodes)?;
    nodes.pop().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "it is not a device"))
}

fn collect(path: &Path, depth: usize, nodes: &mut Vec<HostDevice>) -> io::Result<()> {
    let metadata = std::fs::symlink_metadata(path)?;
    let kind = match metadata.file_type() {
        kind if kind.is_char_device() => DeviceKind::Character,
        kind if kind.is_block_device() => DeviceKind::Block,
        kind if kind.is_dir() && depth > 0 => {
            for entry in std::fs::read_dir(path)? {
                collect(&entry?.path(), depth - 1, nodes)?;
            }
            return Ok(());
        }
        _neither => return Ok(()),
    };
    if nodes.len() >= DEVICE_LIMIT {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("more than {DEVICE_LIMIT} devices")));
    }
    nodes.push(HostDevice {
        path: path.into(),
        kind,
        major: rustix::fs::major(metadata.rdev()),
        minor: rustix::fs::minor(metadata.rdev()),
        mode: metadata.mode() & 0o777,
        uid: metadata.uid(),
        gid: metadata.gid(),
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn propagation_is_that_of_the_innermost_mount() {
        let mountinfo = "1 0 8:1 / / rw shared:1 - ext4 a rw\n2 1 0:5 / /a rw master:1 - tmpfs b rw\n\
                         3 1 0:6 / /a/b\\040c rw - tmpfs c rw\n";
        let check =
            |path: &str, expect| assert_eq!(propagation(mountinfo, Path::new(path)), expect, "{path}");
        check("/x", SourcePropagation::Shared);
        check("/a/x", SourcePropagation::Slave);
        check("/ab", SourcePropagation::Shared);
        check("/a/b c/d", SourcePropagation::Private);
    }

    #[test]
    fn devices_are_found_and_a_missing_one_is_empty() {
        let null = device("/dev/null").unwrap();
        assert_eq!((null.nodes[0].major, null.nodes[0].minor), (1, 3));
        assert!(device("/dev/no-such-device").unwrap().nodes.is_empty());
    }
}
