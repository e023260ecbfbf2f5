//! A registry that lies: serves one tiny image at any name, with one fault in it. Lives in a node's network.

use std::convert::Infallible;
use std::net::{Ipv4Addr, TcpListener};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;

use anyhow::{Context, Result};
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use hyper::body::{Bytes, Frame};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::json;

use crate::image::layer::{Archive, Compression, Owner};
use crate::image::push::{Format, Image};
use crate::ns;

/// Ports in the node's loopback; the node's daemon takes what listens there for registries without TLS.
pub const PORTS: RangeInclusive<u16> = 5001..=5020;

/// What is wrong with the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The layer's bytes are not what its digest says.
    WrongLayer,
    /// The configuration's bytes are not what its digest says.
    WrongConfig,
    /// The layer's body ends early.
    Truncated,
    /// The layer's body stops in the middle, and the connection stays.
    Stalled,
    /// The layer's body never ends.
    Endless,
    /// The manifest never ends.
    EndlessManifest,
    /// The manifest is not JSON.
    Garbage,
    /// Each answer says 500.
    Broken,
    /// Each answer asks for credentials that nobody has.
    Locked,
}

/// A lying registry; it serves until the runtime that it was started on ends.
pub struct Faulty {
    /// Port on the node's loopback.
    pub port: u16,
    served: Arc<Served>,
}

struct Served {
    fault: Fault,
    manifest: Vec<u8>,
    media_type: String,
    config: Vec<u8>,
    layer: Vec<u8>,
    /// How often the layer was asked for, where it stalls.
    asked: AtomicUsize,
}

type Body = BoxBody<Bytes, Infallible>;

impl Faulty {
    /// Starts one inside the network of the node that `holder` holds.
    pub fn start(holder: u32, fault: Fault) -> Result<Self> {
        let listener = ns::in_network_of(holder, || {
            let bound = PORTS.clone().find_map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok());
            bound.context("no port is free for a registry that lies")
        })?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let layer = Archive::default().file("f", Owner::root(0o644), &[7; 4096]).finish(Compression::Gzip)?;
        let blob = layer.blob.clone();
        let image = Image { format: Format::Oci, layers: vec![layer], config: json!({"Cmd": ["sh"]}) };
        let manifest = image.manifest()?;
        let served = Arc::new(Served {
            fault,
            media_type: manifest.media_type.clone(),
            manifest: manifest.bytes,
            config: image.configuration()?,
            layer: blob,
            asked: AtomicUsize::new(0),
        });
        let registry = Self { port, served: Arc::clone(&served) };
        let listener = tokio::net::TcpListener::from_std(listener)?;
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let served = Arc::clone(&served);
                let answer = service_fn(move |request| {
                    let served = Arc::clone(&served);
                    async move { Ok::<_, Infallible>(served.answer(&request)) }
                });
                let serve = hyper::server::conn::http1::Builder::new();
                tokio::spawn(serve.serve_connection(TokioIo::new(stream), answer));
            }
        });
        Ok(registry)
    }

    /// How often a layer was asked for that stalls.
    #[must_use]
    pub fn layers_asked(&self) -> usize {
        self.served.asked.load(Ordering::Relaxed)
    }

    /// A reference to the image behind the fault.
    #[must_use]
    pub fn image(&self) -> String {
        format!("127.0.0.1:{}/faulty/image:1", self.port)
    }
}

impl Served {
    fn answer<B>(&self, request: &Request<B>) -> Response<Body> {
        let path = request.uri().path();
        let mut response = Response::new(self.body(path));
        let status = match self.fault {
            Fault::Broken => 500,
            Fault::Locked => 401,
            _ => 200,
        };
        *response.status_mut() = hyper::StatusCode::from_u16(status).unwrap_or_default();
        let headers = response.headers_mut();
        if path.contains("/manifests/") {
            let kind = hyper::header::HeaderValue::from_str(&self.media_type);
            headers.extend(kind.ok().map(|kind| (hyper::header::CONTENT_TYPE, kind)));
        }
        if self.fault == Fault::Locked {
            let challenge = hyper::header::HeaderValue::from_static("Basic realm=\"faulty\"");
            headers.insert(hyper::header::WWW_AUTHENTICATE, challenge);
        }
        response
    }

    fn body(&self, path: &str) -> Body {
        let manifest = path.contains("/manifests/");
        let config = path.ends_with(&crate::image::layer::digest(&self.config));
        let bytes = if manifest {
            &self.manifest
        } else if config {
            &self.config
        } else if path.contains("/blobs/") {
            &self.layer
        } else {
            return whole(Vec::new());
        };
        match self.fault {
            Fault::WrongLayer if !manifest && !config => whole(changed(bytes)),
            Fault::WrongConfig if config => whole(changed(bytes)),
            Fault::Garbage if manifest => whole(b"<html>".to_vec()),
            Fault::Truncated if !manifest && !config => whole(bytes[..bytes.len() / 2].to_vec()),
            Fault::Stalled if !manifest && !config => {
                self.asked.fetch_add(1, Ordering::Relaxed);
                stalled(bytes)
            }
            Fault::Endless if !manifest && !config => endless(),
            Fault::EndlessManifest if manifest => endless(),
            _ => whole(bytes.clone()),
        }
    }
}

fn changed(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().enumerate().map(|(at, byte)| if at == bytes.len() / 2 { byte ^ 1 } else { *byte }).collect()
}

fn whole(bytes: Vec<u8>) -> Body {
    http_body_util::Full::new(Bytes::from(bytes)).boxed()
}

fn stalled(bytes: &[u8]) -> Body {
    let half = Frame::data(Bytes::copy_from_slice(&bytes[..bytes.len() / 2]));
    let mut half = Some(Ok(half));
    StreamBody::new(stream::poll_fn(move |_| {
        half.take().map_or(Poll::Pending, |half| Poll::Ready(Some(half)))
    }))
    .boxed()
}

fn endless() -> Body {
    let block = Bytes::from_static(&[b' '; 65536]);
    StreamBody::new(stream::repeat_with(move || Ok(Frame::data(block.clone())))).boxed()
}
