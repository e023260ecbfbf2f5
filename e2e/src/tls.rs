//! The certificate of servers on a node's loopback, and clients that trust nothing else. The key is made for these
//! tests and guards nothing.

use std::fs::File;
use std::io::Write;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::node::Node;

/// A connection over TLS.
pub type Secured = StreamOwned<ClientConnection, TcpStream>;

/// Where a server finds its certificate, which is its own authority, and the key.
#[derive(Clone, Debug)]
pub struct Files {
    /// The certificate, PEM.
    pub certificate: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
}

impl Files {
    /// Writes both into a directory.
    pub fn write(dir: &Path) -> Result<Self> {
        let files = Self { certificate: dir.join("server.crt"), key: dir.join("server.key") };
        std::fs::write(&files.certificate, CERTIFICATE).context("write the certificate")?;
        std::fs::write(&files.key, KEY).context("write the key")?;
        Ok(files)
    }
}

/// Starts the daemon of a node anew with a streaming server that speaks TLS.
pub fn secure_streams(node: &mut Node) -> Result<Files> {
    let files = Files::write(node.dirs().top())?;
    node.stop_daemon()?;
    let mut config = File::options().append(true).open(node.dirs().config())?;
    writeln!(config, "[streaming]\ntls_cert = {:?}\ntls_key = {:?}", files.certificate, files.key)?;
    node.start_daemon()?;
    Ok(files)
}

/// Shakes hands with a server on loopback.
pub fn secure(stream: TcpStream) -> Result<Secured> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(CERTIFICATE.as_bytes())?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let config = config.with_root_certificates(roots).with_no_client_auth();
    let connection = ClientConnection::new(Arc::new(config), ServerName::try_from("localhost")?)?;
    Ok(StreamOwned::new(connection, stream))
}

const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----
MIIBjDCCATKgAwIBAgIUWgcJYFrhGL8Lj4ZLMc9jP3tHZmswCgYIKoZIzj0EAwIw
DjEMMAoGA1UEAwwDZTJlMCAXDTI2MTEyNjA3MDYyOFoYDzIxMjYxMTAyMDcwNjI4
WjAOMQwwCgYDVQQDDANlMmUwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAASLn3u9
1kQvO8yDLe9vfDKGYEV3RQTHr2cEAhNk1BCPXvmIUuve0AmKYH2C+fwzSmZEh+T6
kLlKqBIlhXSp21Wwo2wwajAdBgNVHQ4EFgQUAuAr+0uJxUoYk7qKjErCBMpc3nQw
HwYDVR0jBBgwFoAUAuAr+0uJxUoYk7qKjErCBMpc3nQwGgYDVR0RBBMwEYIJbG9j
YWxob3N0hwR/AAABMAwGA1UdEwEB/wQCMAAwCgYIKoZIzj0EAwIDSAAwRQIhAI4j
ez24apdDpi7/quw17V0bFUI0EPqHvCM27DUbAZy6AiBbIEdqbbbZc6SPn0EFJ5FD
Wo1B+bx9bbQ8WG9ffLcvTQ==
-----END CERTIFICATE-----
";

const KEY: &str = "-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg9wau7uP/USA3mM8/
2upqYK+AX+AkYewUM0RzjsGXov+hRANCAASLn3u91kQvO8yDLe9vfDKGYEV3RQTH
r2cEAhNk1BCPXvmIUuve0AmKYH2C+fwzSmZEh+T6kLlKqBIlhXSp21Ww
-----END PRIVATE KEY-----
";
