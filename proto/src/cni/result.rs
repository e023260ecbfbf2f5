//! The success result (SPEC "Success"), held in the form of 1.1.0 and converted to and from every other version.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use super::error::{CniError, ErrorCode};
use super::legacy;
use super::object::wrong_type;
use super::version::SpecVersion;

/// What an attachment got.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CniResult {
    /// The interfaces, of host and container; empty in a result of an IPAM plugin.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub interfaces: Vec<Interface>,
    /// The addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub ips: Vec<IpConfig>,
    /// The routes inside the container.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub routes: Vec<Route>,
    /// The resolver's configuration; written even when empty, because readers of old versions require it.
    #[serde(default, deserialize_with = "or_default")]
    pub dns: Dns,
    /// Host ports that the plugin chose because it was asked for a free one. Berth's own; others pass it over.
    #[serde(
        default,
        rename = "berth.dev/portMappings",
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "or_default"
    )]
    pub port_mappings: Vec<PublishedPort>,
}

/// A host port that leads into the container, as in the capability `portMappings`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PublishedPort {
    /// Port of the host.
    pub host_port: u16,
    /// Port of the container.
    pub container_port: u16,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// Host address; all where empty.
    #[serde(default, rename = "hostIP", skip_serializing_if = "String::is_empty")]
    pub host_ip: String,
}

/// A network interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its hardware address.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// Its MTU in bytes (1.1.0).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub mtu: u32,
    /// The path of the network namespace it is in; empty on the host.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    /// Path of a socket that belongs to the interface (1.1.0).
    #[serde(default, rename = "socketPath", skip_serializing_if = "String::is_empty")]
    pub socket_path: String,
    /// PCI address of the device behind the interface (1.1.0).
    #[serde(default, rename = "pciID", skip_serializing_if = "String::is_empty")]
    pub pci_id: String,
}

/// An address with its prefix length.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpConfig {
    /// The address, host bits included.
    pub address: IpNet,
    /// The gateway of the address's subnet.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "maybe_address")]
    pub gateway: Option<IpAddr>,
    /// Index into the result's interfaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
}

/// A route inside the container. All but `dst` and `gw` are new in 1.1.0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Destination.
    pub dst: IpNet,
    /// Next hop; the gateway of an address of the same family where absent.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "maybe_address")]
    pub gw: Option<IpAddr>,
    /// Path MTU in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Largest TCP segment to advertise, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advmss: Option<u32>,
    /// Metric; lower wins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// Routing table; the main table where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// Scope: 0 universe, 253 link, 254 host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u8>,
}

/// Resolver configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    /// Name servers, in order of preference.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub nameservers: Vec<String>,
    /// The local domain.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// Search list.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub search: Vec<String>,
    /// Resolver options.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub options: Vec<String>,
}

impl CniResult {
    /// Reads a result in the version that it names, or in `default` where it names none.
    ///
    /// # Errors
    /// [`ErrorCode::INCOMPATIBLE_VERSION`] and [`ErrorCode::DECODING_FAILURE`].
    pub fn parse(value: &Value, default: SpecVersion) -> Result<Self, CniError> {
        if !value.is_object() {
            return Err(wrong_type("result", "an object", value));
        }
        let version = match value.get("cniVersion").and_then(Value::as_str) {
            None | Some("") => default,
            Some(text) => text.parse()?,
        };
        if version < SpecVersion::V0_3_0 {
            return legacy::parse(value);
        }
        let result: Self = Self::deserialize(value)
            .map_err(|error| CniError::caused(ErrorCode::DECODING_FAILURE, "decoding CNI result", &error))?;
        match result.ips.iter().find(|ip| ip.interface.is_some_and(|i| i >= result.interfaces.len())) {
            Some(ip) => Err(CniError::new(
                ErrorCode::DECODING_FAILURE,
                format!("decoding CNI result: address {} names an interface that is not there", ip.address),
            )),
            None => Ok(result),
        }
    }

    /// The result as an object of `version`. Fields that the version does not know are left out.
    ///
    /// # Errors
    /// [`ErrorCode::INCOMPATIBLE_VERSION`] when 0.1.0 or 0.2.0 cannot say it because there is no address.
    pub fn to_json(&self, version: SpecVersion) -> Result<Value, CniError> {
        let mut value = if version < SpecVersion::V0_3_0 {
            legacy::to_json(self, version)?
        } else {
            serde_json::to_value(self).expect("a result of strings, numbers and addresses always encodes")
        };
        if version < SpecVersion::V1_1_0 {
            drop_new_fields(&mut value);
        }
        if (SpecVersion::V0_3_0..SpecVersion::V1_0_0).contains(&version) {
            add_families(&mut value);
        }
        if let Value::Object(map) = &mut value {
            map.insert("cniVersion".to_owned(), Value::from(version.as_str()));
        }
        Ok(value)
    }

    /// The gateway of the first address of the same family as `address`.
    pub fn gateway_like(&self, address: IpAddr) -> Option<IpAddr> {
        self.ips.iter().filter_map(|ip| ip.gateway).find(|gateway| gateway.is_ipv4() == address.is_ipv4())
    }
}

impl Dns {
    /// Whether nothing is set.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Route {
    /// A plain route.
    pub fn new(dst: IpNet, gw: Option<IpAddr>) -> Self {
        Self { dst, gw, mtu: None, advmss: None, priority: None, table: None, scope: None }
    }
}

/// Removes what 1.1.0 added.
fn drop_new_fields(value: &mut Value) {
    each_object(value, "interfaces", |map| {
        map.retain(|key, _| !matches!(key.as_str(), "mtu" | "socketPath" | "pciID"));
    });
    each_object(value, "routes", |map| map.retain(|key, _| matches!(key.as_str(), "dst" | "gw")));
}

/// Adds `version`, the address family, which 0.3.0 to 0.4.0 require.
fn add_families(value: &mut Value) {
    each_object(value, "ips", |map| {
        let v6 = map.get("address").and_then(Value::as_str).is_some_and(|address| address.contains(':'));
        map.insert("version".to_owned(), Value::from(if v6 { "6" } else { "4" }));
    });
}

fn each_object(value: &mut Value, key: &str, change: impl Fn(&mut Map<String, Value>)) {
    let list = value.get_mut(key).and_then(Value::as_array_mut);
    list.into_iter().flatten().filter_map(Value::as_object_mut).for_each(change);
}

/// JSON null counts as absent.
pub(super) fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    de: D,
) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(de)?.unwrap_or_default())
}

/// An address; null and the empty string count as none.
pub(super) fn maybe_address<'de, D: Deserializer<'de>>(de: D) -> Result<Option<IpAddr>, D::Error> {
    match Option::<String>::deserialize(de)?.as_deref() {
        None | Some("") => Ok(None),
        Some(text) => text.parse().map(Some).map_err(serde::de::Error::custom),
    }
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}
