//! The kubelet's own HTTPS server, as an API server speaks with it for kubectl: streams and logs of static pods.

use std::io::{Read, Write};

use anyhow::{Context, Result, ensure};

use super::{Kubelet, NODE_NAME};
use crate::http::{Answer, Origin};
use crate::registry::loopback;
use crate::tls::{self, Secured};
use crate::websocket::WebSocket;

/// Where it listens.
pub(super) const PORT: u16 = 10250;
/// Namespace of the pods of [`super::pod::pod`].
const NAMESPACE: &str = "e2e";

impl Kubelet {
    /// Opens a stream: `verb` is `exec`, `attach` or `portForward`, `rest` what follows the pod in the path.
    pub fn stream(&self, verb: &str, pod: &str, rest: &str, protocol: &str) -> Result<WebSocket<Secured>> {
        let path = format!("/{verb}/{NAMESPACE}/{pod}-{NODE_NAME}{rest}");
        WebSocket::open(self.secured()?, &path, protocol)
    }

    /// What it shows of a container's log.
    pub fn logs(&self, pod: &str, container: &str) -> Result<String> {
        let path = format!("/containerLogs/{NAMESPACE}/{pod}-{NODE_NAME}/{container}");
        let mut stream = self.secured()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).with_context(|| format!("read {path}"))?;
        let answer = Answer::parse(&bytes)?;
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        ensure!(answer.status == 200, "{path}: {} {text}", answer.status);
        Ok(text)
    }

    fn secured(&self) -> Result<Secured> {
        let origin = Origin { address: loopback(PORT), ..self.origin };
        tls::secure(origin.connect()?)
    }
}
