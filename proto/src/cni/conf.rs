//! Network configurations: the list that an administrator writes and the object that a plugin reads.
//!
//! Both keep the whole JSON object, so that keys unknown here reach the plugin that knows them unchanged.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::args::{Attachment, NetworkName};
use super::error::{CniError, ErrorCode};
use super::object::{Object, wrong_type};
use super::result::{CniResult, Dns};
use super::version::SpecVersion;

/// What a plugin reads on standard input (SPEC "Section 2, execution configuration").
#[derive(Debug, Clone, PartialEq)]
pub struct NetConf {
    /// The version that the result must be written in.
    pub version: SpecVersion,
    /// The network.
    pub name: NetworkName,
    /// `type`: the plugin that this is for, or that delegates.
    pub plugin: String,
    map: Map<String, Value>,
}

impl NetConf {
    /// Validates what every plugin needs: version, name and type.
    ///
    /// # Errors
    /// [`ErrorCode::INCOMPATIBLE_VERSION`], [`ErrorCode::DECODING_FAILURE`], [`ErrorCode::INVALID_NETWORK_CONFIG`].
    pub fn new(map: Map<String, Value>) -> Result<Self, CniError> {
        let top = Object::top(&map);
        let version = SpecVersion::of_key(top.string("cniVersion")?)?;
        let name = required_name(&top)?;
        let plugin = plugin_name(&top, "type")?.unwrap_or_default();
        Ok(Self { version, name, plugin, map })
    }

    /// All keys.
    pub fn top(&self) -> Object<'_> {
        Object::top(&self.map)
    }

    /// All keys, as read.
    pub fn map(&self) -> &Map<String, Value> {
        &self.map
    }

    /// The configuration's JSON, for a delegated plugin.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(&self.map).expect("a JSON object always encodes")
    }

    /// `ipam.type`; `None` without IPAM.
    ///
    /// # Errors
    /// [`ErrorCode::INVALID_NETWORK_CONFIG`] for a name that is a path.
    pub fn ipam_type(&self) -> Result<Option<String>, CniError> {
        match self.top().object("ipam")? {
            None => Ok(None),
            Some(ipam) => plugin_name(&ipam, "type"),
        }
    }

    /// What the runtime passes for a capability: `runtimeConfig.<key>`.
    pub fn runtime_config(&self) -> Result<Option<Object<'_>>, CniError> {
        self.top().object("runtimeConfig")
    }

    /// `args.cni`, where runtimes pass labels, addresses and a MAC address (CONVENTIONS).
    pub fn cni_args(&self) -> Result<Option<Object<'_>>, CniError> {
        match self.top().object("args")? {
            None => Ok(None),
            Some(args) => args.object("cni"),
        }
    }

    /// The result of the plugin before, or for DEL and CHECK of the last one.
    pub fn prev_result(&self) -> Result<Option<CniResult>, CniError> {
        let Some(value) = self.top().get("prevResult") else { return Ok(None) };
        let parsed = CniResult::parse(value, self.version);
        parsed.map(Some).map_err(|error| CniError { msg: format!("prevResult: {}", error.msg), ..error })
    }

    /// `dns` of the configuration.
    pub fn dns(&self) -> Result<Dns, CniError> {
        let Some(value) = self.top().get("dns") else { return Ok(Dns::default()) };
        Dns::deserialize(value).map_err(|error| CniError::caused(ErrorCode::DECODING_FAILURE, "dns", &error))
    }

    /// The attachments that GC must keep: `cni.dev/valid-attachments`, or `cni.dev/attachments` of older runtimes.
    /// libcni leaves out both where its caller knows of no attachment, as cnitool's `gc` does: that is none.
    ///
    /// # Errors
    /// [`ErrorCode::DECODING_FAILURE`] when it is no list of attachments.
    pub fn valid_attachments(&self) -> Result<Vec<Attachment>, CniError> {
        const KEY: &str = "cni.dev/valid-attachments";
        let found = self.map.get(KEY).or_else(|| self.map.get("cni.dev/attachments"));
        match found {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(value) => Vec::deserialize(value)
                .map_err(|error| CniError::caused(ErrorCode::DECODING_FAILURE, KEY, &error)),
        }
    }
}

/// A list of plugins that together make one network (SPEC "Section 1").
#[derive(Debug, Clone, PartialEq)]
pub struct NetConfList {
    /// The highest of `cniVersion` and `cniVersions` that is spoken here.
    pub version: SpecVersion,
    /// The network.
    pub name: NetworkName,
    /// The runtime must not call CHECK.
    pub disable_check: bool,
    /// The runtime must not call GC.
    pub disable_gc: bool,
    /// Plugins in `<name>/*.conf` beside the list are not loaded.
    pub load_only_inlined_plugins: bool,
    /// In the order of ADD; never empty.
    pub plugins: Vec<PluginConf>,
    map: Map<String, Value>,
}

/// One plugin's object in a list.
#[derive(Debug, Clone, PartialEq)]
pub struct PluginConf {
    /// `type`: the file name of the program.
    pub plugin: String,
    map: Map<String, Value>,
}

impl NetConfList {
    /// Reads a `.conflist`, or a `.conf` with a single plugin as a list of one.
    ///
    /// # Errors
    /// The same codes as [`NetConf::new`]; the message names the key.
    pub fn parse(json: &[u8]) -> Result<Self, CniError> {
        let map = parse_map(json)?;
        let top = Object::top(&map);
        let version = SpecVersion::negotiate(top.string("cniVersion")?, &top.strings("cniVersions")?)?;
        let name = required_name(&top)?;
        let plugins = if top.get("plugins").is_some() {
            let plugins = top.list("plugins")?;
            plugins.iter().map(|(path, value)| PluginConf::new(path, value)).collect::<Result<Vec<_>, _>>()?
        } else {
            vec![PluginConf::new("", &Value::Object(map.clone()))?]
        };
        if plugins.is_empty() {
            return Err(CniError::config("plugins", "must hold at least one plugin"));
        }
        Ok(Self {
            version,
            name,
            disable_check: flag_or_text(&top, "disableCheck")?,
            disable_gc: flag_or_text(&top, "disableGC")?,
            load_only_inlined_plugins: flag_or_text(&top, "loadOnlyInlinedPlugins")?,
            plugins,
            map,
        })
    }

    /// The list's JSON with every key it was read with.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(&self.map).expect("a JSON object always encodes")
    }
}

impl PluginConf {
    /// Validates one plugin's object; `path` is where it stands.
    ///
    /// # Errors
    /// [`ErrorCode::DECODING_FAILURE`], [`ErrorCode::INVALID_NETWORK_CONFIG`].
    pub fn new(path: &str, value: &Value) -> Result<Self, CniError> {
        let object = Object::at(path.to_owned(), value)?;
        let Value::Object(map) = value else { return Err(wrong_type(path, "an object", value)) };
        match plugin_name(&object, "type")? {
            Some(plugin) => Ok(Self { plugin, map: map.clone() }),
            None => Err(CniError::config(&object.path("type"), "missing")),
        }
    }

    /// All keys, as read.
    pub fn map(&self) -> &Map<String, Value> {
        &self.map
    }

    /// Whether the plugin declares `capability`, and so wants its value in `runtimeConfig`.
    pub fn has_capability(&self, capability: &str) -> bool {
        let declared = self.map.get("capabilities").and_then(|all| all.get(capability));
        declared.and_then(Value::as_bool).unwrap_or(false)
    }
}

/// Decodes a JSON object.
///
/// # Errors
/// [`ErrorCode::DECODING_FAILURE`] with line and column.
pub fn parse_map(json: &[u8]) -> Result<Map<String, Value>, CniError> {
    match serde_json::from_slice(json) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(other) => Err(wrong_type("", "an object", &other)),
        Err(error) => {
            Err(CniError::caused(ErrorCode::DECODING_FAILURE, "decoding network configuration", &error))
        }
    }
}

fn required_name(top: &Object<'_>) -> Result<NetworkName, CniError> {
    match top.string("name")? {
        None | Some("") => Err(CniError::config("name", "missing")),
        Some(text) => text.parse(),
    }
}

/// A plugin's type: a file name, never a path.
fn plugin_name(object: &Object<'_>, key: &str) -> Result<Option<String>, CniError> {
    match object.string(key)? {
        None | Some("") => Ok(None),
        Some(text) if text == "." || text == ".." || text.contains(['/', '\0']) => {
            Err(CniError::config(&object.path(key), format!("{text:?} is not a plugin name")))
        }
        Some(text) => Ok(Some(text.to_owned())),
    }
}

/// A boolean, which old configurations also write as text.
fn flag_or_text(top: &Object<'_>, key: &str) -> Result<bool, CniError> {
    match top.get(key) {
        Some(Value::String(text)) => text
            .to_ascii_lowercase()
            .parse()
            .map_err(|_| CniError::config(&top.path(key), format!("{text:?} is not true or false"))),
        _ => top.flag(key),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_keeps_what_it_does_not_know() {
        let json = br#"{"cniVersion":"1.0.0","cniVersions":["1.1.0"],"disableCheck":"true","name":"n","plugins":[{"type":"bridge","x":{"y":[1,2.5,null]}},{"capabilities":{"mac":false,"portMappings":true},"type":"portmap"}],"zz":1}"#;
        let list = NetConfList::parse(json).unwrap();
        assert_eq!(list.version, SpecVersion::V1_1_0);
        assert!(list.disable_check && !list.disable_gc);
        assert_eq!(list.plugins[1].plugin, "portmap");
        assert!(list.plugins[1].has_capability("portMappings"));
        assert!(!list.plugins[1].has_capability("mac"));
        assert_eq!(list.to_bytes(), json);
    }

    #[test]
    fn bad_lists_name_the_key() {
        let check = |json: &str, code: ErrorCode, msg: &str| {
            let error = NetConfList::parse(json.as_bytes()).unwrap_err();
            assert_eq!((error.code, error.msg.as_str()), (code, msg), "{json}");
        };
        let invalid = ErrorCode::INVALID_NETWORK_CONFIG;
        let decode = ErrorCode::DECODING_FAILURE;
        check("[]", decode, "network configuration: expected an object, found a list");
        check("{", decode, "decoding network configuration");
        check("{}", invalid, "name: missing");
        check(r#"{"name":"a b"}"#, invalid, "invalid network name (name) \"a b\"");
        check(r#"{"name":"a"}"#, invalid, "type: missing");
        check(r#"{"name":"a","plugins":[]}"#, invalid, "plugins: must hold at least one plugin");
        check(
            r#"{"name":"a","plugins":[{"type":"../x"}]}"#,
            invalid,
            "plugins[0].type: \"../x\" is not a plugin name",
        );
        check(r#"{"name":"a","plugins":[3]}"#, decode, "plugins[0]: expected an object, found a number");
        check(r#"{"name":1,"type":"x"}"#, decode, "name: expected a string, found a number");
        check(
            r#"{"name":"a","type":"x","disableGC":"ja"}"#,
            invalid,
            "disableGC: \"ja\" is not true or false",
        );
        let json = r#"{"cniVersion":"9.0.0","name":"a","type":"x"}"#;
        let error = NetConfList::parse(json.as_bytes()).unwrap_err();
        assert_eq!(error.code, ErrorCode::INCOMPATIBLE_VERSION);
    }

    #[test]
    fn what_gc_keeps_is_read_as_libcni_writes_it() {
        let conf = |json: &str| NetConf::new(parse_map(json.as_bytes()).unwrap()).unwrap();
        assert_eq!(conf(r#"{"name":"n"}"#).valid_attachments().unwrap(), []);
        assert_eq!(conf(r#"{"name":"n","cni.dev/valid-attachments":null}"#).valid_attachments().unwrap(), []);
        let old = conf(r#"{"name":"n","cni.dev/attachments":[{"containerID":"c","ifname":"eth0"}]}"#);
        assert_eq!(old.valid_attachments().unwrap()[0].container_id.as_str(), "c");
        let bad = conf(r#"{"name":"n","cni.dev/attachments":[{"containerID":"../c","ifname":"eth0"}]}"#);
        assert_eq!(bad.valid_attachments().unwrap_err().code, ErrorCode::DECODING_FAILURE);
    }
}
