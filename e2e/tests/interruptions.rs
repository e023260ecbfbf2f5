//! Calls that cross each other, hang, or lose their client in the middle: each ends as it must, and nothing of it
//! stays, neither processes nor files nor descriptors.

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::case::Case;
use e2e::cri::{Cri, container, refused};
use e2e::daemon::{Endpoint, Setup};
use e2e::faulty::{Fault, Faulty};
use e2e::image::set::BUSYBOX;
use e2e::processes::pss_kib;
use e2e::{paths, pattern, wait};
use proto::cri as api;
use rustix::process::Signal;
use tonic::{Code, Status};

const PATIENCE: Duration = Duration::from_secs(60);
/// Growth of the daemon that any amount of output may cost, KiB.
const GROWTH: u64 = 48 << 10;
/// Most bytes that ExecSync returns: with them an answer is within the 16 MiB that clients take.
const OUTPUT_LIMIT: usize = (16 << 20) - 4096;

async fn open(test: &str) -> Result<Option<Case>> {
    // Codes and limits are ours; the reference has others.
    Case::open(test, Setup::of(Endpoint::Berth)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_without_grace_overtakes_one_of_an_hour() -> Result<()> {
    let Some(case) = open("a_stop_without_grace_overtakes_one_of_an_hour").await? else { return Ok(()) };
    let cri = &case.cri;
    let pod = cri.pod("stubborn");
    let pod_id = cri.run_pod(&pod).await?;
    let line = "trap 'echo no' TERM; echo ready; while :; do sleep 0.05; done";
    let id = cri.launch(&pod_id, &container("stubborn", BUSYBOX, &["sh", "-c", line]), &pod).await?;
    let log = cri.log_path("stubborn", "stubborn");
    let says = |word: &'static str| {
        let log = log.clone();
        wait::until("the container's word", PATIENCE, move || {
            ensure!(std::fs::read_to_string(&log)?.contains(word), "it did not say {word:?}");
            Ok(())
        })
    };
    says("ready")?;
    let patient = tokio::spawn({
        let (cri, id) = (cri.clone(), id.clone());
        async move { cri.stop(&id, 3600).await }
    });
    says("no")?;
    ensure!(!patient.is_finished(), "the patient stop did not wait");
    cri.stop(&id, 0).await?;
    patient.await??;
    let status = cri.status(&id).await?;
    ensure!(status.exit_code == 137, "{status:?}");
    cri.end_pod(&pod_id).await?;
    case.close()
}

/// A plugin that answers ADD only after an hour, and notes whose ADD it was.
const HANGING: &str = "#!/bin/sh\n[ \"$CNI_COMMAND\" = ADD ] || exit 0\n\
    echo $CNI_CONTAINERID > NOTE.new && mv NOTE.new NOTE\nexec sleep 3600\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_ends_a_pod_whose_network_hangs() -> Result<()> {
    let Some(mut case) = open("a_stop_ends_a_pod_whose_network_hangs").await? else { return Ok(()) };
    // The network's plugins and their list are part of the node from here on.
    let (cni, note) = (case.node.dirs().cni(), case.node.dirs().top().join("hanging"));
    let plugin = cni.join("bin/hanging");
    std::fs::write(&plugin, HANGING.replace("NOTE", &note.display().to_string()))?;
    std::fs::set_permissions(&plugin, std::fs::Permissions::from_mode(0o755))?;
    let conflist = cni.join("net.d/10-e2e.conflist");
    let good = std::fs::read_to_string(&conflist)?;
    let mut list: serde_json::Value = serde_json::from_str(&good)?;
    list["plugins"].as_array_mut().context("no plugins")?.push(serde_json::json!({"type": "hanging"}));
    std::fs::write(&conflist, list.to_string())?;
    case.accept_present_state()?;
    let making = tokio::spawn({
        let cri = case.cri.clone();
        async move { cri.run_pod(&cri.pod("hanging")).await }
    });
    let id = wait::until_async("the ADD", PATIENCE, || async {
        ensure!(!making.is_finished(), "the pod is made");
        Ok(std::fs::read_to_string(&note)?.trim().to_owned())
    })
    .await?;
    case.cri.stop_pod(&id).await?;
    refused("the pod", making.await?, Code::Aborted, &id)?;
    case.cri.remove_pod(&id).await?;
    ensure!(case.cri.pods_named("hanging").await?.is_empty(), "the pod is listed");
    case.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_ends_with_its_client() -> Result<()> {
    let Some(case) = open("a_pull_ends_with_its_client").await? else { return Ok(()) };
    let registry = Faulty::start(case.node.holder_pid(), Fault::Stalled)?;
    let image = registry.image();
    let pulling = tokio::spawn({
        let (cri, image) = (case.cri.clone(), image.clone());
        async move { cri.pull(&image).await }
    });
    wait::until("the layer to be asked for", PATIENCE, || {
        ensure!(!pulling.is_finished(), "the pull has ended");
        ensure!(registry.layers_asked() > 0);
        Ok(())
    })?;
    pulling.abort();
    case.settle()?;
    ensure!(case.cri.image(&image).await?.is_none(), "a part of an image is listed");
    case.close()
}

async fn exec_url(cri: &Cri, id: &str) -> Result<String, Status> {
    let request = api::ExecRequest {
        container_id: id.to_owned(),
        cmd: vec!["sleep".into(), "1000".into()],
        stdout: true,
        ..Default::default()
    };
    Ok(cri.runtime.clone().exec(request).await?.into_inner().url)
}

#[tokio::test(flavor = "multi_thread")]
async fn urls_that_nobody_connects_to_are_bounded_and_start_nothing() -> Result<()> {
    let test = "urls_that_nobody_connects_to_are_bounded_and_start_nothing";
    let Some(case) = open(test).await? else { return Ok(()) };
    let (pod_id, id) = case.sleeper(&case.cri.pod("waiting")).await?;
    let processes = case.node.ancestry().of_pod(&pod_id)?.len();
    let rest = case.node.settled_snapshot()?;
    for _url in 0..1000 {
        exec_url(&case.cri, &id).await?;
    }
    refused("one more", exec_url(&case.cri, &id).await, Code::ResourceExhausted, "1000")?;
    let now = case.node.ancestry().of_pod(&pod_id)?.len();
    ensure!(now == processes, "{now} processes, {processes} before");
    case.node.expect_no_leaks(&rest)?;
    case.cri.end_pod(&pod_id).await?;
    case.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_dies_in_a_large_copy_ends_it() -> Result<()> {
    let Some(case) = open("a_client_that_dies_in_a_large_copy_ends_it").await? else { return Ok(()) };
    let (pod_id, id) = case.sleeper(&case.cri.pod("copy")).await?;
    let alone = case.node.ancestry().of_pod(&pod_id)?.len();
    let daemon = case.node.daemon_pid().context("no daemon")?;
    let before = pss_kib(daemon)?;
    let rest = case.node.settled_snapshot()?;
    let source = case.node.dirs().top().join("large");
    pattern::write(&source, 1 << 30)?;
    let endpoint = format!("unix://{}", case.node.dirs().socket().display());
    for transport in ["spdy", "websocket"] {
        // It takes what comes until there is nothing more, and would then wait.
        let line = "head -c 500000000 >/dev/null; echo taken; sleep 1000";
        let program = case.node.program(paths::peer("crictl")?).args(["--runtime-endpoint", &endpoint]);
        let program = program.args(["exec", "-r", transport, "-i", &id, "sh", "-c", line]);
        let said = case.node.dirs().top().join("said");
        let client =
            program.start_with(File::open(&source)?.into(), File::create(&said)?.into(), Stdio::null())?;
        wait::until("the middle of the copy", 10 * PATIENCE, || {
            ensure!(std::fs::read_to_string(&said)?.contains("taken"), "it is not there yet");
            Ok(())
        })?;
        client.signal(Signal::KILL)?;
        wait::until("the end of the command", PATIENCE, || {
            let left = case.node.ancestry().of_pod(&pod_id)?.len();
            ensure!(left == alone, "{left} processes, {alone} before");
            Ok(())
        })?;
    }
    let after = pss_kib(daemon)?;
    ensure!(after < before + GROWTH, "the daemon grew from {before} to {after} KiB");
    std::fs::remove_file(&source)?;
    case.node.expect_no_leaks(&rest)?;
    case.cri.end_pod(&pod_id).await?;
    case.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_ends_with_the_client_of_its_exec_sync() -> Result<()> {
    let Some(case) = open("a_command_ends_with_the_client_of_its_exec_sync").await? else { return Ok(()) };
    let (pod_id, id) = case.sleeper(&case.cri.pod("left")).await?;
    let alone = case.node.ancestry().of_pod(&pod_id)?.len();
    // Without a timeout; the child is in the same session.
    let line = "trap '' HUP TERM; echo much; sleep 100000 & sleep 100000";
    let calling = tokio::spawn({
        let (cri, id) = (case.cri.clone(), id.clone());
        async move { cri.exec(&id, &["sh", "-c", line], 0).await }
    });
    wait::until("the command", PATIENCE, || {
        let now = case.node.ancestry().of_pod(&pod_id)?.len();
        ensure!(now >= alone + 2, "{now} processes, {alone} before");
        Ok(())
    })?;
    calling.abort();
    ensure!(calling.await.is_err_and(|error| error.is_cancelled()));
    wait::until("the end of the command", PATIENCE, || {
        let left = case.node.ancestry().of_pod(&pod_id)?.len();
        ensure!(left == alone, "{left} processes, {alone} before");
        Ok(())
    })?;
    case.cri.end_pod(&pod_id).await?;
    case.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn output_without_end_is_cut_and_children_do_not_keep_an_answer() -> Result<()> {
    let test = "output_without_end_is_cut_and_children_do_not_keep_an_answer";
    let Some(case) = open(test).await? else { return Ok(()) };
    let cri = &case.cri;
    let (pod_id, id) = case.sleeper(&cri.pod("output")).await?;
    let alone = case.node.ancestry().of_pod(&pod_id)?.len();
    let daemon = case.node.daemon_pid().context("no daemon")?;

    // More than is kept; the command still comes to its end, since the rest is taken and dropped.
    let line = "head -c 64000000 /dev/zero; echo why >&2; exit 3";
    let request = api::ExecSyncRequest {
        container_id: id.clone(),
        cmd: ["sh", "-c", line].map(String::from).to_vec(),
        timeout: 60,
    };
    let answer = cri.runtime.clone().exec_sync(request).await?.into_inner();
    ensure!(answer.exit_code == 3 && answer.stderr == b"why\n", "{}: {:?}", answer.exit_code, answer.stderr);
    ensure!(answer.stdout.len() + answer.stderr.len() == OUTPUT_LIMIT, "{} bytes", answer.stdout.len());
    drop(answer);

    let endless = cri.exec(&id, &["cat", "/dev/zero"], 1).await;
    refused("output without end", endless, Code::DeadlineExceeded, "1 s")?;
    wait::until("the end of the late command", PATIENCE, || {
        let left = case.node.ancestry().of_pod(&pod_id)?.len();
        ensure!(left == alone, "{left} processes, {alone} before");
        Ok(())
    })?;

    // No deadline: were the answer to wait for the child, it would wait for ever.
    for child in ["sleep 100000", "cat /dev/zero"] {
        let line = format!("{child} & echo done >&2; exit 4");
        let output = cri.exec(&id, &["sh", "-c", &line], 0).await?;
        ensure!((output.code, output.stderr.as_str()) == (4, "done\n"), "{child}: {output:?}");
    }
    wait::until("the daemon's memory to come back", PATIENCE, || {
        let now = pss_kib(daemon)?;
        ensure!(now < 3 * GROWTH, "{now} KiB");
        Ok(())
    })?;
    cri.end_pod(&pod_id).await?;
    case.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_out_of_range_are_refused_at_create() -> Result<()> {
    type Resources = api::LinuxContainerResources;
    let Some(case) = open("limits_out_of_range_are_refused_at_create").await? else { return Ok(()) };
    let cri = &case.cri;
    let pod = cri.pod("limits");
    let pod_id = cri.run_pod(&pod).await?;
    let huge = api::HugepageLimit { page_size: "2MB".into(), limit: 1 };
    // No machine has these.
    let unknown = api::HugepageLimit { page_size: "3MB".into(), limit: 0 };
    let unified = [("../memory.max".to_owned(), "1".to_owned())].into();
    let cases = [
        (Resources { cpu_shares: 1, ..Default::default() }, "cpu_shares"),
        (Resources { cpu_shares: i64::MAX, ..Default::default() }, "cpu_shares"),
        (Resources { cpu_period: 999, ..Default::default() }, "cpu_period"),
        (Resources { cpu_quota: i64::MIN, ..Default::default() }, "cpu_quota"),
        (Resources { memory_limit_in_bytes: -2, ..Default::default() }, "memory_limit_in_bytes"),
        (Resources { oom_score_adj: 1001, ..Default::default() }, "oom_score_adj"),
        (Resources { cpuset_cpus: "0,".into(), ..Default::default() }, "cpuset_cpus"),
        (Resources { cpuset_cpus: "0-99999".into(), ..Default::default() }, "cpuset_cpus"),
        (Resources { cpuset_mems: "999".into(), ..Default::default() }, "cpuset_mems"),
        (Resources { hugepage_limits: vec![huge.clone(), huge], ..Default::default() }, "hugepage_limits"),
        (Resources { hugepage_limits: vec![unknown], ..Default::default() }, "no huge pages of 3MB"),
        (Resources { unified, ..Default::default() }, "unified"),
    ];
    for (resources, word) in cases {
        let mut config = container("limited", BUSYBOX, &["true"]);
        config.linux.get_or_insert_default().resources = Some(resources.clone());
        let created = cri.create(&pod_id, &config, &pod).await;
        let code = created.as_ref().err().map(Status::code);
        // A file that this node's cgroups do not have is not wrong in itself.
        let expect = if word == "unified" && code == Some(Code::FailedPrecondition) {
            Code::FailedPrecondition
        } else {
            Code::InvalidArgument
        };
        refused(&format!("{resources:?}"), created, expect, word)?;
    }
    cri.end_pod(&pod_id).await?;
    case.close()
}
