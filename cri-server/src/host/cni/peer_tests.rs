//! The reference plugins as real peers, in network namespaces of the test.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::attachment::tests::attachment;
use super::*;
use crate::host::netns::tests::{Namespace, links_of};

const PLUGINS: &str = "/usr/lib/cni";

fn configure(dir: &Path) {
    let list = json!({"name": "peer", "cniVersion": "1.0.0", "plugins": [
        {"type": "bridge", "bridge": "br-peer", "isGateway": true, "ipam": {
            "type": "host-local", "dataDir": dir.join("ipam"), "ranges": [[{"subnet": "10.77.0.0/24"}]],
            "routes": [{"dst": "0.0.0.0/0"}]}},
        {"type": "portmap", "capabilities": {"portMappings": true}}]});
    std::fs::create_dir_all(dir.join("net.d")).unwrap();
    std::fs::write(dir.join("net.d/1.conflist"), list.to_string()).unwrap();
}

fn open(dir: &Path) -> Cni {
    configure(dir);
    Cni::new(Config {
        conf_dir: dir.join("net.d"),
        bin_dirs: vec![PLUGINS.into()],
        cache_dir: dir.join("cni"),
        deadline: Duration::from_secs(60),
    })
}

/// Everything that an attachment could leave in the namespace of this thread and in the state directories.
#[expect(clippy::disallowed_methods, reason = "tools that show what plugins leave")]
fn traces(dir: &Path) -> String {
    let mut all = String::new();
    for (program, args) in [("ip", "-o link show"), ("ip", "-4 route show"), ("iptables-save", "-t nat")] {
        let output = Command::new(program).args(args.split(' ')).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        all.extend(
            text.lines().filter(|line| line.starts_with(['-', ':']) || program == "ip").map(strip_counters),
        );
    }
    for name in ["ipam/peer", "cni/results"] {
        for entry in std::fs::read_dir(dir.join(name)).into_iter().flatten() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            // What host-local remembers to not give an address away at once.
            all.extend((!name.starts_with("last_reserved") && name != "lock").then_some(name));
        }
    }
    all
}

/// A line without what changes by itself: packet counters of chains, state of the bridge's carrier.
fn strip_counters(line: &str) -> String {
    let words = line
        .split(' ')
        .filter(|word| !word.starts_with(['[', '<']) && !["UP", "DOWN", "linkdown"].contains(word));
    words.collect::<Vec<_>>().join(" ") + "\n"
}

#[test]
fn bridge_and_portmap_leave_nothing() {
    for needed in [PLUGINS, "/usr/sbin/iptables-save", "/usr/sbin/ip"] {
        if !Path::new(needed).exists() {
            assert!(std::env::var_os("E2E_REQUIRE").is_none(), "{needed} is required");
            eprintln!("SKIPPED: {needed} is missing");
            return;
        }
    }
    let Some(node) = Namespace::new() else { return };
    // The plugins inherit the namespace of the thread that starts them.
    let in_node = move || {
        node.enter();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(attach_and_detach());
    };
    std::thread::spawn(in_node).join().unwrap();
}

async fn attach_and_detach() {
    let dir = tempfile::tempdir().unwrap();
    let cni = open(dir.path());
    let mut before = None;
    // The first round makes the bridge and the tables that stay.
    for round in 0..3 {
        let pod = Namespace::new().unwrap();
        let mut attachment = attachment();
        attachment.netns = pod.path();
        let port =
            PortMapping { protocol: Protocol::Tcp, container_port: 80, host_port: 18080, host_ip: None };
        attachment.port_mappings = vec![port];
        let attached = cni.add(&attachment, &CancellationToken::new()).await.unwrap();
        assert_eq!(attached.ips.len(), 1);
        assert!(attached.ips[0].to_string().starts_with("10.77.0."));
        let links = links_of(&pod.path());
        assert!(links.iter().any(|link| link.name == "eth0"));
        // The reference portmap looks for IPv6 rules in a network without IPv6; bridge comes first and passes.
        match cni.check(&attachment.pod).await {
            Err(CniError::Check { failures, .. }) => {
                assert_eq!(failures.0[0].plugin, "portmap", "{failures}")
            }
            other => other.unwrap(),
        }
        assert!(traces(dir.path()).contains("18080"));
        if round == 1 {
            // As after a crash of the node's pods: the namespace is gone, and so is the configuration.
            drop(pod);
            std::fs::remove_file(dir.path().join("net.d/1.conflist")).unwrap();
            assert_eq!(cni.del(&attachment.pod).await.unwrap(), 1);
            configure(dir.path());
        } else {
            assert_eq!(cni.del(&attachment.pod).await.unwrap(), 1);
        }
        // The kernel removes what was in a namespace some time after that is gone.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        let mut after = traces(dir.path());
        while before.as_ref().is_some_and(|before| *before != after) && std::time::Instant::now() < deadline {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            after = traces(dir.path());
        }
        assert_eq!(*before.get_or_insert_with(|| after.clone()), after, "round {round}");
        assert_eq!(cni.attachments().unwrap(), []);
    }
}
