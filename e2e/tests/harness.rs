//! The harness's own checks: without them an empty leak diff or a passing case proves nothing.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::cgroup;
use e2e::critest::{Exceptions, Host, Outcome, Report, Run};
use e2e::daemon::Setup;
use e2e::gate;
use e2e::image::set;
use e2e::leaks::Diff;
use e2e::node::Node;
use e2e::wire::Wire;

#[test]
fn the_registry_serves_the_image_set() -> Result<()> {
    if !gate::open("the_registry_serves_the_image_set") {
        return Ok(());
    }
    let node = Node::bare(Setup::default())?;
    for (repository, tag) in [
        ("e2e-test-images/busybox", "1.29-2"),
        ("e2e-test-images/nginx", "1.14-2"),
        ("k8s-staging-cri-tools/test-image-tags", "3"),
        ("pause", "3.9"),
        ("berth/index", "1"),
        ("berth/hostile-dotdot", "1"),
    ] {
        let answer = node.registry().request("HEAD", &format!("/v2/{repository}/manifests/{tag}"), None)?;
        ensure!(answer.status == 200, "{repository}:{tag}: status {}", answer.status);
    }
    node.end();
    Ok(())
}

#[test]
fn the_image_set_is_built_once() -> Result<()> {
    if !gate::open("the_image_set_is_built_once") {
        return Ok(());
    }
    let (one, two) = (set::store()?, set::store()?);
    ensure!(one == two, "{} and {}", one.display(), two.display());
    Ok(())
}

/// Each kind of thing that the diff must see: a line of `sh` that makes it, and what the diff then names.
const INJECTED: [(&str, &str); 7] = [
    ("ip link add spare type bridge", "+ link spare"),
    ("ip route add 10.99.0.0/16 dev lo", "+ route 10.99.0.0/16"),
    ("nft add table inet spare", "+ nft"),
    ("mkdir -p $TOP/netns && mount -t tmpfs spare $TOP/netns", "+ mount"),
    ("echo x > $TOP/cni/spare", "+ file"),
    ("mkdir $CGROUPS/berth-$ID-spare", "+ cgroup"),
    ("setsid sleep 1000 < /dev/null > /dev/null 2>&1 &", "+ process"),
];

/// A cgroup hierarchy in which a test may make something: the only one, or that of v1's pids.
fn one_hierarchy() -> Result<std::path::PathBuf> {
    let mut hierarchies = cgroup::hierarchies()?.into_iter();
    hierarchies.find(|path| path.ends_with("cgroup") || path.ends_with("pids")).context("no cgroup hierarchy")
}

#[test]
fn the_leak_diff_sees_what_is_injected() -> Result<()> {
    if !gate::open("the_leak_diff_sees_what_is_injected") {
        return Ok(());
    }
    let node = Node::bare(Setup::default())?;
    let before = node.snapshot()?;
    ensure!(Diff::between(&before, &node.snapshot()?).is_empty(), "two looks at one state differ");
    let mut last = before;
    for (line, expect) in INJECTED {
        let shell = node.program("sh").args(["-c", line]);
        let shell = shell.env("TOP", node.dirs().top()).env("ID", node.dirs().id());
        shell.env("CGROUPS", one_hierarchy()?).ok()?;
        let now = node.snapshot()?;
        let diff = Diff::between(&last, &now).to_string();
        ensure!(diff.contains(expect), "after `{line}`: {diff}");
        last = now;
    }
    let id = node.dirs().id();
    std::fs::remove_dir(one_hierarchy()?.join(format!("berth-{id}-spare")))?;
    node.end();
    Ok(())
}

#[test]
fn a_node_leaves_nothing() -> Result<()> {
    if !gate::open("a_node_leaves_nothing") {
        return Ok(());
    }
    let node = Node::bare(Setup::default())?;
    let (top, id) = (node.dirs().top().to_owned(), node.dirs().id());
    node.program("sh").args(["-c", "setsid sleep 1000 < /dev/null > /dev/null 2>&1 &"]).ok()?;
    let cgroup = one_hierarchy()?.join(cgroup::parent(&id));
    node.program("mkdir").arg(&cgroup).ok()?;
    let ancestry = node.ancestry().clone();
    ensure!(
        ancestry.processes()?.values().any(|line| line.contains("sleep")),
        "the injected process is not seen"
    );
    node.end();
    ensure!(ancestry.processes()?.is_empty(), "left: {:?}", ancestry.processes()?);
    ensure!(!top.exists(), "{} is left", top.display());
    ensure!(!cgroup.exists(), "a cgroup is left");
    Ok(())
}

#[test]
fn nodes_on_one_wire_reach_each_other_and_nothing_else() -> Result<()> {
    if !gate::open("nodes_on_one_wire_reach_each_other_and_nothing_else") {
        return Ok(());
    }
    let (one, two) = (Node::bare(Setup::default())?, Node::bare(Setup::default())?);
    let mut wire = Wire::string()?;
    let (a, b) = (wire.connect(&one)?, wire.connect(&two)?);
    let ping = |node: &Node, to: &str| {
        node.program("ping").args(["-c", "1", "-W", "10", to]).deadline(Duration::from_secs(30)).run()
    };
    for (node, to) in [(&one, b), (&two, a)] {
        let ended = ping(node, &to.to_string())?;
        ensure!(ended.status.success(), "ping {to}: {}{}", ended.stdout, ended.stderr);
    }
    ensure!(!ping(&one, "192.168.7.77")?.status.success(), "an address that nobody has answers");
    let host = one.program("hostname").ok()?;
    ensure!(host.trim() == one.dirs().id(), "the node's host name is {host:?}");
    one.end();
    two.end();
    Ok(())
}

#[test]
fn the_lists_of_exceptions_can_be_read() -> Result<()> {
    let dir = e2e::paths::workspace().join("e2e/critest");
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        for handler in ["crun", "runc", "youki"] {
            let list = Exceptions::read(&path, &Run { handler, host: Host::look() })
                .with_context(|| path.display().to_string())?;
            let report = Report::from([("no such spec".to_owned(), Outcome::Passed)]);
            ensure!(list.judge(&report).off.is_empty(), "{}", path.display());
        }
    }
    Ok(())
}
