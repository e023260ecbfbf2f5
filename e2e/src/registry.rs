//! A container registry (Debian's docker-registry) on loopback, with a root and a configuration of its own.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::exec::{Program, Running};
use crate::http::Origin;
use crate::wait;

/// A running registry; ended by pid when dropped.
#[derive(Debug)]
pub struct Registry {
    origin: Origin,
    running: Running,
}

impl Registry {
    /// Starts a registry over `store` in the harness's own network namespace on a free port.
    pub fn start(store: &Path, scratch: &Path) -> Result<Self> {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let program = Program::new("docker-registry");
        Self::launch(program, store, scratch, Origin { address: loopback(port), holder: None })
    }

    /// Starts a registry by `program`, which may enter a node first, and waits until it answers at `origin`.
    pub fn launch(program: Program, store: &Path, scratch: &Path, origin: Origin) -> Result<Self> {
        let config = scratch.join("registry.yml");
        std::fs::write(&config, configuration(store, origin.address))?;
        let program = program.arg("serve").arg(&config).env("OTEL_TRACES_EXPORTER", "none");
        let mut running = program.start(&scratch.join("registry.log"))?;
        wait::until("the registry's first answer", Duration::from_secs(20), || {
            running.alive()?;
            let status = origin.request("GET", "/v2/", None)?.status;
            ensure!(status == 200, "status {status}");
            Ok(())
        })?;
        Ok(Self { origin, running })
    }

    /// Where it listens.
    #[must_use]
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.running.pid().as_raw_nonzero().get()
    }
}

/// An address on IPv4 loopback.
#[must_use]
pub fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

fn configuration(store: &Path, address: SocketAddr) -> String {
    format!(
        "version: 0.1\nlog:\n  level: warn\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    \
         rootdirectory: {}\n  delete:\n    enabled: true\nhttp:\n  addr: {address}\n",
        store.display()
    )
}
