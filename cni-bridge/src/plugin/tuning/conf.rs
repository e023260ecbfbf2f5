//! The tuning plugin's configuration: kernel parameters and settings of the pod's interface.

use std::path::PathBuf;

use proto::cni::object::{Object, wrong_type};
use proto::cni::{CniError, Request};
use serde_json::Value;

use crate::net::device::Change;
use crate::net::link::Mac;

/// Where settings are kept until DEL, unless `dataDir` says otherwise.
const DATA_DIR: &str = "/run/cni/tuning";

/// What tuning is asked for.
#[derive(Debug, Clone)]
pub struct TuningConf {
    /// Kernel parameters as written, with their values.
    pub sysctls: Vec<(Sysctl, String)>,
    /// Settings of the interface.
    pub change: Change,
    /// Where the settings of before are kept.
    pub data_dir: PathBuf,
}

/// A kernel parameter below `net`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sysctl {
    /// As it stands in the configuration; what an allowlist is compared with.
    pub written: String,
    /// Its path below `/proc/sys/net`, in parts; `IFNAME` stands for the interface.
    parts: Vec<String>,
}

impl TuningConf {
    /// Reads and validates; what stands in `args.cni` comes before the same key of the configuration.
    ///
    /// # Errors
    /// [`proto::cni::ErrorCode::INVALID_NETWORK_CONFIG`], [`proto::cni::ErrorCode::DECODING_FAILURE`].
    pub fn parse(request: &Request) -> Result<Self, CniError> {
        let (top, args) = (request.conf.top(), request.conf.cni_args()?);
        let place = |key: &str| args.as_ref().filter(|args| args.get(key).is_some()).unwrap_or(&top);
        let mut sysctls = parameters(&top)?;
        for (sysctl, value) in args.as_ref().map(parameters).transpose()?.into_iter().flatten() {
            sysctls.retain(|(own, _)| own.parts != sysctl.parts);
            sysctls.push((sysctl, value));
        }
        let number = |key: &str, low: i64, max: i64| -> Result<Option<u32>, CniError> {
            let object = place(key);
            match object.number(key, 0, max)? {
                Some(small) if small != 0 && small < low => {
                    Err(CniError::config(&object.path(key), format!("{small} is not in {low} to {max}")))
                }
                other => Ok(other.and_then(|number| u32::try_from(number).ok())),
            }
        };
        let data_dir = data_dir(request)?;
        let all_multicast = place("allmulti");
        let change = Change {
            mac: mac(request)?,
            mtu: number("mtu", 68, 65535)?.filter(|mtu| *mtu != 0),
            promiscuous: place("promisc").flag("promisc")?.then_some(true),
            all_multicast: match all_multicast.get("allmulti") {
                None => None,
                Some(_) => Some(all_multicast.flag("allmulti")?),
            },
            queue: number("txQLen", 0, i64::from(u32::MAX))?,
        };
        Ok(Self { sysctls, change, data_dir })
    }
}

/// The object's `sysctl`.
fn parameters(object: &Object<'_>) -> Result<Vec<(Sysctl, String)>, CniError> {
    let mut found = Vec::new();
    let Some(sysctl) = object.object("sysctl")? else { return Ok(found) };
    for (key, value) in sysctl.entries() {
        let path = sysctl.path(key);
        let Value::String(text) = value else { return Err(wrong_type(&path, "a string", value)) };
        if text.contains('\0') {
            return Err(CniError::config(&path, "contains a NUL"));
        }
        let invalid = |problem| CniError::config(&path, problem);
        found.push((Sysctl::parse(key).map_err(invalid)?, text.clone()));
    }
    Ok(found)
}

impl Sysctl {
    /// Parts are separated by the first of `.` and `/` that occurs; the other one then stands for itself swapped, as
    /// sysctl(8) reads it: `net.ipv4.conf.eth0/1.forwarding` is the interface `eth0.1`.
    fn parse(written: &str) -> Result<Self, &'static str> {
        let separator = written.chars().find(|c| matches!(c, '.' | '/')).unwrap_or('.');
        let swap = |part: &str| if separator == '.' { part.replace('/', ".") } else { part.to_owned() };
        let mut parts = written.split(separator).map(swap);
        if parts.next().as_deref() != Some("net") {
            return Err("is not below net");
        }
        let parts: Vec<String> = parts.collect();
        let evil = |part: &String| matches!(part.as_str(), "" | "." | "..") || part.contains(['/', '\0']);
        if parts.is_empty() || parts.iter().any(evil) {
            return Err("is not the name of a kernel parameter");
        }
        Ok(Self { written: written.to_owned(), parts })
    }

    /// Its path below `/proc/sys/net` for an interface.
    pub fn path(&self, ifname: &str) -> String {
        let parts: Vec<String> = self.parts.iter().map(|part| part.replace("IFNAME", ifname)).collect();
        parts.join("/")
    }
}

/// From `args.cni`, else from the capability, from CNI_ARGS, and last from the configuration.
fn mac(request: &Request) -> Result<Option<Mac>, CniError> {
    const WHAT: &str = "a unicast MAC address";
    request.args.expect_only(&["MAC", "IP", "GATEWAY"])?;
    for object in [request.conf.cni_args()?, request.conf.runtime_config()?].into_iter().flatten() {
        if let Some(mac) = object.parsed("mac", WHAT)? {
            return Ok(Some(mac));
        }
    }
    match request.args.get("MAC") {
        None | Some("") => request.conf.top().parsed("mac", WHAT),
        Some(text) => text
            .parse()
            .map(Some)
            .map_err(|_| CniError::config("CNI_ARGS MAC", format!("{text:?} is not {WHAT}"))),
    }
}

/// `dataDir` alone: what has become wrong beside it must not keep DEL from its work.
///
/// # Errors
/// [`ErrorCode::INVALID_NETWORK_CONFIG`](proto::cni::ErrorCode) where it is not an absolute path.
pub fn data_dir(request: &Request) -> Result<PathBuf, CniError> {
    let found = request.conf.top();
    let data_dir = found.string("dataDir")?.filter(|text| !text.is_empty()).unwrap_or(DATA_DIR);
    if !data_dir.starts_with('/') {
        return Err(CniError::config("dataDir", format!("{data_dir:?} is not an absolute path")));
    }
    Ok(data_dir.into())
}

#[cfg(test)]
mod tests {
    use proto::cni::ErrorCode;
    use serde_json::json;

    use super::*;
    use crate::sample::request;

    fn parse(keys: Value, args: &str) -> Result<TuningConf, CniError> {
        TuningConf::parse(&request("tuning", keys, args)?)
    }

    #[test]
    fn parameters_become_paths() {
        let check = |written: &str, expect: Result<&str, &str>| {
            let found = Sysctl::parse(written).map(|sysctl| sysctl.path("eth0.1"));
            assert_eq!(found.as_deref(), expect.as_deref(), "{written}");
        };
        let (outside, bad) = (Err("is not below net"), Err("is not the name of a kernel parameter"));
        check("net.core.somaxconn", Ok("core/somaxconn"));
        check("net/core/somaxconn", Ok("core/somaxconn"));
        check("net.ipv4.conf.IFNAME.forwarding", Ok("ipv4/conf/eth0.1/forwarding"));
        check("net.ipv4.conf.a/b.forwarding", Ok("ipv4/conf/a.b/forwarding"));
        check("net/ipv4/conf/a.b/forwarding", Ok("ipv4/conf/a.b/forwarding"));
        check("kernel.shmmax", outside);
        check("", outside);
        check("network.x", outside);
        check("net", bad);
        check("net.", bad);
        check("net/../kernel/shmmax", bad);
        check("net.//.kernel", bad);
        check("net...kernel", bad);
        check("net/ipv4//x", bad);
    }

    #[test]
    fn settings_are_read() {
        let conf = parse(json!({"mtu": 0, "promisc": false, "txQLen": 0, "allmulti": false}), "").unwrap();
        let expect = Change { queue: Some(0), all_multicast: Some(false), ..Change::default() };
        assert_eq!(conf.change, expect);
        assert_eq!(conf.data_dir, PathBuf::from("/run/cni/tuning"));
        let mac = |keys, args| parse(keys, args).unwrap().change.mac.map(|mac| mac.to_string());
        let own = json!({"mac": "02:00:00:00:00:01"});
        assert_eq!(mac(own.clone(), "").as_deref(), Some("02:00:00:00:00:01"));
        assert_eq!(mac(own, "MAC=02:00:00:00:00:02").as_deref(), Some("02:00:00:00:00:02"));
        let runtime = json!({"runtimeConfig": {"mac": "02:00:00:00:00:03"}});
        assert_eq!(mac(runtime, "MAC=02:00:00:00:00:02").as_deref(), Some("02:00:00:00:00:03"));
    }

    #[test]
    fn arguments_come_first() {
        let conf = json!({"mtu": 1400, "txQLen": 1, "promisc": true, "allmulti": true,
            "sysctl": {"net.core.somaxconn": "1", "net.ipv4.ip_forward": "1"},
            "runtimeConfig": {"mac": "02:00:00:00:00:03"},
            "args": {"cni": {"mtu": 1300, "txQLen": 0, "promisc": false, "allmulti": false,
                "mac": "02:00:00:00:00:04", "sysctl": {"net/core/somaxconn": "2"}}}});
        let conf = parse(conf, "").unwrap();
        let expect = Change {
            mac: Some("02:00:00:00:00:04".parse().unwrap()),
            mtu: Some(1300),
            promiscuous: None,
            all_multicast: Some(false),
            queue: Some(0),
        };
        assert_eq!(conf.change, expect);
        let shown: Vec<String> =
            conf.sysctls.iter().map(|(sysctl, value)| format!("{}={value}", sysctl.path("eth0"))).collect();
        assert_eq!(shown, ["ipv4/ip_forward=1", "core/somaxconn=2"]);
        let error = parse(json!({"args": {"cni": {"mtu": 1}}}), "").unwrap_err();
        assert_eq!(error.msg, "args.cni.mtu: 1 is not in 68 to 65535");
    }

    #[test]
    fn bad_input_has_code_and_key() {
        let check = |keys: Value, code: ErrorCode, expect: &str| {
            let error = parse(keys.clone(), "").unwrap_err();
            assert_eq!((error.code, error.to_string().as_str()), (code, expect), "{keys}");
        };
        let (invalid, decode) = (ErrorCode::INVALID_NETWORK_CONFIG, ErrorCode::DECODING_FAILURE);
        check(
            json!({"sysctl": {"net.core.somaxconn": 5}}),
            decode,
            "sysctl.net.core.somaxconn: expected a string, found a number",
        );
        check(json!({"sysctl": {"kernel.shmmax": "5"}}), invalid, "sysctl.kernel.shmmax: is not below net");
        check(json!({"sysctl": []}), decode, "sysctl: expected an object, found a list");
        check(json!({"mtu": 67}), invalid, "mtu: 67 is not in 68 to 65535");
        check(json!({"mtu": 65536}), invalid, "mtu: 65536 is not in 0 to 65535");
        check(json!({"txQLen": -1}), invalid, "txQLen: -1 is not in 0 to 4294967295");
        check(json!({"promisc": 1}), decode, "promisc: expected true or false, found a number");
        check(json!({"allmulti": "x"}), decode, "allmulti: expected true or false, found a string");
        check(json!({"mac": "x"}), invalid, "mac: \"x\" is not a unicast MAC address");
        check(json!({"dataDir": "x"}), invalid, "dataDir: \"x\" is not an absolute path");
    }
}
