//! A node in a network namespace: calls plugins as a runtime does, and looks at what they leave.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cni_bridge::net::link;
use cni_bridge::net::nft::{TableFamily, TableId, rules_of};
use cni_bridge::net::socket::Socket;
use proto::cni::args::Attachment;
use proto::cni::runtime::{Additions, Environment, Output, plugin_input};
use proto::cni::{CniError, CniResult, NetConfList, Verb};
use serde_json::{Value, json};

/// A thread in a network namespace of its own; the namespace goes with it.
pub struct NetNs {
    jobs: Option<Sender<Box<dyn FnOnce() + Send>>>,
    thread: Option<JoinHandle<()>>,
    pub path: PathBuf,
}

impl NetNs {
    pub fn new() -> Self {
        let (jobs, queue) = channel::<Box<dyn FnOnce() + Send>>();
        let (announce, tid) = channel();
        let thread = std::thread::spawn(move || {
            let flags = rustix::thread::UnshareFlags::NEWNET;
            // SAFETY: only the network namespace of this thread changes; nothing here depends on it being shared.
            unsafe { rustix::thread::unshare_unsafe(flags) }.unwrap();
            announce.send(rustix::thread::gettid().as_raw_nonzero()).unwrap();
            queue.iter().for_each(|job| job());
        });
        let path = format!("/proc/{}/task/{}/ns/net", std::process::id(), tid.recv().unwrap());
        Self { jobs: Some(jobs), thread: Some(thread), path: path.into() }
    }

    /// Runs `work` inside.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (answer, result) = channel();
        let job = Box::new(move || {
            let _ = answer.send(work());
        });
        self.jobs.as_ref().unwrap().send(job).unwrap();
        result.recv().expect("the work inside the namespace panicked")
    }

    /// A program started inside; with the working directory and environment of the test.
    pub fn output(&self, program: &str, args: &[&str]) -> String {
        let (program, args): (String, Vec<String>) =
            (program.into(), args.iter().map(|arg| (*arg).to_owned()).collect());
        #[allow(clippy::disallowed_methods, reason = "a test looks at the kernel with other eyes")]
        let output = self.run(move || Command::new(&program).args(&args).output().unwrap());
        assert!(
            output.status.success(),
            "{args:?}: {}",
            String::from_utf8_lossy(&output.stderr),
            args = output
        );
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for NetNs {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        // The kernel lets a thread be joined before it gives up its namespaces.
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.path.exists() && Instant::now() < deadline {
            std::thread::yield_now();
        }
    }
}

/// A host with an address store of its own and a network configuration.
pub struct Node {
    pub host: NetNs,
    pub dir: tempfile::TempDir,
    pub list: NetConfList,
    /// Directory of the plugins to call, where these are not the program under test.
    pub others: Option<PathBuf>,
}

/// What ADD of a list gave.
pub struct Added {
    pub json: Value,
    pub result: CniResult,
}

impl Added {
    /// The pod's IPv4 address, without prefix.
    pub fn ip4(&self) -> std::net::IpAddr {
        self.result.ips.iter().map(|ip| ip.address.addr()).find(|address| address.is_ipv4()).unwrap()
    }

    /// The pod's IPv6 address, without prefix.
    pub fn ip6(&self) -> std::net::IpAddr {
        self.result.ips.iter().map(|ip| ip.address.addr()).find(|address| address.is_ipv6()).unwrap()
    }
}

/// Whether namespaces can be made; says so where not.
pub fn privileged() -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    assert!(std::env::var("E2E_REQUIRE").as_deref() != Ok("1"), "E2E_REQUIRE=1, but the test needs root");
    eprintln!("SKIPPED: network namespaces need root");
    false
}

pub fn attachment(container: &str) -> Attachment {
    Attachment { container_id: container.parse().unwrap(), ifname: "eth0".parse().unwrap() }
}

impl Node {
    /// A node with the configuration that is shipped, its store moved into a directory of the test; `change` may
    /// alter the list.
    pub fn new(change: impl FnOnce(&mut Value)) -> Self {
        let shipped =
            Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("deploy/cni/10-berth.conflist");
        let mut json: Value = serde_json::from_slice(&std::fs::read(shipped).unwrap()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        json["plugins"][0]["ipam"]["dataDir"] = dir.path().to_str().unwrap().into();
        change(&mut json);
        for plugin in json["plugins"].as_array_mut().unwrap() {
            plugin["stateDir"] = dir.path().join("state").to_str().unwrap().into();
            if plugin["ipam"].is_object() {
                plugin["ipam"]["dataDir"] = dir.path().to_str().unwrap().into();
            }
        }
        let list = NetConfList::parse(json.to_string().as_bytes()).unwrap();
        let host = NetNs::new();
        host.run(|| {
            let mut socket = Socket::route().unwrap();
            let lo = link::get(&mut socket, "lo").unwrap().unwrap();
            socket.apply(&[link::set_up(&lo)]).unwrap();
        });
        Self { host, dir, list, others: None }
    }

    /// A node with a list of a single plugin.
    pub fn with(plugin: Value) -> Self {
        Self::new(|json| json["plugins"] = json!([plugin]))
    }

    /// Another network, of one plugin or several, on the same host and store.
    pub fn beside(self, name: &str, plugins: Value) -> (Self, NetConfList) {
        let plugins = if plugins.is_array() { plugins } else { json!([plugins]) };
        let mut json = json!({"cniVersion": "1.1.0", "name": name, "plugins": plugins});
        for plugin in json["plugins"].as_array_mut().unwrap() {
            plugin["stateDir"] = self.dir.path().join("state").to_str().unwrap().into();
            if plugin["ipam"].is_object() {
                plugin["ipam"]["dataDir"] = self.dir.path().to_str().unwrap().into();
            }
        }
        let list = NetConfList::parse(json.to_string().as_bytes()).unwrap();
        let first = self.list;
        (Self { host: self.host, dir: self.dir, list, others: self.others }, first)
    }

    /// Starts one plugin of the list.
    pub fn start(
        &self,
        index: usize,
        verb: Verb,
        target: (&Attachment, Option<&Path>),
        more: Additions<'_>,
    ) -> Child {
        let input = plugin_input(&self.list, index, more).unwrap();
        let environment = Environment {
            verb,
            attachment: Some(target.0),
            netns: target.1,
            args: "IgnoreUnknown=1",
            path: self.others.as_slice(),
        };
        let (name, variables) = (self.list.plugins[index].plugin.clone(), environment.variables());
        let other = self.others.as_ref().map(|dir| dir.join(&name));
        let mut child = self.host.run(move || spawn(&name, other, variables));
        // A plugin that fails early does not read.
        let _ = child.stdin.take().unwrap().write_all(&input);
        child
    }

    /// Runs one plugin of the list to its end.
    pub fn call(
        &self,
        index: usize,
        verb: Verb,
        target: (&Attachment, Option<&Path>),
        more: Additions<'_>,
    ) -> Result<Option<Added>, CniError> {
        let output = self.start(index, verb, target, more).wait_with_output().unwrap();
        let plugin = &self.list.plugins[index].plugin;
        let output =
            Output { plugin, status: output.status.code(), stdout: &output.stdout, stderr: &output.stderr };
        if verb != Verb::Add {
            assert!(output.status != Some(0) || output.stdout.is_empty(), "{verb:?} prints nothing");
            return output.success().map(|()| None);
        }
        output.result(self.list.version).map(|(json, result)| Some(Added { json, result }))
    }

    /// ADD of the whole list with host ports.
    pub fn add(&self, container: &str, pod: &NetNs, ports: Value) -> Result<Added, CniError> {
        self.add_with(container, pod, json!({"portMappings": ports}))
    }

    /// ADD of the whole list with capabilities.
    pub fn add_with(&self, container: &str, pod: &NetNs, capabilities: Value) -> Result<Added, CniError> {
        let target = attachment(container);
        let target = (&target, Some(pod.path.as_path()));
        let mut last: Option<Added> = None;
        for index in 0..self.list.plugins.len() {
            let prev_result = last.as_ref().map(|added| &added.json);
            let more =
                Additions { capability_args: capabilities.as_object(), prev_result, valid_attachments: None };
            last = self.call(index, Verb::Add, target, more)?;
        }
        Ok(last.unwrap())
    }

    /// DEL of the whole list, in reverse, without anything that a runtime may have lost.
    pub fn del(&self, container: &str, netns: Option<&Path>) -> Result<(), CniError> {
        let target = attachment(container);
        for index in (0..self.list.plugins.len()).rev() {
            self.call(index, Verb::Del, (&target, netns), Additions::default())?;
        }
        Ok(())
    }

    /// DEL of the whole list, in reverse, with the result of ADD.
    pub fn del_with(&self, container: &str, netns: Option<&Path>, added: &Added) -> Result<(), CniError> {
        let target = attachment(container);
        for index in (0..self.list.plugins.len()).rev() {
            let more = Additions { prev_result: Some(&added.json), ..Additions::default() };
            self.call(index, Verb::Del, (&target, netns), more)?;
        }
        Ok(())
    }

    /// CHECK of the whole list with host ports.
    pub fn check(&self, container: &str, pod: &NetNs, ports: Value, added: &Added) -> Result<(), CniError> {
        self.check_with(container, pod, json!({"portMappings": ports}), added)
    }

    /// CHECK of the whole list with capabilities.
    pub fn check_with(
        &self,
        container: &str,
        pod: &NetNs,
        capabilities: Value,
        added: &Added,
    ) -> Result<(), CniError> {
        let target = attachment(container);
        for index in 0..self.list.plugins.len() {
            let more = Additions {
                capability_args: capabilities.as_object(),
                prev_result: Some(&added.json),
                valid_attachments: None,
            };
            self.call(index, Verb::Check, (&target, Some(&pod.path)), more)?;
        }
        Ok(())
    }

    /// GC or STATUS of the whole list.
    pub fn whole(&self, verb: Verb, valid: Option<&[Attachment]>) -> Result<(), CniError> {
        let nobody = attachment("nobody");
        for index in 0..self.list.plugins.len() {
            let more = Additions { valid_attachments: valid, ..Additions::default() };
            self.call(index, verb, (&nobody, None), more)?;
        }
        Ok(())
    }

    /// Everything that belongs to an attachment: links of the host, elements and rules of nf_tables, reserved addresses.
    pub fn leftovers(&self) -> Vec<String> {
        let mut found = self.host.run(|| {
            let links = link::list(&mut Socket::route().unwrap()).unwrap();
            let own = |link: &link::Link| match link.kind.as_str() {
                // The gateway of a VLAN stays, as its bridge does.
                "veth" => link.name != "wire0" && !link.name.contains('.') && !link.name.starts_with("vgwp"),
                "ifb" => true,
                "macvlan" | "vlan" | "dummy" => link.group == link::OWN_GROUP,
                _ => false,
            };
            let mut found: Vec<String> = links.into_iter().filter(own).map(|link| link.name).collect();
            let mut netfilter = Socket::netfilter().unwrap();
            for (table, map) in [
                ("berth_masquerade", "pods4"),
                ("berth_masquerade", "pods6"),
                ("berth_masquerade", "claims"),
                ("berth_portmap", "ports4"),
                ("berth_portmap", "ports6"),
                ("berth_portmap", "addrs4"),
                ("berth_portmap", "addrs6"),
                ("berth_portmap", "pods4"),
                ("berth_portmap", "pods6"),
                ("berth_portmap", "claims"),
                ("berth_portmap_if", "ports4"),
                ("berth_portmap_if", "addrs4"),
                ("berth_portmap_if", "when4"),
                ("berth_isolation", "from4"),
                ("berth_isolation", "from6"),
                ("berth_isolation", "to4"),
                ("berth_isolation", "to6"),
                ("berth_isolation", "claims"),
                ("berth_firewall", "pods4"),
                ("berth_firewall", "pods6"),
                ("berth_firewall", "claims"),
            ] {
                let elements = cni_bridge::net::nft::elements(&mut netfilter, table, map).unwrap();
                found.extend(
                    elements.into_iter().flatten().map(|element| format!("{table} {map} {}", element.owner)),
                );
            }
            for family in [TableFamily::Ip4, TableFamily::Ip6] {
                let table = TableId { family, name: "filter" };
                let rules = rules_of(&mut netfilter, table, "CNI-FORWARD").unwrap();
                found.extend(rules.into_iter().map(|rule| format!("CNI-FORWARD {}", rule.comment)));
            }
            let bridged = TableId { family: TableFamily::Bridge, name: "berth_firewall" };
            for map in ["pods4", "pods6", "claims"] {
                let elements = cni_bridge::net::nft::elements(&mut netfilter, bridged, map).unwrap();
                let elements = elements.into_iter().flatten();
                found.extend(elements.map(|element| format!("bridged {map} {}", element.owner)));
            }
            found
        });
        let store = self.dir.path().join(self.list.name.as_str());
        let noted = names(&store.join(".owners")).into_iter().map(|name| format!(".owners {name}"));
        let reserved = names(&store).into_iter();
        let reserved = reserved.filter(|name| {
            name != "lock" && !name.starts_with("last_reserved_ip.") && !name.starts_with('.')
        });
        found.extend(reserved.chain(noted));
        for ledger in names(&self.dir.path().join("state")) {
            let ledger = self.dir.path().join("state").join(ledger);
            found.extend(names(&ledger.join("attachments")).into_iter().map(|name| format!("ledger {name}")));
            found.extend(names(&ledger.join("shared")).into_iter().map(|name| format!("shared {name}")));
            let marks = names(&ledger).into_iter();
            found.extend(marks.filter(|name| name.starts_with("made.") || name.starts_with("promiscuous.")));
        }
        found.sort();
        found
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[allow(clippy::disallowed_methods, reason = "the test runs the program under test")]
fn spawn(name: &str, other: Option<PathBuf>, variables: Vec<(&'static str, String)>) -> Child {
    Command::new(other.unwrap_or_else(|| env!("CARGO_BIN_EXE_cni-bridge").into()))
        .arg0(format!("/opt/cni/bin/{name}"))
        .env_clear()
        // What the reference plugins run.
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .envs(variables)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}
