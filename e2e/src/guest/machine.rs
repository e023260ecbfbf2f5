//! The virtual machine: boots a system with a job, follows it to its end, and is ended by pid whatever happens.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::ChildStdout;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::job::Event;
use super::root::Root;
use crate::exec::{Program, Running};

/// What the guest gets of the machine.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Emulated processors, each a thread here.
    pub processors: u32,
    /// Memory, in MiB.
    pub memory_mib: u32,
}

/// The guest's first process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Init {
    /// The harness's own, which starts nothing but the job.
    Own,
    /// systemd, which starts the job as a service.
    Systemd,
    /// The harness's own, on a kernel with SELinux in AppArmor's place.
    OwnWithSelinux,
}

/// What is booted.
#[derive(Clone, Copy, Debug)]
pub struct Boot<'a> {
    /// The system.
    pub root: &'a Root,
    /// The disk with the job.
    pub job: &'a Path,
    /// Its first process.
    pub init: Init,
    /// What it gets of the machine.
    pub size: Size,
}

/// A running guest.
pub struct Machine<'a> {
    running: Running,
    events: Receiver<Event>,
    console: &'a Path,
}

impl<'a> Machine<'a> {
    /// Boots. Kernel messages go to the file `console`.
    pub fn boot(boot: Boot<'_>, console: &'a Path) -> Result<Self> {
        let mut running = emulator(boot, console).start_piped()?;
        let output = running.child.stdout.take().context("the emulator has no output")?;
        Ok(Self { running, events: follow(output), console })
    }

    /// Gives each event to `told` until the guest is done; past the deadline, or when it ends early, that is an error
    /// with the end of its console.
    pub fn finish(mut self, deadline: Duration, mut told: impl FnMut(&Event)) -> Result<()> {
        let end = Instant::now() + deadline;
        loop {
            match self.events.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(Event::Done) => break,
                Ok(Event::Broken { reason }) => bail!("the guest broke: {reason}\n{}", self.console_tail()),
                Ok(event) => told(&event),
                Err(RecvTimeoutError::Timeout) => {
                    bail!("the guest was not done within {deadline:?}\n{}", self.console_tail())
                }
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("the guest ended early\n{}", self.console_tail())
                }
            }
        }
        // It powers off by itself; when it does not, dropping it ends it.
        let _ = self.running.wait(Duration::from_secs(20));
        Ok(())
    }

    fn console_tail(&self) -> String {
        let text = std::fs::read(self.console).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

/// The emulator, which goes when the caller goes. Disks keep nothing of what the guest writes.
fn emulator(boot: Boot<'_>, console: &Path) -> Program {
    let Boot { root, job, init, size } = boot;
    let disk = |path: &Path, id: &str| {
        format!("file={},format=raw,if=none,id={id},snapshot=on,cache=unsafe", path.display())
    };
    Program::new("setpriv")
        .args(["--pdeathsig", "KILL", "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot"])
        .args(["-display", "none", "-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max"])
        .args(["-smp", &size.processors.to_string(), "-m", &size.memory_mib.to_string()])
        .arg("-kernel")
        .arg(&root.kernel)
        .args(["-append", &command_line(init)])
        .args(["-serial", &format!("file:{}", console.display()), "-serial", "stdio"])
        .args(["-drive", &disk(&root.image, "root"), "-drive", &disk(job, "job")])
        .args(["-device", "nvme,id=disks,serial=berth"])
        .args([
            "-device",
            "nvme-ns,bus=disks,nsid=1,drive=root",
            "-device",
            "nvme-ns,bus=disks,nsid=2,drive=job",
        ])
        .env("TMPDIR", console.parent().unwrap_or(Path::new("/tmp")))
}

/// The system knows nothing of jobs: the kernel's command line says how the first process is found.
fn command_line(init: Init) -> String {
    let kernel = "root=/dev/nvme0n1 rootfstype=ext4 rw console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable \
                  no_timer_check cryptomgr.notests raid=noautodetect";
    let first = match init {
        Init::Own | Init::OwnWithSelinux => "/job/vminit",
        Init::Systemd => "/lib/systemd/systemd --unit=job.service --log-level=notice",
    };
    let module = if init == Init::OwnWithSelinux { "security=selinux enforcing=1 " } else { "" };
    let mounts = "mount -t devtmpfs dev /dev; mount -t ext4 /dev/nvme0n2 /job";
    format!("{kernel} {module}init=/bin/sh -- -c \"{mounts} && exec {first}\"")
}

/// Reads events on a thread of its own. What is no event is shown: it can only be the emulator's.
fn follow(output: ChildStdout) -> Receiver<Event> {
    let (tell, events) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line);
            match serde_json::from_str(line.trim_end()) {
                Ok(event) => {
                    if tell.send(event).is_err() {
                        return;
                    }
                }
                Err(_) => eprintln!("guest: {line}"),
            }
        }
    });
    events
}
