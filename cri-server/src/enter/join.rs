//! The container's cgroups and namespaces.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::thread::ThreadNameSpaceType;

use super::arguments::Arguments;
use super::sys;
use crate::spec::oci::NamespaceKind;

/// Kinds, but that of users.
const KINDS: [(NamespaceKind, ThreadNameSpaceType); 6] = [
    (NamespaceKind::Mount, ThreadNameSpaceType::MOUNT),
    (NamespaceKind::Pid, ThreadNameSpaceType::PROCESS_ID),
    (NamespaceKind::Network, ThreadNameSpaceType::NETWORK),
    (NamespaceKind::Ipc, ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION),
    (NamespaceKind::Uts, ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME),
    (NamespaceKind::Cgroup, ThreadNameSpaceType::CONTROL_GROUP),
];

/// Files that take a process into the container's cgroup, of the hierarchies in which it has one.
pub fn open_cgroups(directories: &[PathBuf], main: i32) -> Result<Vec<File>, String> {
    let mut files = Vec::new();
    for directory in directories {
        let path = place(directory, main).join("cgroup.procs");
        match File::options().write(true).open(&path) {
            Ok(file) => files.push(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(format!("opening {}: {error}", path.display())),
        }
    }
    if files.is_empty() && !directories.is_empty() {
        return Err("the container has no cgroup any more".into());
    }
    Ok(files)
}

/// Fails where the container is frozen: what is moved there would wait.
pub fn refuse_frozen(directories: &[PathBuf]) -> Result<(), String> {
    let says = |directory: &Path, file: &str, frozen: fn(&str) -> bool| {
        std::fs::read_to_string(directory.join(file)).is_ok_and(|text| frozen(&text))
    };
    let is_frozen = |directory: &PathBuf| {
        says(directory, "cgroup.events", |text| text.lines().any(|line| line == "frozen 1"))
            || says(directory, "cgroup.freeze", |text| text.trim() == "1")
            || says(directory, "freezer.state", |text| text.trim() != "THAWED")
    };
    match directories.iter().any(is_frozen) {
        true => Err("cannot exec in a paused container".into()),
        false => Ok(()),
    }
}

/// Where processes can be: on version 2 not where controllers are passed on to cgroups below; a container that does
/// so has moved its main process down, and the command goes there too.
fn place(directory: &Path, main: i32) -> PathBuf {
    let passed_on = std::fs::read_to_string(directory.join("cgroup.subtree_control")).unwrap_or_default();
    if passed_on.trim().is_empty() {
        return directory.to_owned();
    }
    let cgroups = std::fs::read_to_string(format!("/proc/{main}/cgroup")).unwrap_or_default();
    let unified = cgroups.lines().find_map(|line| line.strip_prefix("0::"));
    unified.and_then(|path| below(directory, Path::new(path))).unwrap_or_else(|| directory.to_owned())
}

/// `directory` with what comes in `path` after the directory's name.
fn below(directory: &Path, path: &Path) -> Option<PathBuf> {
    let name = directory.file_name()?;
    let mut rest = path.iter();
    rest.by_ref().find(|part| *part == name)?;
    Some(directory.join(rest.as_path()))
}

/// Moves the process `pid` of this PID namespace.
pub fn move_into(cgroups: &[File], pid: i32) -> Result<(), String> {
    let pid = pid.to_string();
    let mut moved = cgroups.iter().map(|mut file| file.write_all(pid.as_bytes()));
    moved
        .find(Result::is_err)
        .unwrap_or(Ok(()))
        .map_err(|error| format!("joining the container's cgroup: {error}"))
}

/// Whose ids are in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Users {
    /// The node's.
    OfNode,
    /// Those of a user namespace.
    OfPod,
}

/// Joins the main process's namespaces of the container's kinds in one step; that of processes is for children only.
/// What a process that was told to share with the node has made for itself since is not joined, nor can be a user
/// namespace that is this process's own already.
pub fn namespaces(arguments: &Arguments, container: &[NamespaceKind]) -> Result<Users, String> {
    let main = arguments.pid;
    let mut kinds = KINDS
        .into_iter()
        .filter(|(kind, _)| container.contains(kind))
        .fold(ThreadNameSpaceType::empty(), |kinds, (_, kind)| kinds | kind);
    let mut users = Users::OfNode;
    if container.contains(&NamespaceKind::User) {
        let identity = |path: String| std::fs::metadata(path).map(|file| (file.dev(), file.ino()));
        let theirs = identity(format!("/proc/{main}/ns/user"));
        let theirs = theirs.map_err(|error| format!("the container's main process {main}: {error}"))?;
        if identity("/proc/self/ns/user".into()).ok() != Some(theirs) {
            kinds |= ThreadNameSpaceType::USER;
            users = Users::OfPod;
        }
    }
    let pidfd: BorrowedFd<'_> = sys::inherited(arguments.pidfd);
    rustix::thread::move_into_thread_name_spaces(pidfd, kinds)
        .map_err(|error| format!("joining the namespaces of the container's main process {main}: {error}"))?;
    Ok(users)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_goes_where_the_main_process_went() {
        let check = |path: &str, expect: Option<&str>| {
            let found = below(Path::new("/sys/fs/cgroup/pods/c1"), Path::new(path));
            assert_eq!(found.as_deref(), expect.map(Path::new), "{path}");
        };
        check("/pods/c1/init.scope", Some("/sys/fs/cgroup/pods/c1/init.scope"));
        check("/outer/pods/c1/a/b", Some("/sys/fs/cgroup/pods/c1/a/b"));
        check("/pods/c1", Some("/sys/fs/cgroup/pods/c1/"));
        check("/elsewhere", None);
    }
}
