//! The bridge plugin's configuration.

use proto::cni::result::Dns;
use proto::cni::{CniError, IfName, Request};

use crate::net::link::{Mac, PortMode};

/// Largest MTU of a veth, in bytes.
const MAX_MTU: i64 = 65535;

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
        top.refuse(&[
            "vlan",
            "vlanTrunk",
            "preserveDefaultVlan",
            "macspoofchk",
            "enabledad",
            "disableContainerInterface",
        ])?;
        match top.string("ipMasqBackend")? {
            None | Some("" | "nftables") => {}
            Some(other) => return Err(CniError::unsupported("ipMasqBackend", format!("{other:?}"))),
        }
        let bridge = top.string("bridge")?.filter(|name| !name.is_empty()).unwrap_or("cni0");
        if bridge.parse::<IfName>().is_err() {
            return Err(CniError::config("bridge", format!("{bridge:?} is not an interface name")));
        }
        let port = PortMode { hairpin: top.flag("hairpinMode")?, isolated: top.flag("portIsolation")? };
        let promiscuous = top.flag("promiscMode")?;
        if port.hairpin && promiscuous {
            return Err(CniError::config("promiscMode", "cannot be combined with hairpinMode"));
        }
        let gateway = match (top.flag("isDefaultGateway")?, top.flag("isGateway")?) {
            (true, _) => Gateway::Default,
            (false, true) => Gateway::Yes,
            (false, false) => Gateway::No,
        };
        Ok(Self {
            bridge: bridge.to_owned(),
            gateway,
            force_address: top.flag("forceAddress")?,
            ip_masq: top.flag("ipMasq")?,
            mtu: mtu(request)?,
            port,
            promiscuous,
            mac: mac(request)?,
            has_ipam: request.conf.ipam_type()?.is_some(),
            dns: request.conf.dns()?,
        })
    }
}

/// 0 means the kernel's default.
fn mtu(request: &Request) -> Result<Option<u32>, CniError> {
    let mtu = request.conf.top().number("mtu", 0, MAX_MTU)?.filter(|mtu| *mtu != 0);
    match mtu {
        Some(mtu) if mtu < 68 => Err(CniError::config("mtu", format!("{mtu} is not in 68 to {MAX_MTU}"))),
        other => Ok(other.and_then(|mtu| u32::try_from(mtu).ok())),
    }
}

/// From the capability, else from `args.cni`, else from CNI_ARGS.
fn mac(request: &Request) -> Result<Option<Mac>, CniError> {
    const WHAT: &str = "a unicast MAC address";
    for object in [request.conf.runtime_config()?, request.conf.cni_args()?].into_iter().flatten() {
        if let Some(mac) = object.parsed("mac", WHAT)? {
            return Ok(Some(mac));
        }
    }
    match request.args.get("MAC") {
        None | Some("") => Ok(None),
        Some(text) => text
            .parse()
            .map(Some)
            .map_err(|_| CniError::config("CNI_ARGS MAC", format!("{text:?} is not {WHAT}"))),
    }
}

#[cfg(test)]
mod tests {
    use proto::cni::plugin::OwnNetns;
    use proto::cni::{ErrorCode, NetConf};
    use serde_json::{Value, json};

    use super::*;

    fn parse(keys: Value, args: &str) -> Result<BridgeConf, CniError> {
        let mut conf = json!({"cniVersion": "1.1.0", "name": "n", "type": "bridge"});
        if let (Value::Object(conf), Value::Object(keys)) = (&mut conf, keys) {
            conf.extend(keys);
        }
        let conf = NetConf::new(conf.as_object().unwrap().clone())?;
        BridgeConf::parse(&Request {
            conf,
            args: args.parse()?,
            path: Vec::new(),
            own_netns: OwnNetns::Refused,
        })
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
        let unsupported = ErrorCode::UNSUPPORTED_FIELD;
        let invalid = ErrorCode::INVALID_NETWORK_CONFIG;
        let decode = ErrorCode::DECODING_FAILURE;
        check(json!({"vlan": 5}), "", unsupported, "vlan: 5 is not supported");
        check(json!({"vlanTrunk": [{"id": 1}]}), "", unsupported, "vlanTrunk: [{\"id\":1}] is not supported");
        check(json!({"macspoofchk": true}), "", unsupported, "macspoofchk: true is not supported");
        check(json!({"enabledad": true}), "", unsupported, "enabledad: true is not supported");
        check(
            json!({"ipMasqBackend": "iptables"}),
            "",
            unsupported,
            "ipMasqBackend: \"iptables\" is not supported",
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
