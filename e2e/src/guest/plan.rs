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
use super::machine::{Machine, Size};
use super::{root, stage};
use crate::image::set;
use crate::paths;

/// What can be chosen.
#[derive(Clone, Debug, Parser)]
#[command(about = "Runs tests in a virtual machine with cgroup v2")]
pub struct Options {
    /// Only steps whose names contain one of these
    steps: Vec<String>,
    /// Name the steps and do nothing
    #[arg(long)]
    list: bool,
    /// Run this line by the guest's shell in place of the steps
    #[arg(long, value_name = "LINE")]
    shell: Option<String>,
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

/// A step of the plan: a test program with its arguments, and the handler of its pods.
struct Planned {
    name: &'static str,
    test: &'static str,
    args: &'static [&'static str],
    handler: &'static str,
    deadline_s: u64,
}

/// Steps in order: what fails early says most.
const PLAN: [Planned; 10] = [
    planned("harness", "harness", &[], "crun", 900),
    planned("cgroups", "cri_server", &["host::cgroup", "spec::ring1"], "crun", 900),
    planned("monitor", "monitor_pod", &[], "crun", 900),
    planned("runtime-crun", "runtime", &[], "crun", 900),
    planned("namespaces-crun", "namespaces", &[], "crun", 900),
    planned("resources-crun", "resources", &[], "crun", 900),
    planned("kept-crun", "kept", &[], "crun", 900),
    planned("restart-crun", "restart", &[], "crun", 900),
    planned("critest-crun", "critest", &["--exact", "crun_conforms"], "crun", 1800),
    planned("critest-runc", "critest", &["--exact", "runc_conforms"], "runc", 1800),
];

const fn planned(
    name: &'static str,
    test: &'static str,
    args: &'static [&'static str],
    handler: &'static str,
    deadline_s: u64,
) -> Planned {
    Planned { name, test, args, handler, deadline_s }
}

/// Builds, boots, follows, and fails with the names of the steps that failed.
pub fn run(options: &Options) -> Result<()> {
    if options.list {
        PLAN.iter().for_each(|step| println!("{}", step.name));
        return Ok(());
    }
    let began = Instant::now();
    let built = Built::by_cargo(&options.selections())?;
    let steps = options.steps(&built)?;
    ensure!(!steps.is_empty(), "no step is called {:?}", options.steps);
    let deadline = Duration::from_secs(60 + steps.iter().map(|step| step.deadline_s + 30).sum::<u64>());
    let system = root::system()?;
    let scratch = scratch(&paths::cache().join("guest"))?;
    let job = scratch.path().join("job.img");
    stage(&built, options.job(steps)?, scratch.path(), &job)?;
    eprintln!("guest: built and staged in {:.0?}", began.elapsed());
    let console = scratch.path().join("console.log");
    let booted = Instant::now();
    let size = Size { processors: options.processors, memory_mib: options.memory };
    let mut verdict = Verdict::default();
    Machine::boot(&system, &job, &console, size)?.finish(deadline, |event| verdict.hear(event))?;
    eprintln!("guest: done in {:.0?}{verdict}", booted.elapsed());
    ensure!(verdict.failed.is_empty(), "failed in the guest: {}", verdict.failed.join(", "));
    Ok(())
}

impl Options {
    fn steps(&self, built: &Built) -> Result<Vec<Step>> {
        if let Some(line) = &self.shell {
            let args = vec!["-c".to_owned(), line.clone()];
            let dir = paths::workspace();
            let (name, program) = ("shell".to_owned(), "/bin/sh".into());
            return Ok(vec![Step { name, program, args, dir, env: BTreeMap::new(), deadline_s: 600 }]);
        }
        self.chosen().map(|step| step.as_step(built)).collect()
    }

    fn chosen(&self) -> impl Iterator<Item = &Planned> {
        PLAN.iter().filter(|step| {
            self.steps.is_empty() || self.steps.iter().any(|part| step.name.contains(part.as_str()))
        })
    }

    /// What has to be built: the harness is always needed.
    fn selections(&self) -> Vec<Selection> {
        let products = self.shell.is_none() && self.chosen().any(|step| step.is_of_products());
        products.then_some(Selection::Products).into_iter().chain([Selection::Harness]).collect()
    }

    fn job(&self, steps: Vec<Step>) -> Result<Job> {
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
        if let Some(dir) = std::env::var_os("BERTH_BIN_DIR") {
            env.insert("BERTH_BIN_DIR".to_owned(), std::path::absolute(dir)?.display().to_string());
        }
        for pair in &self.env {
            let Some((key, value)) = pair.split_once('=') else { bail!("{pair:?} is not KEY=VALUE") };
            env.insert(key.to_owned(), value.to_owned());
        }
        Ok(Job { env, steps, ..Job::default() })
    }
}

impl Planned {
    fn is_of_products(&self) -> bool {
        ["cri_server", "monitor_pod"].contains(&self.test)
    }

    fn as_step(&self, built: &Built) -> Result<Step> {
        let args = self.args.iter().chain(&["--test-threads=1", "--nocapture"]).map(|arg| (*arg).to_owned());
        Ok(Step {
            name: self.name.to_owned(),
            program: built.test(self.test)?.to_owned(),
            args: args.collect(),
            dir: paths::workspace(),
            env: [("E2E_HANDLER".to_owned(), self.handler.to_owned())].into(),
            deadline_s: self.deadline_s,
        })
    }
}

/// Puts on a disk what the steps need: test programs, binaries under test, peers, images, lists.
fn stage(built: &Built, job: Job, scratch: &Path, image: &Path) -> Result<()> {
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
    let peers = paths::cache().join("bin");
    for path in ["e2e/critest", "cri-server/tests/golden", "deploy"].map(|path| workspace.join(path)) {
        stage.add(&path)?;
    }
    stage.add(&peers)?;
    stage.add(&set::store()?)?;
    stage.pack(job, built.binary("vminit")?, image)
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
