//! The namespace table: which namespaces a container sees for each mode, and the files that come with them. Parents of
//! cgroups that the driver does not take.

use anyhow::{Context, Result, ensure};
use e2e::case::Case;
use e2e::cgroup::is_systemd;
use e2e::cri::{container, security, with_namespaces};
use e2e::daemon::Setup;
use e2e::image::set::BUSYBOX;
use e2e::ns;
use proto::cri::{self as api, NamespaceMode};
use rustix::process::Pid;
use tonic::Code;

/// Whose namespace a container is expected in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    /// The node's: that of the daemon, never that of pid 1 of the machine.
    Node,
    /// One that both containers of the pod share and the node does not.
    Pod,
    /// Its own.
    Container,
}

/// Runs two containers in a pod with those modes and says whose each namespace is.
async fn check(case: &Case, modes: [NamespaceMode; 3], expect: [(&str, Whose); 5]) -> Result<()> {
    let [network, ipc, pid] = modes.map(i32::from);
    let options = api::NamespaceOption { network, ipc, pid, ..Default::default() };
    let cri = &case.cri;
    let mut pod = with_namespaces(cri.pod("table"), options.clone());
    if modes[0] == NamespaceMode::Node {
        pod.hostname.clear();
    }
    let pod_id = cri.run_pod(&pod).await?;
    let mut found = Vec::new();
    for name in ["one", "two"] {
        let mut config = container(name, BUSYBOX, &["sleep", "1000"]);
        security(&mut config).namespace_options = Some(options.clone());
        let id = cri.launch(&pod_id, &config, &pod).await.with_context(|| format!("{modes:?}"))?;
        let links =
            cri.shell(&id, "cd /proc/self/ns; for k in net ipc uts pid mnt; do readlink $k; done").await?;
        found.push(links.lines().map(str::to_owned).collect::<Vec<_>>());
    }
    let holder = Pid::from_raw(i32::try_from(case.node.holder_pid())?).context("no holder")?;
    for (at, (kind, whose)) in expect.iter().enumerate() {
        let node = ns::identity(holder, kind).context("no namespace of the node")?;
        let (one, two) = (&found[0][at], &found[1][at]);
        let actual = match (one == two, *one == node) {
            (true, true) => Whose::Node,
            (true, false) => Whose::Pod,
            (false, _) => Whose::Container,
        };
        ensure!(actual == *whose, "{modes:?}: {kind} is the {actual:?}'s, expected the {whose:?}'s");
    }
    cri.end_pod(&pod_id).await?;
    case.settle()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_namespace_table_holds() -> Result<()> {
    use NamespaceMode::{Container, Node, Pod};
    let Some(case) = Case::open("the_namespace_table_holds", Setup::default()).await? else { return Ok(()) };
    let mnt = ("mnt", Whose::Container);
    let row = |net, ipc, uts, pid| [("net", net), ("ipc", ipc), ("uts", uts), ("pid", pid), mnt];
    let (node, pod, own) = (Whose::Node, Whose::Pod, Whose::Container);
    check(&case, [Pod, Pod, Container], row(pod, pod, pod, own)).await?;
    check(&case, [Pod, Pod, Pod], row(pod, pod, pod, pod)).await?;
    check(&case, [Pod, Pod, Node], row(pod, pod, pod, node)).await?;
    check(&case, [Pod, Node, Container], row(pod, node, pod, own)).await?;
    check(&case, [Node, Pod, Container], row(node, pod, node, own)).await?;
    check(&case, [Node, Node, Node], row(node, node, node, node)).await?;
    case.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_joins_the_processes_of_its_target() -> Result<()> {
    let name = "a_container_joins_the_processes_of_its_target";
    let Some(case) = Case::open(name, Setup::default()).await? else { return Ok(()) };
    let cri = &case.cri;
    let pod = cri.pod("target");
    let (pod_id, target) = case.sleeper(&pod).await?;
    let mut config = container("debugger", BUSYBOX, &["sleep", "1000"]);
    security(&mut config).namespace_options = Some(api::NamespaceOption {
        pid: NamespaceMode::Target.into(),
        target_id: target.clone(),
        ..Default::default()
    });
    let id = cri.launch(&pod_id, &config, &pod).await?;
    let seen = cri.shell(&id, "cat /proc/1/cmdline | tr '\\0' ' '").await?;
    ensure!(seen.trim() == "sleep 100000", "pid 1 is {seen:?}");
    let (a, b) = (
        cri.shell(&id, "readlink /proc/self/ns/pid").await?,
        cri.shell(&target, "readlink /proc/self/ns/pid").await?,
    );
    ensure!(a == b, "{a} and {b}");
    cri.end_pod(&pod_id).await?;
    case.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_pid_namespace_has_a_reaper() -> Result<()> {
    let name = "a_shared_pid_namespace_has_a_reaper";
    let Some(case) = Case::open(name, Setup::default()).await? else { return Ok(()) };
    let cri = &case.cri;
    let options = api::NamespaceOption { pid: NamespaceMode::Pod.into(), ..Default::default() };
    let pod = with_namespaces(cri.pod("reaper"), options.clone());
    let pod_id = cri.run_pod(&pod).await?;
    let mut config = container("app", BUSYBOX, &["sleep", "1000"]);
    security(&mut config).namespace_options = Some(options);
    let id = cri.launch(&pod_id, &config, &pod).await?;
    let first = cri.shell(&id, "cat /proc/1/cmdline | tr '\\0' ' '").await?;
    ensure!(!first.contains("sleep"), "pid 1 is {first:?}");
    cri.shell(&id, "sh -c 'sleep 0.1 &' ; sleep 0.5").await?;
    let zombies = cri.shell(&id, "grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l").await?;
    ensure!(zombies.trim() == "0", "{zombies} zombies");
    cri.end_pod(&pod_id).await?;
    case.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pods_files_say_who_it_is() -> Result<()> {
    let Some(case) = Case::open("a_pods_files_say_who_it_is", Setup::default()).await? else { return Ok(()) };
    let cri = &case.cri;
    let mut pod = cri.pod("files");
    pod.hostname = "files-0".to_owned();
    pod.dns_config = Some(api::DnsConfig {
        servers: vec!["10.96.0.10".into()],
        searches: vec!["a.example".into(), "b.example".into()],
        options: vec!["ndots:5".into()],
    });
    let (pod_id, one) = case.sleeper(&pod).await?;
    let two = cri.launch(&pod_id, &container("two", BUSYBOX, &["sleep", "1000"]), &pod).await?;
    let ip = cri.pod_status(&pod_id).await?.network.context("no network status")?.ip;

    let resolv = cri.shell(&one, "cat /etc/resolv.conf").await?;
    for line in ["nameserver 10.96.0.10", "search a.example b.example", "options ndots:5"] {
        ensure!(resolv.lines().any(|l| l == line), "{line:?} is not in {resolv:?}");
    }
    ensure!(cri.shell(&one, "hostname; cat /etc/hostname").await? == "files-0\nfiles-0\n");
    let hosts = cri.shell(&one, "cat /etc/hosts").await?;
    ensure!(hosts.lines().any(|line| line.contains("127.0.0.1") && line.contains("localhost")), "{hosts:?}");
    if case.is_berth() {
        ensure!(hosts.lines().any(|line| line.starts_with(&ip) && line.contains("files-0")), "{hosts:?}");
    }
    cri.shell(&one, "echo shared > /dev/shm/note").await?;
    ensure!(cri.shell(&two, "cat /dev/shm/note").await? == "shared\n");
    let shm = cri.shell(&one, "df -k /dev/shm | tail -1").await?;
    ensure!(shm.split_whitespace().nth(1) == Some("65536"), "/dev/shm is {shm:?}");
    cri.end_pod(&pod_id).await?;
    case.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nodes_network_brings_its_name_and_resolver() -> Result<()> {
    let name = "the_nodes_network_brings_its_name_and_resolver";
    let Some(case) = Case::open(name, Setup::default()).await? else { return Ok(()) };
    let cri = &case.cri;
    let options = api::NamespaceOption {
        network: NamespaceMode::Node.into(),
        pid: NamespaceMode::Container.into(),
        ..Default::default()
    };
    let mut pod = with_namespaces(cri.pod("host-network"), options.clone());
    pod.hostname.clear();
    let pod_id = cri.run_pod(&pod).await?;
    let mut config = container("app", BUSYBOX, &["sleep", "1000"]);
    security(&mut config).namespace_options = Some(options);
    let id = cri.launch(&pod_id, &config, &pod).await?;
    let host = cri.shell(&id, "hostname").await?;
    ensure!(host.trim() == case.node.dirs().id(), "the host name is {host:?}");
    let resolv = cri.shell(&id, "cat /etc/resolv.conf").await?;
    ensure!(resolv == std::fs::read_to_string("/etc/resolv.conf")?, "{resolv:?}");
    let network = cri.pod_status(&pod_id).await?.network.unwrap_or_default();
    ensure!(network.ip.is_empty(), "a pod on the node's network has the address {}", network.ip);
    cri.end_pod(&pod_id).await?;
    case.close()
}

/// What a kubelet with the other driver would ask for, and names that no slice can have.
#[tokio::test(flavor = "multi_thread")]
async fn a_parent_that_is_none_of_the_drivers_is_refused() -> Result<()> {
    let test = "a_parent_that_is_none_of_the_drivers_is_refused";
    let Some(case) = Case::open(test, Setup::default()).await? else { return Ok(()) };
    if !case.is_berth() {
        return case.close();
    }
    let (driver, parents): (_, &[&str]) = match is_systemd() {
        true => (
            api::CgroupDriver::Systemd,
            &[
                "/kubepods/pod1",
                "kubepods",
                "a--b.slice",
                "-a.slice",
                "a:b.slice",
                "/x/a-b.slice",
                "cpu.slice",
                "/",
            ],
        ),
        false => (
            api::CgroupDriver::Cgroupfs,
            &["kubepods-pod1.slice", "/kubepods.slice/pod1.slice", "/a/../b", "a\nb"],
        ),
    };
    let told = case.cri.runtime.clone().runtime_config(api::RuntimeConfigRequest {}).await?.into_inner();
    ensure!(told.linux.map(|linux| linux.cgroup_driver()) == Some(driver), "{told:?}");
    for parent in parents {
        let mut pod = case.cri.pod("misplaced");
        pod.linux.get_or_insert_default().cgroup_parent = (*parent).to_owned();
        let request = api::RunPodSandboxRequest { config: Some(pod), ..Default::default() };
        let refused = case.cri.runtime.clone().run_pod_sandbox(request).await.err();
        let right = refused.as_ref().is_some_and(|status| {
            status.code() == Code::InvalidArgument && status.message().contains("cgroup_parent")
        });
        ensure!(right, "{parent:?}: {refused:?}");
    }
    case.close()
}
