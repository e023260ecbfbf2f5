//! What a node has at one instant, and what two instants differ in: the leak diff that ends each case.
//!
//! It looks from outside at what the kernel shows, never at what the daemon says.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::Value;

use crate::cgroup::{hierarchies, parent, units};
use crate::daemon::Endpoint;
use crate::exec::Program;
use crate::node::Node;
use crate::paths;

/// Every kind of thing with how often each is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    things: BTreeMap<(&'static str, String), usize>,
    daemon: Option<i32>,
    /// Threads of the daemon and of each monitor, by pid.
    threads: BTreeMap<i32, usize>,
}

impl Snapshot {
    /// Looks at a node.
    pub fn take(node: &Node) -> Result<Self> {
        // The reference's descriptors and threads are its own affair, as is its root.
        let daemon = node.daemon_pid().filter(|_| node.setup().endpoint == Endpoint::Berth);
        let mut snapshot = Self { daemon, ..Self::default() };
        snapshot.add("mount", mounts(node.holder_pid())?);
        let start = |name: &str| node.program(name);
        snapshot.add("link", links(&start)?);
        snapshot.add("route", routes(&start)?);
        snapshot.add("nft", nft(&start)?);
        snapshot.add("cgroup", cgroups(&node.dirs().id())?);
        snapshot.add("unit", units(&node.dirs().id())?);
        let own = node.own_pids();
        let processes = node.ancestry().processes()?.into_iter().filter(|(pid, _)| !own.contains(pid));
        snapshot.add("process", processes.map(|(pid, line)| format!("{pid} {line}")).collect());
        snapshot.add("file", files(node)?);
        if let Some(pid) = snapshot.daemon {
            snapshot.add("fd", fds(pid)?);
            snapshot.threads.insert(pid, threads(pid)?);
        }
        for pid in node.ancestry().monitors()? {
            // One that ends meanwhile has nothing.
            snapshot.add("monitor's fd", fds(pid).unwrap_or_default());
            snapshot.threads.extend(threads(pid).ok().map(|count| (pid, count)));
        }
        Ok(snapshot)
    }

    /// Looks at the network of the calling thread's namespaces, and at the files below `tops`, where `number` stands
    /// for any.
    pub fn of_network(tops: &[PathBuf], number: &str) -> Result<Self> {
        let start = |name: &str| Program::new(paths::in_path(name).unwrap_or_else(|| name.into()));
        let mut snapshot = Self::default();
        snapshot.add("link", links(&start)?);
        snapshot.add("address", addresses(&start)?);
        snapshot.add("route", routes(&start)?);
        snapshot.add("queue", queues(&start)?);
        snapshot.add("nft", nft(&start)?);
        snapshot.add("file", files_below(tops).iter().map(|path| path.replace(number, "N")).collect());
        Ok(snapshot)
    }

    fn add(&mut self, kind: &'static str, names: Vec<String>) {
        for name in names {
            *self.things.entry((kind, name)).or_default() += 1;
        }
    }
}

/// Kinds of descriptors: they come and go with connections, those of a monitor to the daemon too.
const FDS: [&str; 2] = ["fd", "monitor's fd"];

/// What is there and was not (`+`), and what was there and is not (`-`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diff(Vec<String>);

impl Diff {
    /// Compares two looks. Descriptors are compared only where the daemon is the same process, threads of each process
    /// that both have seen: one that was busy for a call has to go, too.
    #[must_use]
    pub fn between(before: &Snapshot, after: &Snapshot) -> Self {
        let same_daemon = before.daemon == after.daemon;
        let relevant = |kind: &str| same_daemon || !FDS.contains(&kind);
        let count = |snapshot: &Snapshot, key| snapshot.things.get(key).copied().unwrap_or(0);
        let mut lines = Vec::new();
        for (key, now) in after.things.iter().filter(|((kind, _), _)| relevant(kind)) {
            let was = count(before, key);
            if *now > was {
                lines.push(format!("+ {} {} ({was} before, {now} now)", key.0, key.1));
            }
        }
        // A process or descriptor that went meanwhile is no leak.
        let lasting = |kind: &str| !FDS.contains(&kind) && kind != "process";
        for (key, was) in before.things.iter().filter(|((kind, _), _)| lasting(kind)) {
            let now = count(after, key);
            if now < *was {
                lines.push(format!("- {} {} ({was} before, {now} now)", key.0, key.1));
            }
        }
        // Those of a new process count with it.
        for (pid, now) in &after.threads {
            let was = before.threads.get(pid).copied().unwrap_or(usize::MAX);
            if *now > was {
                lines.push(format!("+ threads of process {pid} ({was} before, {now} now)"));
            }
        }
        Self(lines)
    }

    /// Nothing differs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Diff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "leak diff of {} lines:", self.0.len())?;
        self.0.iter().try_for_each(|line| write!(f, "\n  {line}"))
    }
}

/// Mount points of the node's mount namespace with type and source, network namespace pins included.
fn mounts(holder: u32) -> Result<Vec<String>> {
    let table = std::fs::read_to_string(format!("/proc/{holder}/mountinfo"))?;
    Ok(table.lines().filter_map(mount_line).collect())
}

fn mount_line(line: &str) -> Option<String> {
    let (left, right) = line.split_once(" - ")?;
    let point = left.split(' ').nth(4)?;
    let mut right = right.split(' ');
    Some(format!("{point} ({} of {})", right.next()?, right.next()?))
}

/// How a program of the machine is started where it is to look.
type Start<'a> = &'a dyn Fn(&str) -> Program;

fn links(start: Start<'_>) -> Result<Vec<String>> {
    let links: Vec<Value> = serde_json::from_str(&start("ip").args(["-j", "link", "show"]).ok()?)?;
    Ok(links
        .iter()
        .map(|link| format!("{} master {}", text(&link["ifname"]), text(&link["master"])))
        .collect())
}

/// Addresses of links, without the link-local ones that come and go with a carrier.
fn addresses(start: Start<'_>) -> Result<Vec<String>> {
    let links: Vec<Value> = serde_json::from_str(&start("ip").args(["-j", "address", "show"]).ok()?)?;
    let mut found = Vec::new();
    for link in &links {
        let all = link["addr_info"].as_array().into_iter().flatten();
        for address in all.filter(|address| address["scope"] != "link") {
            found.push(format!(
                "{}/{} on {}",
                text(&address["local"]),
                address["prefixlen"],
                text(&link["ifname"])
            ));
        }
    }
    Ok(found)
}

/// Queueing disciplines of links that somebody has chosen.
fn queues(start: Start<'_>) -> Result<Vec<String>> {
    let queues: Vec<Value> = serde_json::from_str(&start("tc").args(["-j", "qdisc", "show"]).ok()?)?;
    let chosen = queues.iter().filter(|queue| text(&queue["handle"]) != "0:");
    Ok(chosen.map(|queue| format!("{} of {}", text(&queue["kind"]), text(&queue["dev"]))).collect())
}

/// Routes of all tables, without the link-local ones that come and go with a carrier.
fn routes(start: Start<'_>) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for family in ["-4", "-6"] {
        let show = start("ip").args(["-j", family, "route", "show", "table", "all"]).ok()?;
        let routes: Vec<Value> =
            if show.trim().is_empty() { Vec::new() } else { serde_json::from_str(&show)? };
        for route in &routes {
            let to = text(&route["dst"]);
            if ["fe80:", "ff00:", "multicast"].iter().any(|local| to.starts_with(local)) {
                continue;
            }
            let via = text(&route["gateway"]);
            found.push(format!("{to} via {via} dev {} table {}", text(&route["dev"]), text(&route["table"])));
        }
    }
    Ok(found)
}

/// Tables, chains, rules, sets and their elements, without handles and counters.
fn nft(start: Start<'_>) -> Result<Vec<String>> {
    let listing: Value = serde_json::from_str(&start("nft").args(["-j", "list", "ruleset"]).ok()?)?;
    let objects = listing["nftables"].as_array().cloned().unwrap_or_default();
    Ok(objects
        .into_iter()
        .filter(|object| object.get("metainfo").is_none())
        .map(|o| plain(o).to_string())
        .collect())
}

/// Drops what changes without meaning: handles and counts.
fn plain(value: Value) -> Value {
    match value {
        Value::Object(map) => map
            .into_iter()
            .filter(|(key, _)| !["handle", "packets", "bytes", "expires"].contains(&key.as_str()))
            .map(|(key, value)| (key, plain(value)))
            .collect(),
        Value::Array(list) => list.into_iter().map(plain).collect(),
        other => other,
    }
}

/// Cgroups that carry the node's id, in every hierarchy. The parent of all pods is not one of them: it stays.
fn cgroups(id: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let parent = parent(id);
    let above = Path::new(&parent).parent().unwrap_or(Path::new(""));
    for hierarchy in hierarchies()? {
        for entry in std::fs::read_dir(hierarchy.join(above)).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().contains(id) {
                walk(&entry.path(), &mut |path| entry_is_dir(path) && found_push(&mut found, path));
            }
        }
    }
    let parent = format!("/{parent}");
    found.retain(|path| !path.ends_with(&parent));
    Ok(found)
}

fn entry_is_dir(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|meta| meta.is_dir())
}

fn found_push(found: &mut Vec<String>, path: &Path) -> bool {
    found.push(path.display().to_string());
    true
}

/// Files of the daemon and of CNI. Of a layer only its directory counts; containerd's own root is its own affair.
fn files(node: &Node) -> Result<Vec<String>> {
    let dirs = node.dirs();
    let mut tops = vec![dirs.netns(), dirs.cni()];
    if node.setup().endpoint == Endpoint::Berth {
        tops.extend([dirs.root(), dirs.state()]);
    }
    Ok(files_below(&tops))
}

fn files_below(tops: &[PathBuf]) -> Vec<String> {
    let mut found = Vec::new();
    for top in tops {
        walk(top, &mut |path| {
            found.push(path.display().to_string());
            !is_layer(path)
        });
    }
    found
}

fn is_layer(path: &Path) -> bool {
    path.parent().and_then(Path::file_name).is_some_and(|name| name == "layers")
}

/// Visits `path` and, where `visit` says so, what is below it. What vanishes meanwhile is passed over.
fn walk(path: &Path, visit: &mut dyn FnMut(&Path) -> bool) {
    if !visit(path) || !entry_is_dir(path) {
        return;
    }
    let mut entries: Vec<PathBuf> =
        std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    entries.sort();
    entries.iter().for_each(|entry| walk(entry, visit));
}

fn threads(pid: i32) -> Result<usize> {
    Ok(std::fs::read_dir(format!("/proc/{pid}/task"))?.count())
}

/// Open descriptors of a process by what they are, without numbers.
fn fds(pid: i32) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd"))?;
    let targets = entries.flatten().filter_map(|entry| std::fs::read_link(entry.path()).ok());
    Ok(targets
        .map(|target| target.to_string_lossy().into_owned())
        .map(|target| target.split_once(":[").map_or(target.clone(), |(kind, _)| kind.to_owned()))
        .collect())
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(things: &[(&'static str, &str)], daemon: i32) -> Snapshot {
        let mut snapshot = Snapshot { daemon: Some(daemon), ..Snapshot::default() };
        for (kind, name) in things {
            snapshot.add(kind, vec![(*name).to_owned()]);
        }
        snapshot
    }

    #[test]
    fn both_directions_are_named() {
        let before = snapshot(&[("link", "lo"), ("route", "r")], 1);
        let after = snapshot(&[("link", "lo"), ("link", "veth0")], 1);
        let diff = Diff::between(&before, &after);
        let expect = ["+ link veth0 (0 before, 1 now)", "- route r (1 before, 0 now)"];
        assert_eq!(diff.0, expect);
        assert!(Diff::between(&before, &before).is_empty());
    }

    #[test]
    fn descriptors_count_only_for_the_same_daemon() {
        let (before, after) = (snapshot(&[("fd", "socket")], 1), snapshot(&[("fd", "pipe")], 2));
        assert!(Diff::between(&before, &after).is_empty());
        assert!(!Diff::between(&before, &Snapshot { daemon: Some(1), ..after }).is_empty());
    }

    #[test]
    fn a_thread_more_is_a_leak_and_one_less_is_not() {
        let of = |threads: &[(i32, usize)]| {
            let threads = threads.iter().copied().collect();
            Snapshot { threads, ..snapshot(&[], 1) }
        };
        let before = of(&[(1, 4), (7, 1)]);
        let diff = Diff::between(&before, &of(&[(1, 3), (7, 2), (8, 9)]));
        assert_eq!(diff.0, ["+ threads of process 7 (1 before, 2 now)"]);
        assert!(Diff::between(&before, &of(&[(1, 4)])).is_empty());
    }

    #[test]
    fn mounts_are_named_by_point_and_kind() {
        let line = "36 35 98:0 /a /mnt/x rw,noatime master:1 - ext4 /dev/root rw";
        assert_eq!(mount_line(line).unwrap(), "/mnt/x (ext4 of /dev/root)");
    }
}
