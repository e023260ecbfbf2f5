//! The portmap plugin's configuration: which host ports lead where.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::conditions::Conditions;
use ipnet::IpNet;
use proto::cni::object::Object;
use proto::cni::{CniError, CniResult, IfName, Request};

/// The most ports of one container.
const MAX_PORTS: usize = 16384;

/// What portmap is asked for.
#[derive(Debug, Clone)]
pub struct PortMapConf {
    /// The published ports.
    pub mappings: Vec<Mapping>,
    /// Which sources are rewritten on the way to the pod.
    pub snat: Snat,
    /// Which packets lead to the pod.
    pub conditions: Conditions,
}

/// Which connections to a published port get the host's address as source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Snat {
    /// None.
    No,
    /// Those that could not be answered otherwise: from the pod's own subnet and from the host's loopback.
    Needed,
    /// All.
    All,
}

/// One published port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// Which host addresses.
    pub host: HostAddress,
    /// Port on the host; 0 where a free one is to be found.
    pub host_port: u16,
    /// Port in the pod.
    pub container_port: u16,
    /// Transport.
    pub protocol: Protocol,
}

/// Host addresses that a port is published on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostAddress {
    /// All, of the families that the pod has.
    Any,
    /// All of IPv4.
    Any4,
    /// All of IPv6.
    Any6,
    /// One.
    One(IpAddr),
}

/// A transport with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Protocol {
    Tcp = 6,
    Udp = 17,
    Sctp = 132,
}

impl PortMapConf {
    /// Reads and validates.
    ///
    /// # Errors
    /// [`proto::cni::ErrorCode::UNSUPPORTED_FIELD`] for conditions that are not understood,
    /// [`proto::cni::ErrorCode::INVALID_NETWORK_CONFIG`], [`proto::cni::ErrorCode::DECODING_FAILURE`].
    pub fn parse(request: &Request) -> Result<Self, CniError> {
        let top = request.conf.top();
        refuse_backend(&top)?;
        let snat = match (top.get("snat").is_none() || top.flag("snat")?, top.flag("masqAll")?) {
            (false, _) => Snat::No,
            (true, true) => Snat::All,
            (true, false) => Snat::Needed,
        };
        let list = match request.conf.runtime_config()? {
            Some(runtime) => runtime.list("portMappings")?,
            None => Vec::new(),
        };
        let (mut mappings, mut places) = (Vec::<Mapping>::new(), BTreeMap::<_, Vec<usize>>::new());
        for (path, value) in list {
            for mapping in Mapping::read(&Object::at(path.clone(), value)?)? {
                let place = places.entry((mapping.host_port, mapping.protocol)).or_default();
                let known = place.iter().map(|index| &mappings[*index]).find(|known| known.clashes(&mapping));
                match known {
                    Some(known) if *known == mapping => {}
                    Some(_) => return Err(CniError::config(&path, format!("{mapping} is published twice"))),
                    None => {
                        place.push(mappings.len());
                        mappings.push(mapping);
                    }
                }
            }
            if mappings.len() > MAX_PORTS {
                return Err(CniError::config(&path, format!("more than {MAX_PORTS} ports of one container")));
            }
        }
        Ok(Self { mappings, snat, conditions: Conditions::parse(request)? })
    }

    /// Positions of the mappings that a free port is to be found for.
    pub fn to_be_found(&self) -> impl Iterator<Item = usize> {
        let all = self.mappings.iter().enumerate();
        all.filter(|(_, mapping)| mapping.host_port == 0).map(|(index, _)| index)
    }
}

/// Checks the keys that choose between ways to do the same. `backend` may name either of the reference's; the rules
/// are those of nf_tables, which all networks share: they mark packets with bit 13, the reference's default, and neither
/// of the keys for marks has an effect. What these arrange, that sources are rewritten on the way to the pod, is done
/// all the same.
fn refuse_backend(top: &Object<'_>) -> Result<(), CniError> {
    match top.string("backend")? {
        None | Some("" | "iptables" | "nftables") => {}
        Some(other) => {
            return Err(CniError::config("backend", format!("{other:?} is not iptables or nftables")));
        }
    }
    let bit = top.number("markMasqBit", 0, 31)?;
    let chain = top.string("externalSetMarkChain")?.filter(|name| !name.is_empty());
    match (bit, chain) {
        (Some(_), Some(_)) => {
            Err(CniError::config("externalSetMarkChain", "cannot be combined with markMasqBit"))
        }
        _ => Ok(()),
    }
}

impl Mapping {
    /// One mapping, or as many as its `range` says, with ports that count up on both sides.
    fn read(object: &Object<'_>) -> Result<Vec<Self>, CniError> {
        let port = |key: &str, low: i64| match object.number(key, low, 65535)? {
            Some(number) => Ok(u16::try_from(number).unwrap_or_default()),
            None => Err(CniError::config(&object.path(key), "missing")),
        };
        let protocol = match object.string("protocol")?.unwrap_or_default().to_ascii_lowercase().as_str() {
            "" | "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            other => {
                let problem = format!("{other:?} is not tcp, udp or sctp");
                return Err(CniError::config(&object.path("protocol"), problem));
            }
        };
        let host = match object.parsed::<IpAddr>("hostIP", "an IP address")? {
            None => HostAddress::Any,
            Some(address) => match address {
                IpAddr::V4(v4) if v4.is_unspecified() => HostAddress::Any4,
                IpAddr::V6(v6) if v6.is_unspecified() => HostAddress::Any6,
                one => HostAddress::One(one),
            },
        };
        let (host_port, container_port) = (port("hostPort", 0)?, port("containerPort", 1)?);
        let last = object.number("range", 1, 65535)?.unwrap_or(1) - 1;
        let beyond = |port: u16| last > i64::from(u16::MAX - port);
        if beyond(host_port) || beyond(container_port) || (host_port == 0 && last > 0) {
            let problem = format!("{} ports do not fit from {host_port} to {container_port}", last + 1);
            return Err(CniError::config(&object.path("range"), problem));
        }
        let one = |step: u16| Self {
            host,
            host_port: host_port + step,
            container_port: container_port + step,
            protocol,
        };
        Ok((0..=u16::try_from(last).unwrap_or_default()).map(one).collect())
    }

    /// Whether the two want the same port of the same host address.
    fn clashes(&self, other: &Mapping) -> bool {
        let to_be_found = self.host_port == 0 && self != other;
        let same_port = self.host_port == other.host_port && self.protocol == other.protocol && !to_be_found;
        let share = |family| self.host.covers(family) && other.host.covers(family);
        let same_address = match (self.host, other.host) {
            (HostAddress::One(a), HostAddress::One(b)) => a == b,
            _ => share(Family::V4) || share(Family::V6),
        };
        same_port && same_address
    }
}

/// Address families.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

impl HostAddress {
    /// Whether any address of the family is meant.
    pub fn covers(self, family: Family) -> bool {
        match self {
            Self::Any => true,
            Self::Any4 => family == Family::V4,
            Self::Any6 => family == Family::V6,
            Self::One(address) => Family::of(address) == family,
        }
    }
}

impl Protocol {
    /// As written in configurations.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

impl std::fmt::Display for Mapping {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (protocol, port) = (self.protocol.as_str(), self.host_port);
        match self.host {
            HostAddress::One(address) => write!(f, "{protocol} port {port} of host address {address}"),
            HostAddress::Any | HostAddress::Any4 | HostAddress::Any6 => {
                write!(f, "{protocol} host port {port}")
            }
        }
    }
}

/// The pod's first address of each family on the interface `ifname`; an address of no interface at all counts too.
pub fn pod_addresses(result: &CniResult, ifname: &IfName) -> Vec<IpNet> {
    let inside = |index: Option<usize>| match index.and_then(|index| result.interfaces.get(index)) {
        Some(interface) => !interface.sandbox.is_empty() && interface.name == ifname.as_str(),
        None => true,
    };
    let first = |v4: bool| {
        let mut own = result.ips.iter().filter(|ip| inside(ip.interface)).map(|ip| ip.address);
        own.find(|address| address.addr().is_ipv4() == v4)
    };
    [first(true), first(false)].into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use proto::cni::ErrorCode;
    use serde_json::{Value, json};

    use super::*;
    use crate::sample::request;

    fn parse(keys: Value) -> Result<PortMapConf, CniError> {
        PortMapConf::parse(&request("portmap", keys, "")?)
    }

    fn mappings(list: Value) -> Result<Vec<String>, String> {
        let conf = parse(json!({"runtimeConfig": {"portMappings": list}})).map_err(|error| {
            assert_ne!(error.code, ErrorCode::INTERNAL);
            error.to_string()
        })?;
        Ok(conf.mappings.iter().map(|mapping| format!("{mapping} to {}", mapping.container_port)).collect())
    }

    #[test]
    fn mappings_are_read() {
        let check = |list: Value, expect: Result<&[&str], &str>| {
            let expect: Result<Vec<String>, String> = expect
                .map(|texts| texts.iter().map(|text| (*text).to_owned()).collect())
                .map_err(str::to_owned);
            assert_eq!(mappings(list.clone()), expect, "{list}");
        };
        check(json!(null), Ok(&[]));
        check(json!([{"hostPort": 80, "containerPort": 8080}]), Ok(&["tcp host port 80 to 8080"]));
        check(
            json!([{"hostPort": 80, "containerPort": 1, "protocol": "UDP", "hostIP": "10.0.0.1"},
                   {"hostPort": 80, "containerPort": 1, "protocol": "udp", "hostIP": "10.0.0.2"}]),
            Ok(&["udp port 80 of host address 10.0.0.1 to 1", "udp port 80 of host address 10.0.0.2 to 1"]),
        );
        let twice = json!({"hostPort": 80, "containerPort": 1, "hostIP": ""});
        check(json!([twice, twice]), Ok(&["tcp host port 80 to 1"]));
        let path = "runtimeConfig.portMappings";
        let fail = |list: Value, problem: &str| check(list, Err(&format!("{path}{problem}")));
        fail(
            json!([twice, {"hostPort": 80, "containerPort": 2, "hostIP": "10.0.0.1"}]),
            "[1]: tcp port 80 of host address 10.0.0.1 is published twice",
        );
        fail(json!({}), ": expected a list, found an object");
        fail(json!([{"containerPort": 1}]), "[0].hostPort: missing");
        fail(json!([{"hostPort": -1, "containerPort": 1}]), "[0].hostPort: -1 is not in 0 to 65535");
        fail(json!([{"hostPort": 1, "containerPort": 0}]), "[0].containerPort: 0 is not in 1 to 65535");
        let range = |host: u16, container: u16, range: i64| json!([{"hostPort": host, "containerPort": container, "range": range}]);
        check(range(80, 8080, 2), Ok(&["tcp host port 80 to 8080", "tcp host port 81 to 8081"]));
        check(range(65535, 1, 1), Ok(&["tcp host port 65535 to 1"]));
        fail(range(65535, 1, 2), "[0].range: 2 ports do not fit from 65535 to 1");
        fail(range(1, 65000, 1000), "[0].range: 1000 ports do not fit from 1 to 65000");
        fail(range(0, 1, 2), "[0].range: 2 ports do not fit from 0 to 1");
        fail(range(1, 1, 0), "[0].range: 0 is not in 1 to 65535");
        fail(range(1, 1, 16385), "[0]: more than 16384 ports of one container");
        let free = json!({"hostPort": 0, "containerPort": 1});
        check(
            json!([free, free, {"hostPort": 0, "containerPort": 2}]),
            Ok(&["tcp host port 0 to 1", "tcp host port 0 to 2"]),
        );
        fail(
            json!([{"hostPort": 1, "containerPort": 65536}]),
            "[0].containerPort: 65536 is not in 1 to 65535",
        );
        fail(
            json!([{"hostPort": 1, "containerPort": 1, "protocol": "icmp"}]),
            "[0].protocol: \"icmp\" is not tcp, udp or sctp",
        );
        fail(
            json!([{"hostPort": 1, "containerPort": 1, "hostIP": "x"}]),
            "[0].hostIP: \"x\" is not an IP address",
        );
    }

    #[test]
    fn backends_do_the_same() {
        let check = |keys: Value, code: ErrorCode, expect: &str| {
            let error = parse(keys).unwrap_err();
            assert_eq!((error.code, error.msg.as_str()), (code, expect));
        };
        let invalid = ErrorCode::INVALID_NETWORK_CONFIG;
        check(json!({"backend": "pf"}), invalid, "backend: \"pf\" is not iptables or nftables");
        check(json!({"markMasqBit": 32}), invalid, "markMasqBit: 32 is not in 0 to 31");
        let both = json!({"markMasqBit": 3, "externalSetMarkChain": "KUBE-MARK-MASQ"});
        check(both, invalid, "externalSetMarkChain: cannot be combined with markMasqBit");
        let kube = json!({"backend": "iptables", "externalSetMarkChain": "KUBE-MARK-MASQ"});
        assert_eq!(parse(kube).unwrap().snat, Snat::Needed);
        assert_eq!(parse(json!({"backend": "nftables"})).unwrap().snat, Snat::Needed);
        assert_eq!(parse(json!({"snat": false})).unwrap().snat, Snat::No);
        assert_eq!(parse(json!({"masqAll": true})).unwrap().snat, Snat::All);
        assert_eq!(parse(json!({"masqAll": true, "snat": false})).unwrap().snat, Snat::No);
    }
}
