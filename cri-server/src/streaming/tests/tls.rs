//! The certificate of the server. The keys are made for these tests and guard nothing.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::*;

const CERTIFICATES: [&str; 2] = [
    "-----BEGIN CERTIFICATE-----
MIIBhzCCAS2gAwIBAgIUaPr1Oh8JL9cMMJ5UZWre98Yy9O0wCgYIKoZIzj0EAwIw
ETEPMA0GA1UEAwwGdGVzdCAxMCAXDTI2MTEyNTIzNDQ1MVoYDzIxMjYxMTAxMjM0
NDUxWjARMQ8wDQYDVQQDDAZ0ZXN0IDEwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNC
AAQNk8QN1CVr94HjddggIzrBAF2VnH6T5fNMEHmutKspx2WFeMmCQlOIlBk470mA
4p2+KsPm0+Yf/+czikE8jt7uo2EwXzAdBgNVHQ4EFgQUnSu7MgrSR7E0TuTr9OL2
WiWSMR4wHwYDVR0jBBgwFoAUnSu7MgrSR7E0TuTr9OL2WiWSMR4wDwYDVR0RBAgw
BocEfwAAATAMBgNVHRMBAf8EAjAAMAoGCCqGSM49BAMCA0gAMEUCIQDsAe9eyH8V
BElPtgbjdZBvzesHQUhQ+/aavwzSxDplMwIgXmB0Qov2juZ76GwdSAtIjLZA79ZN
ckn+Zlc3oruota4=
-----END CERTIFICATE-----
",
    "-----BEGIN CERTIFICATE-----
MIIBiDCCAS2gAwIBAgIUEbf3LEDsA5hZgKjUNgk7UQRA0zQwCgYIKoZIzj0EAwIw
ETEPMA0GA1UEAwwGdGVzdCAyMCAXDTI2MTEyNTIzNDQ1MVoYDzIxMjYxMTAxMjM0
NDUxWjARMQ8wDQYDVQQDDAZ0ZXN0IDIwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNC
AAQTb5iJPJikevMxX/6QhzsaPyxjDggLr+NwGwj37Pmk3DZ4CCpDXPJjTD3iYPep
xqUvbbm6RkXSkZCrL+sOSaylo2EwXzAdBgNVHQ4EFgQUVkyVLUXbPqHCK46G6+2d
RrRW95owHwYDVR0jBBgwFoAUVkyVLUXbPqHCK46G6+2dRrRW95owDwYDVR0RBAgw
BocEfwAAATAMBgNVHRMBAf8EAjAAMAoGCCqGSM49BAMCA0kAMEYCIQCYe56wKxMA
jTvaZdg+Y98tWuxkOYie72kMvntwjGN6qQIhAPBIa4wE6JQz2RCl2ZP8+n+Yioep
wICJ1jy/HvB72WoQ
-----END CERTIFICATE-----
",
];
const KEYS: [&str; 2] = [
    "-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg2t+Ms3lxDnWHGDfk
z7XiXtbt0rFmTVhzF+cGpf9XBXyhRANCAAQNk8QN1CVr94HjddggIzrBAF2VnH6T
5fNMEHmutKspx2WFeMmCQlOIlBk470mA4p2+KsPm0+Yf/+czikE8jt7u
-----END PRIVATE KEY-----
",
    "-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgT449F1+Cwbh7e+pp
TkmVTj24VluM7w9QEuJKpbiu23uhRANCAAQTb5iJPJikevMxX/6QhzsaPyxjDggL
r+NwGwj37Pmk3DZ4CCpDXPJjTD3iYPepxqUvbbm6RkXSkZCrL+sOSayl
-----END PRIVATE KEY-----
",
];

/// What a client that trusts only this certificate gets for an unknown token.
async fn ask_tls(address: &str, trusted: &str) -> std::io::Result<String> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(trusted.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots).with_no_client_auth();
    let socket = TcpStream::connect(address).await?;
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, socket).await?;
    stream.write_all(b"GET /exec/none HTTP/1.1\r\nHost: test\r\n\r\n").await?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[tokio::test]
async fn changed_certificates_are_used_and_bad_ones_are_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    // Files are replaced at once, as tools that renew certificates do.
    let put = |name: &str, text: &str| {
        std::fs::write(path("new"), text).unwrap();
        std::fs::rename(path("new"), path(name)).unwrap();
    };
    put("crt", CERTIFICATES[0]);
    put("key", KEYS[0]);
    let config = StreamingConfig {
        tls_cert: Some(path("crt")),
        tls_key: Some(path("key")),
        ..StreamingConfig::default()
    };
    let server = Streaming::start(&config, Arc::new(Node::default())).unwrap();
    let url = server.url_for(exec("cat", ALL)).unwrap();
    let address = url.strip_prefix("https://").unwrap().split('/').next().unwrap();
    let check = async |trusted: usize| {
        assert_eq!(ask_tls(address, CERTIFICATES[trusted]).await.unwrap(), "HTTP/1.1 404");
        ask_tls(address, CERTIFICATES[1 - trusted]).await.unwrap_err();
    };
    check(0).await;
    put("crt", CERTIFICATES[1]);
    put("key", KEYS[1]);
    check(1).await;
    put("key", "no key");
    check(1).await;
    put("key", KEYS[0]);
    check(1).await;
    assert!(
        Streaming::start(&config, Arc::new(Node::default())).is_err(),
        "the files do not belong together"
    );
}
