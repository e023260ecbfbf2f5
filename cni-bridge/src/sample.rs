//! Requests for the tests of configurations.

use proto::cni::plugin::OwnNetns;
use proto::cni::{CniError, NetConf, Request};
use serde_json::{Value, json};

/// What a plugin gets for a network `n` with `keys` in its configuration.
pub fn request(plugin: &str, keys: Value, args: &str) -> Result<Request, CniError> {
    let mut conf = json!({"cniVersion": "1.1.0", "name": "n", "type": plugin});
    if let (Value::Object(conf), Value::Object(keys)) = (&mut conf, keys) {
        conf.extend(keys);
    }
    let conf = NetConf::new(conf.as_object().unwrap().clone())?;
    Ok(Request { conf, args: args.parse()?, path: Vec::new(), own_netns: OwnNetns::Refused })
}
