//! Garbage collection where two runtimes use one configuration list: what another runtime attached stays.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use e2e::case::Case;
use e2e::cni::runner::attachment;
use e2e::cni::{Host, Maker, Network, Plugins, Pod, plugins};
use e2e::daemon::Setup;
use e2e::exec::Program;
use e2e::ns;
use proto::cni::Attachment;
use serde_json::{Value, json};

fn list(more: Value) -> Value {
    let mut list = json!({"cniVersion": "1.1.0", "name": "shared", "plugins": [
        {"type": "bridge", "bridge": "shared0", "isDefaultGateway": true, "ipMasq": true,
         "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.140.0.0/24"}]]}},
        {"type": "portmap", "capabilities": {"portMappings": true}},
    ]});
    if let (Value::Object(list), Value::Object(more)) = (&mut list, more) {
        list.extend(more);
    }
    list
}

/// cnitool with the lists of a directory.
fn cnitool(host: &Host, ours: &Plugins, verb: &str, pod: &Pod) -> Result<String> {
    Program::new(plugins::peer("cnitool")?)
        .args([verb, "shared"])
        .arg(&pod.netns)
        .env("NETCONFPATH", host.scratch().join("net.d"))
        .env("CNI_PATH", &ours.dir)
        .ok()
}

/// What libcni has recorded of a network, whoever called it.
fn recorded(network: &str) -> Result<Vec<Attachment>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/var/lib/cni/results").into_iter().flatten() {
        let record: Value = serde_json::from_slice(&std::fs::read(entry?.path())?)?;
        if record["networkName"] == network {
            let text = |key: &str| record[key].as_str().unwrap_or_default().to_owned();
            found.push(attachment(&text("containerId"), &text("ifName"))?);
        }
    }
    Ok(found)
}

/// cnitool is one runtime, with libcni's records; the other lists its own attachments and those that are recorded.
#[test]
fn what_others_recorded_stays() -> Result<()> {
    Host::run("what_others_recorded_stays", |host| {
        let ours = Maker::Ours.plugins(host)?;
        let network = Network::new(&list(json!({})))?;
        std::fs::write(host.scratch().join("net.d/1.conflist"), serde_json::to_vec(&list(json!({})))?)?;
        let ports = json!({"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]});
        let [theirs, own, lost] = ["theirs", "own", "lost"].map(|name| host.pod(name));
        let (theirs, own, lost) = (theirs?, own?, lost?);
        network.add(&ours, &own, "eth0", &json!({}))??;
        network.del(&ours, network.add(&ours, &lost, "eth0", &ports)??.target())??;
        cnitool(host, &ours, "add", &theirs)?;
        cnitool(host, &ours, "del", &theirs)?;
        let before = host.snapshot()?;
        cnitool(host, &ours, "add", &theirs)?;
        network.add(&ours, &lost, "eth0", &ports)??;
        let mut valid = recorded("shared")?;
        ensure!(valid.len() == 1, "libcni's records: {valid:?}");
        valid.push(attachment("own", "eth0")?);
        network.gc(&ours, &valid)?.context("GC of one runtime")?;
        cnitool(host, &ours, "check", &theirs).context("the other runtime's pod")?;
        cnitool(host, &ours, "del", &theirs)?;
        host.expect_no_leaks(&before).context("the lost one, and nothing else, went")
    })
}

/// A caller that lists nothing gets what it asks for: everything of that network goes, and of no other. `disableGC` is
/// the administrator's word that others use the network.
#[test]
fn what_is_not_listed_goes_unless_the_list_forbids_it() -> Result<()> {
    Host::run("what_is_not_listed_goes_unless_the_list_forbids_it", |host| {
        let ours = Maker::Ours.plugins(host)?;
        let network = Network::new(&list(json!({})))?;
        let other = Network::new(&json!({"cniVersion": "1.1.0", "name": "other", "plugins": [
            {"type": "bridge", "bridge": "other0", "isDefaultGateway": true, "ipMasq": true,
             "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.141.0.0/24"}]]}}]}))?;
        let (pod, neighbour) = (host.pod("pod")?, host.pod("neighbour")?);
        let kept = other.add(&ours, &neighbour, "eth0", &json!({}))??;
        network.del(&ours, network.add(&ours, &pod, "eth0", &json!({}))??.target())??;
        let before = host.snapshot()?;
        let file = host.scratch().join("net.d/1.conflist");
        let attached = network.add(&ours, &pod, "eth0", &json!({}))??;
        std::fs::write(&file, serde_json::to_vec(&list(json!({"disableGC": true})))?)?;
        cnitool(host, &ours, "gc", &pod)?;
        network.check(&ours, attached.target())?.context("with disableGC")?;
        std::fs::write(&file, serde_json::to_vec(&list(json!({})))?)?;
        cnitool(host, &ours, "gc", &pod)?;
        host.expect_no_leaks(&before)?;
        other.check(&ours, kept.target())?.context("another network's pod")?;
        Ok(())
    })
}

/// The daemon collects by its own records alone: what somebody else attached to its network outlives its pods and its
/// restarts.
#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_collects_its_own_pods_only() -> Result<()> {
    let test = "the_daemon_collects_its_own_pods_only";
    let Some(mut case) = Case::open(test, Setup::default()).await? else { return Ok(()) };
    let cni = case.node.dirs().cni();
    let network = Network::new(&serde_json::from_slice(&std::fs::read(cni.join("net.d/10-e2e.conflist"))?)?)?;
    let dir = cni.join("bin");
    let ours = Plugins { maker: Maker::Ours, path: vec![dir.clone()], dir };
    // A pod of somebody else's: a process in a network namespace of its own.
    let sleeper = Program::new("unshare").args(["--net", "sleep", "1000"]);
    let sleeper = sleeper.start(&case.node.dirs().top().join("sleeper.log"))?;
    let netns = PathBuf::from(format!("/proc/{}/ns/net", sleeper.child.id()));
    let own = std::fs::read_link("/proc/self/ns/net")?;
    e2e::wait::until("a namespace of the pod's own", std::time::Duration::from_secs(10), || {
        ensure!(std::fs::read_link(&netns)? != own, "it has none yet");
        Ok(())
    })?;
    let pod = Pod { id: "somebody-elses".to_owned(), netns };
    let host = Path::new("/proc").join(case.node.holder_pid().to_string()).join("ns/net");
    let ports = json!({"portMappings": [{"hostPort": 18099, "containerPort": 80, "protocol": "tcp"}]});
    let attached = ns::in_network_at(&host, || Ok(network.add(&ours, &pod, "eth0", &ports)??))?;
    let settled = case.node.settled_snapshot()?;
    let own = case.cri.run_pod(&case.cri.pod("own")).await?;
    case.node.kill_daemon()?;
    case.node.start_daemon()?;
    case.cri = case.node.cri().await?;
    case.cri.end_pod(&own).await?;
    case.node.kill_daemon()?;
    case.node.start_daemon()?;
    case.cri = case.node.cri().await?;
    case.node.expect_no_leaks(&settled).context("the daemon's pod, and nothing else, went")?;
    ns::in_network_at(&host, || Ok(network.check(&ours, attached.target())??))?;
    ns::in_network_at(&host, || Ok(network.del(&ours, attached.target())??))?;
    drop(sleeper);
    case.close()
}
