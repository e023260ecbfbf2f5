//! A pod's attachment to a network as plugins are told about it: CNI_ARGS and capability arguments
//! (CNI conventions, "Dynamic Plugin specific fields"). Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use serde_json::{Map, Value, json};

use super::error::CniError;
use crate::model::id::PodId;

/// Everything that plugins may want to know about a pod sandbox.
#[derive(Debug, Clone, PartialEq)]
pub struct Attachment {
    /// The sandbox; CNI_CONTAINERID.
    pub pod: PodId,
    /// Where its network namespace is pinned; CNI_NETNS.
    pub netns: PathBuf,
    /// Interface to make in it; CNI_IFNAME. The pod's first one is `eth0`.
    pub ifname: String,
    /// The pod's name.
    pub name: String,
    /// The pod's Kubernetes namespace.
    pub namespace: String,
    /// The pod's UID.
    pub uid: String,
    /// The pod's annotations; `kubernetes.io/{ingress,egress}-bandwidth` set the capability `bandwidth`.
    pub annotations: BTreeMap<String, String>,
    /// Ports of the host to forward; those with host port 0 are left out.
    pub port_mappings: Vec<PortMapping>,
    /// The pod's resolver configuration, if it has its own.
    pub dns: Option<Resolver>,
    /// The pod's cgroup parent; capability `cgroupPath`. Empty when there is none.
    pub cgroup_path: String,
    /// Arguments of further capabilities by name: `ips`, `mac`, `ipRanges`, `aliases`, `deviceID`, …
    pub capability_args: BTreeMap<String, Value>,
}

/// A forwarded port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortMapping {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port in the pod.
    pub container_port: u16,
    /// Port of the host; 0 means that none is published.
    pub host_port: u16,
    /// Address of the host to listen on; all when absent.
    pub host_ip: Option<IpAddr>,
}

/// Transport protocols of the CRI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Transmission Control Protocol.
    Tcp,
    /// User Datagram Protocol.
    Udp,
    /// Stream Control Transmission Protocol.
    Sctp,
}

/// A resolver configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resolver {
    /// Addresses of name servers.
    pub servers: Vec<String>,
    /// Search domains.
    pub searches: Vec<String>,
    /// Options, as in resolv.conf.
    pub options: Vec<String>,
}

impl Attachment {
    /// CNI_ARGS as pairs, in the order that containerd sends. A value must not be able to add a pair.
    pub(super) fn args(&self) -> Result<Vec<[String; 2]>, CniError> {
        let pairs = [
            ("IgnoreUnknown", "1"),
            ("K8S_POD_NAMESPACE", self.namespace.as_str()),
            ("K8S_POD_NAME", self.name.as_str()),
            ("K8S_POD_INFRA_CONTAINER_ID", self.pod.as_str()),
            ("K8S_POD_UID", self.uid.as_str()),
        ];
        for (key, value) in pairs {
            if value.contains([';', '=']) || value.contains(char::is_control) {
                return Err(invalid(key, value, "must not contain ';', '=' or control characters"));
            }
        }
        Ok(pairs.map(|(key, value)| [key.to_string(), value.to_string()]).into())
    }

    /// The interface name, checked as the kernel and plugins do.
    pub(super) fn check(&self) -> Result<(), CniError> {
        let name = self.ifname.as_str();
        let bad = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
        if name.is_empty() || name.len() > 15 || name == "." || name == ".." || name.contains(bad) {
            return Err(invalid("interface name", name, "1 to 15 bytes without '/', ':' and white space"));
        }
        if !self.netns.is_absolute() || self.netns.to_str().is_none_or(|path| path.contains(char::is_control))
        {
            return Err(invalid("network namespace", &self.netns.to_string_lossy(), "not an absolute path"));
        }
        Ok(())
    }

    /// Arguments of all capabilities that this pod has something to say about.
    pub(super) fn capability_args(&self) -> Result<Map<String, Value>, CniError> {
        let mut args: Map<String, Value> = self.capability_args.clone().into_iter().collect();
        let ports: Vec<Value> =
            self.port_mappings.iter().filter(|p| p.host_port > 0).map(port_mapping).collect();
        if !ports.is_empty() {
            args.insert("portMappings".into(), Value::Array(ports));
        }
        if let Some(Resolver { servers, searches, options }) = &self.dns {
            let dns = json!({"servers": servers, "searches": searches, "options": options});
            args.insert("dns".into(), dns);
        }
        if let Some(bandwidth) = bandwidth(&self.annotations)? {
            args.insert("bandwidth".into(), bandwidth);
        }
        if !self.cgroup_path.is_empty() {
            args.insert("cgroupPath".into(), json!(self.cgroup_path));
        }
        args.insert("io.kubernetes.cri.pod-annotations".into(), json!(self.annotations));
        Ok(args)
    }
}

fn port_mapping(port: &PortMapping) -> Value {
    let protocol = match port.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    };
    let mut map = json!({
        "hostPort": port.host_port, "containerPort": port.container_port, "protocol": protocol
    });
    if let Some(ip) = port.host_ip {
        map["hostIP"] = json!(ip.to_string());
    }
    map
}

/// Rates in bit/s with a burst that does not limit, from the two annotations; `None` when there is neither.
fn bandwidth(annotations: &BTreeMap<String, String>) -> Result<Option<Value>, CniError> {
    let mut map = Map::new();
    for direction in ["ingress", "egress"] {
        let key = format!("kubernetes.io/{direction}-bandwidth");
        let Some(text) = annotations.get(&key) else { continue };
        let rate = quantity(text).filter(|rate| (1_000..=1_000_000_000_000_000).contains(rate));
        let rate = rate.ok_or_else(|| invalid(&key, text, "not a quantity between 1k and 1P"))?;
        map.insert(format!("{direction}Rate"), json!(rate));
        map.insert(format!("{direction}Burst"), json!(u32::MAX));
    }
    Ok((!map.is_empty()).then_some(Value::Object(map)))
}

/// A Kubernetes quantity (`10M`, `1.5Gi`, `2e3`) rounded up to a whole number; `None` when it is none.
fn quantity(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.len() + fraction.len() == 0 || number.len() > 18 || fraction.contains('.') {
        return None;
    }
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let (scale, divisor): (u128, u128) = match suffix {
        "" => (1, 1),
        "k" => (1_000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        "m" => (1, 1_000),
        _ => {
            let exponent: u32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            (10u128.checked_pow(exponent)?, 1)
        }
    };
    let divisor = divisor * 10u128.pow(u32::try_from(fraction.len()).ok()?);
    u64::try_from(digits.checked_mul(scale)?.div_ceil(divisor)).ok()
}

fn invalid(field: &str, value: &str, reason: &str) -> CniError {
    CniError::InvalidAttachment { field: field.into(), value: value.into(), reason: reason.into() }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn attachment() -> Attachment {
        Attachment {
            pod: PodId::generate(),
            netns: "/proc/self/ns/net".into(),
            ifname: "eth0".into(),
            name: "web".into(),
            namespace: "shop".into(),
            uid: "u-1".into(),
            annotations: BTreeMap::new(),
            port_mappings: Vec::new(),
            dns: None,
            cgroup_path: String::new(),
            capability_args: BTreeMap::new(),
        }
    }

    #[test]
    fn quantities() {
        for (text, expect) in [
            ("1", Some(1)),
            ("10M", Some(10_000_000)),
            ("1.5k", Some(1_500)),
            ("1Gi", Some(1 << 30)),
            ("2e3", Some(2_000)),
            ("1500m", Some(2)),
            ("", None),
            (".", None),
            ("1.1.1", None),
            ("-1", None),
            ("1x", None),
            ("9e99", None),
            ("999999999999999999E", None),
        ] {
            assert_eq!(quantity(text), expect, "{text}");
        }
    }

    #[test]
    fn what_the_pod_has_becomes_capability_arguments() {
        let plain = attachment();
        let annotations = ("io.kubernetes.cri.pod-annotations".to_string(), json!({}));
        assert_eq!(plain.capability_args().unwrap(), Map::from_iter([annotations]));
        let mut full = plain.clone();
        let port =
            |host_port, protocol, host_ip| PortMapping { protocol, container_port: 80, host_port, host_ip };
        full.port_mappings = vec![
            port(8080, Protocol::Tcp, Some("127.0.0.1".parse().unwrap())),
            port(0, Protocol::Tcp, None),
            port(53, Protocol::Udp, None),
            port(99, Protocol::Sctp, None),
        ];
        full.dns = Some(Resolver { servers: vec!["10.0.0.1".into()], ..Resolver::default() });
        full.annotations.insert("kubernetes.io/egress-bandwidth".into(), "10M".into());
        full.cgroup_path = "/kubepods/x".into();
        full.capability_args.insert("mac".into(), json!("02:00:00:00:00:01"));
        let expect = json!({
            "bandwidth": {"egressBurst": 4_294_967_295u32, "egressRate": 10_000_000},
            "cgroupPath": "/kubepods/x",
            "dns": {"options": [], "searches": [], "servers": ["10.0.0.1"]},
            "io.kubernetes.cri.pod-annotations": {"kubernetes.io/egress-bandwidth": "10M"},
            "mac": "02:00:00:00:00:01",
            "portMappings": [
                {"containerPort": 80, "hostIP": "127.0.0.1", "hostPort": 8080, "protocol": "tcp"},
                {"containerPort": 80, "hostPort": 53, "protocol": "udp"},
                {"containerPort": 80, "hostPort": 99, "protocol": "sctp"},
            ],
        });
        assert_eq!(Value::Object(full.capability_args().unwrap()), expect);
    }

    #[test]
    fn values_that_could_mean_something_else_are_refused() {
        fn check(change: impl FnOnce(&mut Attachment), expect: &str) {
            let mut attachment = attachment();
            change(&mut attachment);
            let result = attachment
                .check()
                .and(attachment.args().map(drop))
                .and(attachment.capability_args().map(drop));
            let error = result.unwrap_err().to_string();
            assert!(error.starts_with(&format!("cannot pass {expect} ")), "{error}");
        }
        check(|a| a.name = "x;IP=10.0.0.1".into(), "K8S_POD_NAME");
        check(|a| a.namespace = "a=b".into(), "K8S_POD_NAMESPACE");
        check(|a| a.uid = "a\0".into(), "K8S_POD_UID");
        check(|a| a.ifname = "../eth0".into(), "interface name");
        check(|a| a.ifname = "sixteen-letters!".into(), "interface name");
        check(|a| a.netns = "run/netns/x".into(), "network namespace");
        let key = "kubernetes.io/ingress-bandwidth";
        check(|a| drop(a.annotations.insert(key.into(), "999".into())), key);
        check(|a| drop(a.annotations.insert(key.into(), "fast".into())), key);
    }
}
