//! Makes the namespaces of a sandbox in one clone, configures them from inside and pins them by bind mounts.
//!
//! A user namespace gets its ids from outside, by the parent, before anything else is done in it.
//! Whatever fails, nothing stays.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::process::{Gid, Pid, PidfdFlags, Signal, Uid, WaitOptions};

use super::protocol::{Failure, FailureKind, NamespaceKind, PodSetup};
use super::{pod_init, sys, sysctl};
use crate::model::id_range::IdRange;

/// The namespaces of a sandbox, made and pinned. Undone when dropped, unless kept.
#[derive(Debug)]
pub struct Sandbox {
    pins: Vec<PathBuf>,
    init: Option<PodInit>,
}

/// The process that holds a pod's PID namespace.
#[derive(Debug)]
pub struct PodInit {
    /// Process id.
    pub pid: i32,
    /// To signal it.
    pub pidfd: OwnedFd,
}

/// Longest message of the child, bytes.
const REPORT: usize = 1024;

impl Sandbox {
    /// Makes what `setup` asks for.
    pub fn make(setup: &PodSetup) -> Result<Self, Failure> {
        check(setup)?;
        let mut sandbox = Self { pins: Vec::new(), init: None };
        if setup.namespaces.is_empty() {
            return Ok(sandbox);
        }
        let program = rustix::fs::open(
            "/proc/self/exe",
            rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )
        .map_err(|error| Failure::io("opening the monitor's own program", error))?;
        let (near, far) = socket_pair().map_err(|error| Failure::io("making a socket pair", error))?;
        let flags = setup.namespaces.iter().fold(0, |flags, new| flags | clone_flag(new.kind));
        match sys::fork_into(flags).map_err(|error| Failure::io("making the pod's namespaces", error))? {
            sys::Fork::Child => {
                drop(near);
                inside(setup, &far, &program)
            }
            sys::Fork::Parent(pid) => {
                drop(far);
                let child = Child { pid: Some(pid) };
                sandbox.adopt(setup, &near, child)?;
                Ok(sandbox)
            }
        }
    }

    /// Leaves the pins to the daemon, and gives the init.
    pub fn keep(mut self) -> Option<PodInit> {
        self.pins.clear();
        self.init.take()
    }

    /// Process id of the pod's init.
    pub fn init_pid(&self) -> Option<i32> {
        self.init.as_ref().map(|init| init.pid)
    }

    fn adopt(&mut self, setup: &PodSetup, near: &OwnedFd, mut child: Child) -> Result<(), Failure> {
        let pid = child.pid.expect("not waited for yet");
        if let Some(ids) = setup.ids {
            map_ids(pid, ids).map_err(|error| {
                Failure::io(format!("mapping the ids {ids} into the pod's user namespace"), error)
            })?;
            // A child that is dead by now does not report either.
            let _read = rustix::net::send(near, b"mapped", SendFlags::NOSIGNAL);
        }
        let report = receive(near);
        if report != b"ok" {
            let text = match report.is_empty() {
                true => "the process inside the new namespaces died".to_owned(),
                false => String::from_utf8_lossy(&report).into_owned(),
            };
            return Err(Failure::new(FailureKind::Internal, text));
        }
        for new in &setup.namespaces {
            self.pin(pid, new.kind, &new.pin).map_err(|error| {
                Failure::io(
                    format!("pinning the {} namespace at {}", file_name(new.kind), new.pin.display()),
                    error,
                )
            })?;
        }
        if setup.namespaces.iter().any(|new| new.kind == NamespaceKind::Pid) {
            let raw = Pid::from_raw(pid).expect("process ids are positive");
            let pidfd = rustix::process::pidfd_open(raw, PidfdFlags::empty())
                .map_err(|error| Failure::io("opening the pod's init", error))?;
            rustix::net::send(near, b"go", SendFlags::NOSIGNAL)
                .map_err(|error| Failure::io("releasing the pod's init", error))?;
            // The end of the stream says that the exec took place: the child's end is close-on-exec.
            let report = receive(near);
            if !report.is_empty() {
                return Err(Failure::new(
                    FailureKind::Internal,
                    String::from_utf8_lossy(&report).into_owned(),
                ));
            }
            child.pid = None;
            self.init = Some(PodInit { pid, pidfd });
        }
        Ok(())
    }

    fn pin(&mut self, pid: i32, kind: NamespaceKind, pin: &Path) -> io::Result<()> {
        if let Some(parent) = pin.parent() {
            std::fs::DirBuilder::new().recursive(true).mode(0o711).create(parent)?;
        }
        std::fs::OpenOptions::new().write(true).create_new(true).mode(0o444).open(pin)?;
        self.pins.push(pin.to_owned());
        Ok(rustix::mount::mount_bind(format!("/proc/{pid}/ns/{}", file_name(kind)), pin)?)
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        for pin in self.pins.iter().rev() {
            #[expect(clippy::disallowed_methods, reason = "pins are the monitor's own mounts")]
            let _not_mounted_yet = rustix::mount::unmount(pin, rustix::mount::UnmountFlags::DETACH);
            let _gone_already = std::fs::remove_file(pin);
        }
        if let Some(init) = self.init.take() {
            drop(Child { pid: Some(init.pid) });
        }
    }
}

/// A child of this process; killed and reaped when dropped.
struct Child {
    pid: Option<i32>,
}

impl Drop for Child {
    fn drop(&mut self) {
        let Some(pid) = self.pid.and_then(Pid::from_raw) else { return };
        let _ended_already = rustix::process::kill_process(pid, Signal::KILL);
        while let Err(Errno::INTR) = rustix::process::waitpid(Some(pid), WaitOptions::empty()) {}
    }
}

fn check(setup: &PodSetup) -> Result<(), Failure> {
    let invalid = |message: String| Err(Failure::new(FailureKind::InvalidArgument, message));
    let has = |kind| setup.namespaces.iter().any(|new| new.kind == kind);
    let mut kinds: Vec<_> = setup.namespaces.iter().map(|new| new.kind).collect();
    kinds.sort();
    kinds.dedup();
    if kinds.len() != setup.namespaces.len() {
        return invalid("a kind of namespace is asked for twice".into());
    }
    if setup.hostname.is_some() && !has(NamespaceKind::Uts) {
        return invalid("a host name needs a UTS namespace of the pod's own".into());
    }
    if setup.ids.is_some() != has(NamespaceKind::User) {
        return invalid("ids and a user namespace of the pod's own come together".into());
    }
    for name in setup.sysctls.keys() {
        if sysctl::path_of(name).is_none() {
            return invalid(format!("{name:?} is not the name of a sysctl"));
        }
        match sysctl::namespace_of(name) {
            None => return invalid(format!("sysctl {name} belongs to the whole node, not to a pod")),
            Some(kind) if !has(kind) => {
                return invalid(format!(
                    "sysctl {name} needs a {} namespace of the pod's own",
                    file_name(kind)
                ));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// What the child does: configure, report, wait for the pins, then become the init or end.
fn inside(setup: &PodSetup, far: &OwnedFd, program: &OwnedFd) -> ! {
    let report = |text: &str| {
        let end = text.floor_char_boundary(REPORT);
        rustix::net::send(far, &text.as_bytes()[..end], SendFlags::NOSIGNAL).is_ok()
    };
    if setup.ids.is_some() && receive(far) != b"mapped" {
        sys::exit_now(1);
    }
    if let Err(message) = configure(setup) {
        report(&message);
        sys::exit_now(1);
    }
    if report("ok") && receive(far) == b"go" {
        let error = sys::exec(program, pod_init::NAME);
        report(&format!("executing the pod's init: {error}"));
    }
    sys::exit_now(1)
}

fn configure(setup: &PodSetup) -> Result<(), String> {
    if let Some(hostname) = &setup.hostname {
        rustix::system::sethostname(hostname.as_bytes())
            .map_err(|error| format!("setting the host name {hostname:?}: {error}"))?;
    }
    if setup.namespaces.iter().any(|new| new.kind == NamespaceKind::Net) {
        sys::loopback_up().map_err(|error| format!("setting the loopback interface up: {error}"))?;
    }
    let mut refused = BTreeMap::new();
    for (name, value) in &setup.sysctls {
        match set_sysctl(name, value) {
            Err(_) if setup.ids.is_some() => drop(refused.insert(name, value)),
            done => done?,
        }
    }
    if setup.ids.is_some() {
        become_root().map_err(|error| format!("becoming root of the pod's user namespace: {error}"))?;
    }
    // Some belong to the node's root, others to the root of the user namespace that owns theirs.
    refused.into_iter().try_for_each(|(name, value)| set_sysctl(name, value))?;
    // Last: a change of user takes it back.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|error| format!("tying the pod's init to the monitor: {error}"))
}

fn set_sysctl(name: &str, value: &str) -> Result<(), String> {
    let path = sysctl::path_of(name).ok_or_else(|| format!("{name:?} is not the name of a sysctl"))?;
    std::fs::write(path, value).map_err(|error| format!("setting sysctl {name} to {value:?}: {error}"))
}

fn map_ids(pid: i32, ids: IdRange) -> io::Result<()> {
    let line = format!("{ids}\n");
    ["uid_map", "gid_map"].iter().try_for_each(|file| std::fs::write(format!("/proc/{pid}/{file}"), &line))
}

/// The node's root is nobody in a user namespace, and must not be a process of the pod.
fn become_root() -> Result<(), Errno> {
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)?;
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)
}

fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

fn receive(socket: impl AsFd) -> Vec<u8> {
    let mut buffer = [0; REPORT];
    loop {
        match rustix::net::recv(&socket, &mut buffer, RecvFlags::empty()) {
            Ok((count, _)) => return buffer[..count].to_vec(),
            Err(Errno::INTR) => {}
            Err(_) => return Vec::new(),
        }
    }
}

fn clone_flag(kind: NamespaceKind) -> u64 {
    let flag = match kind {
        NamespaceKind::Net => libc::CLONE_NEWNET,
        NamespaceKind::Ipc => libc::CLONE_NEWIPC,
        NamespaceKind::Uts => libc::CLONE_NEWUTS,
        NamespaceKind::Pid => libc::CLONE_NEWPID,
        NamespaceKind::User => libc::CLONE_NEWUSER,
    };
    flag as u64
}

fn file_name(kind: NamespaceKind) -> &'static str {
    match kind {
        NamespaceKind::Net => "net",
        NamespaceKind::Ipc => "ipc",
        NamespaceKind::Uts => "uts",
        NamespaceKind::Pid => "pid",
        NamespaceKind::User => "user",
    }
}
