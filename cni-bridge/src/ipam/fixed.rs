//! static: the addresses that the configuration or the runtime names.

use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use proto::cni::object::Object;
use proto::cni::result::IpConfig;
use proto::cni::{Attachment, CniError, CniResult, ErrorCode, Plugin, Request};

use super::conf::routes;

/// The plugin.
#[derive(Debug, Clone, Copy)]
pub struct Static;

impl Static {
    /// The addresses: those of `runtimeConfig.ips`, else of `args.cni.ips`, else of `ipam.addresses` together with
    /// CNI_ARGS `IP`, each with the gateway that is in its subnet.
    ///
    /// # Errors
    /// [`ErrorCode::INVALID_NETWORK_CONFIG`] and [`ErrorCode::DECODING_FAILURE`] naming the key.
    pub fn result(&self, request: &Request) -> Result<CniResult, CniError> {
        request.args.expect_only(&["IP", "MAC", "GATEWAY"])?;
        let top = request.conf.top();
        let ipam = top.object("ipam")?.ok_or_else(|| CniError::config("ipam", "missing"))?;
        let mut ips = configured(&ipam)?;
        ips.extend(of_args(request)?);
        give_gateways(request, &mut ips)?;
        for object in [request.conf.cni_args()?, request.conf.runtime_config()?].into_iter().flatten() {
            let named = named(&object)?;
            if !named.is_empty() {
                ips = named;
            }
        }
        if ips.is_empty() {
            return Err(CniError::config("ipam.addresses", "missing"));
        }
        for (index, ip) in ips.iter().enumerate() {
            if ips[..index].iter().any(|other| other.address.addr() == ip.address.addr()) {
                return Err(CniError::config("ipam.addresses", format!("{} is there twice", ip.address)));
            }
        }
        let dns = match ipam.get("dns") {
            None => request.conf.dns()?,
            Some(value) => serde::Deserialize::deserialize(value).map_err(|error: serde_json::Error| {
                CniError::caused(ErrorCode::DECODING_FAILURE, ipam.path("dns"), &error)
            })?,
        };
        Ok(CniResult { ips, routes: routes(&ipam)?, dns, ..CniResult::default() })
    }
}

impl Plugin for Static {
    fn name(&self) -> &'static str {
        "static"
    }

    fn add(&self, request: &Request, _: &Attachment, _: &Path) -> Result<CniResult, CniError> {
        self.result(request)
    }

    fn del(&self, _: &Request, _: &Attachment, _: Option<&Path>) -> Result<(), CniError> {
        Ok(())
    }

    fn check(&self, request: &Request, _: &Attachment, _: &Path) -> Result<(), CniError> {
        let missing = || CniError::config("prevResult", "missing; CHECK needs it");
        let previous = request.conf.prev_result()?.ok_or_else(missing)?;
        for ip in self.result(request)?.ips {
            let is = |found: &&IpConfig| found.address == ip.address;
            let Some(found) = previous.ips.iter().find(is) else {
                let msg = format!("static: prevResult lacks the address {}", ip.address);
                return Err(CniError::new(ErrorCode::PLUGIN, msg));
            };
            if let Some(gateway) = ip.gateway.filter(|gateway| found.gateway != Some(*gateway)) {
                let msg = format!("static: prevResult gives {} another gateway than {gateway}", ip.address);
                return Err(CniError::new(ErrorCode::PLUGIN, msg));
            }
        }
        Ok(())
    }

    fn gc(&self, _: &Request) -> Result<(), CniError> {
        Ok(())
    }

    fn status(&self, request: &Request) -> Result<(), CniError> {
        // Without addresses of its own it waits for the runtime's, which come with ADD.
        let ipam = request.conf.top().object("ipam")?.ok_or_else(|| CniError::config("ipam", "missing"))?;
        configured(&ipam).and_then(|_| routes(&ipam)).map(|_| ())
    }
}

fn configured(ipam: &Object<'_>) -> Result<Vec<IpConfig>, CniError> {
    let entry = |(path, value): (String, &serde_json::Value)| {
        let object = Object::at(path, value)?;
        let text = object.string("address")?.unwrap_or_default();
        let address = subnet_address(&object.path("address"), text)?;
        let gateway: Option<IpAddr> = object.parsed("gateway", "an address")?;
        if gateway.is_some_and(|gateway| gateway.is_ipv4() != address.addr().is_ipv4()) {
            return Err(CniError::config(
                &object.path("gateway"),
                format!("is of another family than {address}"),
            ));
        }
        Ok(IpConfig { address, gateway, interface: None })
    };
    ipam.list("addresses")?.into_iter().map(entry).collect()
}

fn of_args(request: &Request) -> Result<Vec<IpConfig>, CniError> {
    let text = request.args.get("IP").unwrap_or_default();
    let texts = text.split(',').map(str::trim).filter(|text| !text.is_empty());
    texts.map(|text| subnet_address("CNI_ARGS IP", text).map(bare)).collect()
}

fn give_gateways(request: &Request, ips: &mut [IpConfig]) -> Result<(), CniError> {
    let text = request.args.get("GATEWAY").unwrap_or_default();
    for text in text.split(',').map(str::trim).filter(|text| !text.is_empty()) {
        let gateway: IpAddr = text
            .parse()
            .map_err(|_| CniError::config("CNI_ARGS GATEWAY", format!("{text:?} is not an address")))?;
        for ip in ips.iter_mut().filter(|ip| ip.address.contains(&gateway)) {
            ip.gateway = Some(gateway);
        }
    }
    Ok(())
}

fn named(object: &Object<'_>) -> Result<Vec<IpConfig>, CniError> {
    let path = object.path("ips");
    let texts = object.strings("ips")?.into_iter().enumerate();
    texts.map(|(index, text)| subnet_address(&format!("{path}[{index}]"), &text).map(bare)).collect()
}

fn bare(address: IpNet) -> IpConfig {
    IpConfig { address, gateway: None, interface: None }
}

fn subnet_address(path: &str, text: &str) -> Result<IpNet, CniError> {
    text.parse().map_err(|_| {
        CniError::config(path, format!("{text:?} is not an address with a prefix length such as 10.1.0.5/24"))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::sample::request;

    fn ask(ipam: Value, more: Value, args: &str) -> Result<String, CniError> {
        let mut keys = json!({"ipam": ipam});
        if let (Value::Object(keys), Value::Object(more)) = (&mut keys, more) {
            keys.extend(more);
        }
        let request = request("static", keys, args).unwrap();
        let describe = |ip: &IpConfig| match ip.gateway {
            Some(gateway) => format!("{} via {gateway}", ip.address),
            None => ip.address.to_string(),
        };
        Ok(Static.result(&request)?.ips.iter().map(describe).collect::<Vec<_>>().join(", "))
    }

    #[test]
    fn the_nearest_source_wins() {
        let check = |more: Value, args: &str, expect: &str| {
            let ipam = json!({"addresses": [{"address": "10.1.0.5/24", "gateway": "10.1.0.254"},
                                            {"address": "fd00::5/64"}]});
            assert_eq!(ask(ipam, more, args).unwrap(), expect);
        };
        check(json!({}), "", "10.1.0.5/24 via 10.1.0.254, fd00::5/64");
        let args = "IP=10.2.0.9/16;GATEWAY=10.2.0.1,fd00::1";
        check(
            json!({}),
            args,
            "10.1.0.5/24 via 10.1.0.254, fd00::5/64 via fd00::1, 10.2.0.9/16 via 10.2.0.1",
        );
        let cni = json!({"args": {"cni": {"ips": ["10.3.0.1/24"]}}});
        check(cni, args, "10.3.0.1/24");
        let both =
            json!({"args": {"cni": {"ips": ["10.3.0.1/24"]}}, "runtimeConfig": {"ips": ["10.4.0.1/24"]}});
        check(both, "", "10.4.0.1/24");
    }

    #[test]
    fn bad_input_names_the_key() {
        let check = |ipam: Value, more: Value, args: &str, expect: &str| {
            let error = ask(ipam, more, args).unwrap_err();
            assert_eq!((error.code, error.to_string().as_str()), (ErrorCode::INVALID_NETWORK_CONFIG, expect));
        };
        let form = "is not an address with a prefix length such as 10.1.0.5/24";
        check(json!({}), json!({}), "", "ipam.addresses: missing");
        let bare = json!({"addresses": [{"address": "10.1.0.5"}]});
        check(bare, json!({}), "", &format!("ipam.addresses[0].address: \"10.1.0.5\" {form}"));
        let mixed = json!({"addresses": [{"address": "10.1.0.5/24", "gateway": "fd00::1"}]});
        check(mixed, json!({}), "", "ipam.addresses[0].gateway: is of another family than 10.1.0.5/24");
        let twice = json!({"addresses": [{"address": "10.1.0.5/24"}, {"address": "10.1.0.5/16"}]});
        check(twice, json!({}), "", "ipam.addresses: 10.1.0.5/16 is there twice");
        check(json!({}), json!({}), "IP=x", &format!("CNI_ARGS IP: \"x\" {form}"));
        check(json!({}), json!({}), "IP=10.1.0.5/24;GATEWAY=y", "CNI_ARGS GATEWAY: \"y\" is not an address");
        let ips = json!({"runtimeConfig": {"ips": ["10.1.0.5"]}});
        check(json!({}), ips, "", &format!("runtimeConfig.ips[0]: \"10.1.0.5\" {form}"));
        let routes = json!({"addresses": [{"address": "10.1.0.5/24"}], "routes": [{"dst": "x"}]});
        check(routes, json!({}), "", "ipam.routes[0]: invalid IP address syntax");
    }
}
