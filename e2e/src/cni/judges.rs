//! Programs of others that judge our plugins: how they are set up, and how their verdicts are read.

use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::host::Host;
use super::plugins::Plugins;
use crate::exec::Program;
use crate::http::Origin;
use crate::{ns, paths, wait};

/// Longest start of a container's server.
const ANSWER: Duration = Duration::from_secs(20);
/// What containers of podman run.
const IMAGE: &str = "localhost/box";
/// Programs of the image.
const APPLETS: [&str; 5] = ["sh", "sleep", "httpd", "ip", "mkdir"];

/// One line of the table of verdicts.
pub fn row(judge: &str, what: &str, verdict: &str) {
    println!("| {judge:26} | {what:78} | {verdict:3} |");
}

/// Runs a ginkgo test program and returns how many specs passed; a failure is an error with the tail of what it said.
pub fn specs(test: &Program, focus: &str, skip: &str) -> Result<usize> {
    let args = ["-ginkgo.no-color", "-ginkgo.focus", focus, "-ginkgo.skip", skip];
    let ended = test.clone().args(args).run()?;
    let summary = ended.stdout.lines().rev().find(|line| line.contains(" Passed | "));
    let passed = summary.and_then(|line| {
        let (before, _) = line.split_once(" Passed")?;
        before.rsplit(' ').next()?.parse().ok()
    });
    let lines: Vec<&str> = ended.stdout.lines().collect();
    let tail = lines[lines.len().saturating_sub(60)..].join("\n");
    ensure!(ended.status.success(), "{test} ended with {}:\n{tail}", ended.status);
    passed.with_context(|| format!("{test} said nothing of its specs:\n{tail}"))
}

/// podman with everything in directories of the host's own.
#[derive(Debug)]
pub struct Podman {
    dir: PathBuf,
}

impl Podman {
    /// Configures it for `plugins` and gives it an image.
    pub fn new(host: &Host, plugins: &Plugins) -> Result<Self> {
        let dir = host.scratch().join("podman");
        let root = dir.join("rootfs");
        for name in
            ["net.d", "rootfs/bin", "rootfs/proc", "rootfs/sys", "rootfs/dev", "rootfs/etc", "rootfs/run"]
        {
            std::fs::create_dir_all(dir.join(name))?;
        }
        let busybox = paths::in_path("busybox").context("busybox is not installed")?;
        std::fs::copy(busybox, root.join("bin/busybox"))?;
        for applet in APPLETS {
            symlink("busybox", root.join("bin").join(applet))?;
        }
        let config = format!(
            "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=4096:4096\"]\n\
             seccomp_profile = \"unconfined\"\n[network]\nnetwork_backend = \"cni\"\n\
             cni_plugin_dirs = [{:?}]\nnetwork_config_dir = {:?}\n\
             [engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\nruntime = \"crun\"\n",
            plugins.dir,
            dir.join("net.d")
        );
        std::fs::write(dir.join("containers.conf"), config)?;
        ns::without_unified_cgroup()?;
        let podman = Self { dir };
        let archive = podman.dir.join("image.tar");
        Program::new("tar").arg("-C").arg(&root).arg("-cf").arg(&archive).arg(".").silent()?;
        let backend = podman.ok(&["info", "--format", "{{.Host.NetworkBackend}}"])?;
        ensure!(backend.trim() == "cni", "podman's network back-end is {backend}");
        podman.ok(&["import", &archive.to_string_lossy(), IMAGE])?;
        Ok(podman)
    }

    /// Runs a command.
    pub fn ok(&self, args: &[&str]) -> Result<String> {
        let place = |name: &str| self.dir.join(name);
        Program::new("podman")
            .arg("--root")
            .arg(place("root"))
            .arg("--runroot")
            .arg(place("runroot"))
            .arg("--tmpdir")
            .arg(place("tmp"))
            .args(["--storage-driver", "vfs"])
            .args(args)
            .env("CONTAINERS_CONF", place("containers.conf"))
            .ok()
    }

    /// Starts a container that answers HTTP on port 80.
    pub fn serve(&self, name: &str, options: &[&str]) -> Result<()> {
        let fixed = ["run", "-d", "--cgroups=disabled", "--name", name];
        let command =
            [IMAGE, "sh", "-c", "mkdir -p /www && echo served > /www/index.html && exec httpd -f -h /www"];
        self.ok(&[&fixed[..], options, &command[..]].concat()).map(drop)
    }

    /// Waits until somebody serves at an address of the host's.
    pub fn answers(&self, address: &str) -> Result<()> {
        let origin = Origin { address: address.parse()?, holder: None };
        let page = wait::until("an answer", ANSWER, || origin.request("GET", "/", None))
            .context(address.to_owned())?;
        ensure!(page.status == 200 && page.body.starts_with(b"served"), "{page:?}");
        Ok(())
    }
}
