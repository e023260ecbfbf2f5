//! SELinux on this node: whether it is on, what its policy gives containers, and giving files a label.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, ResolveFlags, XattrFlags};
use rustix::io::Errno;

use crate::spec::selinux::Contexts;

const ATTRIBUTE: &str = "security.selinux";
/// Where the kernel tells of its policy.
const KERNEL: &str = "/sys/fs/selinux";
/// How a file is held whose label is to change: links are not followed, and nothing else is done to it.
const FOUND: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Deepest directory that is gone into.
const DEPTH: usize = 256;

/// What the policy gives containers. `None` where SELinux is off, or its policy has nothing for containers.
pub fn contexts() -> Option<Contexts> {
    if !Path::new(KERNEL).join("enforce").exists() {
        return None;
    }
    let config = std::fs::read_to_string("/etc/selinux/config").unwrap_or_default();
    let policy = config.lines().filter_map(|line| line.trim().strip_prefix("SELINUXTYPE=")).next_back();
    let path =
        Path::new("/etc/selinux").join(policy.unwrap_or("targeted").trim()).join("contexts/lxc_contexts");
    let named = std::fs::read_to_string(&path).ok().and_then(|text| Contexts::parse(&text));
    // Where the kernel cannot be asked, pods are refused: better than pods that nothing confines.
    let known = |labels: &[String; 3]| labels.iter().all(|label| !matches!(canonical(label), Ok(None)));
    let found = named.filter(|contexts| known(&contexts.labels()));
    if found.is_none() {
        tracing::warn!(path = %path.display(), "SELinux is on, but its policy has no labels for containers");
    }
    found
}

/// A label as the kernel spells it, categories in order. `None` when the policy knows no such label.
pub fn canonical(label: &str) -> io::Result<Option<String>> {
    let mut asked = File::options().read(true).write(true).open(Path::new(KERNEL).join("context"))?;
    match asked.write(label.as_bytes()) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(None),
        other => other?,
    };
    let mut answer = String::new();
    asked.read_to_string(&mut answer)?;
    Ok(Some(answer.trim_end_matches('\0').to_owned()))
}

/// Gives everything below `path`, and it last, this label. What goes away meanwhile is none of ours, and what can have
/// no label keeps none. Links are labelled, never followed. Blocks.
pub fn relabel(path: &Path, label: &str) -> io::Result<()> {
    relabel_at(CWD.as_fd(), path.as_os_str(), label, DEPTH)
}

/// As [`relabel`], unless `path` has the label: it gets it last, and what is made in it later has its type. Blocks.
pub fn relabel_once(path: &Path, label: &str) -> io::Result<()> {
    let done = rustix::fs::openat(CWD, path, FOUND, Mode::empty()).is_ok_and(|found| has(&found, label));
    if done { Ok(()) } else { relabel(path, label) }
}

/// As [`relabel_once`], for each entry of a directory and last the directory itself: an attempt that is cut off goes on
/// where it was. Blocks.
pub fn relabel_each_once(top: &Path, label: &str) -> io::Result<()> {
    let label = canonical(label).ok().flatten().unwrap_or_else(|| label.to_owned());
    let found = rustix::fs::openat(CWD, top, FOUND, Mode::empty())?;
    if has(&found, &label) {
        return Ok(());
    }
    for entry in std::fs::read_dir(top)? {
        relabel_once(&entry?.path(), &label)?;
    }
    set(&found, &label)
}

/// As [`relabel`], for a path that had no link in it when it was judged: one that has by now is an error. Blocks.
pub fn relabel_resolved(path: &Path, label: &str) -> io::Result<()> {
    let found = rustix::fs::openat2(CWD, path, FOUND, Mode::empty(), ResolveFlags::NO_SYMLINKS)?;
    relabel_found(&found, label, DEPTH)
}

fn relabel_at(parent: impl AsFd, name: &OsStr, label: &str, depth: usize) -> io::Result<()> {
    match rustix::fs::openat(&parent, name, FOUND, Mode::empty()) {
        Err(Errno::NOENT) => Ok(()),
        found => relabel_found(&found?, label, depth),
    }
}

fn relabel_found(found: &OwnedFd, label: &str, depth: usize) -> io::Result<()> {
    if FileType::from_raw_mode(rustix::fs::fstat(found)?.st_mode) == FileType::Directory {
        relabel_below(found, label, depth)?;
    }
    set(found, label)
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
fn name_of(file: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

fn has(file: &OwnedFd, label: &str) -> bool {
    let mut present = [0; 256];
    let known = rustix::fs::getxattr(name_of(file).as_str(), ATTRIBUTE, &mut present[..]);
    known.is_ok_and(|length| {
        present[..length].strip_suffix(b"\0").unwrap_or(&present[..length]) == label.as_bytes()
    })
}

fn set(file: &OwnedFd, label: &str) -> io::Result<()> {
    if has(file, label) {
        return Ok(());
    }
    match rustix::fs::setxattr(name_of(file).as_str(), ATTRIBUTE, label.as_bytes(), XattrFlags::empty()) {
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
        assert!(relabel_resolved(&tree.join("link/file"), LABEL).is_err());
        relabel_resolved(&std::fs::canonicalize(tree.join("link/file")).unwrap(), LABEL).unwrap();
        assert_eq!(label(&outside.join("file")).as_deref(), Some(LABEL));
    }

    #[test]
    fn a_tree_that_is_too_deep_is_refused() {
        let top = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(top.path().join("a/b/c")).unwrap();
        assert!(relabel_at(CWD, top.path().as_os_str(), LABEL, 3).is_err());
    }
}
