//! The bandwidth plugin's configuration: how fast a pod may receive and send.

use proto::cni::object::Object;
use proto::cni::{CniError, Request};

use crate::net::traffic::Bucket;

const KEYS: [&str; 4] = ["ingressRate", "ingressBurst", "egressRate", "egressBurst"];

/// What bandwidth is asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BandwidthConf {
    /// What goes to the pod.
    pub ingress: Option<Bucket>,
    /// What comes from the pod.
    pub egress: Option<Bucket>,
}

impl BandwidthConf {
    /// Reads and validates. The configuration's own keys come before all of `runtimeConfig.bandwidth`: what the
    /// administrator limits, no pod raises.
    ///
    /// # Errors
    /// [`proto::cni::ErrorCode::UNSUPPORTED_FIELD`] for lists of subnets,
    /// [`proto::cni::ErrorCode::INVALID_NETWORK_CONFIG`], [`proto::cni::ErrorCode::DECODING_FAILURE`].
    pub fn parse(request: &Request) -> Result<Self, CniError> {
        let top = request.conf.top();
        top.refuse(&["shapedSubnets", "unshapedSubnets"])?;
        let given = match request.conf.runtime_config()? {
            Some(runtime) => runtime.object("bandwidth")?,
            None => None,
        };
        if let Some(given) = &given {
            given.refuse(&["shapedSubnets", "unshapedSubnets"])?;
        }
        let own = KEYS.iter().any(|key| top.get(key).is_some());
        let source = given.filter(|_| !own).unwrap_or(top);
        Ok(Self {
            ingress: bucket(&source, "ingressRate", "ingressBurst")?,
            egress: bucket(&source, "egressRate", "egressBurst")?,
        })
    }
}

/// Bits become bytes; 0 means that there is no limit.
fn bucket(object: &Object<'_>, rate: &str, burst: &str) -> Result<Option<Bucket>, CniError> {
    const MAX_BURST: i64 = u32::MAX as i64 * 8;
    let bits = |key: &str, max: i64| Ok::<_, CniError>(object.number(key, 0, max)?.unwrap_or(0));
    let bytes = match (bits(rate, i64::MAX)?, bits(burst, MAX_BURST)?) {
        (0, 0) => return Ok(None),
        (_, 0) => return Err(CniError::config(&object.path(burst), format!("missing beside {rate}"))),
        (0, _) => return Err(CniError::config(&object.path(rate), format!("missing beside {burst}"))),
        (rate, burst) => (rate as u64 / 8, u32::try_from(burst / 8).unwrap_or(u32::MAX)),
    };
    match bytes {
        (0, _) => Err(CniError::config(&object.path(rate), "less than 8 bit/s")),
        (_, 0) => Err(CniError::config(&object.path(burst), "less than 8 bits")),
        (rate, burst) => Ok(Some(Bucket { rate, burst })),
    }
}

#[cfg(test)]
mod tests {
    use proto::cni::ErrorCode;
    use serde_json::{Value, json};

    use super::*;
    use crate::sample::request;

    fn parse(keys: Value) -> Result<BandwidthConf, CniError> {
        BandwidthConf::parse(&request("bandwidth", keys, "")?)
    }

    #[test]
    fn the_configurations_own_keys_come_first() {
        let bucket = |rate, burst| Some(Bucket { rate, burst });
        let check = |keys: Value, ingress, egress| {
            assert_eq!(parse(keys.clone()).unwrap(), BandwidthConf { ingress, egress }, "{keys}");
        };
        check(json!({}), None, None);
        check(json!({"ingressRate": 0, "ingressBurst": 0}), None, None);
        check(json!({"ingressRate": 8000, "ingressBurst": 16}), bucket(1000, 2), None);
        let asked = json!({"bandwidth": {"egressRate": 1u64 << 40, "egressBurst": u32::MAX}});
        check(json!({"runtimeConfig": asked}), None, bucket(1 << 37, u32::MAX / 8));
        let both = json!({"ingressRate": 8000, "ingressBurst": 16, "runtimeConfig": asked});
        check(both, bucket(1000, 2), None);
        check(json!({"egressRate": 0, "runtimeConfig": asked}), None, None);
    }

    #[test]
    fn bad_input_has_code_and_key() {
        let check = |keys: Value, code: ErrorCode, expect: &str| {
            let error = parse(keys.clone()).unwrap_err();
            assert_eq!((error.code, error.to_string().as_str()), (code, expect), "{keys}");
        };
        let (invalid, decode) = (ErrorCode::INVALID_NETWORK_CONFIG, ErrorCode::DECODING_FAILURE);
        check(json!({"ingressRate": 8}), invalid, "ingressBurst: missing beside ingressRate");
        check(json!({"egressBurst": 8}), invalid, "egressRate: missing beside egressBurst");
        check(json!({"egressRate": 7, "egressBurst": 8}), invalid, "egressRate: less than 8 bit/s");
        check(json!({"egressRate": 8, "egressBurst": 7}), invalid, "egressBurst: less than 8 bits");
        check(json!({"ingressRate": -1}), invalid, "ingressRate: -1 is not in 0 to 9223372036854775807");
        check(
            json!({"ingressRate": 8, "ingressBurst": 34359738368i64}),
            invalid,
            "ingressBurst: 34359738368 is not in 0 to 34359738360",
        );
        check(json!({"ingressRate": "8M"}), decode, "ingressRate: expected a whole number, found a string");
        let nested = json!({"runtimeConfig": {"bandwidth": {"egressRate": 80}}});
        check(nested, invalid, "runtimeConfig.bandwidth.egressBurst: missing beside egressRate");
        let list = json!({"runtimeConfig": {"bandwidth": []}});
        check(list, decode, "runtimeConfig.bandwidth: expected an object, found a list");
        let shaped = json!({"shapedSubnets": ["10.0.0.0/8"]});
        let unsupported = ErrorCode::UNSUPPORTED_FIELD;
        check(shaped, unsupported, "shapedSubnets: [\"10.0.0.0/8\"] is not supported");
    }
}
