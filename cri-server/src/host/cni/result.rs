//! What the runtime needs from a CNI result (CNI specification, section 5, all versions since 0.1.0).
//! The result itself is never rebuilt: plugins get back exactly what plugins wrote. Pure.

use std::net::IpAddr;

use serde_json::Value;

/// A finished attachment.
#[derive(Debug, Clone, PartialEq)]
pub struct Attached {
    /// Addresses of the pod, at least one; the first is the primary one: IPv4 if there is any.
    pub ips: Vec<IpAddr>,
    /// The resolver configuration that plugins suggest.
    pub dns: Dns,
    /// The result of the last plugin, as it wrote it.
    pub result: Value,
}

/// A resolver configuration in a result; empty when plugins suggest none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dns {
    /// Addresses of name servers.
    pub nameservers: Vec<String>,
    /// The local domain.
    pub domain: Option<String>,
    /// Search domains.
    pub search: Vec<String>,
    /// Options, as in resolv.conf.
    pub options: Vec<String>,
}

impl Attached {
    /// Reads a final result; `ifname` is the interface that was asked for. The error says what is wrong.
    pub(super) fn read(result: Value, ifname: &str) -> Result<Self, String> {
        let mut ips = addresses(&result, ifname)?;
        let Some(primary) = ips.iter().position(IpAddr::is_ipv4).or((!ips.is_empty()).then_some(0)) else {
            return Err("the result has no address for the pod".into());
        };
        ips[..=primary].rotate_right(1);
        Ok(Self { ips, dns: dns(&result), result })
    }
}

/// Addresses inside the sandbox: those of `ifname` first, otherwise in the order of the result.
fn addresses(result: &Value, ifname: &str) -> Result<Vec<IpAddr>, String> {
    let mut own = Vec::new();
    let mut others = Vec::new();
    for ip in result["ips"].as_array().into_iter().flatten() {
        let address = address(&ip["address"])?;
        match interface(result, &ip["interface"])? {
            Some((_, "")) => {}
            Some((name, _)) if name != ifname => others.push(address),
            _ => own.push(address),
        }
    }
    // Versions 0.1.0 and 0.2.0.
    for key in ["ip4", "ip6"] {
        if result[key].is_object() {
            own.push(address(&result[key]["ip"])?);
        }
    }
    own.append(&mut others);
    let mut seen = Vec::with_capacity(own.len());
    own.retain(|ip| {
        !seen.contains(ip) && {
            seen.push(*ip);
            true
        }
    });
    Ok(own)
}

/// Name and sandbox of the interface that an address belongs to.
fn interface<'a>(result: &'a Value, index: &Value) -> Result<Option<(&'a str, &'a str)>, String> {
    if index.is_null() {
        return Ok(None);
    }
    let found = index.as_u64().and_then(|index| result["interfaces"].get(usize::try_from(index).ok()?));
    let found = found.ok_or_else(|| format!("the result has no interface {index}"))?;
    Ok(Some((found["name"].as_str().unwrap_or(""), found["sandbox"].as_str().unwrap_or(""))))
}

fn address(value: &Value) -> Result<IpAddr, String> {
    let text = value.as_str().unwrap_or("");
    let (ip, prefix) = text.split_once('/').unwrap_or((text, "0"));
    let ip = ip.parse::<IpAddr>().ok().filter(|ip| !ip.is_unspecified() && prefix.parse::<u8>().is_ok());
    ip.ok_or_else(|| format!("{value} is no address"))
}

fn dns(result: &Value) -> Dns {
    let dns = &result["dns"];
    let strings = |key: &str| {
        let values = dns[key].as_array().into_iter().flatten();
        values.filter_map(|value| value.as_str().map(str::to_string)).collect()
    };
    Dns {
        nameservers: strings("nameservers"),
        domain: dns["domain"].as_str().filter(|domain| !domain.is_empty()).map(str::to_string),
        search: strings("search"),
        options: strings("options"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn addresses_of_the_sandbox_with_ipv4_first() {
        fn check(result: Value, expect: Result<&[&str], &str>) {
            let ips = Attached::read(result.clone(), "eth0").map(|attached| attached.ips);
            let expect = match expect {
                Ok(ips) => Ok(ips.iter().map(|ip| ip.parse::<IpAddr>().unwrap()).collect()),
                Err(reason) => Err(reason.to_string()),
            };
            assert_eq!(ips, expect, "{result}");
        }
        let interfaces =
            json!([{"name": "cni0"}, {"name": "net1", "sandbox": "/n"}, {"name": "eth0", "sandbox": "/n"}]);
        check(
            json!({"interfaces": interfaces, "ips": [
                {"address": "10.0.0.1/24", "interface": 0}, {"address": "10.9.0.2/24", "interface": 1},
                {"address": "fd00::2/64", "interface": 2}, {"address": "10.0.0.2/24", "interface": 2},
                {"address": "10.0.0.2/24", "interface": 2}]}),
            Ok(&["10.0.0.2", "fd00::2", "10.9.0.2"]),
        );
        check(json!({"ips": [{"version": "6", "address": "fd00::2/64"}]}), Ok(&["fd00::2"]));
        check(
            json!({"ip4": {"ip": "10.0.0.2/24"}, "ip6": {"ip": "fd00::2/64"}}),
            Ok(&["10.0.0.2", "fd00::2"]),
        );
        check(json!({}), Err("the result has no address for the pod"));
        check(json!({"ips": 3}), Err("the result has no address for the pod"));
        check(json!({"ips": [{"address": "10.0.0.300/24"}]}), Err("\"10.0.0.300/24\" is no address"));
        check(json!({"ips": [{"address": "0.0.0.0/0"}]}), Err("\"0.0.0.0/0\" is no address"));
        check(json!({"ips": [{}]}), Err("null is no address"));
        check(
            json!({"ips": [{"address": "10.0.0.2/24", "interface": 7}]}),
            Err("the result has no interface 7"),
        );
    }

    #[test]
    fn the_resolver_is_read_and_the_result_kept() {
        let result = json!({
            "cniVersion": "1.0.0", "ips": [{"address": "10.0.0.2/24"}], "x-vendor": {"a": [1, null]},
            "dns": {"nameservers": ["10.0.0.1"], "domain": "local", "search": ["a", "b"], "options": ["ndots:5"]},
        });
        let attached = Attached::read(result.clone(), "eth0").unwrap();
        assert_eq!(attached.result, result);
        let strings = |all: &[&str]| all.iter().map(|s| s.to_string()).collect::<Vec<_>>();
        let expect = Dns {
            nameservers: strings(&["10.0.0.1"]),
            domain: Some("local".into()),
            search: strings(&["a", "b"]),
            options: strings(&["ndots:5"]),
        };
        assert_eq!(attached.dns, expect);
        assert_eq!(
            Attached::read(json!({"ips": [{"address": "10.0.0.2"}]}), "e").unwrap().dns,
            Dns::default()
        );
    }
}
