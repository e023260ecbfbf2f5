//! Kills everything in a cgroup, forks included. Blocks; for use beside the async threads.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use super::{Cgroup, CgroupError, Layout, write};

impl Cgroup {
    /// Kills every process of this cgroup and its descendants and waits, up to `patience`, until none is left.
    ///
    /// v2 has `cgroup.kill`; elsewhere the cgroup is frozen, so that nothing forks or leaves, killed and thawed
    /// until it is empty. A cgroup that is gone is fine. Thaws what a killed predecessor left frozen.
    pub fn kill_all(&self, patience: Duration) -> Result<(), CgroupError> {
        self.refuse_root()?;
        let deadline = Instant::now() + patience;
        let mut pause = Duration::from_millis(1);
        let freezer = Freezer::of(self);
        loop {
            match self.kill_at_once() {
                Ok(true) => {}
                Ok(false) => self.kill_each(freezer.as_ref())?,
                Err(source) => return Err(self.failed("killing", source)),
            }
            let left = self.procs()?;
            if left.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(CgroupError::Busy { path: self.path().clone(), left });
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    /// Whether the kernel did it.
    fn kill_at_once(&self) -> io::Result<bool> {
        let Layout::V2 { mount } = self.layout() else { return Ok(false) };
        match write(&self.path().below(mount).join("cgroup.kill"), "1") {
            Ok(()) => Ok(true),
            Err(error) if is_absent(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn kill_each(&self, freezer: Option<&Freezer>) -> Result<(), CgroupError> {
        let _frozen = freezer.map(Freezer::freeze);
        for process in self.procs()? {
            if process != rustix::process::getpid() {
                let _ = rustix::process::kill_process(process, Signal::KILL);
            }
        }
        Ok(())
    }

    /// The processes of this cgroup and its descendants in all hierarchies, sorted.
    pub fn procs(&self) -> Result<Vec<Pid>, CgroupError> {
        let mut all = Vec::new();
        for root in self.dirs() {
            for dir in descendants(&root).map_err(|source| self.failed("walking", source))? {
                match std::fs::read_to_string(dir.join("cgroup.procs")) {
                    Ok(text) => all.extend(text.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?))),
                    // Processes of a threaded cgroup are listed by its domain.
                    Err(error) if is_absent(&error) || error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
                    Err(source) => return Err(self.failed("listing processes of", source)),
                }
            }
        }
        all.sort_unstable_by_key(|pid| pid.as_raw_nonzero());
        all.dedup();
        Ok(all)
    }
}

/// The file that stops all tasks of a cgroup.
struct Freezer {
    file: PathBuf,
    words: [&'static str; 2],
}

/// Thaws on drop.
struct Frozen<'a>(&'a Freezer);

impl Freezer {
    fn of(cgroup: &Cgroup) -> Option<Self> {
        let dir = cgroup.dir("freezer")?;
        Some(match cgroup.layout() {
            Layout::V2 { .. } => Self { file: dir.join("cgroup.freeze"), words: ["1", "0"] },
            Layout::V1 { .. } => Self { file: dir.join("freezer.state"), words: ["FROZEN", "THAWED"] },
        })
    }

    /// Best effort: a task in the kernel may be a while, and is killed all the same.
    fn freeze(&self) -> Frozen<'_> {
        let _ = write(&self.file, self.words[0]);
        Frozen(self)
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        let _ = write(&self.0.file, self.0.words[1]);
    }
}

/// A directory and all below it, parents first; empty when it is gone.
pub(super) fn descendants(root: &Path) -> io::Result<Vec<PathBuf>> {
    /// More is not a container's doing by accident.
    const LIMIT: usize = 1 << 16;
    let mut all = vec![root.to_path_buf()];
    let mut next = 0;
    while let Some(dir) = all.get(next).cloned() {
        match std::fs::read_dir(&dir) {
            Ok(entries) => {
                for entry in entries {
                    let Ok(entry) = entry else { continue };
                    if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                        all.push(entry.path());
                    }
                }
                next += 1;
            }
            Err(error) if is_absent(&error) => drop(all.remove(next)),
            Err(error) => return Err(error),
        }
        if all.len() > LIMIT {
            return Err(io::Error::other(format!("more than {LIMIT} cgroups")));
        }
    }
    Ok(all)
}

/// What the kernel says of a cgroup that is gone.
pub(super) fn is_absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}
