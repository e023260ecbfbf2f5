//! The `ipam` section of host-local.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use proto::cni::object::{Object, elements};
use proto::cni::result::Route;
use proto::cni::{CniError, ErrorCode, Request, SpecVersion};
use serde::Deserialize;
use serde_json::Value;

use super::auto;
use super::range::{Range, RangeSet, is_tiny, offset};

/// Where reservations are kept unless `dataDir` says otherwise; the reference's place.
pub(super) const DATA_DIR: &str = "/var/lib/cni/networks";

/// How long an address rests unless `restSeconds` says otherwise.
const REST_SECONDS: u64 = 60;

/// What host-local is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostLocalConf {
    /// One address is handed out of each.
    pub sets: Vec<RangeSet>,
    /// Routes that go into the result as they are.
    pub routes: Vec<Route>,
    /// `dataDir`.
    pub data_dir: PathBuf,
    /// A resolver configuration to put into the result.
    pub resolv_conf: Option<PathBuf>,
    /// Addresses that the caller wants.
    pub requested: Vec<IpAddr>,
    /// How long an address rests after it was given back, unless no other is left.
    pub rest: Duration,
}

impl HostLocalConf {
    /// Reads and validates.
    ///
    /// # Errors
    /// [`ErrorCode::INVALID_NETWORK_CONFIG`] and [`ErrorCode::DECODING_FAILURE`] naming the key.
    pub fn parse(request: &Request) -> Result<Self, CniError> {
        let top = request.conf.top();
        let ipam = top.object("ipam")?.ok_or_else(|| CniError::config("ipam", "missing"))?;
        let sets = range_sets(request, &ipam)?;
        let routes = routes(&ipam)?;
        Ok(Self {
            sets,
            routes,
            data_dir: data_dir(request)?,
            resolv_conf: ipam.string("resolvConf")?.filter(|file| !file.is_empty()).map(PathBuf::from),
            requested: requested(request)?,
            rest: Duration::from_secs(
                ipam.number("restSeconds", 0, 86_400)?
                    .and_then(|rest| u64::try_from(rest).ok())
                    .unwrap_or(REST_SECONDS),
            ),
        })
    }
}

/// `ipam.dataDir` alone: what has become invalid beside it must not keep addresses from being given back.
///
/// # Errors
/// [`ErrorCode::DECODING_FAILURE`].
pub(super) fn data_dir(request: &Request) -> Result<PathBuf, CniError> {
    let ipam = request.conf.top().object("ipam")?;
    let dir = ipam.map(|ipam| ipam.string("dataDir")).transpose()?.flatten();
    Ok(dir.filter(|dir| !dir.is_empty()).unwrap_or(DATA_DIR).into())
}

/// `ipam.routes`.
///
/// # Errors
/// [`ErrorCode::INVALID_NETWORK_CONFIG`] naming the route.
pub(super) fn routes(ipam: &Object<'_>) -> Result<Vec<Route>, CniError> {
    let route = |(path, value): (String, &Value)| {
        let route = Route::deserialize(value)
            .map_err(|error| CniError::caused(ErrorCode::INVALID_NETWORK_CONFIG, &path, &error))?;
        match route.gw.filter(|gateway| gateway.is_ipv4() != route.dst.addr().is_ipv4()) {
            Some(gateway) => {
                let problem = format!("{gateway} cannot be the next hop to {}", route.dst);
                Err(CniError::config(&format!("{path}.gw"), problem))
            }
            None => Ok(route),
        }
    };
    ipam.list("routes")?.into_iter().map(route).collect()
}

/// `runtimeConfig.ipRanges`, then the short form with the range in `ipam` itself, then `ipam.ranges`.
fn range_sets(request: &Request, ipam: &Object<'_>) -> Result<Vec<RangeSet>, CniError> {
    let mut sets = Vec::new();
    if let Some(runtime) = request.conf.runtime_config()? {
        for (path, value) in runtime.list("ipRanges")? {
            sets.push(range_set(request, &path, value)?);
        }
    }
    if ipam.get("subnet").is_some() {
        sets.push(RangeSet(vec![range(request, ipam)?]));
    }
    for (path, value) in ipam.list("ranges")? {
        sets.push(range_set(request, &path, value)?);
    }
    if sets.is_empty() {
        return Err(CniError::config(&ipam.path("ranges"), "missing"));
    }
    let all: Vec<&Range> = sets.iter().flat_map(|set| &set.0).collect();
    for (index, range) in all.iter().enumerate() {
        if let Some(other) = all[..index].iter().find(|other| other.overlaps(range)) {
            let problem = format!("{}-{} overlaps {}-{}", range.start, range.end, other.start, other.end);
            return Err(CniError::config(&ipam.path("ranges"), problem));
        }
    }
    expect_few(request, ipam, &sets)?;
    Ok(sets)
}

/// A result before version 0.3.0 has room for one address of each family.
fn expect_few(request: &Request, ipam: &Object<'_>, sets: &[RangeSet]) -> Result<(), CniError> {
    let version = request.conf.version;
    let of_v4 = sets.iter().flat_map(|set| set.0.first()).filter(|range| range.start.is_ipv4()).count();
    if version < SpecVersion::V0_3_0 && (of_v4 > 1 || sets.len() - of_v4 > 1) {
        let problem = format!("version {version} has one address of each family");
        return Err(CniError::config(&ipam.path("ranges"), problem));
    }
    Ok(())
}

fn range_set(request: &Request, path: &str, value: &Value) -> Result<RangeSet, CniError> {
    let ranges = elements(path, value)?
        .into_iter()
        .map(|(path, value)| range(request, &Object::at(path, value)?))
        .collect::<Result<Vec<_>, _>>()?;
    match ranges.first() {
        None => Err(CniError::config(path, "must hold at least one range")),
        Some(first) if ranges.iter().any(|range| range.start.is_ipv4() != first.start.is_ipv4()) => {
            Err(CniError::config(path, "mixes IPv4 and IPv6"))
        }
        Some(_) => Ok(RangeSet(ranges)),
    }
}

fn range(request: &Request, object: &Object<'_>) -> Result<Range, CniError> {
    let path = object.path("subnet");
    let subnet: IpNet = match object.string("subnet")? {
        Some("auto") => auto::subnet(request)?,
        _ => object
            .parsed("subnet", "a subnet such as 10.1.0.0/16")?
            .ok_or_else(|| CniError::config(&path, "missing"))?,
    };
    if subnet.addr() != subnet.network() {
        let problem = format!("{subnet} has host bits set; the network is {}", subnet.trunc());
        return Err(CniError::config(&path, problem));
    }
    let address = |key: &str| -> Result<Option<IpAddr>, CniError> {
        let Some(address) = object.parsed(key, "an address")? else { return Ok(None) };
        if subnet.contains(&address) {
            return Ok(Some(address));
        }
        Err(CniError::config(&object.path(key), format!("{address} is not in {subnet}")))
    };
    let first = if is_tiny(&subnet) { subnet.network() } else { offset(subnet.network(), 1) };
    let start = address("rangeStart")?.unwrap_or(first);
    let end = address("rangeEnd")?.unwrap_or(subnet.broadcast());
    if start > end {
        return Err(CniError::config(&object.path("rangeStart"), format!("{start} comes after {end}")));
    }
    let single = subnet.prefix_len() == subnet.max_prefix_len();
    let gateway = gateway(object, &subnet)?.or_else(|| (!single).then_some(first));
    Ok(Range { subnet, start, end, gateway })
}

/// Any address of the subnet's family: whether pods reach one elsewhere, their plugin knows. A subnet's only address is
/// a pod's.
fn gateway(object: &Object<'_>, subnet: &IpNet) -> Result<Option<IpAddr>, CniError> {
    let gateway: Option<IpAddr> = object.parsed("gateway", "an address")?;
    let single = subnet.prefix_len() == subnet.max_prefix_len();
    match gateway {
        Some(gateway)
            if gateway.is_ipv4() != subnet.addr().is_ipv4() || (single && subnet.contains(&gateway)) =>
        {
            let problem = format!("{gateway} cannot be the gateway of {subnet}");
            Err(CniError::config(&object.path("gateway"), problem))
        }
        other => Ok(other),
    }
}

/// From `runtimeConfig.ips`, `args.cni.ips` and CNI_ARGS `IP`, without repetition.
fn requested(request: &Request) -> Result<Vec<IpAddr>, CniError> {
    let mut texts: Vec<(String, String)> = Vec::new();
    for object in [request.conf.runtime_config()?, request.conf.cni_args()?].into_iter().flatten() {
        let path = object.path("ips");
        let found = object.strings("ips")?;
        texts.extend(found.into_iter().enumerate().map(|(index, text)| (format!("{path}[{index}]"), text)));
    }
    let args = request.args.get("IP").unwrap_or_default();
    texts.extend(args.split(',').filter(|text| !text.is_empty()).map(|ip| ("CNI_ARGS IP".into(), ip.into())));
    let mut found = Vec::new();
    for (path, text) in texts {
        let address = text.parse::<IpAddr>().or_else(|_| text.parse::<IpNet>().map(|net| net.addr()));
        let address = address.map_err(|_| CniError::config(&path, format!("{text:?} is not an address")))?;
        if !found.contains(&address) {
            found.push(address);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::sample::request;

    fn parse(ipam: Value, args: &str) -> Result<HostLocalConf, CniError> {
        parse_as("0.2.0", ipam, args)
    }

    fn parse_as(version: &str, ipam: Value, args: &str) -> Result<HostLocalConf, CniError> {
        let keys = json!({"cniVersion": version, "ipam": ipam, "runtimeConfig": {"ips": ["10.1.0.9/16"]},
            "args": {"cni": {"ips": ["10.1.0.9", "10.1.0.10"]}}});
        HostLocalConf::parse(&request("bridge", keys, args).unwrap())
    }

    #[test]
    fn defaults_are_filled_in() {
        let conf = parse(json!({"subnet": "10.1.0.0/16"}), "IP=10.1.0.11").unwrap();
        let range = &conf.sets[0].0[0];
        assert_eq!(range.start.to_string(), "10.1.0.1");
        assert_eq!(range.end.to_string(), "10.1.255.255");
        assert_eq!(range.gateway, Some("10.1.0.1".parse().unwrap()));
        assert_eq!(conf.data_dir, PathBuf::from(DATA_DIR));
        let requested: Vec<String> = conf.requested.iter().map(IpAddr::to_string).collect();
        assert_eq!(requested, ["10.1.0.9", "10.1.0.10", "10.1.0.11"]);
    }

    #[test]
    fn the_short_form_comes_first() {
        let ipam = json!({"subnet": "10.1.0.0/24", "gateway": "169.254.1.1",
            "ranges": [[{"subnet": "10.2.0.0/24"}], [{"subnet": "fd00::/64"}]]});
        let sets = parse_as("0.3.0", ipam, "").unwrap().sets;
        let shown: Vec<String> = sets.iter().map(|set| set.0[0].subnet.to_string()).collect();
        assert_eq!(shown, ["10.1.0.0/24", "10.2.0.0/24", "fd00::/64"]);
        assert_eq!(sets[0].0[0].gateway, Some("169.254.1.1".parse().unwrap()));
    }

    #[test]
    fn tiny_subnets_have_room_for_pods() {
        let check = |ipam: Value, start: &str, end: &str, gateway: Option<&str>| {
            let range = parse(ipam, "").unwrap().sets[0].0[0].clone();
            assert_eq!((range.start.to_string().as_str(), range.end.to_string().as_str()), (start, end));
            assert_eq!(range.gateway.map(|gateway| gateway.to_string()).as_deref(), gateway);
        };
        check(json!({"subnet": "10.1.0.6/31"}), "10.1.0.6", "10.1.0.7", Some("10.1.0.6"));
        check(
            json!({"subnet": "10.1.0.6/31", "gateway": "10.1.0.7"}),
            "10.1.0.6",
            "10.1.0.7",
            Some("10.1.0.7"),
        );
        check(json!({"subnet": "10.1.0.7/32"}), "10.1.0.7", "10.1.0.7", None);
        check(
            json!({"subnet": "10.1.0.7/32", "gateway": "10.9.0.1"}),
            "10.1.0.7",
            "10.1.0.7",
            Some("10.9.0.1"),
        );
        check(json!({"subnet": "fd00::8/127"}), "fd00::8", "fd00::9", Some("fd00::8"));
    }

    #[test]
    fn bad_sections_name_the_key() {
        let check = |ipam: Value, expect: &str| {
            let error = parse(ipam.clone(), "").unwrap_err();
            assert_eq!(error.to_string(), expect, "{ipam}");
            assert_eq!(error.code, ErrorCode::INVALID_NETWORK_CONFIG, "{ipam}");
        };
        check(json!({}), "ipam.ranges: missing");
        check(json!({"subnet": "10.1.0.0"}), "ipam.subnet: \"10.1.0.0\" is not a subnet such as 10.1.0.0/16");
        check(
            json!({"subnet": "10.1.0.1/16"}),
            "ipam.subnet: 10.1.0.1/16 has host bits set; the network is 10.1.0.0/16",
        );
        check(
            json!({"subnet": "10.1.0.7/32", "gateway": "fd00::1"}),
            "ipam.gateway: fd00::1 cannot be the gateway of 10.1.0.7/32",
        );
        check(
            json!({"subnet": "10.1.0.0/24", "restSeconds": -1}),
            "ipam.restSeconds: -1 is not in 0 to 86400",
        );
        check(
            json!({"ranges": [[{"subnet": "10.1.0.0/24", "gateway": "fd00::1"}]]}),
            "ipam.ranges[0][0].gateway: fd00::1 cannot be the gateway of 10.1.0.0/24",
        );
        check(
            json!({"subnet": "10.1.0.0/24", "rangeStart": "10.2.0.1"}),
            "ipam.rangeStart: 10.2.0.1 is not in 10.1.0.0/24",
        );
        check(
            json!({"subnet": "10.1.0.0/24", "ranges": [[{"subnet": "10.2.0.0/24"}]]}),
            "ipam.ranges: version 0.2.0 has one address of each family",
        );
        check(
            json!({"subnet": "10.1.0.0/24", "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0", "gw": "10.1.0.1"}]}),
            "ipam.routes[1].gw: 10.1.0.1 cannot be the next hop to ::/0",
        );
        check(
            json!({"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.9", "rangeEnd": "10.1.0.8"}),
            "ipam.rangeStart: 10.1.0.9 comes after 10.1.0.8",
        );
        check(json!({"ranges": [[]]}), "ipam.ranges[0]: must hold at least one range");
        check(
            json!({"ranges": [[{"subnet": "10.1.0.0/24"}, {"subnet": "fd00::/64"}]]}),
            "ipam.ranges[0]: mixes IPv4 and IPv6",
        );
        check(
            json!({"ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.1.0.0/25"}]]}),
            "ipam.ranges: 10.1.0.1-10.1.0.127 overlaps 10.1.0.1-10.1.0.255",
        );
        check(
            json!({"subnet": "10.1.0.0/24", "routes": [{"dst": "x"}]}),
            "ipam.routes[0]: invalid IP address syntax",
        );
    }
}
