//! The CRI daemon of a node: which one, its configuration, its life and death.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use crate::cni::Maker;
use crate::cri;
use crate::exec::Running;
use crate::node::{Dirs, Node};
use crate::{cgroup, paths, wait};

/// Which program answers at the CRI socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// cri-server.
    Berth,
    /// containerd, the reference that tests and benchmarks compare with.
    Containerd,
}

/// How a node is set up.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Which daemon.
    pub endpoint: Endpoint,
    /// Runtime handler for pods that name none: `crun`, `runc` or `youki`.
    pub default_handler: String,
    /// Second and third byte of the pod subnet `10.x.y.0/24`.
    pub subnet: (u8, u8),
    /// Whether there is a CNI configuration.
    pub network: Network,
    /// Whose CNI plugins containerd runs; cri-server always runs ours.
    pub plugins: Maker,
}

/// Whether a node's pods can have a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// A bridge with host-local addresses and portmap.
    Bridge,
    /// An empty configuration directory.
    Unconfigured,
}

impl Default for Setup {
    /// crun on the daemon that `E2E_RUNTIME` names (`berth`, the default, or `containerd`).
    fn default() -> Self {
        let containerd = std::env::var("E2E_RUNTIME").is_ok_and(|name| name == "containerd");
        let endpoint = if containerd { Endpoint::Containerd } else { Endpoint::Berth };
        let default_handler = std::env::var("E2E_HANDLER").unwrap_or_else(|_| "crun".to_owned());
        Self { endpoint, default_handler, subnet: (88, 0), network: Network::Bridge, plugins: Maker::Debian }
    }
}

impl Setup {
    /// The default set-up with another default handler.
    #[must_use]
    pub fn with_handler(handler: &str) -> Self {
        Self { default_handler: handler.to_owned(), ..Self::default() }
    }

    /// The default set-up on that daemon.
    #[must_use]
    pub fn of(endpoint: Endpoint) -> Self {
        Self { endpoint, ..Self::default() }
    }

    /// Writes the daemon's configuration and the CNI configuration.
    pub fn write(&self, dirs: &Dirs) -> Result<()> {
        let config = match self.endpoint {
            Endpoint::Berth => self.berth_config(dirs)?,
            Endpoint::Containerd => {
                write_mirrors(&dirs.top().join("hosts"))?;
                self.containerd_config(dirs)?
            }
        };
        std::fs::write(dirs.config(), config)?;
        if self.network == Network::Bridge {
            self.write_cni(dirs)?;
        }
        Ok(())
    }

    fn berth_config(&self, dirs: &Dirs) -> Result<String> {
        let mut handlers = String::new();
        for (name, path) in handlers_present() {
            handlers += &format!("[runtime.handlers.{name}]\npath = {:?}\n", text(&path));
        }
        let mut mirrors = String::new();
        for host in MIRRORED {
            mirrors +=
                &format!("[[image.registry]]\nhost = {host:?}\nmirrors = [\"http://127.0.0.1:5000\"]\n");
        }
        Ok(format!(
            "root = {root:?}\nstate = {state:?}\nsocket = {socket:?}\nmonitor = {monitor:?}\n\
             netns_dir = {netns:?}\ncdi_spec_dirs = {cdi:?}\nlog_level = \"info\"\nlog_format = \"text\"\n\
             [cgroup]\ndriver = {driver:?}\nparent = {parent:?}\n\
             [runtime]\ndefault_handler = {handler:?}\nmonitor_patience_s = 12\n{handlers}\
             [cni]\nconf_dir = {conf:?}\nbin_dirs = [{bin:?}, \"/usr/lib/cni\"]\ncache_dir = {cache:?}\n\
             deadline_s = 60\n\
             [image]\nconcurrent_downloads = 6\nno_progress_s = 60\n{mirrors}\
             [[image.registry]]\nhost = \"127.0.0.1:5000\"\nplain_http = true\n\
             {faulty}",
            faulty = plain_hosts(crate::faulty::PORTS),
            root = text(&dirs.root()),
            state = text(&dirs.state()),
            socket = text(&dirs.socket()),
            monitor = text(&paths::binary("cri-monitor")?),
            netns = text(&dirs.netns()),
            cdi = dirs.cdi(),
            driver = if cgroup::is_systemd() { "systemd" } else { "cgroupfs" },
            parent = cgroup::in_parent(&dirs.id(), ""),
            handler = self.default_handler,
            conf = text(&dirs.cni().join("net.d")),
            bin = text(&dirs.cni().join("bin")),
            cache = text(&dirs.cni().join("cache")),
        ))
    }

    fn containerd_config(&self, dirs: &Dirs) -> Result<String> {
        let mut runtimes = String::new();
        for (name, path) in handlers_present() {
            let section = format!("[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.{name}");
            runtimes += &format!(
                "{section}]\nruntime_type = \"io.containerd.runc.v2\"\n{section}.options]\nBinaryName = {:?}\n\
                 SystemdCgroup = false\n",
                text(&path)
            );
        }
        Ok(format!(
            "version = 2\nroot = {root:?}\nstate = {state:?}\noom_score = 0\n\
             [grpc]\naddress = {socket:?}\n\
             [plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"registry.k8s.io/pause:3.6\"\n\
             restrict_oom_score_adj = true\nnetns_mounts_under_state_dir = true\n\
             [plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = {bin:?}\nconf_dir = {conf:?}\n\
             [plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = {hosts:?}\n\
             [plugins.\"io.containerd.grpc.v1.cri\".containerd]\nsnapshotter = \"overlayfs\"\n\
             default_runtime_name = {handler:?}\n{runtimes}",
            root = text(&dirs.root()),
            state = text(&dirs.state()),
            socket = text(&dirs.socket()),
            conf = text(&dirs.cni().join("net.d")),
            hosts = text(&dirs.top().join("hosts")),
            bin = match self.plugins {
                Maker::Ours => text(&dirs.cni().join("bin")),
                Maker::Reference => text(&paths::cache().join("cni/bin")),
                Maker::Debian => "/usr/lib/cni".to_owned(),
            },
            handler = self.default_handler,
        ))
    }

    /// Bridge and portmap; the plugins are ours where they are built, else the reference ones.
    fn write_cni(&self, dirs: &Dirs) -> Result<()> {
        let (b, c) = self.subnet;
        let conflist = serde_json::json!({
            "cniVersion": "1.0.0",
            "name": "berth-e2e",
            "plugins": [
                {
                    "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
                    "ipam": {
                        "type": "host-local", "dataDir": dirs.cni().join("ipam"),
                        "ranges": [[{"subnet": format!("10.{b}.{c}.0/24")}]],
                        "routes": [{"dst": "0.0.0.0/0"}],
                    },
                },
                {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true},
            ],
        });
        std::fs::write(dirs.cni().join("net.d/10-e2e.conflist"), serde_json::to_vec_pretty(&conflist)?)?;
        let Ok(ours) = paths::binary("cni-bridge") else { return Ok(()) };
        for name in ["bridge", "host-local", "loopback", "portmap"] {
            let link = dirs.cni().join("bin").join(name);
            if !link.exists() {
                std::os::unix::fs::symlink(&ours, link)?;
            }
        }
        Ok(())
    }
}

/// Registries whose names the node's registry serves.
const MIRRORED: [&str; 4] = ["registry.k8s.io", "gcr.io", "k8s.gcr.io", "public.ecr.aws"];

/// Registries on loopback without TLS.
fn plain_hosts(ports: std::ops::RangeInclusive<u16>) -> String {
    let host = |port| format!("[[image.registry]]\nhost = \"127.0.0.1:{port}\"\nplain_http = true\n");
    ports.map(host).collect()
}

/// containerd's form of the mirror rules.
fn write_mirrors(dir: &Path) -> Result<()> {
    for host in MIRRORED.into_iter().chain(["127.0.0.1:5000"]) {
        let dir = dir.join(host);
        std::fs::create_dir_all(&dir)?;
        let rule = "[host.\"http://127.0.0.1:5000\"]\ncapabilities = [\"pull\", \"resolve\"]\n";
        std::fs::write(dir.join("hosts.toml"), format!("server = \"http://127.0.0.1:5000\"\n{rule}"))?;
    }
    Ok(())
}

/// OCI runtimes that this machine has, by handler name; only that of `E2E_ONLY_HANDLER` where it names one. A daemon
/// asks each at its start, which takes long on slow machines.
#[must_use]
pub fn handlers_present() -> Vec<(&'static str, PathBuf)> {
    let only = std::env::var("E2E_ONLY_HANDLER").ok();
    let youki = paths::peer("youki").ok();
    [("crun", paths::in_path("crun")), ("runc", paths::in_path("runc")), ("youki", youki)]
        .into_iter()
        .filter(|(name, _)| only.as_ref().is_none_or(|only| only == name))
        .filter_map(|(name, path)| Some((name, path?)))
        .collect()
}

/// A running daemon; ended by SIGKILL when dropped.
#[derive(Debug)]
pub struct Daemon {
    running: Running,
}

impl Daemon {
    /// Starts the daemon of the node and waits until it answers Version.
    pub fn start(node: &Node) -> Result<Self> {
        let mut daemon = Self::launch(node)?;
        let socket = node.dirs().socket();
        wait::until("the daemon's first answer", Duration::from_secs(30), || {
            daemon.running.alive().map_err(|end| end.context(log_tail(node)))?;
            UnixStream::connect(&socket).context("connect to the CRI socket")?;
            cri::answers(&socket)
        })?;
        Ok(daemon)
    }

    /// Starts the daemon and does not wait.
    pub fn launch(node: &Node) -> Result<Self> {
        let program = match node.setup().endpoint {
            Endpoint::Berth => node.program(paths::binary("cri-server")?),
            Endpoint::Containerd => node.program(containerd()?),
        };
        let program = program.arg("--config").arg(node.dirs().config());
        Ok(Self { running: program.start(&node.dirs().daemon_log())? })
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.running.pid().as_raw_nonzero().get()
    }

    /// Holds the daemon where it is, until [`Daemon::resume`].
    pub fn freeze(&self) -> Result<()> {
        self.running.signal(Signal::STOP)
    }

    /// Lets a frozen daemon go on.
    pub fn resume(&self) -> Result<()> {
        self.running.signal(Signal::CONT)
    }

    /// Asks for an orderly end and waits for it.
    pub fn terminate(mut self, deadline: Duration) -> Result<std::process::ExitStatus> {
        self.running.signal(Signal::TERM)?;
        self.running.wait(deadline)
    }

    /// Waits for an end that comes by itself, such as that of a daemon with a wrong configuration.
    pub fn wait(mut self, deadline: Duration) -> Result<std::process::ExitStatus> {
        self.running.wait(deadline)
    }
}

/// containerd by `E2E_CONTAINERD`, else by PATH.
fn containerd() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("E2E_CONTAINERD") {
        return Ok(path.into());
    }
    match paths::in_path("containerd") {
        Some(path) => Ok(path),
        None => bail!("containerd is not installed: run `make setup`"),
    }
}

fn log_tail(node: &Node) -> String {
    let log = std::fs::read_to_string(node.dirs().daemon_log()).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(10)..].join("\n")
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
