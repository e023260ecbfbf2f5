//! The server's certificate, read again when its files change.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is not there, or not PEM.
    #[error("read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// The files do not belong together.
    #[error("use the certificate {path}")]
    Use {
        /// The certificate's file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: rustls::Error,
    },
}

/// A certificate and its key.
pub struct Certificate {
    files: [PathBuf; 2],
    current: Mutex<(Stamps, TlsAcceptor)>,
}

/// Which files these are and when they were changed: the certificate's, the key's.
type Stamps = [Option<(u64, SystemTime)>; 2];

impl Certificate {
    /// Reads the certificate chain and the key.
    pub fn load(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let files = [certificate.to_owned(), key.to_owned()];
        let stamps = stamps(&files);
        let acceptor = read(&files)?;
        Ok(Self { files, current: Mutex::new((stamps, acceptor)) })
    }

    /// What accepts connections now. Files that changed and cannot be used leave the old certificate in use.
    pub fn acceptor(&self) -> TlsAcceptor {
        let mut current = self.current.lock().expect("no code that holds the certificate panics");
        let stamps = stamps(&self.files);
        if stamps != current.0 {
            current.0 = stamps;
            match read(&self.files) {
                Ok(acceptor) => current.1 = acceptor,
                Err(error) => {
                    let error = crate::error::chain(&error);
                    tracing::warn!(error, "the changed certificate of the streaming server is not used");
                }
            }
        }
        current.1.clone()
    }
}

fn stamps(files: &[PathBuf; 2]) -> Stamps {
    files.each_ref().map(|file| {
        let metadata = std::fs::metadata(file).ok()?;
        Some((metadata.ino(), metadata.modified().ok()?))
    })
}

fn read([certificate, key]: &[PathBuf; 2]) -> Result<TlsAcceptor, TlsError> {
    let failed = |path: &PathBuf| {
        let path = path.clone();
        move |source| TlsError::Read { path, source }
    };
    let chain: Vec<_> = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect)
        .map_err(failed(certificate))?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(failed(key))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map(|config| TlsAcceptor::from(Arc::new(config)))
        .map_err(|source| TlsError::Use { path: certificate.clone(), source })
}
