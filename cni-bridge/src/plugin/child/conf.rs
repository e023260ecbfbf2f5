//! The configurations of macvlan, ipvlan and vlan.

use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use netlink_packet_route::link::{IpVlanMode, MacVlanMode};
use proto::cni::object::Object;
use proto::cni::result::Dns;
use proto::cni::{CniError, Request};

use crate::net::link::Mac;
use crate::net::sublink::Kind;
use crate::plugin::keys;

/// What one of the plugins is asked for.
#[derive(Debug, Clone)]
pub struct ChildConf {
    /// The kind of the pod's link.
    pub kind: Kind,
    /// What it is on top of.
    pub master: Master,
    /// In bytes; the parent's where absent.
    pub mtu: Option<u32>,
    /// Address for the pod's interface.
    pub mac: Option<Mac>,
    /// Whether addresses are wanted at all.
    pub has_ipam: bool,
    /// Resolver configuration that goes before the IPAM plugin's.
    pub dns: Dns,
    /// The parent receives every frame.
    pub promiscuous: bool,
    /// The host's own addresses in the network, on a link of its own.
    pub shim: Vec<IpAddr>,
    /// Where the ledger is.
    pub state_dir: PathBuf,
}

/// What the pod's link is on top of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Master {
    /// A link of the host.
    Link(String),
    /// The link of the host's default route.
    DefaultRoute,
    /// A link of Berth's that leads nowhere.
    Nowhere,
    /// A link in the pod's own namespace; that of its default route where none is named.
    InContainer(Option<String>),
}

/// Reads and validates macvlan's.
///
/// # Errors
/// [`proto::cni::ErrorCode::INVALID_NETWORK_CONFIG`], [`proto::cni::ErrorCode::DECODING_FAILURE`],
/// [`proto::cni::ErrorCode::UNSUPPORTED_FIELD`]; so for all here.
pub fn macvlan(request: &Request) -> Result<ChildConf, CniError> {
    let top = request.conf.top();
    let mode = match top.string("mode")? {
        None | Some("" | "bridge") => MacVlanMode::Bridge,
        Some("private") => MacVlanMode::Private,
        Some("vepa") => MacVlanMode::Vepa,
        Some("passthru") => MacVlanMode::Passthrough,
        Some(other) => {
            return Err(CniError::config(
                "mode",
                format!("{other:?} is not bridge, private, vepa or passthru"),
            ));
        }
    };
    let queue = top.number("bcqueuelen", 0, i64::from(u32::MAX))?.filter(|length| *length != 0);
    let kind = Kind::MacVlan { mode, queue: queue.and_then(|length| u32::try_from(length).ok()) };
    let mut conf = common(request, kind)?;
    if top.flag("internal")? {
        conf.master = match conf.master {
            Master::DefaultRoute => Master::Nowhere,
            Master::InContainer(_) => {
                return Err(CniError::config("internal", "cannot be combined with linkInContainer"));
            }
            _ => return Err(CniError::config("internal", "cannot be combined with master")),
        };
    }
    conf.mac = match keys::mac(request)? {
        Some(mac) => Some(mac),
        None => top.parsed("mac", "a unicast MAC address")?,
    };
    if conf.mac.is_some() && mode == MacVlanMode::Passthrough {
        return Err(CniError::config("mac", "cannot be combined with mode passthru, which has the parent's"));
    }
    conf.promiscuous = top.flag("promiscMode")?;
    conf.shim = shim(&top)?;
    if conf.shim.is_empty() {
        return Ok(conf);
    }
    let problem = match (&conf.master, mode, conf.has_ipam) {
        (Master::InContainer(_), ..) => "cannot be combined with linkInContainer",
        (_, MacVlanMode::Bridge, true) => return Ok(conf),
        (_, MacVlanMode::Bridge, false) => "needs ipam",
        _ => "needs mode bridge",
    };
    Err(CniError::config("hostShim", problem))
}

/// Reads and validates ipvlan's. Chained after another plugin without a master of its own, it is on top of that
/// plugin's only interface.
///
/// # Errors
/// See [`macvlan`].
pub fn ipvlan(request: &Request) -> Result<ChildConf, CniError> {
    let top = request.conf.top();
    let mode = match top.string("mode")? {
        None | Some("" | "l2") => IpVlanMode::L2,
        Some("l3") => IpVlanMode::L3,
        Some("l3s") => IpVlanMode::L3S,
        Some(other) => return Err(CniError::config("mode", format!("{other:?} is not l2, l3 or l3s"))),
    };
    let mut conf = common(request, Kind::IpVlan(mode))?;
    if let (Master::DefaultRoute, Some(previous)) = (&conf.master, request.conf.prev_result()?) {
        // After ADD that is our own result, which may name no link of the host.
        let mut hosts = previous.interfaces.iter().filter(|interface| interface.sandbox.is_empty());
        match (hosts.next(), hosts.next()) {
            (Some(only), None) => conf.master = Master::Link(only.name.clone()),
            _ if previous.interfaces.iter().any(|interface| !interface.sandbox.is_empty()) => {}
            _ => {
                return Err(CniError::config(
                    "prevResult.interfaces",
                    "must name a single interface for master",
                ));
            }
        }
    }
    Ok(conf)
}

/// Reads and validates vlan's.
///
/// # Errors
/// See [`macvlan`].
pub fn vlan(request: &Request) -> Result<ChildConf, CniError> {
    let id = request.conf.top().number("vlanId", 1, 4094)?;
    let id = id.and_then(|id| u16::try_from(id).ok()).ok_or_else(|| CniError::config("vlanId", "missing"))?;
    let conf = common(request, Kind::Vlan(id))?;
    match conf.master {
        Master::DefaultRoute | Master::InContainer(None) => Err(CniError::config("master", "missing")),
        _ => Ok(conf),
    }
}

fn common(request: &Request, kind: Kind) -> Result<ChildConf, CniError> {
    let top = request.conf.top();
    request.args.expect_only(&["IP", "MAC", "GATEWAY"])?;
    let master = match (keys::interface(request, "master")?, top.flag("linkInContainer")?) {
        (name, true) => Master::InContainer(name),
        (Some(name), false) => Master::Link(name),
        (None, false) => Master::DefaultRoute,
    };
    Ok(ChildConf {
        kind,
        master,
        mtu: keys::mtu(request)?,
        mac: None,
        has_ipam: request.conf.ipam_type()?.is_some(),
        dns: request.conf.dns()?,
        promiscuous: false,
        shim: Vec::new(),
        state_dir: keys::state_dir(request)?,
    })
}

/// `hostShim`: a list of addresses, with or without prefix length; one of each family at most.
fn shim(top: &Object<'_>) -> Result<Vec<IpAddr>, CniError> {
    let mut found: Vec<IpAddr> = Vec::new();
    for (index, text) in top.strings("hostShim")?.into_iter().enumerate() {
        let path = format!("hostShim[{index}]");
        let address = text.parse().or_else(|_| text.parse::<IpNet>().map(|net| net.addr()));
        let address: IpAddr =
            address.map_err(|_| CniError::config(&path, format!("{text:?} is not an address")))?;
        if found.iter().any(|other| other.is_ipv4() == address.is_ipv4()) {
            return Err(CniError::config(&path, "a second address of the same family"));
        }
        found.push(address);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use proto::cni::ErrorCode;
    use serde_json::{Value, json};

    use super::*;
    use crate::sample::request;

    type Parse = fn(&Request) -> Result<ChildConf, CniError>;

    fn parse(parse: Parse, keys: Value) -> Result<ChildConf, CniError> {
        parse(&request("x", keys, "")?)
    }

    #[test]
    fn defaults_are_the_references() {
        let conf = parse(macvlan, json!({"unknown": 1, "mtu": 0, "mode": ""})).unwrap();
        assert_eq!(conf.kind, Kind::MacVlan { mode: MacVlanMode::Bridge, queue: None });
        assert_eq!((conf.master, conf.mtu, conf.has_ipam), (Master::DefaultRoute, None, false));
        let conf =
            parse(macvlan, json!({"mac": "02:00:00:00:00:01", "bcqueuelen": 9, "mode": "vepa"})).unwrap();
        assert_eq!(conf.kind, Kind::MacVlan { mode: MacVlanMode::Vepa, queue: Some(9) });
        assert_eq!(conf.mac.unwrap().to_string(), "02:00:00:00:00:01");
        assert_eq!(parse(macvlan, json!({"internal": true})).unwrap().master, Master::Nowhere);
        let inside = json!({"master": "e", "vlanId": 4094, "linkInContainer": true});
        let conf = parse(vlan, inside).unwrap();
        assert_eq!((conf.kind, conf.master), (Kind::Vlan(4094), Master::InContainer(Some("e".into()))));
        let chained =
            json!({"prevResult": {"interfaces": [{"name": "br9"}], "ips": [{"address": "10.0.0.2/24"}]}});
        assert_eq!(parse(ipvlan, chained).unwrap().master, Master::Link("br9".into()));
    }

    #[test]
    fn bad_input_has_code_and_key() {
        let check = |plugin: Parse, keys: Value, expect: &str| {
            let error = parse(plugin, keys.clone()).unwrap_err();
            assert_eq!(error.to_string(), expect, "{keys}");
            let expect = match expect.contains("expected") {
                true => ErrorCode::DECODING_FAILURE,
                false => ErrorCode::INVALID_NETWORK_CONFIG,
            };
            assert_eq!(error.code, expect, "{keys}");
        };
        check(macvlan, json!({"mode": "l2"}), "mode: \"l2\" is not bridge, private, vepa or passthru");
        check(macvlan, json!({"mode": 1}), "mode: expected a string, found a number");
        check(macvlan, json!({"master": "a/b"}), "master: \"a/b\" is not an interface name");
        check(macvlan, json!({"mtu": 67}), "mtu: 67 is not in 68 to 65535");
        check(macvlan, json!({"mtu": -1}), "mtu: -1 is not in 0 to 65535");
        check(macvlan, json!({"bcqueuelen": -1}), "bcqueuelen: -1 is not in 0 to 4294967295");
        check(vlan, json!({"linkInContainer": true, "vlanId": 1}), "master: missing");
        check(
            macvlan,
            json!({"linkInContainer": "x"}),
            "linkInContainer: expected true or false, found a string",
        );
        check(macvlan, json!({"internal": true, "master": "e"}), "internal: cannot be combined with master");
        check(macvlan, json!({"hostShim": "10.0.0.1"}), "hostShim: expected a list, found a string");
        check(macvlan, json!({"hostShim": ["x"]}), "hostShim[0]: \"x\" is not an address");
        check(macvlan, json!({"hostShim": ["10.0.0.1"]}), "hostShim: needs ipam");
        let ipam = json!({"type": "static"});
        let two = json!(["10.0.0.1/24", "10.0.0.2"]);
        check(macvlan, json!({"hostShim": two}), "hostShim[1]: a second address of the same family");
        check(
            macvlan,
            json!({"hostShim": ["10.0.0.1"], "mode": "private", "ipam": ipam}),
            "hostShim: needs mode bridge",
        );
        check(
            macvlan,
            json!({"mac": "01:00:00:00:00:01"}),
            "mac: \"01:00:00:00:00:01\" is not a unicast MAC address",
        );
        check(
            macvlan,
            json!({"mac": "02:00:00:00:00:01", "mode": "passthru"}),
            "mac: cannot be combined with mode passthru, which has the parent's",
        );
        check(ipvlan, json!({"mode": "bridge"}), "mode: \"bridge\" is not l2, l3 or l3s");
        let two = json!({"prevResult": {"interfaces": [{"name": "a"}, {"name": "b"}]}});
        check(ipvlan, two, "prevResult.interfaces: must name a single interface for master");
        check(vlan, json!({"master": "e"}), "vlanId: missing");
        check(vlan, json!({"vlanId": 5}), "master: missing");
        check(vlan, json!({"master": "e", "vlanId": 0}), "vlanId: 0 is not in 1 to 4094");
        check(vlan, json!({"master": "e", "vlanId": 4095}), "vlanId: 4095 is not in 1 to 4094");
        check(vlan, json!({"master": "e", "vlanId": "5"}), "vlanId: expected a whole number, found a string");
    }
}
