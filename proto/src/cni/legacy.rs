//! Results of 0.1.0 and 0.2.0: one address per family under `ip4` and `ip6`, each with its own routes.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::error::{CniError, ErrorCode};
use super::result::{CniResult, Dns, IpConfig, Route, maybe_address, or_default};
use super::version::SpecVersion;

#[derive(Debug, Default, Serialize, Deserialize)]
struct LegacyResult {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ip4: Option<LegacyIp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ip6: Option<LegacyIp>,
    #[serde(default, deserialize_with = "or_default")]
    dns: Dns,
}

#[derive(Debug, Serialize, Deserialize)]
struct LegacyIp {
    ip: IpNet,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "maybe_address")]
    gateway: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    routes: Vec<LegacyRoute>,
}

#[derive(Debug, Serialize, Deserialize)]
struct LegacyRoute {
    dst: IpNet,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "maybe_address")]
    gw: Option<IpAddr>,
}

/// Reads `value`. A route without next hop gets its address's gateway, which newer versions leave to the reader.
pub(super) fn parse(value: &Value) -> Result<CniResult, CniError> {
    let legacy = LegacyResult::deserialize(value)
        .map_err(|error| CniError::caused(ErrorCode::DECODING_FAILURE, "decoding CNI result", &error))?;
    let mut result = CniResult { dns: legacy.dns, ..CniResult::default() };
    for ip in [legacy.ip4, legacy.ip6].into_iter().flatten() {
        let routes = ip.routes.iter().map(|route| Route::new(route.dst, route.gw.or(ip.gateway)));
        result.routes.extend(routes);
        result.ips.push(IpConfig { address: ip.ip, gateway: ip.gateway, interface: None });
    }
    Ok(result)
}

/// Writes the first address of each family, and the routes whose family has an address.
pub(super) fn to_json(result: &CniResult, version: SpecVersion) -> Result<Value, CniError> {
    let family = |v4: bool| {
        let ip = result.ips.iter().find(|ip| ip.address.addr().is_ipv4() == v4)?;
        let routes = result.routes.iter().filter(|route| route.dst.addr().is_ipv4() == v4);
        let routes = routes.map(|route| LegacyRoute { dst: route.dst, gw: route.gw }).collect();
        Some(LegacyIp { ip: ip.address, gateway: ip.gateway, routes })
    };
    let legacy = LegacyResult { ip4: family(true), ip6: family(false), dns: result.dns.clone() };
    if legacy.ip4.is_none() && legacy.ip6.is_none() {
        return Err(CniError::new(
            ErrorCode::INCOMPATIBLE_VERSION,
            format!("cannot convert result to version {version}: no address"),
        ));
    }
    Ok(serde_json::to_value(legacy).expect("a result of strings and addresses always encodes"))
}
