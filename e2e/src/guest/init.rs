//! The guest's side: its first process mounts what a system needs and reaps; its child takes the job's steps. Where
//! systemd is the first process, a service takes them.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::Stdio;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::mount::{MountFlags, mount, mount_bind};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, wait};
use rustix::system::{RebootCommand, reboot};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

use super::job::{Event, FILE, FILES, Job, Step};
use super::selinux;
use crate::exec::Program;

/// Where the job's disk is mounted.
const DISK: &str = "/job";
/// The line on which the guest reports.
const LINE: &str = "/dev/ttyS1";
/// How long a step may say nothing before it is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// File systems of the guest: of which type, where, with which options.
const MOUNTS: [(&str, &str, &str); 9] = [
    ("proc", "/proc", ""),
    ("sysfs", "/sys", ""),
    ("devpts", "/dev/pts", "newinstance,ptmxmode=0666,mode=0620,gid=5"),
    ("tmpfs", "/dev/shm", ""),
    ("mqueue", "/dev/mqueue", ""),
    ("tmpfs", "/run", "mode=0755"),
    ("cgroup2", "/sys/fs/cgroup", "nsdelegate"),
    ("securityfs", "/sys/kernel/security", ""),
    ("bpf", "/sys/fs/bpf", ""),
];

/// The first process: mounts, starts the driver, reaps whatever loses its parent until the driver ends, powers off.
pub fn first() -> Result<()> {
    if let Err(error) = live() {
        let _ = Line::open().map(|line| line.say(&Event::Broken { reason: format!("{error:#}") }));
    }
    rustix::fs::sync();
    reboot(RebootCommand::PowerOff).context("power off")
}

fn live() -> Result<()> {
    mount_file_systems()?;
    let driver = Program::new("/proc/self/exe").arg("drive").start(Path::new("/run/driver.log"))?;
    loop {
        let ended = wait(WaitOptions::empty()).context("wait for children")?;
        let Some((_, status)) = ended.filter(|(pid, _)| *pid == driver.pid()) else { continue };
        // Reaped already.
        std::mem::forget(driver);
        let log = std::fs::read_to_string("/run/driver.log").unwrap_or_default();
        ensure!(status.exit_status() == Some(0), "the driver ended with {status:?}: {log}");
        return Ok(());
    }
}

#[allow(clippy::disallowed_methods, reason = "the guest's own mounts are made here")]
fn mount_file_systems() -> Result<()> {
    for (kind, point, options) in MOUNTS {
        std::fs::create_dir_all(point).with_context(|| format!("make {point}"))?;
        let options = std::ffi::CString::new(options)?;
        mount(kind, point, kind, MountFlags::empty(), options.as_c_str())
            .with_context(|| format!("mount {kind} at {point}"))?;
    }
    std::os::unix::fs::symlink("/proc/self/fd", "/dev/fd").context("make /dev/fd")
}

#[allow(clippy::disallowed_methods, reason = "the guest's own mounts are made here")]
fn bind_places(job: &Job) -> Result<()> {
    for place in &job.places {
        std::fs::create_dir_all(place)?;
        let source = Path::new(DISK).join(FILES).join(place.strip_prefix("/")?);
        mount_bind(source, place).with_context(|| format!("bind {}", place.display()))?;
    }
    Ok(())
}

fn job() -> Result<Job> {
    let text = std::fs::read(Path::new(DISK).join(FILE)).context("read the job")?;
    serde_json::from_slice(&text).context("take the job apart")
}

/// Takes the job's steps as a service of systemd, and powers off.
pub fn serve() -> Result<()> {
    if let Err(error) = drive() {
        Line::open()?.say(&Event::Broken { reason: format!("{error:#}") })?;
    }
    rustix::fs::sync();
    reboot(RebootCommand::PowerOff).context("power off")
}

/// Takes the job's steps. Runs beside the first process, so that it may wait for its own children.
pub fn drive() -> Result<()> {
    let (job, line) = (job()?, Line::open()?);
    if job.selinux {
        selinux::load(&Path::new(DISK).join(selinux::FILE))?;
    }
    bind_places(&job)?;
    Program::new("ip").args(["link", "set", "lo", "up"]).ok()?;
    for step in &job.steps {
        line.say(&Event::Began { step: step.name.clone() })?;
        let began = Instant::now();
        let failure = take(step, &job, &line).err().map(|error| format!("{error:#}"));
        let seconds = began.elapsed().as_secs_f32();
        sweep()?;
        line.say(&Event::Ended { step: step.name.clone(), failure, seconds })?;
    }
    line.say(&Event::Done)
}

/// Ends whatever a step has left running: everything but the first process, this one and other services. The kernel's
/// own threads take no signals.
fn sweep() -> Result<()> {
    let own = [1, std::process::id()];
    let cgroup = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let own_cgroup = cgroup("self");
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let cgroup = cgroup(&name);
        if cgroup.contains("/system.slice/") && cgroup.contains(".service") && cgroup != own_cgroup {
            continue;
        }
        let pid = name.parse::<u32>().ok().filter(|pid| !own.contains(pid));
        if let Some(pid) = pid.and_then(|pid| Pid::from_raw(pid.cast_signed())) {
            let _ended_already = kill_process(pid, Signal::KILL);
        }
    }
    Ok(())
}

/// Runs one program and passes its output on.
fn take(step: &Step, job: &Job, line: &Line) -> Result<()> {
    let mut program = Program::new(&step.program).args(&step.args).dir(&step.dir);
    for (key, value) in job.env.iter().chain(&step.env) {
        program = program.env(key, value);
    }
    let (output, both) = std::io::pipe()?;
    let mut running = program.start_with(Stdio::null(), both.try_clone()?.into(), both.into())?;
    let output = lines_of(output);
    let deadline = Instant::now() + Duration::from_secs(step.deadline_s);
    while Instant::now() < deadline {
        match output.recv_timeout(LOOK) {
            Ok(text) => line.say(&Event::Line { text })?,
            Err(RecvTimeoutError::Disconnected) => break,
            // What it left behind may hold its output open.
            Err(RecvTimeoutError::Timeout) if running.alive().is_err() => break,
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
    let status = running.wait(deadline.saturating_duration_since(Instant::now()))?;
    ensure!(status.success(), "{status}");
    Ok(())
}

fn lines_of(output: impl std::io::Read + Send + 'static) -> Receiver<String> {
    let (tell, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            if tell.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                return;
            }
        }
    });
    lines
}

/// The serial line to the machine.
struct Line(File);

impl Line {
    fn open() -> Result<Self> {
        let file = File::options().read(true).write(true).open(LINE).context("open the serial line")?;
        let mut attributes = tcgetattr(&file)?;
        attributes.make_raw();
        tcsetattr(&file, OptionalActions::Now, &attributes)?;
        Ok(Self(file))
    }

    fn say(&self, event: &Event) -> Result<()> {
        let mut text = serde_json::to_vec(event)?;
        text.push(b'\n');
        (&self.0).write_all(&text).context("write to the serial line")
    }
}
