//! Attachments that one maker's plugins made and another's remove: a node is upgraded, or goes back, with its pods
//! running.

use anyhow::{Context, Result, ensure};
use e2e::cni::{Host, Maker, Network, Plugins, Pod};
use e2e::paths;
use serde_json::{Value, json};

/// What is asked for in a case.
struct Case {
    name: &'static str,
    plugins: Value,
    capabilities: Value,
}

fn local(range: &str) -> Value {
    json!({"type": "host-local", "ranges": [[{"subnet": range}]]})
}

fn ports() -> Value {
    json!({"portMappings": [
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 8053, "containerPort": 53, "protocol": "udp"},
    ]})
}

fn bridge(more: Value) -> Value {
    let mut conf = json!({"type": "bridge", "bridge": "mixed0", "isDefaultGateway": true, "hairpinMode": true,
                          "ipam": local("10.130.0.0/24")});
    if let (Value::Object(conf), Value::Object(more)) = (&mut conf, more) {
        conf.extend(more);
    }
    conf
}

fn cases() -> Vec<Case> {
    let portmap = |backend: &str| {
        json!({"type": "portmap", "backend": backend, "snat": true,
                                         "capabilities": {"portMappings": true}})
    };
    let case = |name, plugins, capabilities| Case { name, plugins, capabilities };
    vec![
        case("bridge", json!([bridge(json!({}))]), json!({})),
        case(
            "masquerade-nft",
            json!([bridge(json!({"ipMasq": true, "ipMasqBackend": "nftables"}))]),
            json!({}),
        ),
        case("masquerade", json!([bridge(json!({"ipMasq": true}))]), json!({})),
        case("ports-nft", json!([bridge(json!({})), portmap("nftables")]), ports()),
        case(
            "ports",
            json!([bridge(json!({})), {"type": "portmap", "snat": true, "capabilities":
            {"portMappings": true}}]),
            ports(),
        ),
        case("firewall", json!([bridge(json!({})), {"type": "firewall"}]), json!({})),
        case(
            "tuning",
            json!([bridge(json!({})), {"type": "tuning", "mtu": 1400, "mac": "02:00:00:00:00:77",
                                       "sysctl": {"net.core.somaxconn": "500"}}]),
            json!({}),
        ),
        case(
            "bandwidth",
            json!([bridge(json!({})), {"type": "bandwidth", "ingressRate": 8_000_000, "ingressBurst": 800_000,
                                       "egressRate": 8_000_000, "egressBurst": 800_000}]),
            json!({}),
        ),
        case("ptp", json!([{"type": "ptp", "ipMasq": true, "ipam": local("10.131.0.0/24")}]), json!({})),
        case(
            "macvlan",
            json!([{"type": "macvlan", "master": "wire0", "ipam": local("10.132.0.0/24")}]),
            json!({}),
        ),
    ]
}

/// Runs `work` with every case on a host where both makers' plugins have left what stays (bridges, chains of
/// iptables), so that the leak diff shows only what an attachment leaves.
fn each_case(
    test: &'static str,
    work: fn(&Host, &Case, &Network, &[Plugins; 2]) -> Result<()>,
) -> Result<()> {
    for case in cases() {
        Host::run(test, move |host| {
            let plugins = [Maker::Reference.plugins(host)?, Maker::Ours.plugins(host)?];
            let list = json!({"cniVersion": "1.1.0", "name": case.name, "plugins": case.plugins});
            let network = Network::new(&list)?;
            for maker in &plugins {
                let pod = host.pod("settle")?;
                let attached = network.add(maker, &pod, "eth0", &case.capabilities)?;
                let attached = attached.with_context(|| format!("{}: {}", case.name, maker.maker.label()))?;
                network.del(maker, attached.target())??;
                host.end_pod(&pod)?;
            }
            work(host, &case, &network, &plugins).with_context(|| case.name)
        })?;
    }
    Ok(())
}

/// The reference's attachment is checked and removed by ours, with and without what a runtime keeps.
#[test]
fn ours_take_over_from_the_reference() -> Result<()> {
    each_case("ours_take_over_from_the_reference", |host, case, network, [reference, ours]| {
        let before = host.snapshot()?;
        for knowing in [true, false] {
            let pod = host.pod("taken-over")?;
            let attached = network.add(reference, &pod, "eth0", &case.capabilities)??;
            network.check(ours, attached.target())?.context("our CHECK")?;
            let mut target = attached.target();
            if !knowing {
                target.capabilities = None;
                // The reference's accepting rules name nothing but the address.
                target.result = target.result.filter(|_| case.name == "firewall");
            }
            network.del(ours, target)?.context("our DEL")?;
            host.expect_no_leaks(&before).with_context(|| format!("with all that is known: {knowing}"))?;
            // The namespace is still there: its interface must be gone.
            again(network, ours, &pod, &case.capabilities)?;
            host.end_pod(&pod)?;
            host.expect_no_leaks(&before)?;
        }
        Ok(())
    })
}

/// Our attachment is removed by the reference: address and interface are free, and rules, which the reference does
/// not know of, are in nobody's way and go with the next GC.
#[test]
fn the_reference_takes_over_from_ours() -> Result<()> {
    each_case("the_reference_takes_over_from_ours", |host, case, network, [reference, ours]| {
        let before = host.snapshot()?;
        let pod = host.pod("given-back")?;
        let attached = network.add(ours, &pod, "eth0", &case.capabilities)??;
        network.del(reference, attached.target())?.context("the reference's DEL")?;
        again(network, ours, &pod, &case.capabilities)?;
        network.gc(ours, &[])?.context("our GC")?;
        host.end_pod(&pod)?;
        host.expect_no_leaks(&before)
    })
}

/// Both makers' pods side by side on one bridge have different addresses, and one maker's GC keeps the other's.
#[test]
fn both_share_addresses_and_bridge() -> Result<()> {
    each_case("both_share_addresses_and_bridge", |host, _, network, makers| {
        let before = host.snapshot()?;
        let (mut all, mut addresses) = (Vec::new(), Vec::new());
        for (number, maker) in makers.iter().cycle().take(6).enumerate() {
            let pod = host.pod(&format!("pod{number}"))?;
            let attached = network.add(maker, &pod, "eth0", &json!({}))??;
            let address = attached.result.ips[0].address;
            ensure!(!addresses.contains(&address), "{address} was given twice");
            addresses.push(address);
            all.push(attached);
        }
        let valid: Vec<_> = all.iter().map(|attached| attached.attachment.clone()).collect();
        network.gc(&makers[1], &valid)?.context("GC with everything valid")?;
        for attached in &all {
            network.check(&makers[1], attached.target())?.context("CHECK after GC")?;
        }
        for (number, attached) in all.iter().enumerate() {
            // Each is removed by the maker that did not make it, or by ours where that is the other.
            let maker = &makers[(number + 1) % 2];
            network.del(maker, attached.target())??;
            network.del(&makers[1], attached.target())??;
            host.end_pod(&attached.pod)?;
        }
        host.expect_no_leaks(&before)
    })
}

/// The pod can be attached again under the same name, and detached.
fn again(network: &Network, plugins: &Plugins, pod: &Pod, capabilities: &Value) -> Result<()> {
    let attached = network.add(plugins, pod, "eth0", capabilities)?.context("ADD of the same name")?;
    network.check(plugins, attached.target())?.context("CHECK")?;
    network.del(plugins, attached.target())?.context("DEL")?;
    Ok(())
}

#[test]
fn the_reference_is_the_one_that_is_pinned() -> Result<()> {
    let pinned = std::fs::read_to_string(paths::workspace().join("e2e/go/cni/go.mod"))?;
    ensure!(pinned.contains("github.com/containernetworking/plugins v1.9."), "{pinned}");
    Ok(())
}
