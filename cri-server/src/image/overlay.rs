//! Root file systems: layer directories stacked by overlayfs, with a writable directory on top or none.
//!
//! Knows directories only. The mount is made detached and complete, then attached: nobody sees it half made.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, OpenTreeFlags, UnmountFlags,
};

use super::error::ImageError;
use super::unpack::attributes::{Attributes, is_opaque_path};
use crate::host::idmap::{self, Depth, UserNamespace};
use crate::model::id_range::IdRange;

const OPEN_DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// Longest value of one mount parameter; a longer path is given by descriptor.
const MAX_VALUE: usize = 255;
/// Longest option string of mount(2).
const MAX_OPTIONS: usize = 4095;

/// A root file system to be mounted.
#[derive(Debug, Clone, Copy)]
pub struct Overlay<'a> {
    /// Layer directories, bottom to top. One that occurs twice counts where it is on top.
    pub layers: &'a [PathBuf],
    /// An empty directory, for what overlayfs cannot do with fewer layers.
    pub empty: &'a Path,
    /// Where changes go; without it the mount is read-only.
    pub writable: Option<Writable<'a>>,
    /// Owners in a user namespace; without it the files have those of the image.
    pub owners: Option<Owners<'a>>,
    /// SELinux label of all its files.
    pub label: Option<&'a str>,
}

/// Ids of a user namespace.
#[derive(Debug, Clone, Copy)]
pub struct Owners<'a> {
    /// The namespace, which layers are shown through.
    pub namespace: &'a UserNamespace,
    /// Its ids, which files of the writable layer have on disk.
    pub ids: IdRange,
}

/// Directories of a container's own layer, on one file system.
#[derive(Debug, Clone, Copy)]
pub struct Writable<'a> {
    /// Holds what the container changes.
    pub upper: &'a Path,
    /// Scratch space of overlayfs.
    pub work: &'a Path,
}

impl Overlay<'_> {
    /// Makes the directories of a new container's layer. The root directory is that of the image: what is on top
    /// decides, and later it is the container's own.
    pub fn create_writable(&self) -> Result<(), ImageError> {
        let Some(writable) = self.writable else { return Ok(()) };
        let fail = |e| ImageError::io(format!("making {}", writable.upper.display()), e);
        for path in [writable.upper, writable.work] {
            std::fs::create_dir(path).map_err(fail)?;
        }
        let open =
            |path: &Path| rustix::fs::open(path, OPEN_DIRECTORY, Mode::empty()).map_err(|e| fail(e.into()));
        let mut attributes = match self.layers.last() {
            Some(top) => Attributes::of(open(top)?).map_err(fail)?,
            None => Attributes::default(),
        };
        if let Some(Owners { ids, .. }) = self.owners {
            // An owner that the namespace does not have gives way to its root.
            attributes.uid = ids.on_node(attributes.uid).unwrap_or(ids.first);
            attributes.gid = ids.on_node(attributes.gid).unwrap_or(ids.first);
        }
        let upper = open(writable.upper)?;
        attributes.apply(&upper).and_then(|()| attributes.apply_times(&upper)).map_err(fail)
    }

    /// Mounts it over the directory `target`.
    pub fn mount(&self, target: &Path) -> Result<(), ImageError> {
        let lower = self.lower();
        let mounted = match self.owners {
            Some(owners) => self.through(owners, &lower).map(Some),
            None => WAYS.mount(
                || self.make_by_parameters(&lower).map(Some),
                || self.mount_by_options(&lower, target).map(|()| None),
            ),
        };
        let mounted = mounted.and_then(|made| made.map_or(Ok(()), |mount| idmap::attach(mount, target)));
        mounted.map_err(|e| ImageError::io(format!("mounting an overlay over {}", target.display()), e))
    }

    /// Whether this kernel can show layers with the owners asked for. Nothing is mounted.
    pub fn probe(&self) -> io::Result<()> {
        self.owners.map_or(Ok(()), |owners| self.through(owners, &self.lower()).map(drop))
    }

    /// A detached mount of layers that are shown through a user namespace.
    fn through(&self, owners: Owners<'_>, lower: &[&Path]) -> io::Result<OwnedFd> {
        idmap::in_private_mounts(|| {
            for layer in lower {
                let shown = idmap::copy(layer, Depth::One, owners.namespace, MountPropagationFlags::PRIVATE)?;
                // Attached in its own place it is found under its own path.
                idmap::attach(shown, layer)?;
            }
            let by_options = || {
                self.mount_by_options(lower, self.empty)?;
                let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
                Ok(rustix::mount::open_tree(CWD, self.empty, flags)?)
            };
            WAYS.mount(|| self.make_by_parameters(lower), by_options)
        })
    }

    /// Topmost first, each once, as many as overlayfs wants.
    fn lower(&self) -> Vec<&Path> {
        let mut lower: Vec<&Path> = Vec::with_capacity(self.layers.len() + 1);
        for layer in self.layers.iter().rev() {
            if !lower.contains(&layer.as_path()) {
                lower.push(layer);
            }
            // Overlayfs merges root directories whatever they say.
            if is_opaque_path(layer) {
                break;
            }
        }
        if lower.is_empty() || (lower.len() == 1 && self.writable.is_none()) {
            lower.push(self.empty);
        }
        lower
    }

    fn make_by_parameters(&self, lower: &[&Path]) -> Result<OwnedFd, Errno> {
        let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        let set = |key: &str, value: &str| rustix::mount::fsconfig_set_string(&context, key, value);
        set("source", "overlay")?;
        let mut opened = Vec::new();
        for directory in lower {
            set_path(&context, "lowerdir+", directory, &mut opened)?;
        }
        if let Some(writable) = self.writable {
            set_path(&context, "upperdir", writable.upper, &mut opened)?;
            set_path(&context, "workdir", writable.work, &mut opened)?;
        }
        // An index would bind the upper directory to these layers, which an upgrade may move.
        set("index", "off")?;
        self.label.map_or(Ok(()), |label| set("context", label))?;
        rustix::mount::fsconfig_create(&context)?;
        let attributes = match self.writable {
            Some(_) => MountAttrFlags::empty(),
            None => MountAttrFlags::MOUNT_ATTR_RDONLY,
        };
        rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
    }

    /// Descriptors stand for the paths: they are short and hold no separators.
    #[allow(clippy::disallowed_methods, reason = "this module owns the mounts of root file systems")]
    fn mount_by_options(&self, lower: &[&Path], target: &Path) -> io::Result<()> {
        let mut opened = Vec::new();
        let mut name = |path: &Path| -> Result<String, Errno> {
            opened.push(open(path)?);
            Ok(opened.last().map(descriptor_path).unwrap_or_default())
        };
        let names: Vec<_> = lower.iter().map(|path| name(path)).collect::<Result<_, _>>()?;
        let mut options = format!("index=off,lowerdir={}", names.join(":"));
        let mut flags = MountFlags::RDONLY;
        if let Some(writable) = self.writable {
            options += &format!(",upperdir={},workdir={}", name(writable.upper)?, name(writable.work)?);
            flags = MountFlags::empty();
        }
        if let Some(label) = self.label {
            if label.contains('"') {
                return Err(io::Error::other(format!("{label:?} is no SELinux label")));
            }
            options += &format!(",context=\"{label}\"");
        }
        if options.len() > MAX_OPTIONS {
            let text = format!("{} layers are more than this kernel can stack", lower.len());
            return Err(io::Error::other(text));
        }
        let options = CString::new(options).map_err(io::Error::other)?;
        Ok(rustix::mount::mount("overlay", target, "overlay", flags, options.as_c_str())?)
    }
}

static WAYS: Ways = Ways { knows_no_parameters: AtomicBool::new(false) };

/// Which way to mount this kernel takes. One before 6.5 knows no parameter for a single lower directory, and writes a
/// line into its log for each try.
#[derive(Debug)]
struct Ways {
    knows_no_parameters: AtomicBool,
}

impl Ways {
    /// Mounts by parameters, or else by options. Where only options would do, nothing else is tried again.
    fn mount<T>(
        &self,
        by_parameters: impl FnOnce() -> Result<T, Errno>,
        by_options: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        if self.knows_no_parameters.load(Ordering::Relaxed) {
            return by_options();
        }
        match by_parameters() {
            Err(Errno::INVAL | Errno::NOSYS) => {
                let mounted = by_options()?;
                self.knows_no_parameters.store(true, Ordering::Relaxed);
                Ok(mounted)
            }
            made => Ok(made?),
        }
    }
}

/// Takes a root file system away; succeeds when none is there. A busy one is detached and goes with its last user.
#[allow(clippy::disallowed_methods, reason = "this module owns the mounts of root file systems")]
pub fn unmount(target: &Path) -> Result<(), ImageError> {
    match rustix::mount::unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        other => other.map_err(|e| ImageError::io(format!("unmounting {}", target.display()), e)),
    }
}

fn set_path(context: impl AsFd, key: &str, path: &Path, opened: &mut Vec<OwnedFd>) -> Result<(), Errno> {
    if path.as_os_str().len() <= MAX_VALUE {
        return rustix::mount::fsconfig_set_string(context, key, path);
    }
    let fd = open(path)?;
    let name = descriptor_path(&fd);
    opened.push(fd);
    rustix::mount::fsconfig_set_string(context, key, name)
}

fn open(path: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

fn descriptor_path(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

#[cfg(test)]
#[allow(unsafe_code)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_parameters_is_asked_once() {
        let ways = Ways { knows_no_parameters: AtomicBool::new(false) };
        let mut asked = 0;
        let mut mount = |parameters: Result<(), Errno>, options: Result<(), Errno>| {
            let by_parameters = || {
                asked += 1;
                parameters
            };
            let mounted = ways.mount(by_parameters, || Ok(options?));
            (mounted.is_ok(), std::mem::take(&mut asked))
        };
        let (invalid, busy) = (Err(Errno::INVAL), Err(Errno::BUSY));
        assert_eq!(mount(Ok(()), busy), (true, 1));
        assert_eq!(mount(busy, Ok(())), (false, 1), "no question of the way");
        assert_eq!(mount(invalid, busy), (false, 1), "wrong layers are so both ways");
        assert_eq!(mount(invalid, Ok(())), (true, 1));
        assert_eq!(mount(Ok(()), Ok(())), (true, 0));
        assert_eq!(mount(Ok(()), busy), (false, 0));
    }

    /// What kernels without `lowerdir+` get must be the same.
    #[test]
    fn both_ways_to_mount_show_the_same() {
        if !rustix::process::geteuid().is_root() {
            assert!(std::env::var_os("E2E_REQUIRE").is_none_or(|v| v != "1"), "this test needs root");
            eprintln!("SKIPPED: this test needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| -> PathBuf { dir.path().join(name) };
        for name in ["a", "b", "empty", "target"] {
            std::fs::create_dir(path(name)).unwrap();
        }
        std::fs::write(path("a").join("x"), "lower").unwrap();
        std::fs::write(path("b").join("x"), "upper").unwrap();
        let (layers, empty, target) = ([path("a"), path("b"), path("a")], path("empty"), path("target"));
        let (upper, work) = (path("upper"), path("work"));
        let writable = Some(Writable { upper: &upper, work: &work });
        let mounts = || {
            // SAFETY: only this thread's view of mounts changes.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNS) }, 0);
            let private =
                rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC;
            rustix::mount::mount_change("/", private).unwrap();
            let read_only =
                Overlay { layers: &layers, empty: &empty, writable: None, owners: None, label: None };
            read_only.mount_by_options(&read_only.lower(), &target).unwrap();
            assert_eq!(std::fs::read(target.join("x")).unwrap(), b"lower");
            assert!(std::fs::write(target.join("x"), "").is_err());
            unmount(&target).unwrap();
            let both = Overlay { writable, ..read_only };
            both.create_writable().unwrap();
            for mount in [Overlay::mount_by_options, |o: &Overlay<'_>, l: &[&Path], t: &Path| {
                idmap::attach(o.make_by_parameters(l)?, t)
            }] {
                mount(&both, &both.lower(), &target).unwrap();
                std::fs::write(target.join("x"), "changed").unwrap();
                unmount(&target).unwrap();
                assert_eq!(std::fs::read(upper.join("x")).unwrap(), b"changed");
            }
        };
        std::thread::scope(|scope| scope.spawn(mounts).join().unwrap());
    }
}
