//! Labels of SELinux, on a kernel that enforces them: of processes and files, and whom they keep out. Skipped elsewhere.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use e2e::case::Case;
use e2e::cri::{container, refused, security, with_namespaces};
use e2e::daemon::Setup;
use e2e::gate;
use e2e::image::set::BUSYBOX;
use e2e::image::volumes::{MODEL, VOLUMES};
use e2e::mounts::{SLEEP, Scratch, bind, image_mount, with_mounts};
use e2e::node::Node;
use proto::cri::{self as api, NamespaceMode};
use tonic::Code;

/// What the guest's policy gives containers, before their level.
const PROCESS: &str = "system_u:system_r:container_t:";
const FILE: &str = "system_u:object_r:container_file_t:";
/// The label of images' layers.
const LAYER: &str = "system_u:object_r:container_ro_file_t:s0";
/// The label of everything that runs on the node.
const NODE: &str = "system_u:system_r:host_t:s0-s0:c0.c1023";
/// The OCI runtime that has no SELinux: youki 0.7.
const LABELLESS: &str = "youki";
/// The node's id of the root of a pod with a user namespace.
const FIRST: u32 = 300_000;

async fn open(test: &str) -> Result<Option<Case>> {
    if !gate::open_with_selinux(test) {
        return Ok(None);
    }
    let setup = Setup::default();
    if setup.default_handler == LABELLESS {
        eprintln!("SKIPPED {test}: {LABELLESS} gives no labels, so that its containers are refused");
        return Ok(None);
    }
    Case::open(test, setup).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_gives_no_labels_runs_only_privileged_containers() -> Result<()> {
    let test = "a_handler_that_gives_no_labels_runs_only_privileged_containers";
    if Setup::default().default_handler != LABELLESS || !gate::open_with_selinux(test) {
        eprintln!("SKIPPED {test}: is about {LABELLESS} and SELinux");
        return Ok(());
    }
    let node = Node::start(Setup::default())?;
    let cri = node.cri().await?;
    cri.pull(BUSYBOX).await?;
    let mut pod = cri.pod("labelless");
    pod.linux.get_or_insert_default().security_context.get_or_insert_default().privileged = true;
    let pod_id = cri.run_pod(&pod).await?;
    let created = cri.create(&pod_id, &sleeper("confined"), &pod).await;
    refused("a container", created, Code::FailedPrecondition, "gives processes no label")?;
    let mut config = sleeper("privileged");
    security(&mut config).privileged = true;
    let id = cri.launch(&pod_id, &config, &pod).await?;
    ensure!(cri.shell(&id, "cat /proc/self/attr/current").await?.trim_end_matches(['\0', '\n']) == NODE);
    cri.end_pod(&pod_id).await?;
    node.end();
    Ok(())
}

fn asking(user: &str, role: &str, kind: &str, level: &str) -> Option<api::SeLinuxOption> {
    let [user, role, r#type, level] = [user, role, kind, level].map(String::from);
    Some(api::SeLinuxOption { user, role, r#type, level })
}

fn sleeper(name: &str) -> api::ContainerConfig {
    container(name, BUSYBOX, &SLEEP)
}

/// A pod that asks for these options.
fn pod_asking(case: &Case, name: &str, options: Option<api::SeLinuxOption>) -> api::PodSandboxConfig {
    let mut pod = case.cri.pod(name);
    pod.linux.get_or_insert_default().security_context.get_or_insert_default().selinux_options = options;
    pod
}

/// The label of a container's processes: one for its first and for a command in it.
async fn label_of(case: &Case, id: &str) -> Result<String> {
    let seen = case.cri.shell(id, "cat /proc/1/attr/current; echo; cat /proc/self/attr/current").await?;
    let labels: Vec<&str> = seen.lines().map(|line| line.trim_end_matches('\0')).collect();
    ensure!(labels.len() == 2 && labels[0] == labels[1], "{labels:?}");
    Ok(labels[0].to_owned())
}

/// The level of a label of that kind.
fn level<'a>(label: &'a str, kind: &str) -> Result<&'a str> {
    label.strip_prefix(kind).with_context(|| format!("{label} is not {kind}…"))
}

/// The label that a file of the node has, links not followed.
fn label_at(path: &Path) -> Result<String> {
    let mut value = [0; 256];
    let length = rustix::fs::lgetxattr(path, "security.selinux", &mut value[..])
        .with_context(|| format!("the label of {}", path.display()))?;
    Ok(String::from_utf8_lossy(&value[..length]).trim_end_matches('\0').to_owned())
}

/// Verbose information of a container.
async fn verbose(case: &Case, id: &str) -> Result<serde_json::Value> {
    let request = api::ContainerStatusRequest { container_id: id.to_owned(), verbose: true };
    let info = case.cri.runtime.clone().container_status(request).await?.into_inner().info;
    Ok(serde_json::from_str(info.get("info").context("no verbose information")?)?)
}

/// The container's root as the node sees it.
async fn root_of(case: &Case, id: &str) -> Result<PathBuf> {
    let pid = verbose(case, id).await?["pid"].as_i64().context("no pid")?;
    Ok(PathBuf::from(format!("/proc/{pid}/root")))
}

/// Expects that the kernel keeps the container from this.
async fn denied(case: &Case, id: &str, line: &str) -> Result<()> {
    let tried = case.cri.exec(id, &["sh", "-c", line], 30).await?;
    ensure!(tried.code != 0 && tried.stderr.contains("Permission denied"), "{line}: {tried:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pods_containers_share_a_level_that_no_other_pod_has() -> Result<()> {
    let Some(mut case) = open("a_pods_containers_share_a_level_that_no_other_pod_has").await? else {
        return Ok(());
    };
    let pod = case.cri.pod("first");
    let pod_id = case.cri.run_pod(&pod).await?;
    let one = case.cri.launch(&pod_id, &sleeper("one"), &pod).await?;
    let label = label_of(&case, &one).await?;
    let own = level(&label, PROCESS)?.to_owned();
    ensure!(own.starts_with("s0:c") && own.contains(",c"), "{own}");

    // What is told of it.
    let spec = &verbose(&case, &one).await?["runtimeSpec"];
    ensure!(spec["process"]["selinuxLabel"] == label.as_str(), "{spec}");
    ensure!(spec["linux"]["mountLabel"] == format!("{FILE}{own}"), "{spec}");
    let request = api::PodSandboxStatusRequest { pod_sandbox_id: pod_id.clone(), verbose: true };
    let info = case.cri.runtime.clone().pod_sandbox_status(request).await?.into_inner().info;
    let info: serde_json::Value = serde_json::from_str(&info["info"])?;
    ensure!(info["selinux"]["process"] == label.as_str(), "{info}");

    // A new daemon keeps to it, and gives it to nobody else.
    case.node.kill_daemon()?;
    case.restart_daemon().await?;
    let two = case.cri.launch(&pod_id, &sleeper("two"), &pod).await?;
    ensure!(label_of(&case, &two).await? == label);
    let (other_pod, other) = case.sleeper(&case.cri.pod("second")).await?;
    let others = label_of(&case, &other).await?;
    ensure!(level(&others, PROCESS)? != own, "{others}");
    for pod_id in [pod_id, other_pod] {
        case.cri.end_pod(&pod_id).await?;
    }
    case.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_are_what_pods_and_containers_ask_for() -> Result<()> {
    let Some(case) = open("labels_are_what_pods_and_containers_ask_for").await? else { return Ok(()) };
    let cri = &case.cri;
    let pod = pod_asking(&case, "asks", asking("", "", "", "s0:c9,c5"));
    let pod_id = cri.run_pod(&pod).await?;
    let rows = [
        (None, format!("{PROCESS}s0:c5,c9"), format!("{FILE}s0:c5,c9")),
        (
            asking("", "", "container_init_t", ""),
            "system_u:system_r:container_init_t:s0:c5,c9".into(),
            format!("{FILE}s0:c5,c9"),
        ),
        (
            asking("other_u", "system_r", "container_t", "s0:c5"),
            "other_u:system_r:container_t:s0:c5".into(),
            "other_u:object_r:container_file_t:s0:c5".into(),
        ),
    ];
    for (at, (options, process, file)) in rows.into_iter().enumerate() {
        let mut config = sleeper(&format!("c{at}"));
        security(&mut config).selinux_options = options;
        let id = cri.launch(&pod_id, &config, &pod).await?;
        ensure!(label_of(&case, &id).await? == process, "{process}");
        let root = label_at(&root_of(&case, &id).await?.join("bin"))?;
        ensure!(root == file, "{root} instead of {file}");
    }

    // What no policy could have is refused before the kernel is asked; this is its own word.
    let wrong = [
        asking("", "", "nobody_t", ""),
        asking("nobody_u", "", "", ""),
        asking("", "nobody_r", "", ""),
        asking("", "", "host_file_t", ""),
        asking("", "", "", "s0:c1024"),
        asking("", "", "", "s1"),
    ];
    for options in wrong {
        let what = format!("{options:?}");
        let mut config = sleeper("refused");
        security(&mut config).selinux_options.clone_from(&options);
        let created = cri.create(&pod_id, &config, &pod).await;
        refused(&what, created, Code::InvalidArgument, "selinux_options: the node's SELinux policy")?;
        let ran = cri.run_pod(&pod_asking(&case, "refused", options)).await;
        refused(&what, ran, Code::InvalidArgument, "selinux_options: the node's SELinux policy")?;
    }
    cri.end_pod(&pod_id).await?;
    case.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn only_privileged_containers_are_unconfined() -> Result<()> {
    let Some(case) = open("only_privileged_containers_are_unconfined").await? else { return Ok(()) };
    let cri = &case.cri;
    let node = NamespaceMode::Node.into();
    let mut pod = with_namespaces(
        cri.pod("node"),
        api::NamespaceOption { network: node, pid: node, ipc: node, ..Default::default() },
    );
    pod.linux.get_or_insert_default().security_context.get_or_insert_default().privileged = true;
    let pod_id = cri.run_pod(&pod).await?;
    for (name, privileged) in [("privileged", true), ("confined", false)] {
        let mut config = sleeper(name);
        *security(&mut config) = api::LinuxContainerSecurityContext {
            privileged,
            namespace_options: Some(api::NamespaceOption {
                network: node,
                pid: node,
                ipc: node,
                ..Default::default()
            }),
            ..Default::default()
        };
        let id = cri.launch(&pod_id, &config, &pod).await?;
        let label = cri.shell(&id, "cat /proc/self/attr/current").await?;
        let label = label.trim_end_matches(['\0', '\n']);
        if privileged {
            ensure!(label == NODE, "{label}");
            cri.shell(&id, "cat /proc/1/attr/current").await?;
        } else {
            level(label, PROCESS)?;
            denied(&case, &id, "cat /proc/1/attr/current").await?;
        }
    }
    cri.end_pod(&pod_id).await?;
    case.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_are_relabelled_where_that_is_asked() -> Result<()> {
    let Some(case) = open("volumes_are_relabelled_where_that_is_asked").await? else { return Ok(()) };
    let cri = &case.cri;
    let scratch = Scratch::new()?;
    let (mine, kept) = (scratch.directory("mine", "mine\n")?, scratch.directory("kept", "kept\n")?);
    std::fs::create_dir_all(mine.join("a/b"))?;
    std::fs::write(mine.join("a/b/deep"), "deep\n")?;
    std::os::unix::fs::symlink(kept.join("file"), mine.join("link"))?;
    let before = label_at(&kept.join("file"))?;
    let relabelled = |path: &Path, place: &str| api::Mount { selinux_relabel: true, ..bind(path, place) };

    let pod = cri.pod("owner");
    let pod_id = cri.run_pod(&pod).await?;
    let config = with_mounts("owner", [relabelled(&mine, "/mine"), bind(&kept, "/kept")]);
    let id = cri.launch(&pod_id, &config, &pod).await?;
    let own = level(&label_of(&case, &id).await?, PROCESS)?.to_owned();
    for path in ["", "file", "a", "a/b", "a/b/deep", "link"] {
        ensure!(label_at(&mine.join(path))? == format!("{FILE}{own}"), "{path}");
    }
    for path in [kept.clone(), kept.join("file")] {
        ensure!(label_at(&path)? == before, "{} has another label", path.display());
    }
    let line = "cat /mine/file /mine/a/b/deep && echo new > /mine/new && cat /mine/new";
    ensure!(cri.shell(&id, line).await? == "mine\ndeep\nnew\n");
    ensure!(label_at(&mine.join("new"))? == format!("{FILE}{own}"));
    denied(&case, &id, "cat /kept/file").await?;

    // A container of the same pod may, one of another pod may not.
    let beside = cri.launch(&pod_id, &with_mounts("beside", [bind(&mine, "/mine")]), &pod).await?;
    ensure!(cri.shell(&beside, "cat /mine/file").await? == "mine\n");
    let other = cri.pod("other");
    let other_id = cri.run_pod(&other).await?;
    let stranger = cri.launch(&other_id, &with_mounts("stranger", [bind(&mine, "/mine")]), &other).await?;
    for line in ["cat /mine/file", "ls /mine", "touch /mine/theirs"] {
        denied(&case, &stranger, line).await?;
    }

    // Also by another way to the same place, what belongs to the node keeps its label.
    std::os::unix::fs::symlink("/etc", scratch.path("way"))?;
    for path in
        [Path::new("/"), Path::new("/etc"), Path::new("/usr/"), Path::new("/sys/fs"), &scratch.path("way")]
    {
        let created = cri.create(&pod_id, &with_mounts("refused", [relabelled(path, "/x")]), &pod).await;
        refused(&path.display().to_string(), created, Code::InvalidArgument, "selinux_relabel")?;
    }
    ensure!(label_at(Path::new("/etc"))? == before);
    for pod_id in [pod_id, other_id] {
        cri.end_pod(&pod_id).await?;
    }
    case.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_pod_is_given_is_its_own_to_use() -> Result<()> {
    let Some(mut case) = open("what_a_pod_is_given_is_its_own_to_use").await? else { return Ok(()) };
    case.cri.pull(MODEL).await?;
    case.cri.pull(VOLUMES).await?;
    case.accept_present_state()?;
    let ids = vec![api::IdMapping { container_id: 0, host_id: FIRST, length: 65536 }];
    let user = api::UserNamespace { mode: NamespaceMode::Pod.into(), uids: ids.clone(), gids: ids };
    let options = |userns_options| api::NamespaceOption {
        pid: NamespaceMode::Container.into(),
        userns_options,
        ..Default::default()
    };
    let mut rows = vec![("plain", options(None))];
    if case.node.setup().default_handler == "crun" {
        // runc insists on a label for the message queues, whose root is not the pod's.
        rows.push(("mapped", options(Some(user))));
    }
    for (name, options) in rows {
        let pod = with_namespaces(case.cri.pod(name), options.clone());
        let pod_id = case.cri.run_pod(&pod).await.context(name)?;
        let config = |name: &str| {
            let mut config = container(name, VOLUMES, &SLEEP);
            config.mounts = vec![image_mount(MODEL, "", "/model")];
            security(&mut config).namespace_options = Some(options.clone());
            config
        };
        let id = case.cri.launch(&pod_id, &config("one"), &pod).await.context(name)?;
        let beside = case.cri.launch(&pod_id, &config("two"), &pod).await.context(name)?;
        use_all(&case, &id, &beside).await.context(name)?;
        case.cri.end_pod(&pod_id).await?;
    }
    // What lies behind all roots can be read by all pods, and is no pod's.
    for layer in std::fs::read_dir(case.node.dirs().root().join("layers"))? {
        let label = label_at(&layer?.path())?;
        ensure!(label == LAYER, "{label}");
    }
    case.close()
}

/// Uses everything that a container finds, and checks its label.
async fn use_all(case: &Case, id: &str, beside: &str) -> Result<()> {
    let cri = &case.cri;
    let file = format!("{FILE}{}", level(&label_of(case, id).await?, PROCESS)?);
    cri.shell(id, "cat /etc/hosts /etc/resolv.conf /etc/hostname /etc/passwd > /dev/null").await?;
    ensure!(cri.shell(id, "cat /model/models/small/weights").await? == "one\n");
    cri.shell(id, "echo shared > /dev/shm/x; echo mine > /root-file; echo x > /dev/null").await?;
    ensure!(cri.shell(beside, "cat /dev/shm/x").await? == "shared\n");
    let root = root_of(case, id).await?;
    let places = "bin root-file etc/hosts etc/resolv.conf etc/hostname dev dev/pts dev/shm dev/shm/x model \
                  model/models/small/weights";
    for place in places.split(' ').chain([""]) {
        let label = label_at(&root.join(place))?;
        ensure!(label == file, "/{place} has {label} instead of {file}");
    }
    // Anonymous volumes, which the image declares.
    let spec = &verbose(case, id).await?["runtimeSpec"];
    let mounts = spec["mounts"].as_array().context("no mounts")?;
    let places =
        mounts.iter().filter(|mount| mount["source"].as_str().is_some_and(|it| it.contains("/volumes/")));
    let mut volumes = 0;
    for place in places.filter_map(|mount| mount["destination"].as_str()) {
        // Links of the image would lead from the node's root here.
        let path =
            cri.shell(id, &format!("echo x > {place}/x && cat {place}/x >&2; readlink -f {place}/x")).await?;
        let label = label_at(&root.join(path.trim().trim_start_matches('/')))?;
        ensure!(label == file, "{path} has {label} instead of {file}");
        volumes += 1;
    }
    ensure!(volumes == 4, "{mounts:?}");
    Ok(())
}
