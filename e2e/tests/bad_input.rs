//! What a hostile or mistaken caller, image, registry or configuration gets: an exact code, a readable message, and
//! nothing left behind.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::case::Case;
use e2e::cri::{Cri, container, security};
use e2e::daemon::{Daemon, Endpoint, Network, Setup, handlers_present};
use e2e::faulty::{Fault, Faulty};
use e2e::gate;
use e2e::image::set::BUSYBOX;
use e2e::node::Node;
use proto::cri as api;
use tonic::{Code, Status};

/// Checks that a call failed with that code and that its message names what was wrong.
fn check<T: std::fmt::Debug>(what: &str, result: Result<T, Status>, code: Code, word: &str) -> Result<()> {
    let status = result.err().with_context(|| format!("{what} succeeded"))?;
    ensure!(status.code() == code, "{what}: {:?} instead of {code:?}: {}", status.code(), status.message());
    ensure!(status.message().contains(word), "{what}: {word:?} is not in {:?}", status.message());
    Ok(())
}

async fn open(test: &str) -> Result<Option<Case>> {
    // Codes and words are ours; the reference has others.
    Case::open(test, Setup::of(Endpoint::Berth)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_ids_are_not_found_or_gone_already() -> Result<()> {
    let Some(case) = open("unknown_ids_are_not_found_or_gone_already").await? else { return Ok(()) };
    let cri = &case.cri;
    let unknown = "ab".repeat(32);
    for id in
        [unknown.as_str(), "no-such-id", "../../../../etc", "/etc/passwd", "a/b", ".", "..", "x\0y", "é"]
    {
        cri.stop_pod(id).await.with_context(|| format!("stop pod {id:?}"))?;
        cri.remove_pod(id).await.with_context(|| format!("remove pod {id:?}"))?;
        cri.stop(id, 0).await.with_context(|| format!("stop {id:?}"))?;
        cri.remove(id).await.with_context(|| format!("remove {id:?}"))?;
        check("pod status", cri.pod_status(id).await, Code::NotFound, "not found")?;
        check("status", cri.status(id).await, Code::NotFound, "not found")?;
        check("start", cri.start(id).await, Code::NotFound, "not found")?;
        check("exec", cri.exec(id, &["true"], 1).await, Code::NotFound, "not found")?;
        let pod = cri.pod("nowhere");
        let config = container("nowhere", BUSYBOX, &["true"]);
        check("create", cri.create(id, &config, &pod).await, Code::NotFound, "not found")?;
        let reopen = api::ReopenContainerLogRequest { container_id: id.to_owned() };
        check("reopen", cri.runtime.clone().reopen_container_log(reopen).await, Code::NotFound, "not found")?;
    }
    case.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn incomplete_requests_name_what_is_missing() -> Result<()> {
    let Some(case) = open("incomplete_requests_name_what_is_missing").await? else { return Ok(()) };
    let cri = &case.cri;
    let mut runtime = cri.runtime.clone();
    let empty = runtime.run_pod_sandbox(api::RunPodSandboxRequest::default()).await;
    check("no config", empty, Code::InvalidArgument, "config")?;
    let mut pod = cri.pod("incomplete");
    pod.metadata = None;
    check("no metadata", cri.run_pod(&pod).await, Code::InvalidArgument, "metadata")?;
    let request = api::RunPodSandboxRequest { config: Some(cri.pod("h")), runtime_handler: "no-such".into() };
    let mut pod = cri.pod("labelled");
    let label = api::SeLinuxOption { level: "s0:no-category".into(), ..Default::default() };
    let context = pod.linux.get_or_insert_default().security_context.get_or_insert_default();
    context.selinux_options = Some(label);
    check("pod's label", cri.run_pod(&pod).await, Code::InvalidArgument, "selinux_options.level")?;
    check("handler", runtime.run_pod_sandbox(request).await, Code::InvalidArgument, "no-such")?;

    let pod = cri.pod("complete");
    let pod_id = cri.run_pod(&pod).await?;
    let good = container("c", BUSYBOX, &["true"]);
    let rest = case.node.settled_snapshot()?;
    let without = |edit: fn(&mut api::ContainerConfig)| {
        let mut config = good.clone();
        edit(&mut config);
        config
    };
    let nameless = without(|config| config.metadata = None);
    check("no metadata", cri.create(&pod_id, &nameless, &pod).await, Code::InvalidArgument, "metadata")?;
    let imageless = without(|config| config.image = None);
    check("no image", cri.create(&pod_id, &imageless, &pod).await, Code::InvalidArgument, "image")?;
    let escaping = without(|config| config.log_path = "../../escaped.log".into());
    check("log path", cri.create(&pod_id, &escaping, &pod).await, Code::InvalidArgument, "log_path")?;
    let labelled = without(|config| {
        security(config).selinux_options =
            Some(api::SeLinuxOption { r#type: "a:b".into(), ..Default::default() })
    });
    let refused = cri.create(&pod_id, &labelled, &pod).await;
    check("label", refused, Code::InvalidArgument, "selinux_options.type")?;
    let optioned = without(|config| {
        let level = "s0\",upperdir=/,x=\"".into();
        security(config).selinux_options = Some(api::SeLinuxOption { level, ..Default::default() })
    });
    let refused = cri.create(&pod_id, &optioned, &pod).await;
    check("mount options in a label", refused, Code::InvalidArgument, "selinux_options.level")?;
    let absent = container("c", "registry.k8s.io/not/pulled:1", &["true"]);
    check("not pulled", cri.create(&pod_id, &absent, &pod).await, Code::NotFound, "not/pulled")?;
    case.node.expect_no_leaks(&rest)?;
    let id = cri.launch(&pod_id, &container("c", BUSYBOX, &["sleep", "100"]), &pod).await?;
    check("no command", cri.exec(&id, &[], 1).await, Code::InvalidArgument, "cmd")?;
    let created = cri.create(&pod_id, &container("created", BUSYBOX, &["true"]), &pod).await?;
    cri.stop(&id, 0).await?;
    for (id, word) in [(&created, "created"), (&id, "exited")] {
        let what = format!("exec in what is {word}");
        check(&what, cri.exec(id, &["true"], 1).await, Code::FailedPrecondition, word)?;
        let attach = api::AttachRequest { container_id: id.clone(), stdout: true, ..Default::default() };
        let answer = cri.runtime.clone().attach(attach).await;
        check(&format!("attach to what is {word}"), answer, Code::FailedPrecondition, word)?;
    }
    cri.end_pod(&pod_id).await?;
    case.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_kernel_refuses_is_the_fields_fault() -> Result<()> {
    let Some(case) = open("what_a_kernel_refuses_is_the_fields_fault").await? else { return Ok(()) };
    let cri = &case.cri;
    let long = api::PodSandboxConfig { hostname: "h".repeat(65), ..cri.pod("long") };
    check("a long host name", cri.run_pod(&long).await, Code::InvalidArgument, "config.hostname")?;
    for (name, value) in [
        ("kernel.shm_rmid_forced", "7"),
        ("net.ipv4.ip_unprivileged_port_start", "99999999"),
        ("net.ipv4.conf.all.forwarding", "x"),
        ("net.ipv4.no_such_thing", "1"),
    ] {
        let mut pod = cri.pod("sysctl");
        pod.linux.get_or_insert_default().sysctls.insert(name.to_owned(), value.to_owned());
        let refused = cri.run_pod(&pod).await;
        check(name, refused.clone(), Code::InvalidArgument, "config.linux.sysctls")?;
        check(name, refused, Code::InvalidArgument, name)?;
    }
    let longest = api::PodSandboxConfig { hostname: "h".repeat(64), ..cri.pod("longest") };
    let pod_id = cri.run_pod(&longest).await?;
    cri.end_pod(&pod_id).await?;
    case.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_are_not_served_say_so() -> Result<()> {
    let Some(case) = open("calls_that_are_not_served_say_so").await? else { return Ok(()) };
    let mut runtime = case.cri.runtime.clone();
    let checkpoint = runtime.checkpoint_pod(api::CheckpointPodRequest::default()).await;
    check("checkpoint", checkpoint, Code::Unimplemented, "CheckpointPod")?;
    let restore = runtime.restore_pod(api::RestorePodRequest::default()).await;
    check("restore", restore, Code::Unimplemented, "RestorePod")?;
    case.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_is_not_there_fails_the_start() -> Result<()> {
    let Some(case) = open("a_command_that_is_not_there_fails_the_start").await? else { return Ok(()) };
    let cri = &case.cri;
    let pod = cri.pod("no-command");
    let pod_id = cri.run_pod(&pod).await?;
    let config = container("c", BUSYBOX, &["/no/such/program"]);
    let failed = match cri.create(&pod_id, &config, &pod).await {
        Ok(id) => cri.start(&id).await,
        Err(status) => Err(status),
    };
    let status = failed.err().context("a missing program was started")?;
    ensure!(status.message().contains("/no/such/program"), "{status:?}");
    cri.end_pod(&pod_id).await?;
    case.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn images_that_cannot_be_had() -> Result<()> {
    let Some(case) = open("images_that_cannot_be_had").await? else { return Ok(()) };
    let cri = &case.cri;
    let digest = format!("registry.k8s.io/pause@sha256:{}", "0".repeat(64));
    let cases = [
        ("127.0.0.1:5000/no/such/image:1", Code::NotFound, "no/such/image"),
        ("registry.k8s.io/pause:no-such-tag", Code::NotFound, "no-such-tag"),
        (digest.as_str(), Code::NotFound, "0000"),
        ("127.0.0.1:9/closed/port:1", Code::Unavailable, "127.0.0.1:9"),
        ("", Code::InvalidArgument, "image"),
        ("registry.k8s.io/UPPER/case:1", Code::InvalidArgument, "UPPER/case"),
        ("a b", Code::InvalidArgument, "a b"),
        ("x:y:z", Code::InvalidArgument, "x:y:z"),
        ("../../etc/passwd", Code::InvalidArgument, "../../etc/passwd"),
        ("pause@sha256:abc", Code::InvalidArgument, "sha256:abc"),
    ];
    for (image, code, word) in cases {
        check(&format!("pull of {image:?}"), cri.pull(image).await, code, word)?;
        ensure!(image.is_empty() || cri.image(image).await.ok().flatten().is_none(), "{image} is listed");
    }
    cri.remove_image("127.0.0.1:5000/no/such/image:1").await?;
    case.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn registries_that_lie() -> Result<()> {
    let Some(case) = open("registries_that_lie").await? else { return Ok(()) };
    let cases = [
        (Fault::WrongLayer, Code::FailedPrecondition),
        (Fault::WrongConfig, Code::FailedPrecondition),
        (Fault::Truncated, Code::FailedPrecondition),
        (Fault::Endless, Code::FailedPrecondition),
        (Fault::EndlessManifest, Code::FailedPrecondition),
        (Fault::Garbage, Code::FailedPrecondition),
        (Fault::Broken, Code::Unavailable),
        (Fault::Locked, Code::PermissionDenied),
    ];
    let mut wrong = Vec::new();
    for (fault, code) in cases {
        let registry = Faulty::start(case.node.holder_pid(), fault)?;
        let image = registry.image();
        let word = format!("127.0.0.1:{}", registry.port);
        if let Err(error) = check(&format!("{fault:?}"), case.cri.pull(&image).await, code, &word) {
            wrong.push(format!("{error:#}"));
        }
        ensure!(case.cri.image(&image).await?.is_none(), "{fault:?}: a half pulled image is listed");
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    case.close()
}

/// A layer can name any path: what it says stays inside the image's root, or the image is refused.
#[tokio::test(flavor = "multi_thread")]
async fn layers_that_reach_out() -> Result<()> {
    let Some(case) = open("layers_that_reach_out").await? else { return Ok(()) };
    let cri = &case.cri;
    let pod = cri.pod("hostile");
    let pod_id = cri.run_pod(&pod).await?;
    for name in ["dotdot", "absolute", "symlink", "hardlink", "device", "setuid"] {
        let image = format!("127.0.0.1:5000/berth/hostile-{name}:1");
        match cri.pull(&image).await {
            Ok(_) => {
                let line = "ls -l / /tmp /tmp/berth-escaped /su /stolen /dev-null 2>/dev/null; true";
                let config = container(name, &image, &["sh", "-c", line]);
                let id = cri.launch(&pod_id, &config, &pod).await?;
                let status = cri.exited(&id, Duration::from_secs(20)).await?;
                ensure!(status.exit_code == 0, "{name}: {status:?}");
                cri.remove(&id).await?;
                cri.remove_image(&image).await?;
            }
            Err(status) => ensure!(status.code() == Code::FailedPrecondition, "{name}: {status:?}"),
        }
        ensure!(!std::path::Path::new("/tmp/berth-escaped").exists(), "{name} wrote outside its root");
    }
    cri.end_pod(&pod_id).await?;
    case.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_network_configuration_is_not_ready() -> Result<()> {
    if !gate::open("a_node_without_network_configuration_is_not_ready") {
        return Ok(());
    }
    let node = Node::start(Setup { network: Network::Unconfigured, ..Setup::of(Endpoint::Berth) })?;
    let cri = node.cri().await?;
    let before = node.settled_snapshot()?;
    let status = cri.runtime.clone().status(api::StatusRequest::default()).await?.into_inner();
    let conditions = status.status.context("no status")?.conditions;
    let ready =
        |kind: &str| conditions.iter().find(|c| c.r#type == kind).map(|c| (c.status, c.reason.clone()));
    ensure!(ready("RuntimeReady").is_some_and(|(on, _)| on), "{conditions:?}");
    ensure!(ready("NetworkReady").is_some_and(|(on, reason)| !on && !reason.is_empty()), "{conditions:?}");
    let refused = cri.run_pod(&cri.pod("lonely")).await;
    let status = refused.err().context("a pod ran without a network")?;
    ensure!([Code::FailedPrecondition, Code::Unavailable].contains(&status.code()), "{status:?}");
    ensure!(status.message().contains("net.d"), "{status:?}");
    node.expect_no_leaks(&before)?;
    node.end();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_oci_runtime_is_named() -> Result<()> {
    if !gate::open("a_missing_oci_runtime_is_named") {
        return Ok(());
    }
    let mut node = Node::bare(Setup::of(Endpoint::Berth))?;
    node.write_config()?;
    let config = std::fs::read_to_string(node.dirs().config())?;
    let extra = format!("{config}[runtime.handlers.missing]\npath = \"/no/such/runtime\"\n");
    std::fs::write(node.dirs().config(), extra)?;
    node.start_daemon()?;
    let cri = node.cri().await?;
    cri.pull(BUSYBOX).await?;
    let warm_up = cri.run_pod(&cri.pod("first")).await?;
    cri.end_pod(&warm_up).await?;
    let before = node.settled_snapshot()?;
    let pod = cri.pod("no-runtime");
    let request = api::RunPodSandboxRequest { config: Some(pod.clone()), runtime_handler: "missing".into() };
    let failed = match cri.runtime.clone().run_pod_sandbox(request).await {
        Ok(answer) => {
            let pod_id = answer.into_inner().pod_sandbox_id;
            let failed = cri.create(&pod_id, &container("c", BUSYBOX, &["true"]), &pod).await;
            cri.end_pod(&pod_id).await?;
            failed
        }
        Err(status) => Err(status),
    };
    check("a missing runtime", failed, Code::FailedPrecondition, "/no/such/runtime")?;
    node.expect_no_leaks(&before)?;
    node.end();
    Ok(())
}

/// What an OCI runtime's own exec says of a program that is not there, and `enter` does not.
const OWN_WORDS: [(&str, &str); 2] =
    [("crun", "executable file `nothing`"), ("runc", "unable to start container process")];

/// Runs commands in a container of the handler; `own` are words of its OCI runtime, if that is to start them.
async fn run_commands(cri: &Cri, handler: &str, own: Option<&str>) -> Result<()> {
    let pod = cri.pod(handler);
    let request = api::RunPodSandboxRequest { config: Some(pod.clone()), runtime_handler: handler.into() };
    let pod_id = cri.runtime.clone().run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
    let id = cri.create(&pod_id, &container("c", BUSYBOX, &["sleep", "600"]), &pod).await;
    if handler == "youki-own" {
        // It would be under no filter.
        check(handler, id, Code::FailedPrecondition, "exec = \"runtime\"")?;
        return Ok(cri.end_pod(&pod_id).await?);
    }
    let id = id?;
    cri.start(&id).await?;
    let done = cri.exec(&id, &["sh", "-c", "exit 7"], 10).await?;
    ensure!(done.code == 7, "{handler}: {done:?}");
    let refused = cri.exec(&id, &["nothing"], 10).await.err().context("a command that is not there ran")?;
    let is_own = OWN_WORDS.iter().any(|(_, words)| refused.message().contains(words));
    ensure!(is_own == own.is_some(), "{handler}: {refused:?}");
    ensure!(own.is_none_or(|words| refused.message().contains(words)), "{handler}: {refused:?}");
    Ok(cri.end_pod(&pod_id).await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_are_started_by_whom_the_configuration_names() -> Result<()> {
    if !gate::open("commands_are_started_by_whom_the_configuration_names") {
        return Ok(());
    }
    let mut node = Node::bare(Setup::of(Endpoint::Berth))?;
    node.write_config()?;
    let mut config = std::fs::read_to_string(node.dirs().config())?;
    let handlers = handlers_present();
    for (name, path) in &handlers {
        let path = path.display().to_string();
        config += &format!("[runtime.handlers.{name}-own]\npath = {path:?}\nexec = \"runtime\"\n");
    }
    std::fs::write(node.dirs().config(), config)?;
    node.start_daemon()?;
    let cri = node.cri().await?;
    cri.pull(BUSYBOX).await?;
    // The first time makes the handlers' directories.
    let mut before = None;
    for _ in 0..2 {
        for (name, _) in &handlers {
            let words = OWN_WORDS.iter().find(|(of, _)| of == name).map(|(_, words)| *words);
            run_commands(&cri, name, None).await?;
            run_commands(&cri, &format!("{name}-own"), words).await?;
        }
        before = Some(before.map_or_else(|| node.settled_snapshot(), Ok)?);
    }
    node.expect_no_leaks(&before.context("no snapshot")?)?;
    node.end();
    Ok(())
}

/// An edit of a valid configuration, and the words that the daemon's last message must have.
const BROKEN_CONFIGS: [(&str, &str, &[&str]); 7] = [
    ("log_level = ", "log_levle = ", &["log_levle", "line"]),
    ("default_handler = \"crun\"", "default_handler = \"nope\"", &["default_handler", "nope", "line"]),
    (
        "monitor_patience_s = 12\n",
        "[runtime.handlers.x]\npath = \"/x\"\nexec = \"me\"\n",
        &["exec", "me", "line"],
    ),
    ("driver = \"cgroupfs\"", "driver = \"cgroups\"", &["driver", "cgroups"]),
    ("concurrent_downloads = 6", "concurrent_downloads = \"six\"", &["concurrent_downloads", "line"]),
    ("root = \"/", "root = \"relative/", &["root", "relative/", "line"]),
    ("[cni]", "[cni", &["line"]),
];

#[test]
fn wrong_configurations_are_refused_by_key_and_line() -> Result<()> {
    if !gate::open("wrong_configurations_are_refused_by_key_and_line") {
        return Ok(());
    }
    let node = Node::bare(Setup { default_handler: "crun".into(), ..Setup::of(Endpoint::Berth) })?;
    node.write_config()?;
    let good = std::fs::read_to_string(node.dirs().config())?;
    for (from, to, words) in BROKEN_CONFIGS {
        ensure!(good.contains(from), "{from:?} is not in the configuration");
        std::fs::write(node.dirs().config(), good.replacen(from, to, 1))?;
        std::fs::write(node.dirs().daemon_log(), "")?;
        let status = Daemon::launch(&node)?.wait(Duration::from_secs(10))?;
        let log = std::fs::read_to_string(node.dirs().daemon_log())?;
        ensure!(!status.success(), "{to:?} was accepted");
        for word in words {
            ensure!(log.contains(word), "{to:?}: {word:?} is not in {log:?}");
        }
        ensure!(!node.dirs().socket().exists(), "{to:?}: a socket was bound");
    }
    node.end();
    Ok(())
}
