//! Fake plugins: what they are asked, and what becomes of their faults.

mod garbage;
mod repair;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::attachment::tests::attachment;
use super::error::chain as chain_of;
use super::*;

/// Logs each call as `log/<number>-<plugin>-<verb>` with netns, then stdin; then does what `do/<plugin>-<verb>` says.
const FAKE: &str = r#"#!/bin/sh
cd "${0%/*}/.." || exit 1
call="${0##*/}-$CNI_COMMAND"
number=$(ls log | wc -l)
log="log/$((number + 100))-$call"
{ echo "$CNI_CONTAINERID|$CNI_NETNS|$CNI_IFNAME|$CNI_ARGS"; cat; } > "$log"
if [ -e "do/$call" ]; then . "./do/$call"
elif [ "$CNI_COMMAND" = ADD ]; then
    echo "{\"cniVersion\":\"1.1.0\",\"ips\":[{\"address\":\"10.0.0.2/24\"}],\"from\":\"${0##*/}\",\"x\":[1.5,null]}"
fi
"#;

struct Node {
    dir: tempfile::TempDir,
    cni: Cni,
}

impl Node {
    /// A node with the fake plugins `first` and `second` in one list.
    fn new(version: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["bin", "net.d", "log", "do"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        for plugin in ["first", "second"] {
            let path = dir.path().join("bin").join(plugin);
            fs::write(&path, FAKE).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let cni = open(dir.path());
        let node = Self { dir, cni };
        let list = json!({"name": "net", "cniVersion": version, "plugins": [
            {"type": "first", "capabilities": {"mac": true, "dns": true}, "key": {"kept": 1}}, {"type": "second"}]});
        node.put("net.d/1.conflist", &list.to_string());
        node
    }

    fn put(&self, path: &str, text: &str) {
        fs::write(self.dir.path().join(path), text).unwrap();
    }

    fn remove(&self, path: &str) {
        fs::remove_file(self.dir.path().join(path)).unwrap();
    }

    /// The calls since the last time: plugin and verb.
    fn calls(&self) -> Vec<String> {
        self.take_log().into_iter().map(|(call, _, _)| call).collect()
    }

    /// The calls since the last time: plugin and verb, variables, configuration.
    fn take_log(&self) -> Vec<(String, String, Value)> {
        let mut names: Vec<_> =
            fs::read_dir(self.dir.path().join("log")).unwrap().map(|e| e.unwrap().path()).collect();
        names.sort();
        let read = |path: PathBuf| {
            let name = path.file_name().unwrap().to_str().unwrap().split_once('-').unwrap().1.to_string();
            let text = fs::read_to_string(&path).unwrap();
            fs::remove_file(path).unwrap();
            let (variables, conf) = text.split_once('\n').unwrap();
            (name, variables.to_string(), serde_json::from_str(conf).unwrap_or_default())
        };
        names.into_iter().map(read).collect()
    }

    async fn add(&self, attachment: &Attachment) -> Result<Attached, CniError> {
        self.cni.add(attachment, &CancellationToken::new()).await
    }
}

fn open(dir: &Path) -> Cni {
    Cni::new(Config {
        conf_dir: dir.join("net.d"),
        bin_dirs: vec![dir.join("none"), dir.join("bin")],
        cache_dir: dir.join("cni"),
        deadline: Duration::from_secs(20),
    })
}

fn result(from: &str) -> Value {
    json!({"cniVersion": "1.1.0", "ips": [{"address": "10.0.0.2/24"}], "from": from, "x": [1.5, null]})
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn plugins_get_exactly_what_the_specification_says() {
    let node = Node::new("1.1.0");
    let mut attachment = attachment();
    attachment.capability_args.insert("mac".into(), json!("02:00:00:00:00:01"));
    attachment.capability_args.insert("ips".into(), json!(["10.0.0.9"]));
    let attached = node.add(&attachment).await.unwrap();
    assert_eq!(attached.result, result("second"));
    assert_eq!(attached.ips, ["10.0.0.2".parse::<std::net::IpAddr>().unwrap()]);
    node.cni.check(&attachment.pod).await.unwrap();
    node.remove("net.d/1.conflist");
    assert_eq!(node.cni.del(&attachment.pod).await.unwrap(), 1);
    assert_eq!(node.cni.del(&attachment.pod).await.unwrap(), 0);

    let id = attachment.pod.as_str();
    let args = format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID={id};K8S_POD_UID=u-1"
    );
    let variables = format!("{id}|/proc/self/ns/net|eth0|{args}");
    let first = json!({"cniVersion": "1.1.0", "name": "net", "type": "first", "key": {"kept": 1},
        "runtimeConfig": {"mac": "02:00:00:00:00:01"}});
    let second = json!({"cniVersion": "1.1.0", "name": "net", "type": "second"});
    let with = |conf: &Value, previous: &str| {
        let mut conf = conf.clone();
        conf["prevResult"] = result(previous);
        conf
    };
    let expect = [
        ("first-ADD", first.clone()),
        ("second-ADD", with(&second, "first")),
        ("first-CHECK", with(&first, "second")),
        ("second-CHECK", with(&second, "second")),
        ("second-DEL", with(&second, "second")),
        ("first-DEL", with(&first, "second")),
    ];
    let expect: Vec<_> =
        expect.into_iter().map(|(call, conf)| (call.into(), variables.clone(), conf)).collect();
    assert_eq!(node.take_log(), expect);
}

#[tokio::test]
async fn old_versions_have_no_check_and_no_result_at_del() {
    let node = Node::new("0.3.1");
    let attachment = attachment();
    node.add(&attachment).await.unwrap();
    node.cni.check(&attachment.pod).await.unwrap();
    node.cni.del(&attachment.pod).await.unwrap();
    let log = node.take_log();
    let calls: Vec<_> = log.iter().map(|(call, _, _)| call.as_str()).collect();
    assert_eq!(calls, ["first-ADD", "second-ADD", "second-DEL", "first-DEL"]);
    assert_eq!(log[2].2, json!({"cniVersion": "0.3.1", "name": "net", "type": "second"}));
    assert!(matches!(node.cni.check(&attachment.pod).await, Err(CniError::NotAttached(_))));
}

#[tokio::test]
async fn a_plugin_that_fails_at_add_is_reported_and_undone() {
    for (behaviour, expect) in [
        (r#"echo '{"code":11,"msg":"busy","details":"later"}'; exit 1"#, "busy (code 11): later"),
        (r#"echo '{"code":0,"msg":"odd"}'; exit 1"#, "odd (code 0)"),
        (r#"echo '{"code":7,"msg":"lied"}'"#, "lied (code 7)"),
        ("echo rubbish", "the result is no JSON object: expected value at line 1 column 1: \"rubbish\""),
        (
            "echo '{\"ips\":'",
            "the result is no JSON object: EOF while parsing a value at line 2 column 0: \"{\\\"ips\\\":\"",
        ),
        (":", "no result: \"EOF while parsing a value at line 1 column 0\""),
        (
            "echo '{\"cniVersion\":\"1.1.0\"}'",
            "the result has no address for the pod: \"{\\\"cniVersion\\\":\\\"1.1.0\\\"}\"",
        ),
        ("echo 'panic: x' >&2; exit 2", "it ended with exit status: 2 and without a CNI error: \"panic: x\""),
        ("kill -SEGV $$", "it ended with signal: 11 (SIGSEGV) and without a CNI error: \"\""),
        ("head -c 1100000 /dev/zero", "killed because it wrote more than 1048576 bytes"),
        ("cat /dev/zero", "killed because it wrote more than 1048576 bytes"),
    ] {
        let node = Node::new("1.1.0");
        node.put("do/second-ADD", behaviour);
        let attachment = attachment();
        let error = node.add(&attachment).await.unwrap_err();
        let whole = format!(
            "attaching pod {} to network net: CNI plugin second failed at ADD: {expect}",
            attachment.pod
        );
        assert_eq!(chain_of(&error).replace(" (core dumped)", ""), whole);
        assert_eq!(node.calls(), ["first-ADD", "second-ADD", "second-DEL", "first-DEL"], "{behaviour}");
        assert_eq!(node.cni.attachments().unwrap(), [], "{behaviour}");
    }
}

#[tokio::test]
async fn an_address_is_kept_until_everything_that_points_to_it_is_gone() {
    let node = Node::new("1.1.0");
    let attachment = attachment();
    node.add(&attachment).await.unwrap();
    node.put("do/second-DEL", r#"echo '{"code":100,"msg":"no"}'; exit 1"#);
    node.calls();
    for _ in 0..2 {
        let error = node.cni.del(&attachment.pod).await.unwrap_err();
        let expect = format!(
            "detaching pod {} from its networks: CNI plugin second failed at DEL: no (code 100)",
            attachment.pod
        );
        assert_eq!(chain_of(&error), expect);
        assert_eq!(node.calls(), ["second-DEL"]);
        assert_eq!(node.cni.attachments().unwrap()[0].state, Some(State::Attached));
    }
    assert!(matches!(node.add(&attachment).await, Err(CniError::AlreadyAttached { .. })));
    node.remove("do/second-DEL");
    assert_eq!(open(node.dir.path()).del(&attachment.pod).await.unwrap(), 1);
    assert_eq!(node.calls(), ["second-DEL", "first-DEL"]);
}

#[tokio::test]
async fn a_failed_add_that_cannot_be_undone_reports_both_and_stays_recorded() {
    let node = Node::new("1.1.0");
    node.put("do/first-ADD", "exit 3");
    node.put("do/first-DEL", "exit 4");
    // It never ran, so that its failure means nothing.
    node.put("do/second-DEL", "exit 5");
    let attachment = attachment();
    let error = node.add(&attachment).await.unwrap_err();
    let CniError::Add { failures, .. } = &error else { panic!("{error}") };
    let shown: Vec<_> = failures.0.iter().map(|f| (f.plugin.as_str(), f.verb)).collect();
    assert_eq!(shown, [("first", Verb::Add), ("first", Verb::Del)]);
    assert_eq!(node.cni.attachments().unwrap()[0].state, Some(State::Adding));
    node.remove("do/first-DEL");
    node.remove("do/second-DEL");
    assert_eq!(node.cni.del(&attachment.pod).await.unwrap(), 1);
}

#[tokio::test]
async fn a_hanging_plugin_is_killed_with_its_children() {
    const HANG: &str = "sleep 1000 & echo $! > child.new; mv child.new child; wait";
    enum End {
        Abort,
        Deadline,
        Drop,
    }
    for end in [End::Abort, End::Deadline, End::Drop] {
        let mut node = Node::new("1.1.0");
        node.put("do/second-ADD", HANG);
        let (attachment, abort) = (attachment(), CancellationToken::new());
        if matches!(end, End::Deadline) {
            node.cni.runner.deadline = Duration::from_secs(5);
        }
        let child = node.dir.path().join("child");
        let outcome = tokio::select! {
            outcome = node.cni.add(&attachment, &abort) => Some(outcome.unwrap_err()),
            () = async {
                until("the plugin hangs", || child.exists()).await;
                assert_eq!(node.cni.attachments().unwrap()[0].state, Some(State::Adding));
                match end {
                    End::Drop => {}
                    End::Deadline => std::future::pending().await,
                    End::Abort => {
                        abort.cancel();
                        std::future::pending().await
                    }
                }
            } => None,
        };
        let pid = fs::read_to_string(child).unwrap();
        let gone = || {
            !fs::read_to_string(format!("/proc/{}/cmdline", pid.trim())).is_ok_and(|c| c.starts_with("sleep"))
        };
        until("the plugin's child is gone", gone).await;
        let cause = outcome.map(|error| match error {
            CniError::Add { failures, .. } => failures.first().unwrap().cause.to_string(),
            other => panic!("{other}"),
        });
        let expect = match end {
            End::Abort => Some("killed because the operation was aborted"),
            End::Deadline => Some("killed after 5s without an answer"),
            End::Drop => None,
        };
        assert_eq!(cause.as_deref(), expect);
        assert_eq!(node.cni.attachments().unwrap().len(), usize::from(matches!(end, End::Drop)));
        assert_eq!(node.cni.del(&attachment.pod).await.unwrap(), usize::from(matches!(end, End::Drop)));
        assert_eq!(node.calls(), ["first-ADD", "second-ADD", "second-DEL", "first-DEL"]);
    }
}

#[tokio::test]
async fn a_process_that_a_plugin_leaves_does_not_hold_the_answer() {
    let node = Node::new("1.1.0");
    node.put(
        "do/second-ADD",
        "sleep 1000 & echo $! > child; echo '{\"ips\":[{\"address\":\"10.0.0.3/24\"}]}'",
    );
    let attached = node.add(&attachment()).await.unwrap();
    assert_eq!(attached.result["cniVersion"], "1.1.0");
    let child = fs::read_to_string(node.dir.path().join("child")).unwrap();
    let child = rustix::process::Pid::from_raw(child.trim().parse().unwrap()).unwrap();
    rustix::process::kill_process(child, rustix::process::Signal::KILL).unwrap();
}

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "a process that looks like a plugin")]
async fn plugins_of_a_dead_daemon_are_ended_before_their_work_is_undone() {
    let node = Node::new("1.1.0");
    let attachment = attachment();
    node.cni.cache.write(&node.cni.intent(&attachment, &node.cni.network().unwrap()).unwrap()).unwrap();
    let mut orphan = tokio::process::Command::new("sleep");
    let mut orphan = orphan.arg("1000").env("CNI_CONTAINERID", attachment.pod.as_str()).spawn().unwrap();
    assert_eq!(open(node.dir.path()).del(&attachment.pod).await.unwrap(), 1);
    assert_eq!(orphan.wait().await.unwrap().to_string(), "signal: 9 (SIGKILL)");
}

#[tokio::test]
async fn a_foreign_namespace_at_the_recorded_path_is_not_touched() {
    let node = Node::new("1.1.0");
    for change in [
        (|origin: &mut Origin| origin.netns_identity = Some((4, 1))) as fn(&mut Origin),
        |origin| origin.boot_id = "another".into(),
        |origin| origin.netns_identity = None,
    ] {
        let mut record = node.cni.intent(&attachment(), &node.cni.network().unwrap()).unwrap();
        change(record.berth.as_mut().unwrap());
        record.finish(result("second"));
        node.cni.cache.write(&record).unwrap();
        node.cni.del(&PodId::try_from(record.container_id).unwrap()).await.unwrap();
        assert!(node.take_log().iter().all(|(_, variables, _)| variables.contains("||eth0|")));
    }
}

#[tokio::test]
async fn pods_that_are_cut_off_are_told() {
    let node = Node::new("1.1.0");
    node.put("do/second-STATUS", r#"echo '{"code":51,"msg":"forwarding is off"}'; exit 1"#);
    let (told, status) = tokio::join!(node.cni.limited(), node.cni.status());
    assert_eq!((told, status.is_err()), ((), true));
}

#[tokio::test]
async fn status_tells_why_and_asks_plugins_seldom() {
    let node = Node::new("1.1.0");
    let status = async || node.cni.status().await.map_err(|error| chain_of(&error));
    for _ in 0..3 {
        status().await.unwrap();
    }
    assert_eq!(node.calls(), ["first-STATUS", "second-STATUS"]);
    let list = fs::read_to_string(node.dir.path().join("net.d/1.conflist")).unwrap();
    node.put("do/second-STATUS", r#"echo '{"code":50,"msg":"pool empty"}'; exit 1"#);
    node.put("net.d/1.conflist", &list.replace("kept", "changed"));
    for _ in 0..3 {
        let expect =
            "the CNI network net is not ready: CNI plugin second failed at STATUS: pool empty (code 50)";
        assert_eq!(status().await.unwrap_err(), expect);
    }
    assert_eq!(node.calls(), ["first-STATUS", "second-STATUS"]);
    node.put("net.d/1.conflist", &list.replace("second", "absent"));
    assert!(
        status().await.unwrap_err().contains(": CNI plugin absent failed at STATUS: no such executable in /")
    );
    let error = node.add(&attachment()).await.unwrap_err();
    assert!(chain_of(&error).contains(": CNI plugin absent failed at ADD: no such executable in /"));
    node.put("net.d/1.conflist", &list.replace("1.1.0", "1.0.0"));
    status().await.unwrap();
    node.remove("net.d/1.conflist");
    assert!(
        status().await.unwrap_err().starts_with("no CNI network to use: no CNI network configuration in /")
    );
    assert!(matches!(node.add(&attachment()).await, Err(CniError::NoNetwork(_))));
    assert_eq!(node.calls(), [""; 0]);
    assert_eq!(node.cni.attachments().unwrap(), []);
}
