//! The portmap plugin's configuration: which host ports lead where.

use std::net::IpAddr;

use ipnet::IpNet;
use proto::cni::object::Object;
use proto::cni::{CniError, CniResult, Request};

/// What portmap is asked for.
#[derive(Debug, Clone)]
pub struct PortMapConf {
    /// The published ports.
    pub mappings: Vec<Mapping>,
    /// Which sources are rewritten on the way to the pod.
    pub snat: Snat,
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
    /// Port on the host.
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
    /// [`proto::cni::ErrorCode::UNSUPPORTED_FIELD`] for what only the iptables backend has,
    /// [`proto::cni::ErrorCode::INVALID_NETWORK_CONFIG`], [`proto::cni::ErrorCode::DECODING_FAILURE`].
    pub fn parse(request: &Request) -> Result<Self, CniError> {
        let top = request.conf.top();
        // markMasqBit names a bit that is not used here: nothing is marked.
        top.refuse(&["externalSetMarkChain", "conditionsV4", "conditionsV6"])?;
        match top.string("backend")? {
            None | Some("" | "nftables") => {}
            Some(other) => return Err(CniError::unsupported("backend", format!("{other:?}"))),
        }
        let snat = match (top.get("snat").is_none() || top.flag("snat")?, top.flag("masqAll")?) {
            (_, true) => Snat::All,
            (true, false) => Snat::Needed,
            (false, false) => Snat::No,
        };
        let list = match request.conf.runtime_config()? {
            Some(runtime) => runtime.list("portMappings")?,
            None => Vec::new(),
        };
        let mut mappings: Vec<Mapping> = Vec::new();
        for (path, value) in list {
            let mapping = Mapping::read(&Object::at(path.clone(), value)?)?;
            let same = |known: &&Mapping| known.clashes(&mapping);
            match mappings.iter().find(same) {
                Some(known) if *known == mapping => {}
                Some(_) => {
                    let problem = format!("{mapping} is published twice");
                    return Err(CniError::config(&path, problem));
                }
                None => mappings.push(mapping),
            }
        }
        Ok(Self { mappings, snat })
    }
}

impl Mapping {
    fn read(object: &Object<'_>) -> Result<Self, CniError> {
        let port = |key: &str| match object.number(key, 1, 65535)? {
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
        Ok(Self { host, host_port: port("hostPort")?, container_port: port("containerPort")?, protocol })
    }

    /// Whether the two want the same port of the same host address.
    fn clashes(&self, other: &Mapping) -> bool {
        let same_port = self.host_port == other.host_port && self.protocol == other.protocol;
        let share = |v4: bool| self.host.covers(v4) && other.host.covers(v4);
        let same_address = match (self.host, other.host) {
            (HostAddress::One(a), HostAddress::One(b)) => a == b,
            _ => share(true) || share(false),
        };
        same_port && same_address
    }
}

impl HostAddress {
    /// Whether any address of the family is meant.
    pub fn covers(self, v4: bool) -> bool {
        match self {
            Self::Any => true,
            Self::Any4 => v4,
            Self::Any6 => !v4,
            Self::One(address) => address.is_ipv4() == v4,
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

/// The pod's first address of each family, on an interface inside the container.
pub fn pod_addresses(result: &CniResult) -> Vec<IpNet> {
    let inside = |index: Option<usize>| match index.and_then(|index| result.interfaces.get(index)) {
        Some(interface) => !interface.sandbox.is_empty(),
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
    use proto::cni::plugin::OwnNetns;
    use proto::cni::{ErrorCode, NetConf};
    use serde_json::{Value, json};

    use super::*;

    fn parse(keys: Value) -> Result<PortMapConf, CniError> {
        let mut conf = json!({"cniVersion": "1.1.0", "name": "n", "type": "portmap"});
        if let (Value::Object(conf), Value::Object(keys)) = (&mut conf, keys) {
            conf.extend(keys);
        }
        let conf = NetConf::new(conf.as_object().unwrap().clone())?;
        PortMapConf::parse(&Request {
            conf,
            args: Default::default(),
            path: Vec::new(),
            own_netns: OwnNetns::Refused,
        })
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
        fail(json!([{"hostPort": 0, "containerPort": 1}]), "[0].hostPort: 0 is not in 1 to 65535");
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
    fn keys_of_the_other_backend_are_refused() {
        let check = |keys: Value, expect: &str| {
            let error = parse(keys).unwrap_err();
            assert_eq!((error.code, error.msg.as_str()), (ErrorCode::UNSUPPORTED_FIELD, expect));
        };
        check(json!({"backend": "iptables"}), "backend: \"iptables\" is not supported");
        check(json!({"conditionsV4": ["-d"]}), "conditionsV4: [\"-d\"] is not supported");
        check(json!({"externalSetMarkChain": "K"}), "externalSetMarkChain: \"K\" is not supported");
        assert_eq!(parse(json!({})).unwrap().snat, Snat::Needed);
        assert_eq!(parse(json!({"snat": false})).unwrap().snat, Snat::No);
        assert_eq!(parse(json!({"masqAll": true, "snat": false})).unwrap().snat, Snat::All);
    }
}
