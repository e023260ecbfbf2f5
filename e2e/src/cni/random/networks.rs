//! The networks that random operations use: unlike each other, and together on one host.

use anyhow::Result;
use serde_json::{Value, json};

use crate::cni::host::Host;
use crate::cni::runner::Network;

/// All of them.
pub fn all(_: &Host) -> Result<Vec<Network>> {
    [masqueraded(), small(), plain()].iter().map(Network::new).collect()
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
            {"type": "bridge", "bridge": "plain0",
             "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.122.0.0/24"}]]}},
        ]),
    )
}
