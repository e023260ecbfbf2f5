//! The skeleton and the runtime's side, one against the other, without processes.
#![allow(clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use proto::cni::args::Attachment;
use proto::cni::plugin::{MAX_CONFIG_BYTES, Reply, respond};
use proto::cni::runtime::{Additions, Environment, Output, parse_versions, plugin_input};
use proto::cni::{CniError, CniResult, ErrorCode, NetConfList, Plugin, Request, SpecVersion, Verb};
use serde_json::{Value, json};

/// Answers with what it was given.
struct Echo;

impl Plugin for Echo {
    fn name(&self) -> &'static str {
        "echo"
    }

    fn add(&self, request: &Request, _: &Attachment, netns: &Path) -> Result<CniResult, CniError> {
        if let Some(problem) = request.conf.top().string("panic")? {
            panic!("{problem}");
        }
        assert_eq!(netns, Path::new("/run/n"));
        request.conf.prev_result()?.ok_or_else(|| CniError::config("prevResult", "missing"))
    }

    fn del(&self, _: &Request, _: &Attachment, netns: Option<&Path>) -> Result<(), CniError> {
        match netns {
            None => Ok(()),
            Some(netns) => Err(CniError::new(ErrorCode(321), netns.display().to_string())),
        }
    }

    fn check(&self, _: &Request, _: &Attachment, _: &Path) -> Result<(), CniError> {
        Ok(())
    }

    fn gc(&self, request: &Request) -> Result<(), CniError> {
        request.conf.valid_attachments().map(|_| ())
    }

    fn status(&self, _: &Request) -> Result<(), CniError> {
        Err(CniError::new(ErrorCode::NOT_AVAILABLE, "no"))
    }
}

fn attachment() -> Attachment {
    Attachment { container_id: "c1".parse().unwrap(), ifname: "eth0".parse().unwrap() }
}

fn call(verb: &str, netns: &str, stdin: &[u8]) -> (Reply, u8) {
    let get = |key: &str| match key {
        "CNI_COMMAND" => Some(verb.to_owned()),
        "CNI_CONTAINERID" => Some("c1".to_owned()),
        "CNI_IFNAME" => Some("eth0".to_owned()),
        "CNI_NETNS" => Some(netns.to_owned()),
        _ => None,
    };
    respond(&Echo, &get, &mut { stdin })
}

#[test]
fn errors_carry_code_version_and_path() {
    let check = |verb: &str, stdin: &str, status: u8, expect: Value| {
        let (reply, found) = call(verb, "/run/n", stdin.as_bytes());
        let Reply::Json(text) = reply else { panic!("{verb} {stdin}: {reply:?}") };
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), expect, "{verb} {stdin}");
        assert_eq!(found, status, "{verb} {stdin}");
    };
    let error =
        |version: &str, code: u32, msg: &str| json!({"cniVersion": version, "code": code, "msg": msg});
    check("FOO", "{}", 4, error("1.1.0", 4, "unknown CNI_COMMAND: FOO"));
    check("ADD", r#"{"cniVersion":"0.4.0"}"#, 7, error("0.4.0", 7, "name: missing"));
    check("ADD", r#"{"cniVersion":"0.4.0","name":"n"}"#, 7, error("0.4.0", 7, "prevResult: missing"));
    let low = "config version 0.3.1 does not allow CHECK; it needs 0.4.0 or newer";
    check("CHECK", r#"{"cniVersion":"0.3.1","name":"n"}"#, 1, error("0.3.1", 1, low));
    let low = "config version 1.0.0 does not allow GC; it needs 1.1.0 or newer";
    check("GC", r#"{"cniVersion":"1.0.0","name":"n"}"#, 1, error("1.0.0", 1, low));
    check("STATUS", r#"{"cniVersion":"1.1.0","name":"n"}"#, 50, error("1.1.0", 50, "no"));
    check("DEL", r#"{"name":"n"}"#, 1, error("0.1.0", 321, "/run/n"));
    let mut panicked = error("1.0.0", 999, "the echo plugin has a defect");
    panicked["details"] = "boom".into();
    check("ADD", r#"{"cniVersion":"1.0.0","name":"n","panic":"boom"}"#, 1, panicked);
}

#[test]
fn other_replies() {
    assert_eq!(call("DEL", "", br#"{"name":"n"}"#), (Reply::Nothing, 0));
    assert_eq!(call("", "", b""), (Reply::About, 0));
    let (Reply::Json(versions), 0) = call("VERSION", "", b"not read") else { panic!() };
    assert_eq!(parse_versions(versions.as_bytes()).unwrap(), SpecVersion::ALL);
    let long = vec![b' '; MAX_CONFIG_BYTES as usize + 1];
    assert_eq!(call("DEL", "", &long).1, 6);
}

#[test]
fn a_runtime_feeds_the_second_plugin() {
    let list = NetConfList::parse(
        br#"{"cniVersion":"0.4.0","cniVersions":["1.0.0"],"name":"n","plugins":[{"type":"a"},
            {"type":"echo","capabilities":{"portMappings":true,"mac":false},"own":[1]}]}"#,
    )
    .unwrap();
    let first = json!({"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.2/24"}], "dns": {}});
    let capabilities = json!({"portMappings": [{"hostPort": 1}], "mac": "x", "ips": []});
    let valid = [attachment()];
    let additions = Additions {
        capability_args: capabilities.as_object(),
        prev_result: Some(&first),
        valid_attachments: Some(&valid),
    };
    let input = plugin_input(&list, 1, additions).unwrap();
    let valid = json!([{"containerID": "c1", "ifname": "eth0"}]);
    let expect = json!({"cniVersion": "1.0.0", "name": "n", "type": "echo", "own": [1], "prevResult": first,
        "runtimeConfig": {"portMappings": [{"hostPort": 1}]},
        "cni.dev/valid-attachments": valid, "cni.dev/attachments": valid});
    assert_eq!(serde_json::from_slice::<Value>(&input).unwrap(), expect);

    let (Reply::Json(stdout), 0) = call("ADD", "/run/n", &input) else { panic!() };
    let output = Output { plugin: "echo", status: Some(0), stdout: stdout.as_bytes(), stderr: b"" };
    assert_eq!(output.result(list.version).unwrap().0, first);
    assert!(plugin_input(&list, 2, Additions::default()).is_err());
}

#[test]
fn a_runtime_explains_failures() {
    let check = |status, stdout: &str, stderr: &str, expect: &str| {
        let output = Output { plugin: "p", status, stdout: stdout.as_bytes(), stderr: stderr.as_bytes() };
        assert_eq!(output.result(SpecVersion::LATEST).unwrap_err().to_string(), expect);
    };
    check(Some(7), r#"{"code":7,"msg":"mtu: bad"}"#, "noise", "plugin p: mtu: bad");
    check(Some(2), "", "no such file\n", "plugin p exited with status 2: no such file");
    check(None, "", "", "plugin p was killed");
    check(Some(0), "", "", "plugin p: decoding its result: EOF while parsing a value at line 1 column 0");
}

#[test]
fn all_variables_are_set() {
    let dirs = ["/opt/a".into(), "/opt/b".into()];
    let environment = Environment {
        verb: Verb::Del,
        attachment: Some(&attachment()),
        netns: None,
        args: "A=1",
        path: &dirs,
    };
    let expect = [
        ("CNI_COMMAND", "DEL"),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_NETNS", ""),
        ("CNI_ARGS", "A=1"),
        ("CNI_PATH", "/opt/a:/opt/b"),
    ];
    assert_eq!(environment.variables(), expect.map(|(key, value)| (key, value.to_owned())));
}
