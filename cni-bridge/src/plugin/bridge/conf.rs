//! The bridge plugin's configuration.

use std::path::PathBuf;

use proto::cni::object::Object;
use proto::cni::result::Dns;
use proto::cni::{CniError, IfName, Request};

use crate::net::link::{Mac, PortMode};
use crate::net::port::{Tagging, Vlans};
use crate::plugin::keys;
use crate::plugin::pod::Duplicates;

/// What the bridge plugin is asked for.
#[derive(Debug, Clone)]
pub struct BridgeConf {
    /// `bridge`.
    pub bridge: String,
    /// Whether the bridge is the pods' gateway.
    pub gateway: Gateway,
    /// Replace a bridge address that differs.
    pub force_address: bool,
    /// Masquerade what leaves.
    pub ip_masq: bool,
    /// Of bridge and veth, in bytes.
    pub mtu: Option<u32>,
    /// Of the pod's port.
    pub port: PortMode,
    /// The bridge receives every frame.
    pub promiscuous: bool,
    /// Address for the pod's interface.
    pub mac: Option<Mac>,
    /// Whether addresses are wanted at all.
    pub has_ipam: bool,
    /// Resolver configuration that goes before the IPAM plugin's.
    pub dns: Dns,
    /// What the pod sends and gets without a tag is of this VLAN.
    pub vlan: Option<u16>,
    /// VLANs that the pod sees with their tags.
    pub trunk: Vec<Vlans>,
    /// What becomes of the VLAN that the kernel gives every port.
    pub default_vlan: DefaultVlan,
    /// The pod's link.
    pub container_link: ContainerLink,
    /// Other holders of the pod's IPv6 addresses.
    pub duplicates: Duplicates,
    /// Pods of other networks that are isolated are out of reach.
    pub isolated: bool,
    /// Where the ledger is, whose lock orders changes of the bridge.
    pub state_dir: PathBuf,
}

/// What becomes of VLAN 1 on a port that is given others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DefaultVlan {
    /// It stays.
    Kept,
    /// It goes.
    Removed,
}

/// How ADD leaves the pod's link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainerLink {
    /// Up.
    Up,
    /// Down, for the container to bring up.
    Down,
}

/// The bridge's part in the pods' routing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gateway {
    /// None: a plain switch.
    No,
    /// Carries the gateway address of each subnet.
    Yes,
    /// As `Yes`, and pods send everything else there too.
    Default,
}

impl BridgeConf {
    /// Reads and validates.
    ///
    /// # Errors
    /// [`proto::cni::ErrorCode::UNSUPPORTED_FIELD`] for keys of the reference plugin that are not supported,
    /// [`proto::cni::ErrorCode::INVALID_NETWORK_CONFIG`], [`proto::cni::ErrorCode::DECODING_FAILURE`].
    pub fn parse(request: &Request) -> Result<Self, CniError> {
        let top = request.conf.top();
        request.args.expect_only(&["IP", "MAC", "GATEWAY"])?;
        let port = PortMode {
            hairpin: top.flag("hairpinMode")?,
            isolated: top.flag("portIsolation")?,
            locked: top.flag("macspoofchk")?,
        };
        let promiscuous = top.flag("promiscMode")?;
        if port.hairpin && promiscuous {
            return Err(CniError::config("promiscMode", "cannot be combined with hairpinMode"));
        }
        let gateway = match (top.flag("isDefaultGateway")?, top.flag("isGateway")?) {
            (true, _) => Gateway::Default,
            (false, true) => Gateway::Yes,
            (false, false) => Gateway::No,
        };
        let has_ipam = request.conf.ipam_type()?.is_some();
        let container_link = match top.flag("disableContainerInterface")? {
            true if has_ipam => {
                return Err(CniError::config("disableContainerInterface", "cannot be combined with ipam"));
            }
            true => ContainerLink::Down,
            false => ContainerLink::Up,
        };
        let vlan = top.number("vlan", 0, 4094)?.filter(|id| *id != 0).and_then(|id| u16::try_from(id).ok());
        let bridge = keys::interface(request, "bridge")?.unwrap_or_else(|| "cni0".to_owned());
        let conf = Self {
            bridge,
            gateway,
            force_address: top.flag("forceAddress")?,
            ip_masq: keys::ip_masq(request)?,
            mtu: keys::mtu(request)?,
            port,
            promiscuous,
            mac: keys::mac(request)?,
            has_ipam,
            dns: request.conf.dns()?,
            vlan,
            trunk: trunk(&top)?,
            default_vlan: if top.flag("preserveDefaultVlan")? {
                DefaultVlan::Kept
            } else {
                DefaultVlan::Removed
            },
            container_link,
            duplicates: if top.flag("enabledad")? { Duplicates::LookedFor } else { Duplicates::Impossible },
            isolated: top.flag("isolateNetworks")?,
            state_dir: keys::state_dir(request)?,
        };
        if conf.gateway_link().parse::<IfName>().is_err() {
            let problem = format!("{} is no interface name for the VLAN's gateway", conf.gateway_link());
            return Err(CniError::config("vlan", problem));
        }
        Ok(conf)
    }

    /// Whether the bridge has to tell VLANs apart.
    pub fn filters_vlans(&self) -> bool {
        self.vlan.is_some() || !self.trunk.is_empty()
    }

    /// The link that carries gateway addresses: the bridge, or an end in the pods' VLAN.
    pub fn gateway_link(&self) -> String {
        match self.vlan {
            Some(id) if self.gateway != Gateway::No => format!("{}.{id}", self.bridge),
            _ => self.bridge.clone(),
        }
    }

    /// The VLANs that the pod's port carries.
    pub fn port_vlans(&self) -> Vec<Vlans> {
        let native = self.vlan.map(|id| Vlans { first: id, last: id, tagging: Tagging::Native });
        // The native one last: where the trunk has it too, it stays native.
        self.trunk.iter().copied().chain(native).collect()
    }
}

/// `vlanTrunk`: each entry a single number, a range, both, or nothing.
fn trunk(top: &Object<'_>) -> Result<Vec<Vlans>, CniError> {
    let mut found = Vec::new();
    for (path, value) in top.list("vlanTrunk")? {
        let entry = Object::at(path.clone(), value)?;
        let number = |key: &str| -> Result<Option<u16>, CniError> {
            Ok(entry.number(key, 1, 4094)?.and_then(|id| u16::try_from(id).ok()))
        };
        let range = match (number("minID")?, number("maxID")?) {
            (None, None) => None,
            (Some(first), Some(last)) if first <= last => Some((first, last)),
            (Some(first), Some(last)) => {
                return Err(CniError::config(&path, format!("minID {first} is above maxID {last}")));
            }
            _ => return Err(CniError::config(&path, "needs minID and maxID together")),
        };
        let single = number("id")?.map(|id| (id, id));
        let all = range.into_iter().chain(single);
        found.extend(all.map(|(first, last)| Vlans { first, last, tagging: Tagging::Tagged }));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use proto::cni::ErrorCode;
    use serde_json::{Value, json};

    use super::*;
    use crate::sample::request;

    fn parse(keys: Value, args: &str) -> Result<BridgeConf, CniError> {
        BridgeConf::parse(&request("bridge", keys, args)?)
    }

    #[test]
    fn defaults_are_the_references() {
        let conf = parse(json!({"vlan": 0, "macspoofchk": false, "mtu": 0, "unknown": 1}), "").unwrap();
        assert_eq!(conf.bridge, "cni0");
        assert_eq!(conf.gateway, Gateway::No);
        assert_eq!(conf.mtu, None);
        assert!(!conf.ip_masq && !conf.has_ipam && conf.mac.is_none());
    }

    #[test]
    fn mac_comes_from_the_nearest_source() {
        let check = |keys: Value, args: &str, expect: Option<&str>| {
            let found = parse(keys, args).unwrap().mac.map(|mac| mac.to_string());
            assert_eq!(found.as_deref(), expect);
        };
        let low = "MAC=02:00:00:00:00:03";
        check(json!({}), low, Some("02:00:00:00:00:03"));
        check(json!({"args": {"cni": {"mac": "02:00:00:00:00:02"}}}), low, Some("02:00:00:00:00:02"));
        let both = json!({"args": {"cni": {"mac": "02:00:00:00:00:02"}}, "runtimeConfig": {"mac": "02:00:00:00:00:01"}});
        check(both, low, Some("02:00:00:00:00:01"));
    }

    #[test]
    fn bad_input_has_code_and_key() {
        let check = |keys: Value, args: &str, code: ErrorCode, expect: &str| {
            let error = parse(keys.clone(), args).unwrap_err();
            assert_eq!((error.code, error.to_string().as_str()), (code, expect), "{keys}");
        };
        let invalid = ErrorCode::INVALID_NETWORK_CONFIG;
        let decode = ErrorCode::DECODING_FAILURE;
        check(json!({"vlan": 4095}), "", invalid, "vlan: 4095 is not in 0 to 4094");
        check(json!({"vlan": -1}), "", invalid, "vlan: -1 is not in 0 to 4094");
        check(json!({"vlan": "5"}), "", decode, "vlan: expected a whole number, found a string");
        check(
            json!({"vlan": 4000, "bridge": "a-long-name", "isGateway": true}),
            "",
            invalid,
            "vlan: a-long-name.4000 is no interface name for the VLAN's gateway",
        );
        check(json!({"vlanTrunk": [{"id": 0}]}), "", invalid, "vlanTrunk[0].id: 0 is not in 1 to 4094");
        check(
            json!({"vlanTrunk": [{"minID": 9}]}),
            "",
            invalid,
            "vlanTrunk[0]: needs minID and maxID together",
        );
        check(
            json!({"vlanTrunk": [{"id": 1}, {"minID": 9, "maxID": 8}]}),
            "",
            invalid,
            "vlanTrunk[1]: minID 9 is above maxID 8",
        );
        check(json!({"macspoofchk": 1}), "", decode, "macspoofchk: expected true or false, found a number");
        check(json!({"enabledad": "x"}), "", decode, "enabledad: expected true or false, found a string");
        check(
            json!({"disableContainerInterface": true, "ipam": {"type": "static"}}),
            "",
            invalid,
            "disableContainerInterface: cannot be combined with ipam",
        );
        check(
            json!({"ipMasqBackend": "pf"}),
            "",
            invalid,
            "ipMasqBackend: \"pf\" is not iptables or nftables",
        );
        check(json!({"mtu": 67}), "", invalid, "mtu: 67 is not in 68 to 65535");
        check(json!({"mtu": 70000}), "", invalid, "mtu: 70000 is not in 0 to 65535");
        check(json!({"mtu": "x"}), "", decode, "mtu: expected a whole number, found a string");
        check(json!({"bridge": "a/b"}), "", invalid, "bridge: \"a/b\" is not an interface name");
        check(json!({"isGateway": 1}), "", decode, "isGateway: expected true or false, found a number");
        check(
            json!({"hairpinMode": true, "promiscMode": true}),
            "",
            invalid,
            "promiscMode: cannot be combined with hairpinMode",
        );
        check(
            json!({"runtimeConfig": {"mac": "x"}}),
            "",
            invalid,
            "runtimeConfig.mac: \"x\" is not a unicast MAC address",
        );
        check(
            json!({}),
            "FOO=1",
            ErrorCode::INVALID_ENVIRONMENT,
            "CNI_ARGS: unknown keys [\"FOO\"] (IgnoreUnknown=1 allows them)",
        );
        check(json!({"ipam": {"type": "../x"}}), "", invalid, "ipam.type: \"../x\" is not a plugin name");
    }
}
