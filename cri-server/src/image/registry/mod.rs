//! Registries: the OCI distribution protocol, client side (distribution-spec, "Pull").
//!
//! A [`Session`] serves one pull. It alone holds the pull's credentials and tokens, so that no pull can use another's;
//! connections are shared, since they carry no identity. Credentials go to the registry that the reference names and
//! to the token server that this registry names, never to a mirror, the target of a redirect or a plain-text realm.

mod auth;
mod blob;
mod client;
mod failure;
mod pace;
mod resolve;
mod session;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use reqwest::Url;
use serde::Deserialize;

use client::Clients;
pub use resolve::Resolved;
pub use session::Session;

use super::error::ImageError;
use super::reference::{DEFAULT_REGISTRY, Reference};

/// Host that serves the registry `docker.io`.
const DOCKER_HUB: &str = "registry-1.docker.io";

/// How registries are reached.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegistryConfig {
    /// Settings by registry host as references name it, with port, `docker.io` for the Docker Hub.
    pub hosts: BTreeMap<String, HostConfig>,
    /// Files with certificates of authorities (PEM) that are trusted beside the system's.
    pub ca_files: Vec<PathBuf>,
    /// How long a connection may take, in seconds.
    pub connect_timeout_seconds: u64,
    /// How long a transfer may bring nothing, or less than 128 KiB in all, in seconds.
    pub stall_timeout_seconds: u64,
    /// How often something is tried in a row without progress.
    pub attempts: u32,
    /// First pause between two tries, in milliseconds; it doubles each time.
    pub backoff_milliseconds: u64,
    /// Longest pause between two tries, in seconds, also when the registry asks for more.
    pub longest_pause_seconds: u64,
}

/// Settings of one registry.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HostConfig {
    /// Base URLs of mirrors in the order they are tried, before the registry itself. `http://` is taken as given.
    pub mirrors: Vec<String>,
    /// The registry itself speaks plain HTTP.
    pub plain_http: bool,
}

impl Default for RegistryConfig {
    fn default() -> Self {
        Self {
            hosts: BTreeMap::new(),
            ca_files: Vec::new(),
            connect_timeout_seconds: 10,
            stall_timeout_seconds: 30,
            attempts: 5,
            backoff_milliseconds: 250,
            longest_pause_seconds: 30,
        }
    }
}

/// What a user proves an identity with. Debug output shows none of it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Credentials {
    /// User name and password.
    Basic {
        /// User name.
        user: String,
        /// Password.
        password: String,
    },
    /// A refresh token that the token server takes for access tokens.
    Identity(String),
    /// A token that the registry itself takes.
    Registry(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Credentials::Basic { .. } => "Basic(…)",
            Credentials::Identity(_) => "Identity(…)",
            Credentials::Registry(_) => "Registry(…)",
        })
    }
}

/// One place that serves a repository.
#[derive(Debug, Clone)]
struct Endpoint {
    base: Url,
    role: Role,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Mirror,
    Origin,
}

/// The registries of this node.
pub struct Registry {
    config: RegistryConfig,
    clients: Arc<Clients>,
}

impl Registry {
    /// Checks the configuration; connects to nothing.
    pub fn new(config: RegistryConfig) -> Result<Self, ImageError> {
        for (host, settings) in &config.hosts {
            for mirror in &settings.mirrors {
                base_url(mirror).map_err(|reason| ImageError::InvalidConfig {
                    what: format!("registries.hosts.{host:?}.mirrors: {mirror:?} {reason}"),
                })?;
            }
        }
        Ok(Self { config, clients: Arc::default() })
    }

    /// Starts a pull of `reference`.
    pub fn session(
        &self,
        reference: &Reference,
        credentials: Option<Credentials>,
    ) -> Result<Session, ImageError> {
        Ok(Session::new(
            self.clients.clone(),
            self.config.clone(),
            self.endpoints(reference)?,
            (reference.clone(), credentials),
        ))
    }

    fn endpoints(&self, reference: &Reference) -> Result<Vec<Endpoint>, ImageError> {
        let settings = self.config.hosts.get(reference.registry()).cloned().unwrap_or_default();
        let host = match reference.registry() {
            DEFAULT_REGISTRY => DOCKER_HUB,
            other => other,
        };
        let scheme = if settings.plain_http { "http" } else { "https" };
        let invalid =
            |reason: String| ImageError::InvalidReference { reference: reference.to_string(), reason };
        let mut endpoints = Vec::new();
        for mirror in &settings.mirrors {
            endpoints.push(Endpoint { base: base_url(mirror).map_err(invalid)?, role: Role::Mirror });
        }
        let base = base_url(&format!("{scheme}://{host}")).map_err(invalid)?;
        endpoints.push(Endpoint { base, role: Role::Origin });
        Ok(endpoints)
    }
}

/// The URL that `v2/…` is relative to.
fn base_url(text: &str) -> Result<Url, String> {
    let mut url = Url::parse(text).map_err(|e| format!("is no URL: {e}"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err("is no http:// or https:// URL".into());
    }
    if url.query().is_some()
        || url.fragment().is_some()
        || !url.username().is_empty()
        || url.password().is_some()
    {
        return Err("has more than a host, a port and a path".into());
    }
    let path = url.path().trim_end_matches('/').trim_end_matches("/v2").to_string();
    url.set_path(&format!("{path}/"));
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_come_before_the_registry() {
        let host = HostConfig {
            mirrors: vec!["http://127.0.0.1:5000".into(), "https://m.io/proxy/v2/".into()],
            plain_http: false,
        };
        let config =
            RegistryConfig { hosts: BTreeMap::from([("docker.io".into(), host)]), ..Default::default() };
        let registry = Registry::new(config).unwrap();
        let endpoints = registry.endpoints(&"busybox".parse().unwrap()).unwrap();
        let urls: Vec<_> = endpoints.iter().map(|e| e.base.as_str()).collect();
        assert_eq!(urls, ["http://127.0.0.1:5000/", "https://m.io/proxy/", "https://registry-1.docker.io/"]);
        let endpoints = registry.endpoints(&"localhost:5000/x".parse().unwrap()).unwrap();
        assert_eq!(endpoints[0].base.as_str(), "https://localhost:5000/");
    }

    #[test]
    fn a_wrong_mirror_names_the_key() {
        for mirror in ["m.io", "ftp://m.io", "https://u:p@m.io", "https://m.io?x", ""] {
            let host = HostConfig { mirrors: vec![mirror.into()], plain_http: false };
            let config =
                RegistryConfig { hosts: BTreeMap::from([("h.io".into(), host)]), ..Default::default() };
            let error = Registry::new(config).err().unwrap().to_string();
            assert!(error.contains("registries.hosts.\"h.io\".mirrors"), "{error}");
        }
    }

    #[test]
    fn credentials_are_not_printed() {
        let secret = Credentials::Basic { user: "alice".into(), password: "s3cr3t".into() };
        assert!(!format!("{secret:?}").contains("s3cr3t"));
    }
}
