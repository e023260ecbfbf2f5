//! Where a test runs: a private mount namespace, a directory, a root file system of busybox, cgroups of its own.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cri_server::host::monitor::{
    ContainerCgroup, CreateContainer, Event, Exec, ExecStdio, ExitRecord, Monitor, PodSetup, Runtime,
};
use cri_server::model::id::{ContainerId, PodId};
use cri_server::monitor::protocol::Entry;
use cri_server::spec::{Commands, MaskedEqual};
use serde_json::{Value, json};
use tokio::sync::broadcast::Receiver;

/// What containers may do.
const CAPABILITIES: [&str; 6] =
    ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_KILL", "CAP_MKNOD", "CAP_SETGID", "CAP_SETUID"];

/// Longest wait for anything.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A test's surroundings; gone with it, whatever happened.
pub struct Ground {
    pub dir: tempfile::TempDir,
    pub pod: PodId,
    cgroup: String,
    commands: Commands,
}

/// A container to be.
pub struct Plan {
    pub spec: CreateContainer,
    config: Value,
}

/// Runs `test` once for every OCI runtime that is installed.
pub fn with_each_runtime<F: AsyncFn(&Ground, &Runtime) + Send + Clone + 'static>(test: F) {
    use Commands::{ByMonitor, ByRuntime};
    with([("crun", ByRuntime), ("runc", ByRuntime), ("youki", ByMonitor)], test);
}

/// The same, where commands in containers are started by the monitor itself.
pub fn with_each_runtime_entered<F: AsyncFn(&Ground, &Runtime) + Send + Clone + 'static>(test: F) {
    with(["crun", "runc", "youki"].map(|name| (name, Commands::ByMonitor)), test);
}

fn with<F: AsyncFn(&Ground, &Runtime) + Send + Clone + 'static>(runtimes: [(&str, Commands); 3], test: F) {
    for (name, commands) in runtimes {
        let name = name.to_owned();
        let Some(path) = find_program(&name) else {
            // youki is built by the set-up, and the end-to-end tests require it.
            let why = format!("the OCI runtime {name} is not installed");
            if name == "youki" {
                eprintln!("SKIPPED: {why}")
            } else {
                skip(&why)
            }
            continue;
        };
        let test = test.clone();
        on_ground(async move |ground| {
            ground.commands = commands;
            let args = if name == "crun" { vec!["--cgroup-manager=cgroupfs".into()] } else { Vec::new() };
            eprintln!("with {name}");
            test(ground, &Runtime { path: path.clone(), args, root: ground.path("oci") }).await;
        });
    }
}

/// Runs `test` with the first OCI runtime that is installed.
pub fn with_one_runtime<F: AsyncFnOnce(&Ground, &Runtime) + Send + 'static>(test: F) {
    let found = ["crun", "runc"].into_iter().find_map(|name| Some((name, find_program(name)?)));
    let Some((name, path)) = found else { return skip("neither crun nor runc is installed") };
    on_ground(async move |ground| {
        let args = if name == "crun" { vec!["--cgroup-manager=cgroupfs".into()] } else { Vec::new() };
        test(ground, &Runtime { path, args, root: ground.path("oci") }).await;
    });
}

/// Runs `test` in a mount namespace of its own, on a thread of its own.
pub fn on_ground<F: AsyncFnOnce(&mut Ground) + Send + 'static>(test: F) {
    if !rustix::process::geteuid().is_root() {
        return skip("root is needed for namespaces, mounts and cgroups");
    }
    let run = move || {
        // SAFETY: this thread has opened no descriptors that others use; only its own view of mounts changes.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }.unwrap();
        let private =
            rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC;
        rustix::mount::mount_change("/", private).unwrap();
        hide_unified_cgroup();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut ground = Ground::new();
            test(&mut ground).await;
        });
    };
    if let Err(panic) = std::thread::spawn(run).join() {
        std::panic::resume_unwind(panic);
    }
}

/// crun refuses a hybrid host while it sees the cgroup2 mount, and then leaves plain directories where it was: both
/// are hidden by a tmpfs that goes with the namespace.
fn hide_unified_cgroup() {
    let unified = Path::new("/sys/fs/cgroup/unified");
    if unified.exists() {
        let none = rustix::mount::MountFlags::empty();
        #[expect(clippy::disallowed_methods, reason = "the test's own mount namespace")]
        rustix::mount::mount("tmpfs", unified, "tmpfs", none, None).unwrap();
    }
}

fn skip(why: &str) {
    eprintln!("SKIPPED: {why}");
    assert!(std::env::var_os("E2E_REQUIRE").is_none(), "{why}");
}

fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|path| path.is_file())
}

/// The monitor under test.
pub fn binary() -> PathBuf {
    std::env::var_os("CRI_MONITOR").map_or(env!("CARGO_BIN_EXE_cri-monitor").into(), PathBuf::from)
}

impl Ground {
    fn new() -> Self {
        let ground = Self {
            dir: tempfile::tempdir().unwrap(),
            pod: PodId::generate(),
            cgroup: format!("/berth-monitor-test-{}", PodId::generate().short()),
            commands: Commands::ByRuntime,
        };
        for dir in ["pod", "oci", "containers", "rootfs/bin", "rootfs/proc", "rootfs/dev", "rootfs/tmp"] {
            std::fs::create_dir_all(ground.path(dir)).unwrap();
        }
        install(Path::new("/bin/busybox"), &ground.path("rootfs/bin/busybox"));
        for applet in ["sh", "true", "sleep", "echo", "cat", "ls", "kill", "seq", "dd", "hostname"] {
            std::os::unix::fs::symlink("busybox", ground.path("rootfs/bin").join(applet)).unwrap();
        }
        ground
    }

    /// A path in the test's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A sandbox without namespaces of its own.
    pub fn setup(&self) -> PodSetup {
        PodSetup {
            pod_id: self.pod.clone(),
            dir: self.path("pod"),
            namespaces: Vec::new(),
            ids: None,
            hostname: None,
            sysctls: BTreeMap::new(),
        }
    }

    /// A monitor of such a sandbox.
    pub async fn monitor(&self) -> Monitor {
        Monitor::spawn(&binary(), &self.setup()).await.unwrap()
    }

    /// A container that runs `script` with its own PID namespace.
    pub fn plan(&self, runtime: &Runtime, script: &str) -> Plan {
        let id = ContainerId::generate();
        let bundle = self.path("containers").join(id.as_str());
        std::fs::create_dir(&bundle).unwrap();
        let cgroup = format!("{}/{id}", self.cgroup);
        let at = |controller: &str| Path::new("/sys/fs/cgroup").join(controller).join(&cgroup[1..]);
        let cgroup_v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        let (oom_counter, directory) = match cgroup_v2 {
            true => (at("").join("memory.events"), at("")),
            false => (at("memory").join("memory.oom_control"), at("freezer")),
        };
        let all = || match cgroup_v2 {
            true => vec![at("")],
            false => std::fs::read_dir("/sys/fs/cgroup")
                .unwrap()
                .flatten()
                .map(|entry| at(entry.file_name().to_str().unwrap()))
                .collect(),
        };
        // As the handlers' facts have it.
        let masks = match runtime.path.ends_with("youki") {
            true => MaskedEqual::ValueTwoIsMask,
            false => MaskedEqual::ValueIsMask,
        };
        let entry = (self.commands == Commands::ByMonitor).then(|| Entry { cgroups: all(), masks });
        let spec = CreateContainer {
            id,
            runtime: runtime.clone(),
            terminal: false,
            stdin: false,
            stdio_owner: None,
            stdin_once: false,
            log_path: Some(bundle.join("log")),
            log_line_limit: 16384,
            cgroup: ContainerCgroup {
                oom_counter: Some(oom_counter),
                directories: vec![directory],
                ..ContainerCgroup::default()
            },
            kill_cgroup: false,
            exit_file: bundle.join("exit.json"),
            copy_of: None,
            entry,
            identity: json!({"name": "c"}),
            bundle,
        };
        Plan { spec, config: config(script, &self.path("rootfs"), &cgroup) }
    }

    /// Creates and starts a container that runs `script`.
    pub async fn run(&self, monitor: &Monitor, runtime: &Runtime, script: &str) -> Plan {
        let plan = self.plan(runtime, script);
        plan.create(monitor).await;
        monitor.start(plan.id()).await.unwrap();
        plan
    }

    /// Executes `arguments` in a container, with the given outputs.
    pub fn exec(&self, container: &Plan, exec_id: &str, arguments: &[&str], stdio: ExecStdio) -> Exec {
        let process = self.path(&format!("{exec_id}.json"));
        let mut object = container.config["process"].clone();
        object["args"] = json!(arguments);
        object["terminal"] = json!(matches!(stdio, ExecStdio::Terminal));
        std::fs::write(&process, object.to_string()).unwrap();
        Exec { exec_id: exec_id.into(), container_id: container.id().into(), process, stdio }
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        let _not_running = Monitor::kill(&self.path("pod"));
        for controller in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            // Below the tmpfs there are no cgroups, and it goes with the namespace.
            if controller.file_name() != "unified" {
                remove_cgroup(&controller.path().join(&self.cgroup[1..]));
            }
        }
        remove_cgroup(&Path::new("/sys/fs/cgroup").join(&self.cgroup[1..]));
    }
}

fn remove_cgroup(path: &Path) {
    for child in std::fs::read_dir(path).into_iter().flatten().flatten() {
        if child.path().is_dir() {
            remove_cgroup(&child.path());
        }
    }
    let deadline = Instant::now() + Duration::from_secs(2);
    while std::fs::remove_dir(path).is_err() && path.exists() && Instant::now() < deadline {
        let processes = std::fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
        for pid in processes.lines().filter_map(|line| rustix::process::Pid::from_raw(line.parse().ok()?)) {
            let _ended_already = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn config(script: &str, rootfs: &Path, cgroup: &str) -> Value {
    json!({
        "ociVersion": "1.0.0",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["/bin/sh", "-c", script],
            "env": ["PATH=/bin", "HOME=/"],
            "cwd": "/",
            "capabilities": {"bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES},
        },
        "root": {"path": rootfs, "readonly": true},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["newinstance", "ptmxmode=0666", "mode=0620"]},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
        ],
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}],
            "cgroupsPath": cgroup,
            "resources": {},
        },
    })
}

impl Plan {
    pub fn id(&self) -> &str {
        self.spec.id.as_str()
    }

    /// Changes the bundle's configuration at a JSON pointer.
    pub fn set(&mut self, pointer: &str, value: Value) {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        self.config.pointer_mut(parent).unwrap()[key] = value;
    }

    /// Removes the PID namespace, or joins the one at `path`.
    pub fn share_pid(&mut self, path: Option<&Path>) {
        let namespaces = self.config["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != "pid");
        namespaces.extend(path.map(|path| json!({"type": "pid", "path": path})));
    }

    pub fn write_bundle(&self) {
        std::fs::write(self.spec.bundle.join("config.json"), self.config.to_string()).unwrap();
    }

    pub async fn create(&self, monitor: &Monitor) {
        self.write_bundle();
        monitor.create(self.spec.clone()).await.unwrap();
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.spec.bundle.join("log")).unwrap_or_default()
    }

    /// The log without times.
    pub fn lines(&self) -> Vec<String> {
        self.log().lines().map(|line| line.split_once(' ').unwrap_or_default().1.to_owned()).collect()
    }

    /// Process ids in the container's cgroup.
    pub fn processes(&self) -> Vec<i32> {
        let list = self.spec.cgroup.directories[0].join("cgroup.procs");
        let pids = std::fs::read_to_string(list).unwrap_or_default();
        pids.lines().filter_map(|pid| pid.parse().ok()).collect()
    }

    /// The exit record on disk.
    pub fn record(&self) -> ExitRecord {
        ExitRecord::decode(&std::fs::read(&self.spec.exit_file).unwrap()).unwrap()
    }
}

/// Copies a program by a process of its own: what this one has open for writing, a child of another test may still have
/// while the copy is to be executed.
pub fn install(source: &Path, path: &Path) {
    #[expect(clippy::disallowed_methods, reason = "a test's own preparation")]
    let copied = std::process::Command::new("install").arg(source).arg(path).status().unwrap();
    assert!(copied.success());
}

/// Waits for the exit of a container.
pub async fn exit_of(events: &mut Receiver<Event>, id: &str) -> ExitRecord {
    loop {
        match next(events).await {
            Event::ContainerExited(record) if record.container_id.as_str() == id => return record,
            _ => {}
        }
    }
}

/// Waits for the exit of an exec.
pub async fn exec_exit_of(events: &mut Receiver<Event>, id: &str) -> i32 {
    loop {
        match next(events).await {
            Event::ExecExited { exec_id, exit_code } if exec_id == id => return exit_code,
            _ => {}
        }
    }
}

/// The next event.
pub async fn next(events: &mut Receiver<Event>) -> Event {
    tokio::time::timeout(PATIENCE, events.recv()).await.expect("an event").unwrap()
}

/// Waits until `condition` holds.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "still waiting for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Descriptors for an exec: null, and files to write to.
pub fn to_files(stdout: &Path, stderr: &Path) -> ExecStdio {
    let open = |path: &Path| OwnedFd::from(std::fs::File::create(path).unwrap());
    let null = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    ExecStdio::Fds([null, open(stdout), open(stderr)])
}

/// The message of an error and all its causes.
pub fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}
