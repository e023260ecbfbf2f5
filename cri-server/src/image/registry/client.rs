//! HTTP clients: one for TLS, one for plain HTTP. Only TLS needs certificates of authorities, so a node without them
//! can still pull from registries that speak plain HTTP.

use std::sync::OnceLock;
use std::time::Duration;

use reqwest::{Certificate, Client, ClientBuilder, Url};

use super::RegistryConfig;
use super::failure::{cause, chain};
use crate::image::error::ImageError;

/// The clients of all pulls, each made when it is first needed.
#[derive(Debug, Default)]
pub struct Clients {
    tls: OnceLock<Client>,
    plain: OnceLock<Client>,
}

impl Clients {
    /// The client for `url`.
    pub fn of(&self, url: &Url, config: &RegistryConfig) -> Result<Client, ImageError> {
        let (kept, make) = match url.scheme() {
            "http" => (&self.plain, plain as Make),
            _encrypted => (&self.tls, tls as Make),
        };
        match kept.get() {
            Some(client) => Ok(client.clone()),
            None => make(config).map(|client| kept.get_or_init(|| client).clone()),
        }
    }
}

type Make = fn(&RegistryConfig) -> Result<Client, ImageError>;

fn builder(config: &RegistryConfig) -> ClientBuilder {
    Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .user_agent(concat!("berth/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(Duration::from_secs(config.connect_timeout_seconds))
        .pool_idle_timeout(Duration::from_secs(5))
}

/// It trusts nobody, and needs nobody's certificate.
fn plain(config: &RegistryConfig) -> Result<Client, ImageError> {
    built(builder(config).tls_certs_only([]))
}

fn tls(config: &RegistryConfig) -> Result<Client, ImageError> {
    let mut builder = builder(config);
    for file in &config.ca_files {
        let wrong = || ImageError::InvalidConfig {
            what: format!("registries.ca_files: {} has no certificates in PEM form", file.display()),
        };
        let bytes =
            std::fs::read(file).map_err(|e| ImageError::io(format!("reading {}", file.display()), e))?;
        builder = builder.tls_certs_merge(Certificate::from_pem_bundle(&bytes).map_err(|_| wrong())?);
    }
    built(builder)
}

fn built(builder: ClientBuilder) -> Result<Client, ImageError> {
    builder.build().map_err(|error| ImageError::NoCertificates { source: cause(chain(&error)) })
}
