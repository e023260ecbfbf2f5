//! The networks that random operations use: unlike each other, and together on one host.

use anyhow::Result;
use serde_json::{Value, json};

use crate::cni::runner::Network;

/// All of them.
pub fn all() -> Result<Vec<Network>> {
    [
        masqueraded(),
        small(),
        plain(),
        routed(),
        chained(),
        child(),
        automatic("auto"),
        automatic("other"),
        named(),
        internal(),
    ]
    .iter()
    .map(Network::new)
    .collect()
}

fn list(name: &str, plugins: Value) -> Value {
    json!({"cniVersion": "1.1.0", "name": name, "plugins": plugins})
}

/// What a node has: a default gateway, masquerading, ports.
fn masqueraded() -> Value {
    list(
        "wide",
        json!([
            {"type": "bridge", "bridge": "wide0", "isDefaultGateway": true, "ipMasq": true, "hairpinMode": true,
             "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.120.0.0/20"}]]}},
            {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true},
        ]),
    )
}

/// Both families, and so few addresses that they run out.
fn small() -> Value {
    list(
        "small",
        json!([
            {"type": "bridge", "bridge": "small0", "isGateway": true, "ipMasq": true, "portIsolation": true,
             "isolateNetworks": true,
             "ipam": {"type": "host-local",
                      "ranges": [[{"subnet": "10.121.0.0/28"}], [{"subnet": "fd00:121::/120"}]]}},
            {"type": "portmap", "capabilities": {"portMappings": true}, "snat": false},
        ]),
    )
}

/// A bridge that is not a gateway of anything.
fn plain() -> Value {
    list(
        "plain",
        json!([
            {"type": "bridge", "bridge": "plain0", "promiscMode": true,
             "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.122.0.0/24"}]]}},
        ]),
    )
}

/// A pair of its own for each pod.
fn routed() -> Value {
    list(
        "routed",
        json!([
            {"type": "ptp", "ipMasq": true,
             "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.123.0.0/24"}]],
                      "routes": [{"dst": "192.0.2.0/24"}]}},
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ]),
    )
}

/// Everything that is chained.
fn chained() -> Value {
    list(
        "chained",
        json!([
            {"type": "bridge", "bridge": "chained0", "isGateway": true, "ipMasq": true,
             "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.124.0.0/24"}]]}},
            {"type": "portmap", "capabilities": {"portMappings": true}},
            {"type": "firewall", "ingressPolicy": "same-bridge"},
            {"type": "bandwidth", "ingressRate": 8_000_000, "ingressBurst": 800_000,
             "egressRate": 8_000_000, "egressBurst": 800_000},
            {"type": "tuning", "mtu": 1400, "sysctl": {"net.core.somaxconn": "500"}},
        ]),
    )
}

/// Links on top of one of the host's, which has a link of its own among them.
fn child() -> Value {
    list(
        "child",
        json!([
            {"type": "macvlan", "master": "wire0", "mode": "bridge", "hostShim": ["10.125.0.250"], "promiscMode": true,
             "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.125.0.0/24", "rangeEnd": "10.125.0.240"}]]}},
        ]),
    )
}

/// A subnet that the plugin chooses; isolated from other networks.
fn automatic(name: &str) -> Value {
    list(
        name,
        json!([
            {"type": "bridge", "bridge": format!("{name}0"), "isDefaultGateway": true, "ipMasq": true,
             "isolateNetworks": true, "ipam": {"type": "host-local", "subnet": "auto"}},
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ]),
    )
}

/// Addresses that the runtime names, and pods that reach nobody.
fn named() -> Value {
    list(
        "named",
        json!([
            {"type": "bridge", "bridge": "named0", "isGateway": true, "ipMasq": true, "isolateNetworks": true,
             "capabilities": {"ips": true}, "ipam": {"type": "static"}},
            {"type": "portmap", "capabilities": {"portMappings": true}},
            {"type": "firewall", "ingressPolicy": "isolated"},
        ]),
    )
}

/// Links on top of one that leads nowhere, and of the host's among them.
fn internal() -> Value {
    list(
        "internal",
        json!([
            {"type": "macvlan", "internal": true, "hostShim": ["10.128.0.250"],
             "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.128.0.0/24", "rangeEnd": "10.128.0.240"}]]}},
        ]),
    )
}
