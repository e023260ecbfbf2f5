//! A registry on loopback that misbehaves as told and remembers what it was asked.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use cri_server::image::{Digest, HostConfig, RegistryConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::fixture::{OCI_MANIFEST, TestImage};

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub authorization: Option<String>,
    pub range: Option<String>,
    pub body: String,
}

/// An answer.
#[derive(Clone)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub fault: Fault,
}

/// What happens to an answer on the way.
#[derive(Clone, Copy, PartialEq)]
pub enum Fault {
    None,
    /// The connection ends after so many bytes of the body.
    Cut(usize),
    /// It is reset.
    Reset(usize),
    /// Nothing more comes.
    Stall(usize),
    /// After so many bytes there is one from time to time.
    Drip(usize),
    /// The body never ends, and no length is given.
    Endless,
}

impl Reply {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into(), fault: Fault::None }
    }

    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub fn fault(mut self, fault: Fault) -> Self {
        self.fault = fault;
        self
    }
}

/// Decides about a request; gets it, how often its path was asked for before, and the answer that a good registry
/// would give.
type Hook = Box<dyn Fn(&Seen, usize, Reply) -> Reply + Send + Sync>;

pub struct Server {
    pub host: String,
    state: Arc<State>,
    accepting: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct State {
    content: Mutex<HashMap<String, (String, Vec<u8>)>>,
    seen: Mutex<Vec<Seen>>,
    hook: Mutex<Option<Arc<Hook>>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Server {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let state = Arc::new(State::default());
        let shared = state.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let state = shared.clone();
                tokio::spawn(async move {
                    // A client may go away at any time.
                    let _ = serve(stream, &state).await;
                });
            }
        });
        Self { host, state, accepting }
    }

    /// Serves an image as `repository:tag` and by digest.
    pub fn push(&self, repository: &str, tag: &str, image: &TestImage) {
        let manifest = image.manifest();
        self.put(&format!("/v2/{repository}/manifests/{tag}"), OCI_MANIFEST, &manifest);
        self.put(&format!("/v2/{repository}/manifests/{}", Digest::of(&manifest)), OCI_MANIFEST, &manifest);
        for blob in image.layers.iter().chain([&image.config]) {
            self.put(
                &format!("/v2/{repository}/blobs/{}", Digest::of(blob)),
                "application/octet-stream",
                blob,
            );
        }
    }

    pub fn put(&self, path: &str, media_type: &str, bytes: &[u8]) {
        self.state.content.lock().unwrap().insert(path.into(), (media_type.into(), bytes.to_vec()));
    }

    pub fn hook(&self, hook: impl Fn(&Seen, usize, Reply) -> Reply + Send + Sync + 'static) {
        *self.state.hook.lock().unwrap() = Some(Arc::new(Box::new(hook)));
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.state.seen.lock().unwrap().clone()
    }

    /// Requests whose path contains a text.
    pub fn asked(&self, text: &str) -> Vec<Seen> {
        self.seen().into_iter().filter(|seen| seen.path.contains(text)).collect()
    }

    /// A configuration in which this and other hosts speak plain HTTP.
    pub fn registries(&self) -> RegistryConfig {
        self.registries_with(HostConfig { plain_http: true, ..HostConfig::default() })
    }

    pub fn registries_with(&self, host: HostConfig) -> RegistryConfig {
        RegistryConfig {
            hosts: [(self.host.clone(), host)].into(),
            stall_timeout_seconds: 1,
            backoff_milliseconds: 1,
            ..RegistryConfig::default()
        }
    }
}

async fn serve(mut stream: TcpStream, state: &State) -> std::io::Result<()> {
    let seen = read_request(&mut stream).await?;
    let before = {
        let mut all = state.seen.lock().unwrap();
        all.push(seen.clone());
        all.iter().filter(|other| other.path == seen.path).count() - 1
    };
    let good = good_reply(&seen, state);
    let hook = state.hook.lock().unwrap().clone();
    let reply = match hook {
        Some(hook) => hook(&seen, before, good),
        None => good,
    };
    write_reply(stream, reply).await
}

async fn read_request(stream: &mut TcpStream) -> std::io::Result<Seen> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let header = |name: &str| {
        let line = head.lines().find(|line| line.to_lowercase().starts_with(&format!("{name}:")));
        line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_string())
    };
    let length: usize = header("content-length").map_or(0, |length| length.parse().unwrap());
    while bytes.len() < end + length {
        stream.read_buf(&mut bytes).await?;
    }
    let mut words = head.split(' ');
    Ok(Seen {
        method: words.next().unwrap_or_default().into(),
        path: words.next().unwrap_or_default().into(),
        authorization: header("authorization"),
        range: header("range"),
        body: String::from_utf8_lossy(&bytes[end..]).into_owned(),
    })
}

fn good_reply(seen: &Seen, state: &State) -> Reply {
    let content = state.content.lock().unwrap();
    let path = seen.path.split('?').next().unwrap_or_default();
    let Some((media_type, bytes)) = content.get(path) else {
        return Reply::new(404, r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"no such thing"}]}"#);
    };
    let from =
        seen.range.as_deref().and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    let reply = match from {
        Some(from) if from < bytes.len() => Reply::new(206, &bytes[from..])
            .header("content-range", format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len())),
        Some(_) => Reply::new(416, ""),
        None => Reply::new(200, bytes.clone()),
    };
    reply.header("content-type", media_type.clone())
}

async fn write_reply(mut stream: TcpStream, reply: Reply) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {} x\r\nconnection: close\r\n", reply.status);
    if reply.fault != Fault::Endless {
        head += &format!("content-length: {}\r\n", reply.body.len());
    }
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all(format!("{head}\r\n").as_bytes()).await?;
    match reply.fault {
        Fault::None => stream.write_all(&reply.body).await?,
        Fault::Cut(length) => stream.write_all(&reply.body[..length]).await?,
        Fault::Reset(length) => {
            stream.write_all(&reply.body[..length]).await?;
            stream.set_zero_linger()?;
        }
        Fault::Stall(length) => {
            stream.write_all(&reply.body[..length]).await?;
            // Until the client goes away.
            let _ = stream.read(&mut [0; 1]).await;
        }
        Fault::Drip(length) => {
            stream.write_all(&reply.body[..length]).await?;
            for byte in &reply.body[length..] {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                stream.write_all(&[*byte]).await?;
            }
        }
        Fault::Endless => loop {
            stream.write_all(&[b'x'; 65536]).await?;
        },
    }
    Ok(())
}
