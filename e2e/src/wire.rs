//! Nodes as hosts on one wire: a bridge in a namespace of its own, one port per node.

use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};

use crate::exec::{Program, Running};
use crate::node::Node;
use crate::paths;

/// Name of each node's interface on the wire.
pub const INTERFACE: &str = "eth0";

/// The wire. Its namespace, bridge and ports vanish when it is dropped.
#[derive(Debug)]
pub struct Wire {
    holder: Running,
    hosts: u8,
}

impl Wire {
    /// Strings a wire with no host on it.
    pub fn string() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("b-").rand_bytes(5).tempdir_in("/tmp")?.keep();
        let mut holder = Program::new(paths::node_program()?).arg("hold").arg(&dir).start_piped()?;
        let mut first = String::new();
        BufReader::new(holder.child.stdout.take().context("holder has no stdout")?).read_line(&mut first)?;
        ensure!(first.trim() == "ready", "the wire's holder said {first:?}");
        let wire = Self { holder, hosts: 0 };
        wire.ip("link add wire type bridge")?;
        wire.ip("link set wire up")?;
        Ok(wire)
    }

    /// Connects a node and gives its address: 192.168.7.1, .2 and so on, on [`INTERFACE`] of the node.
    pub fn connect(&mut self, node: &Node) -> Result<Ipv4Addr> {
        self.hosts += 1;
        let address = Ipv4Addr::new(192, 168, 7, self.hosts);
        let port = format!("port{}", self.hosts);
        let peer = node.holder_pid();
        self.ip(&format!("link add {port} type veth peer name {INTERFACE} netns {peer}"))?;
        self.ip(&format!("link set {port} master wire up"))?;
        let inside = |line: String| node.program("ip").args(line.split(' ')).ok();
        inside(format!("address add {address}/24 dev {INTERFACE}"))?;
        inside(format!("link set {INTERFACE} up"))?;
        Ok(address)
    }

    fn ip(&self, line: &str) -> Result<()> {
        let enter = Program::new(paths::node_program()?).arg("enter").arg(self.holder.child.id().to_string());
        enter.arg("ip").args(line.split(' ')).ok().map(drop)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        drop(self.holder.child.stdin.take());
        if let Err(error) = self.holder.wait(std::time::Duration::from_secs(30)) {
            eprintln!("the wire's holder did not clean up: {error:#}");
        }
    }
}
