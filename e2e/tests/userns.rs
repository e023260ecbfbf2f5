//! Pods with user namespaces: who owns what, inside and outside, and that nothing of it stays.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::case::Case;
use e2e::cri::{container, security, with_namespaces};
use e2e::daemon::Setup;
use e2e::image::set::BUSYBOX;
use proto::cri::{self as api, NamespaceMode};
use tonic::Code;

/// The node's id of the pod's root.
const FIRST: u32 = 300_000;
const LENGTH: u32 = 65536;
const SOON: Duration = Duration::from_secs(30);

/// A node whose handler says that it serves user namespaces.
async fn open(name: &str) -> Result<Option<Case>> {
    let Some(case) = Case::open(name, Setup::default()).await? else { return Ok(None) };
    let status = case.cri.runtime.clone().status(api::StatusRequest::default()).await?.into_inner();
    let default = status.runtime_handlers.iter().find(|handler| handler.name.is_empty());
    let features = default.and_then(|handler| handler.features);
    ensure!(features.is_some_and(|features| features.user_namespaces), "{status:?}");
    Ok(Some(case))
}

fn ids() -> Vec<api::IdMapping> {
    vec![api::IdMapping { container_id: 0, host_id: FIRST, length: LENGTH }]
}

fn modes(network: NamespaceMode) -> api::NamespaceOption {
    let user = api::UserNamespace { mode: NamespaceMode::Pod.into(), uids: ids(), gids: ids() };
    api::NamespaceOption {
        network: network.into(),
        pid: NamespaceMode::Container.into(),
        userns_options: Some(user),
        ..Default::default()
    }
}

fn pod(case: &Case, name: &str) -> api::PodSandboxConfig {
    with_namespaces(case.cri.pod(name), modes(NamespaceMode::Pod))
}

/// A directory of the node for a volume, with one file of root and one of somebody else.
fn volume(case: &Case, name: &str) -> Result<PathBuf> {
    let path = case.node.dirs().top().join(name);
    std::fs::create_dir(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
    for (file, owner) in [("root", 0), ("user", 1000)] {
        std::fs::write(path.join(file), "here\n")?;
        std::os::unix::fs::chown(path.join(file), Some(owner), Some(owner))?;
    }
    Ok(path)
}

fn mount(source: &Path, target: &str) -> api::Mount {
    api::Mount {
        host_path: source.to_string_lossy().into_owned(),
        container_path: target.to_owned(),
        uid_mappings: ids(),
        gid_mappings: ids(),
        ..Default::default()
    }
}

fn owner(path: &Path) -> Result<(u32, u32)> {
    let metadata = std::fs::metadata(path).with_context(|| path.display().to_string())?;
    Ok((metadata.uid(), metadata.gid()))
}

#[tokio::test(flavor = "multi_thread")]
async fn root_of_the_pod_is_nobody_on_the_node() -> Result<()> {
    let name = "root_of_the_pod_is_nobody_on_the_node";
    let Some(case) = open(name).await? else { return Ok(()) };
    let cri = &case.cri;
    let mut pod = pod(&case, "root");
    let linux = pod.linux.get_or_insert_default();
    linux.sysctls.insert("net.ipv4.ip_unprivileged_port_start".into(), "0".into());
    linux.sysctls.insert("kernel.shm_rmid_forced".into(), "1".into());
    linux.sysctls.insert("kernel.msgmax".into(), "4096".into());
    let (pod_id, id) = case.sleeper(&pod).await?;
    let line = |file: &str| format!("tr -s ' ' < /proc/self/{file}");
    for file in ["uid_map", "gid_map"] {
        let map = cri.shell(&id, &line(file)).await?;
        ensure!(map.trim() == format!("0 {FIRST} {LENGTH}"), "{file} is {map:?}");
    }
    ensure!(cri.shell(&id, "id -u; id -g").await? == "0\n0\n");
    // Files of the image and files that are made look like root's inside.
    cri.shell(&id, "echo made > /made; mkdir /dir; chown 1000:1000 /dir; rm /etc/group; mv /bin/true /")
        .await?;
    let owners = cri.shell(&id, "stat -c %u:%g / /bin /etc/passwd /made /dir /true").await?;
    ensure!(owners == "0:0\n0:0\n0:0\n0:0\n1000:1000\n0:0\n", "{owners:?}");
    ensure!(cri.shell(&id, "ls /etc/group 2>&1 || true").await?.contains("No such file"));
    // The pod's own files, too; and its namespaces obey its root.
    let pods = cri.shell(&id, "stat -c %u /etc/hosts /etc/resolv.conf /etc/hostname /dev/shm").await?;
    ensure!(pods == "0\n0\n0\n0\n", "{pods:?}");
    cri.shell(&id, "echo 127.0.0.1 more >> /etc/hosts; echo x > /dev/shm/x; echo out > /dev/stdout").await?;
    ensure!(cri.shell(&id, "hostname").await? == "root\n");
    let sysctls =
        "cd /proc/sys; cat net/ipv4/ip_unprivileged_port_start kernel/shm_rmid_forced kernel/msgmax";
    ensure!(cri.shell(&id, sysctls).await? == "0\n1\n4096\n");
    // The process is the node's user FIRST, and not more.
    let process = cri.shell(&id, "cat /proc/1/status | grep ^CapEff").await?;
    ensure!(!process.contains("0000000000000000"), "{process:?}");
    let seen = case.node.program("ps").args(["-o", "uid=", "-C", "sleep"]).ok()?;
    ensure!(seen.lines().any(|uid| uid.trim() == FIRST.to_string()), "no process of {FIRST}: {seen:?}");
    cri.end_pod(&pod_id).await?;
    case.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mapped_volume_has_the_same_owners_on_both_sides() -> Result<()> {
    let name = "a_mapped_volume_has_the_same_owners_on_both_sides";
    let Some(mut case) = open(name).await? else { return Ok(()) };
    let (volume, plain) = (volume(&case, "volume")?, volume(&case, "plain")?);
    case.accept_present_state()?;
    let cri = &case.cri;
    let pod = pod(&case, "volumes");
    let pod_id = cri.run_pod(&pod).await?;
    let mut config = container("app", BUSYBOX, &["sleep", "1000"]);
    config.mounts = vec![mount(&volume, "/data"), mount(&volume.join("user"), "/file")];
    config.mounts.push(api::Mount { uid_mappings: vec![], gid_mappings: vec![], ..mount(&plain, "/plain") });
    let mut read_only = mount(&volume, "/read");
    read_only.readonly = true;
    config.mounts.push(read_only);
    config.mounts.push(api::Mount {
        image: Some(api::ImageSpec { image: BUSYBOX.to_owned(), ..Default::default() }),
        readonly: true,
        ..mount(Path::new(""), "/image")
    });
    let id = cri.launch(&pod_id, &config, &pod).await?;
    let owners = cri
        .shell(&id, "stat -c %u /data /data/root /data/user /file /read/root /plain/root /image/bin")
        .await?;
    ensure!(owners == "0\n0\n1000\n1000\n0\n65534\n0\n", "{owners:?}");
    cri.shell(&id, "echo new > /data/new; touch /data/theirs; chown 7:8 /data/theirs; rm /data/root").await?;
    ensure!(cri.shell(&id, "echo no > /read/no 2>/dev/null || echo refused").await? == "refused\n");
    ensure!(cri.shell(&id, "echo no > /plain/no 2>/dev/null || echo refused").await? == "refused\n");
    ensure!(owner(&volume.join("new"))? == (0, 0), "the new file is {:?}'s", owner(&volume.join("new"))?);
    ensure!(owner(&volume.join("theirs"))? == (7, 8));
    ensure!(!volume.join("root").exists());
    cri.end_pod(&pod_id).await?;
    ensure!(std::fs::read_to_string(volume.join("new"))? == "new\n", "the volume's files are gone");
    std::fs::remove_file(volume.join("new"))?;
    std::fs::remove_file(volume.join("theirs"))?;
    std::fs::write(volume.join("root"), "")?;
    case.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_network_and_a_restart_work() -> Result<()> {
    let Some(case) = open("the_network_and_a_restart_work").await? else { return Ok(()) };
    let cri = &case.cri;
    let pod = pod(&case, "network");
    let pod_id = cri.run_pod(&pod).await?;
    let ip = cri.pod_status(&pod_id).await?.network.context("no network status")?.ip;
    for attempt in 0..2 {
        let mut config = container("app", BUSYBOX, &["sh", "-c", "echo start > /dev/stdout; sleep 1000"]);
        config.metadata = Some(api::ContainerMetadata { name: "app".into(), attempt });
        security(&mut config).namespace_options = Some(modes(NamespaceMode::Pod));
        let id = cri.launch(&pod_id, &config, &pod).await?;
        let addresses = cri.shell(&id, "ip addr show eth0; ip addr show lo").await?;
        ensure!(addresses.contains(&format!("inet {ip}/")), "{addresses:?}");
        ensure!(addresses.contains("127.0.0.1/8"), "{addresses:?}");
        cri.shell(&id, "ping -c 1 -W 5 $(ip route show | grep default | cut -d' ' -f3)").await?;
        cri.shell(&id, "touch /left; ls /sys/class/net/eth0 > /dev/null").await?;
        cri.stop(&id, 0).await?;
        cri.exited(&id, SOON).await?;
        cri.remove(&id).await?;
    }
    cri.end_pod(&pod_id).await?;
    case.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_is_killed_and_nothing_stays() -> Result<()> {
    let name = "the_daemon_is_killed_and_nothing_stays";
    let Some(mut case) = open(name).await? else { return Ok(()) };
    let volume = volume(&case, "volume")?;
    case.accept_present_state()?;
    let pod = pod(&case, "killed");
    let pod_id = case.cri.run_pod(&pod).await?;
    let mut config = container("app", BUSYBOX, &["sleep", "1000"]);
    config.mounts = vec![mount(&volume, "/data")];
    let id = case.cri.launch(&pod_id, &config, &pod).await?;
    case.node.kill_daemon()?;
    case.node.start_daemon()?;
    case.cri = case.node.cri().await?;
    let cri = &case.cri;
    ensure!(cri.shell(&id, "echo after > /data/after; stat -c %u /data/after").await? == "0\n");
    // A second container joins what the first daemon made.
    let second = container("second", BUSYBOX, &["sleep", "1000"]);
    let second = cri.launch(&pod_id, &second, &pod).await?;
    ensure!(
        cri.shell(&id, "readlink /proc/self/ns/user").await?
            == cri.shell(&second, "readlink /proc/self/ns/user").await?
    );
    cri.end_pod(&pod_id).await?;
    ensure!(std::fs::read_to_string(volume.join("after"))? == "after\n", "the volume's files are gone");
    std::fs::remove_file(volume.join("after"))?;
    case.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nodes_network_can_be_used_by_a_user_namespace() -> Result<()> {
    let name = "the_nodes_network_can_be_used_by_a_user_namespace";
    let Some(case) = open(name).await? else { return Ok(()) };
    let cri = &case.cri;
    let mut pod = with_namespaces(cri.pod("host-network"), modes(NamespaceMode::Node));
    pod.hostname.clear();
    let (pod_id, id) = case.sleeper(&pod).await?;
    let map = cri.shell(&id, "tr -s ' ' < /proc/self/uid_map").await?;
    ensure!(map.trim() == format!("0 {FIRST} {LENGTH}"), "{map:?}");
    let links = cri.shell(&id, "ls /sys/class/net").await?;
    ensure!(links.contains("lo"), "{links:?}");
    ensure!(cri.shell(&id, "hostname node 2>&1 || echo refused").await?.contains("refused"));
    cri.end_pod(&pod_id).await?;
    case.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_user_namespace_cannot_be_is_refused() -> Result<()> {
    let name = "what_a_user_namespace_cannot_be_is_refused";
    let Some(case) = open(name).await? else { return Ok(()) };
    let cri = &case.cri;
    let mapping = |container_id, host_id, length| api::IdMapping { container_id, host_id, length };
    let good = mapping(0, FIRST, LENGTH);
    let pod_mode = NamespaceMode::Pod;
    for (mode, uids, gids) in [
        (NamespaceMode::Container, vec![good], vec![good]),
        (NamespaceMode::Target, vec![good], vec![good]),
        (pod_mode, vec![], vec![]),
        (pod_mode, vec![good, mapping(LENGTH, 9, 1)], vec![good, mapping(LENGTH, 9, 1)]),
        (pod_mode, vec![good], vec![mapping(0, FIRST + 1, LENGTH)]),
        (pod_mode, vec![mapping(1, FIRST, 5)], vec![mapping(1, FIRST, 5)]),
        (pod_mode, vec![mapping(0, 0, 5)], vec![mapping(0, 0, 5)]),
        (pod_mode, vec![mapping(0, u32::MAX, 5)], vec![mapping(0, u32::MAX, 5)]),
        (pod_mode, vec![mapping(0, 5, u32::MAX)], vec![mapping(0, 5, u32::MAX)]),
    ] {
        let mut options = modes(NamespaceMode::Pod);
        options.userns_options = Some(api::UserNamespace { mode: mode.into(), uids, gids });
        let error = cri.run_pod(&with_namespaces(cri.pod("bad"), options.clone())).await;
        let error = error.err().with_context(|| format!("{options:?} was accepted"))?;
        ensure!(error.code() == Code::InvalidArgument, "{error:?}");
        ensure!(error.message().contains("userns_options"), "{error:?}");
    }
    let pod = pod(&case, "refused");
    let pod_id = cri.run_pod(&pod).await?;
    let refused = async |change: &dyn Fn(&mut api::ContainerConfig), code, text: &str| -> Result<()> {
        let mut config = container("bad", BUSYBOX, &["true"]);
        change(&mut config);
        let error = cri.create(&pod_id, &config, &pod).await.err().context("it was accepted")?;
        ensure!(error.code() == code && error.message().contains(text), "{text}: {error:?}");
        Ok(())
    };
    let user = |id: i64| {
        move |c: &mut api::ContainerConfig| {
            security(c).run_as_user = Some(api::Int64Value { value: id });
        }
    };
    refused(&user(i64::from(LENGTH)), Code::InvalidArgument, "0 to 65535").await?;
    let other = |c: &mut api::ContainerConfig| {
        let mut other = mount(Path::new("/tmp"), "/data");
        other.uid_mappings[0].host_id += 1;
        c.mounts = vec![other];
    };
    refused(&other, Code::InvalidArgument, "uid_mappings").await?;
    let procfs = |c: &mut api::ContainerConfig| c.mounts = vec![mount(Path::new("/proc/sys"), "/data")];
    refused(&procfs, Code::FailedPrecondition, "idmapped").await?;
    cri.end_pod(&pod_id).await?;
    case.close()
}
