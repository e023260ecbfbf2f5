//! SELinux on this node: whether it is on, what its policy gives containers, and giving files a label.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, XattrFlags};
use rustix::io::Errno;

use crate::spec::selinux::Contexts;

const ATTRIBUTE: &str = "security.selinux";
/// Deepest directory that is gone into.
const DEPTH: usize = 256;

/// What the policy gives containers. `None` where SELinux is off, or its policy has nothing for containers.
pub fn contexts() -> Option<Contexts> {
    let on = Path::new("/sys/fs/selinux/enforce").exists();
    if !on {
        return None;
    }
    let config = std::fs::read_to_string("/etc/selinux/config").unwrap_or_default();
    let policy = config.lines().filter_map(|line| line.trim().strip_prefix("SELINUXTYPE=")).next_back();
    let path =
        Path::new("/etc/selinux").join(policy.unwrap_or("targeted").trim()).join("contexts/lxc_contexts");
    let found = std::fs::read_to_string(&path).ok().and_then(|text| Contexts::parse(&text));
    if found.is_none() {
        tracing::warn!(path = %path.display(), "SELinux is on, but its policy has no labels for containers");
    }
    found
}

/// Gives everything below `path`, and it last, this label. What goes away meanwhile is none of ours, and what can have
/// no label keeps none. Links are labelled, never followed. Blocks.
pub fn relabel(path: &Path, label: &str) -> io::Result<()> {
    relabel_at(CWD.as_fd(), path.as_os_str(), label, DEPTH)
}

fn relabel_at(parent: impl AsFd, name: &OsStr, label: &str, depth: usize) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let found = match rustix::fs::openat(&parent, name, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        other => other?,
    };
    if FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode) == FileType::Directory {
        relabel_below(&found, label, depth)?;
    }
    set(&found, label)
}

fn relabel_below(directory: &OwnedFd, label: &str, depth: usize) -> io::Result<()> {
    let depth =
        depth.checked_sub(1).ok_or_else(|| io::Error::other("its directories are nested too deep"))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = rustix::fs::openat(directory, ".", flags, Mode::empty())?;
    for entry in Dir::read_from(&open)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            relabel_at(&open, std::os::unix::ffi::OsStrExt::from_bytes(name), label, depth)?;
        }
    }
    Ok(())
}

/// A descriptor of this kind takes no attributes itself, but the name that /proc has for it leads to just its file.
fn set(file: &OwnedFd, label: &str) -> io::Result<()> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let mut present = [0; 256];
    let known = rustix::fs::getxattr(path.as_str(), ATTRIBUTE, &mut present[..]);
    if known.is_ok_and(|length| {
        present[..length].strip_suffix(b"\0").unwrap_or(&present[..length]) == label.as_bytes()
    }) {
        return Ok(());
    }
    match rustix::fs::setxattr(path.as_str(), ATTRIBUTE, label.as_bytes(), XattrFlags::empty()) {
        Err(Errno::OPNOTSUPP | Errno::NOENT) => Ok(()),
        other => Ok(other?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LABEL: &str = "system_u:object_r:container_file_t:s0:c1,c2";

    fn label(path: &Path) -> Option<String> {
        let mut value = [0; 256];
        let length = rustix::fs::lgetxattr(path, ATTRIBUTE, &mut value[..]).ok()?;
        Some(String::from_utf8_lossy(&value[..length]).into_owned())
    }

    /// Where SELinux is off the kernel keeps its attribute like any other.
    #[test]
    fn a_tree_is_labelled_and_links_lead_nowhere() {
        let top = tempfile::tempdir().unwrap();
        let (tree, outside) = (top.path().join("tree"), top.path().join("outside"));
        std::fs::create_dir_all(tree.join("a/b")).unwrap();
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(tree.join("a/b/file"), "").unwrap();
        std::fs::write(outside.join("file"), "").unwrap();
        std::os::unix::fs::symlink(&outside, tree.join("link")).unwrap();
        let before = label(&outside);
        let probe = rustix::fs::setxattr(&tree, ATTRIBUTE, b"x", XattrFlags::empty());
        if probe.is_err() {
            eprintln!("SKIP a_tree_is_labelled: no security attributes can be set here: {probe:?}");
            assert!(std::env::var_os("E2E_REQUIRE").is_none(), "{probe:?}");
            return;
        }
        relabel(&tree, LABEL).unwrap();
        relabel(&tree, LABEL).unwrap();
        for path in ["", "a", "a/b", "a/b/file", "link"] {
            assert_eq!(label(&tree.join(path)).as_deref(), Some(LABEL), "{path}");
        }
        assert_eq!((label(&outside), label(&outside.join("file"))), (before.clone(), before));
        relabel(&top.path().join("absent"), LABEL).unwrap();
    }

    #[test]
    fn a_tree_that_is_too_deep_is_refused() {
        let top = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(top.path().join("a/b/c")).unwrap();
        assert!(relabel_at(CWD, top.path().as_os_str(), LABEL, 3).is_err());
    }
}
