//! Single-use tokens: what stands in a URL instead of the request that it was made for.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::session::{Attach, Exec};
use crate::error::Error;

/// How long a token may be used.
const LIFE: Duration = Duration::from_secs(60);
/// Most tokens at once.
const LIMIT: usize = 1000;
/// Bytes of chance in a token; their text has no padding.
const BYTES: usize = 18;

/// What a URL is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Start a process.
    Exec(Exec),
    /// Join a container.
    Attach(Attach),
    /// Forward ports.
    PortForward {
        /// Full id of the pod sandbox.
        pod_id: String,
        /// Ports that a client over WebSocket gets channels for; over SPDY it names them itself.
        ports: Vec<u16>,
    },
}

impl Request {
    /// First part of the URL's path.
    pub fn verb(&self) -> &'static str {
        match self {
            Self::Exec(_) => "exec",
            Self::Attach(_) => "attach",
            Self::PortForward { .. } => "portforward",
        }
    }
}

/// The tokens that may be used now.
#[derive(Default)]
pub struct Tokens(Mutex<HashMap<String, (Instant, Request)>>);

impl Tokens {
    /// Makes a token. Fails with [`Error::TooMany`] when there are 1000.
    pub fn put(&self, request: Request) -> Result<String, Error> {
        self.put_at(Instant::now(), request)
    }

    /// Takes the request of a token; nobody can take it again.
    pub fn take(&self, token: &str) -> Option<Request> {
        self.take_at(Instant::now(), token)
    }

    fn put_at(&self, now: Instant, request: Request) -> Result<String, Error> {
        let mut bytes = [0; BYTES];
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
            .map_err(|error| Error::host("make a token")(error.into()))?;
        let token = URL_SAFE_NO_PAD.encode(bytes);
        let mut tokens = self.tokens();
        tokens.retain(|_token, (until, _request)| *until > now);
        if tokens.len() >= LIMIT {
            return Err(Error::TooMany { what: "streaming URLs that nobody has used yet", limit: LIMIT });
        }
        tokens.insert(token.clone(), (now + LIFE, request));
        Ok(token)
    }

    fn take_at(&self, now: Instant, token: &str) -> Option<Request> {
        let (until, request) = self.tokens().remove(token)?;
        (until > now).then_some(request)
    }

    fn tokens(&self) -> std::sync::MutexGuard<'_, HashMap<String, (Instant, Request)>> {
        self.0.lock().expect("no code that holds the tokens panics")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forward(port: u16) -> Request {
        Request::PortForward { pod_id: "p".into(), ports: vec![port] }
    }

    #[test]
    fn tokens_serve_once_and_for_a_minute() {
        let tokens = Tokens::default();
        let (first, second) = (tokens.put(forward(1)).unwrap(), tokens.put(forward(2)).unwrap());
        assert_eq!(first.len(), 24, "144 bits");
        assert!(first.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)), "{first}");
        assert_eq!(tokens.take(&first), Some(forward(1)));
        assert_eq!(tokens.take(&first), None);
        assert_eq!(tokens.take_at(Instant::now() + LIFE, &second), None);
    }

    #[test]
    fn there_are_a_thousand_at_most() {
        let tokens = Tokens::default();
        for port in 0..LIMIT as u16 {
            tokens.put(forward(port)).unwrap();
        }
        let error = tokens.put(forward(1)).unwrap_err();
        assert!(matches!(error, Error::TooMany { limit: LIMIT, .. }), "{error}");
        tokens.put_at(Instant::now() + LIFE, forward(1)).unwrap();
        assert_eq!(tokens.tokens().len(), 1, "expired ones are dropped");
    }
}
