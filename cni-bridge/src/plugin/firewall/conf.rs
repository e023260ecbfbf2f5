//! The firewall plugin's configuration.

use proto::cni::{CniError, Request};

/// What firewall is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirewallConf {
    /// Who may send to the pod.
    pub policy: IngressPolicy,
    /// The chain of `iptables`' table `filter` where administrators put rules of their own.
    pub admin_chain: String,
}

/// Who may send to a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IngressPolicy {
    /// Everybody.
    Open,
    /// Everybody but pods on other bridges that have a policy too.
    SameBridge,
    /// As above, and no pod on the same bridge.
    Isolated,
}

impl FirewallConf {
    /// Reads and validates. `iptables` as backend means the rules that it can show, made without it.
    ///
    /// # Errors
    /// [`proto::cni::ErrorCode::UNSUPPORTED_FIELD`] for firewalld,
    /// [`proto::cni::ErrorCode::INVALID_NETWORK_CONFIG`], [`proto::cni::ErrorCode::DECODING_FAILURE`].
    pub fn parse(request: &Request) -> Result<Self, CniError> {
        let top = request.conf.top();
        match top.string("backend")? {
            None | Some("" | "iptables" | "nftables") => {}
            Some("firewalld") => return Err(CniError::unsupported("backend", "\"firewalld\"")),
            Some(other) => {
                let problem = format!("{other:?} is not iptables, nftables or firewalld");
                return Err(CniError::config("backend", problem));
            }
        }
        // Names a zone of a backend that is refused above; means nothing with the others.
        top.string("firewalldZone")?;
        let policy = match top.string("ingressPolicy")? {
            None | Some("" | "open") => IngressPolicy::Open,
            Some("same-bridge") => IngressPolicy::SameBridge,
            Some("isolated") => IngressPolicy::Isolated,
            Some(other) => {
                let problem = format!("{other:?} is not open, same-bridge or isolated");
                return Err(CniError::config("ingressPolicy", problem));
            }
        };
        let key = "iptablesAdminChainName";
        let admin_chain = top.string(key)?.filter(|name| !name.is_empty()).unwrap_or("CNI-ADMIN");
        let fits = admin_chain.len() <= 28
            && admin_chain.bytes().all(|byte| byte.is_ascii_graphic())
            && !admin_chain.starts_with(['-', '!'])
            && !matches!(admin_chain, "FORWARD" | "INPUT" | "OUTPUT" | "CNI-FORWARD");
        if !fits {
            return Err(CniError::config(key, format!("{admin_chain:?} is not a chain name")));
        }
        Ok(Self { policy, admin_chain: admin_chain.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use proto::cni::ErrorCode;
    use serde_json::{Value, json};

    use super::*;
    use crate::sample::request;

    fn parse(keys: Value) -> Result<FirewallConf, CniError> {
        FirewallConf::parse(&request("firewall", keys, "")?)
    }

    #[test]
    fn defaults_are_the_references() {
        let expect = FirewallConf { policy: IngressPolicy::Open, admin_chain: "CNI-ADMIN".into() };
        assert_eq!(parse(json!({})).unwrap(), expect);
        assert_eq!(parse(json!({"backend": "", "firewalldZone": "trusted"})).unwrap(), expect);
        assert_eq!(parse(json!({"backend": "iptables", "ingressPolicy": "open"})).unwrap(), expect);
        let own = parse(json!({"ingressPolicy": "isolated", "iptablesAdminChainName": "ADMIN"})).unwrap();
        assert_eq!((own.policy, own.admin_chain.as_str()), (IngressPolicy::Isolated, "ADMIN"));
    }

    #[test]
    fn bad_input_has_code_and_key() {
        let check = |keys: Value, code: ErrorCode, expect: &str| {
            let error = parse(keys.clone()).unwrap_err();
            assert_eq!((error.code, error.to_string().as_str()), (code, expect), "{keys}");
        };
        let (invalid, decode) = (ErrorCode::INVALID_NETWORK_CONFIG, ErrorCode::DECODING_FAILURE);
        let unsupported = ErrorCode::UNSUPPORTED_FIELD;
        check(json!({"backend": "firewalld"}), unsupported, "backend: \"firewalld\" is not supported");
        check(json!({"backend": "pf"}), invalid, "backend: \"pf\" is not iptables, nftables or firewalld");
        check(json!({"backend": 3}), decode, "backend: expected a string, found a number");
        let closed = json!({"ingressPolicy": "closed"});
        check(closed, invalid, "ingressPolicy: \"closed\" is not open, same-bridge or isolated");
        let bad = |name: &str| {
            let expect = format!("iptablesAdminChainName: {name:?} is not a chain name");
            check(json!({"iptablesAdminChainName": name}), invalid, &expect);
        };
        bad("-x");
        bad("a b");
        bad("FORWARD");
        bad(&"x".repeat(29));
        let zone = json!({"firewalldZone": []});
        check(zone, decode, "firewalldZone: expected a string, found a list");
    }
}
