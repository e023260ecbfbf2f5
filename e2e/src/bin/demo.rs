//! The demonstration: a node, two pods on a bridge, what they say and cost, and nothing left at the end.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use e2e::case::Case;
use e2e::cri::{Cri, container};
use e2e::daemon::{Endpoint, Setup};
use e2e::image::set::{BUSYBOX, WEB};
use e2e::processes::pss_kib;
use e2e::{log, wait};

#[tokio::main]
async fn main() -> Result<()> {
    let began = Instant::now();
    println!("\nBerth: two pods on a bridge, from an image made on the spot\n");
    let setup = Setup { default_handler: "crun".to_owned(), ..Setup::of(Endpoint::Berth) };
    let Some(case) = Case::open("the demo", setup).await? else { bail!("this machine cannot run the demo") };
    let id = case.node.dirs().id();
    say("node", &format!("{id}, own mount, network, IPC and host-name namespaces; its daemon answers"));
    show(&case).await?;
    let (ancestry, top) = (case.node.ancestry().clone(), case.node.dirs().top().to_owned());
    case.close()?;
    say(
        "removed",
        "pods, containers, images: no mount, link, route, rule, cgroup, process or file is left of them",
    );
    ensure!(ancestry.processes()?.is_empty(), "left of the node: {:?}", ancestry.processes()?);
    ensure!(!top.exists(), "left of the node: {}", top.display());
    say("removed", &format!("the node: {} is gone, no process of it is left", top.display()));
    println!("\nThat took {:.1} s.\n", began.elapsed().as_secs_f32());
    Ok(())
}

/// Everything between the start and the removal.
async fn show(case: &Case) -> Result<()> {
    let cri = &case.cri;
    let (pulled, time) = timed(cri.pull(WEB)).await;
    pulled?;
    let size = cri.image(WEB).await?.context("the image is not listed")?.size;
    say("image", &format!("{WEB}, {:.1} MB unpacked, pulled and verified in {}", megabytes(size), ms(time)));
    let one = start(cri, "one").await?;
    let two = start(cri, "two").await?;

    let ping = cri.shell(&one.container, &format!("ping -c 1 {}", two.address)).await?;
    say("ping", &format!("one to two: {}", ping.lines().nth(1).unwrap_or(&ping)));
    let path = cri.log_path("two", "main");
    let lines = wait::until("the log of two", Duration::from_secs(10), || {
        let lines = log::read(&path)?;
        ensure!(!lines.is_empty(), "it is empty");
        Ok(lines)
    })?;
    say("log", &format!("of two: {} {} {:?}", lines[0].time, lines[0].stream, lines[0].content));
    let begun = Instant::now();
    let output = cri.exec(&one.container, &["sh", "-c", "echo $(hostname) runs as $(id -un)"], 10).await?;
    say("exec", &format!("in one: {:?} in {}", output.stdout.trim(), ms(begun.elapsed())));
    memory(case)?;
    for pod in [one, two] {
        let (ended, time) = timed(cri.end_pod(&pod.id)).await;
        ended?;
        say("stop", &format!("{} stopped and removed in {}", pod.name, ms(time)));
    }
    cri.remove_image(WEB).await?;
    Ok(())
}

struct Pod {
    name: &'static str,
    id: String,
    container: String,
    address: String,
}

/// Runs a pod with one container and says what each step took.
async fn start(cri: &Cri, name: &'static str) -> Result<Pod> {
    let pod = cri.pod(name);
    let (id, run) = timed(cri.run_pod(&pod)).await;
    let id = id?;
    let line = format!("echo hello from {name}; exec sleep 100000");
    let config = container("main", BUSYBOX, &["sh", "-c", &line]);
    let (container, create) = timed(cri.create(&id, &config, &pod)).await;
    let container = container?;
    let (started, start) = timed(cri.start(&container)).await;
    started?;
    let address = cri.pod_status(&id).await?.network.context("the pod has no address")?.ip;
    let total = ms(run + create + start);
    say(
        "pod",
        &format!(
            "{name} {address}, up in {total}: run {}, create {}, start {}",
            ms(run),
            ms(create),
            ms(start)
        ),
    );
    Ok(Pod { name, id, container, address })
}

/// What supervision costs: the daemon once, a monitor for each pod.
fn memory(case: &Case) -> Result<()> {
    let daemon = case.node.daemon_pid().context("the daemon is not running")?;
    let processes = case.node.ancestry().processes()?;
    let monitors = processes.iter().filter(|(_, line)| line.contains("cri-monitor"));
    let sizes =
        monitors.map(|(pid, _)| Ok(format!("{} kB", pss_kib(*pid)?))).collect::<Result<Vec<String>>>()?;
    let daemon = pss_kib(daemon)?;
    say(
        "memory",
        &format!("daemon {daemon} kB; one monitor for each pod: {} (proportional)", sizes.join(", ")),
    );
    Ok(())
}

async fn timed<T>(job: impl Future<Output = T>) -> (T, Duration) {
    let begun = Instant::now();
    (job.await, begun.elapsed())
}

fn say(what: &str, text: &str) {
    println!("  {what:<8} {text}");
}

fn ms(time: Duration) -> String {
    format!("{:.0} ms", time.as_secs_f64() * 1000.0)
}

#[allow(clippy::cast_precision_loss, reason = "shown with one decimal")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
