//! Which tests run in the guest, and the whole run from the build to the verdict.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use clap::Parser;
use tempfile::TempDir;

use super::SLOWNESS;
use super::build::{Built, Selection};
use super::job::{Event, Job, Step};
use super::machine::{Boot, Init, Machine, Size};
use super::{root, stage};
use crate::image::set;
use crate::paths;

/// What can be chosen.
#[derive(Clone, Debug, Parser)]
#[command(about = "Runs tests in a virtual machine with cgroup v2")]
pub struct Options {
    /// Only steps whose names begin with one of these
    steps: Vec<String>,
    /// Name the steps and do nothing
    #[arg(long)]
    list: bool,
    /// Run this line by the guest's shell in place of the steps
    #[arg(long, value_name = "LINE")]
    shell: Option<String>,
    /// Let that shell run under systemd
    #[arg(long, requires = "shell")]
    systemd: bool,
    /// Let that shell run under SELinux
    #[arg(long, requires = "shell", conflicts_with = "systemd")]
    selinux: bool,
    /// Processors of the guest
    #[arg(long, default_value_t = 2)]
    processors: u32,
    /// Memory of the guest, in MiB
    #[arg(long, default_value_t = 3072)]
    memory: u32,
    /// Environment of the steps, such as E2E_FOCUS=Networking
    #[arg(long, value_name = "KEY=VALUE")]
    env: Vec<String>,
}

/// A step of the plan: a test program with its arguments, the handler of its pods, and what it runs under.
struct Planned {
    name: &'static str,
    test: &'static str,
    args: &'static [&'static str],
    handler: &'static str,
    init: Init,
    deadline_s: u64,
}

/// Steps in order: what fails early says most. Those under systemd use the cgroup driver of that name.
const PLAN: [Planned; 37] = [
    own("harness", "harness", "crun"),
    Planned { args: &["host::cgroup", "spec::ring1"], ..own("cgroups", "cri_server", "crun") },
    own("monitor", "monitor_pod", "crun"),
    Planned { args: &["guest::"], ..own("plugins", "ring1", "crun") },
    own("runtime-crun", "runtime", "crun"),
    own("resources-crun", "resources", "crun"),
    own("hugepages-crun", "hugepages", "crun"),
    own("hugepages-runc", "hugepages", "runc"),
    own("namespaces-crun", "namespaces", "crun"),
    own("userns-crun", "userns", "crun"),
    own("events-crun", "events", "crun"),
    own("volumes-crun", "volumes", "crun"),
    own("mounts-crun", "mounts", "crun"),
    own("kept-crun", "kept", "crun"),
    own("restart-crun", "restart", "crun"),
    own("runtime-runc", "runtime", "runc"),
    own("resources-runc", "resources", "runc"),
    own("userns-runc", "userns", "runc"),
    own("runtime-youki", "runtime", "youki"),
    own("resources-youki", "resources", "youki"),
    own("userns-youki", "userns", "youki"),
    with_selinux(own("selinux-crun", "selinux", "crun")),
    Planned { args: &["what_a"], ..with_selinux(own("selinux-runc", "selinux", "runc")) },
    Planned { args: &["a_handler"], ..with_selinux(own("selinux-youki", "selinux", "youki")) },
    conforms("critest-crun", &["--exact", "crun_conforms"], "crun"),
    conforms("critest-runc", &["--exact", "runc_conforms"], "runc"),
    conforms("critest-youki", &["--exact", "youki_conforms"], "youki"),
    systemd(own("systemd-runtime-crun", "runtime", "crun")),
    systemd(own("systemd-resources-crun", "resources", "crun")),
    systemd(own("systemd-namespaces-crun", "namespaces", "crun")),
    systemd(own("systemd-restart-crun", "restart", "crun")),
    systemd(own("systemd-resources-runc", "resources", "runc")),
    systemd(own("systemd-resources-youki", "resources", "youki")),
    systemd(own("systemd-hugepages-crun", "hugepages", "crun")),
    systemd(own("systemd-hugepages-runc", "hugepages", "runc")),
    systemd(own("systemd-hugepages-youki", "hugepages", "youki")),
    systemd(conforms("systemd-critest-crun", &["--exact", "crun_conforms"], "crun")),
];

const fn own(name: &'static str, test: &'static str, handler: &'static str) -> Planned {
    Planned { name, test, args: &[], handler, init: Init::Own, deadline_s: 1200 }
}

const fn conforms(name: &'static str, args: &'static [&'static str], handler: &'static str) -> Planned {
    Planned { args, deadline_s: 3600, ..own(name, "critest", handler) }
}

const fn systemd(planned: Planned) -> Planned {
    Planned { init: Init::Systemd, ..planned }
}

const fn with_selinux(planned: Planned) -> Planned {
    Planned { init: Init::OwnWithSelinux, ..planned }
}

/// Builds, boots, follows, and fails with the names of the steps that failed.
pub fn run(options: &Options) -> Result<()> {
    if options.list {
        PLAN.iter().for_each(|step| println!("{}", step.name));
        return Ok(());
    }
    let began = Instant::now();
    let built = Built::by_cargo(&options.selections())?;
    let system = root::system()?;
    let scratch = scratch(&paths::cache().join("guest"))?;
    let stage = stage(&built, scratch.path())?;
    eprintln!("guest: built and staged in {:.0?}", began.elapsed());
    let mut verdict = Verdict::default();
    for init in [Init::Own, Init::OwnWithSelinux, Init::Systemd] {
        let steps = options.steps(&built, init)?;
        if steps.is_empty() {
            continue;
        }
        let booted = Instant::now();
        let deadline = Duration::from_secs(60 + steps.iter().map(|step| step.deadline_s + 30).sum::<u64>());
        let job = scratch.path().join("job.img");
        stage.pack(options.job(steps, init)?, built.binary("vminit")?, &job)?;
        let console = scratch.path().join("console.log");
        let size = Size { processors: options.processors, memory_mib: options.memory };
        let boot = Boot { root: &system, job: &job, init, size };
        Machine::boot(boot, &console)?.finish(deadline, |event| verdict.hear(event))?;
        eprintln!("guest: booted with {init:?}, done in {:.0?}", booted.elapsed());
    }
    eprintln!("guest: all in {:.0?}{verdict}", began.elapsed());
    ensure!(!verdict.took.is_empty(), "no step is called {:?}", options.steps);
    ensure!(verdict.failed.is_empty(), "failed in the guest: {}", verdict.failed.join(", "));
    Ok(())
}

impl Options {
    fn steps(&self, built: &Built, init: Init) -> Result<Vec<Step>> {
        if let Some(line) = &self.shell {
            let wanted = match (self.systemd, self.selinux) {
                (true, _) => Init::Systemd,
                (_, true) => Init::OwnWithSelinux,
                _ => Init::Own,
            };
            if init != wanted {
                return Ok(Vec::new());
            }
            let args = vec!["-c".to_owned(), line.clone()];
            let dir = paths::workspace();
            let (name, program) = ("shell".to_owned(), "/bin/sh".into());
            return Ok(vec![Step { name, program, args, dir, env: BTreeMap::new(), deadline_s: 600 }]);
        }
        self.chosen().filter(|step| step.init == init).map(|step| step.as_step(built)).collect()
    }

    fn chosen(&self) -> impl Iterator<Item = &Planned> {
        PLAN.iter().filter(|step| {
            self.steps.is_empty() || self.steps.iter().any(|part| step.name.starts_with(part.as_str()))
        })
    }

    /// What has to be built: the harness is always needed.
    fn selections(&self) -> Vec<Selection> {
        let products = self.shell.is_none() && self.chosen().any(|step| step.is_of_products());
        products.then_some(Selection::Products).into_iter().chain([Selection::Harness]).collect()
    }

    fn job(&self, steps: Vec<Step>, init: Init) -> Result<Job> {
        let mut env: BTreeMap<String, String> = BTreeMap::new();
        let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", paths::cache().join("bin").display());
        env.insert("PATH".to_owned(), path);
        env.insert("HOME".to_owned(), "/root".to_owned());
        env.insert("E2E_IMAGES".to_owned(), set::store()?.display().to_string());
        env.insert("E2E_REQUIRE".to_owned(), "1".to_owned());
        env.insert("E2E_SLOWNESS".to_owned(), SLOWNESS.to_string());
        // Shorter than on a machine: what the guest shows does not hang on how long it goes on.
        env.insert("E2E_HOLD_SECONDS".to_owned(), "10".to_owned());
        env.insert("E2E_OOM_KILLS".to_owned(), "12".to_owned());
        // Specs wait most of the time, there more than elsewhere.
        env.insert("E2E_PARALLEL".to_owned(), "4".to_owned());
        if init == Init::Systemd {
            env.insert("E2E_CGROUP_DRIVER".to_owned(), "systemd".to_owned());
            env.insert("E2E_OOM_KILLS".to_owned(), "40".to_owned());
        }
        if init == Init::OwnWithSelinux {
            env.insert("E2E_REQUIRE_SELINUX".to_owned(), "1".to_owned());
        }
        if let Some(dir) = std::env::var_os("BERTH_BIN_DIR") {
            env.insert("BERTH_BIN_DIR".to_owned(), std::path::absolute(dir)?.display().to_string());
        }
        for pair in &self.env {
            let Some((key, value)) = pair.split_once('=') else { bail!("{pair:?} is not KEY=VALUE") };
            env.insert(key.to_owned(), value.to_owned());
        }
        Ok(Job { env, steps, selinux: init == Init::OwnWithSelinux, ..Job::default() })
    }
}

impl Planned {
    fn is_of_products(&self) -> bool {
        ["cri_server", "monitor_pod", "ring1"].contains(&self.test)
    }

    fn as_step(&self, built: &Built) -> Result<Step> {
        let args = self.args.iter().chain(&["--test-threads=1", "--nocapture"]).map(|arg| (*arg).to_owned());
        Ok(Step {
            name: self.name.to_owned(),
            program: built.test(self.test)?.to_owned(),
            args: args.collect(),
            dir: paths::workspace(),
            env: ["E2E_HANDLER", "E2E_ONLY_HANDLER"]
                .map(|key| (key.to_owned(), self.handler.to_owned()))
                .into(),
            deadline_s: self.deadline_s,
        })
    }
}

/// Collects what the steps need: test programs, binaries under test, peers, images, lists.
fn stage(built: &Built, scratch: &Path) -> Result<stage::Stage> {
    let own = built.binary("e2e-node")?;
    let target = own.parent().and_then(Path::parent).unwrap_or(own).to_owned();
    let workspace = paths::workspace();
    let mut places = vec![workspace.clone()];
    if !target.starts_with(&workspace) {
        places.push(target);
    }
    let stage = stage::Stage::new(scratch.join("stage"), &places)?;
    built.tests.values().chain(built.binaries.values()).try_for_each(|path| stage.add(path))?;
    for name in ["cri-server", "cri-monitor", "cni-bridge"] {
        stage.add(&paths::binary(name)?)?;
    }
    for name in ["crictl", "critest", "ginkgo", "runc", "youki"] {
        stage.add(&paths::peer(name)?)?;
    }
    for path in ["e2e/critest", "cri-server/tests/golden", "deploy"].map(|path| workspace.join(path)) {
        stage.add(&path)?;
    }
    stage.add(&set::store()?)?;
    Ok(stage)
}

/// A directory that goes with this run. One that a killed run has left goes now: it is large.
fn scratch(cache: &Path) -> Result<TempDir> {
    const PREFIX: &str = "run-";
    for entry in std::fs::read_dir(cache)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(tempfile::Builder::new().prefix(&format!("{PREFIX}{}-", std::process::id())).tempdir_in(cache)?)
}

/// What the steps came to.
#[derive(Default)]
struct Verdict {
    took: Vec<(String, f32)>,
    failed: Vec<String>,
}

impl Verdict {
    fn hear(&mut self, event: &Event) {
        match event {
            Event::Began { step } => eprintln!("guest: {step}"),
            Event::Line { text } => println!("  {text}"),
            Event::Ended { step, failure, seconds } => {
                let end = failure.as_deref().unwrap_or("passed");
                eprintln!("guest: {step}: {end} after {seconds:.1} s");
                self.took.push((step.clone(), *seconds));
                self.failed.extend(failure.as_ref().map(|_| step.clone()));
            }
            Event::Done | Event::Broken { .. } => {}
        }
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.took.iter().try_for_each(|(step, seconds)| write!(f, "\n  {step:20} {seconds:6.1} s"))
    }
}
