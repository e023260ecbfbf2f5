//! The program as it is called: names, arguments, streams and exit codes. Needs no privilege.
#![allow(clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

#[allow(clippy::disallowed_methods, reason = "the test runs the program under test")]
fn run(name: &str, args: &[&str], env: &[(&str, &str)], stdin: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_cni-bridge"))
        .arg0(name)
        .args(args)
        .env_clear()
        .envs(env.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    child.wait_with_output().unwrap()
}

const ADD: [(&str, &str); 4] =
    [("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", "c"), ("CNI_NETNS", "/absent"), ("CNI_IFNAME", "eth0")];

#[test]
fn the_name_chooses_the_plugin() {
    let check = |name: &str, args: &[&str], expect: &str| {
        let output = run(name, args, &[], "");
        let text = String::from_utf8(output.stderr).unwrap();
        let first = text.lines().next().unwrap_or_default();
        assert_eq!(first, format!("CNI {expect} plugin v{}", env!("CARGO_PKG_VERSION")));
        assert!(output.status.success() && output.stdout.is_empty());
    };
    check("/opt/cni/bin/bridge", &[], "bridge");
    check("host-local", &[], "host-local");
    check("cni-bridge", &["portmap"], "portmap");
    check("./cni-bridge", &["loopback"], "loopback");
    check("firewall", &[], "firewall");
    check("bandwidth", &[], "bandwidth");
    check("tuning", &[], "tuning");
    for name in ["macvlan", "ipvlan", "vlan", "ptp", "static"] {
        check(name, &[], name);
    }
    let unknown = run("cni-bridge", &["nothing"], &[], "");
    assert_eq!(unknown.status.code(), Some(2));
    assert_eq!(run("cni-bridge", &[], &[], "").status.code(), Some(2));
    let help = run("cni-bridge", &["--help"], &[], "");
    assert!(help.status.success() && help.stdout.starts_with(b"CNI plugins of Berth"));
    assert!(run("cni-bridge", &["--version"], &[], "").stdout.starts_with(b"cni-bridge "));
}

#[test]
fn bad_input_is_an_error_object_on_standard_output() {
    let check = |plugin: &str, env: &[(&str, &str)], stdin: &str, code: i32, msg: &str| {
        let output = run(plugin, &[], env, stdin);
        let error: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(
            (error["code"].as_i64(), error["msg"].as_str()),
            (Some(code.into()), Some(msg)),
            "{stdin}"
        );
        assert_eq!(output.status.code(), Some(code), "{stdin}");
    };
    let missing = "required env variables [CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME] missing";
    check("bridge", &[("CNI_COMMAND", "ADD")], "{}", 4, missing);
    check("bridge", &[("CNI_COMMAND", "RUN")], "{}", 4, "unknown CNI_COMMAND: RUN");
    let conf =
        |version: &str, rest: &str| format!(r#"{{"cniVersion":"{version}","name":"n","type":"x"{rest}}}"#);
    check("bridge", &ADD, "{", 6, "decoding network configuration");
    check("bridge", &ADD, r#"{"name":"../n","type":"x"}"#, 7, "invalid network name (name) \"../n\"");
    let other = conf("1.0.0", r#","ipMasqBackend":"pf""#);
    check("bridge", &ADD, &other, 7, "ipMasqBackend: \"pf\" is not iptables or nftables");
    check(
        "macvlan",
        &ADD,
        &conf("1.0.0", r#","mode":"x""#),
        7,
        "mode: \"x\" is not bridge, private, vepa or passthru",
    );
    check("macvlan", &ADD, &conf("1.0.0", ""), 8, "CNI_NETNS: network namespace /absent does not exist");
    check(
        "vlan",
        &ADD,
        &conf("1.0.0", r#","master":"e","vlanId":4095"#),
        7,
        "vlanId: 4095 is not in 1 to 4094",
    );
    check("ipvlan", &ADD, &conf("1.0.0", r#","mtu":"x""#), 6, "mtu: expected a whole number, found a string");
    check("ptp", &ADD, &conf("1.0.0", ""), 7, "ipam: missing");
    check("static", &ADD, &conf("1.0.0", r#","ipam":{"type":"static"}"#), 7, "ipam.addresses: missing");
    check("bridge", &ADD, &conf("1.0.0", ""), 8, "CNI_NETNS: network namespace /absent does not exist");
    check("loopback", &ADD, &conf("1.0.0", ""), 8, "CNI_NETNS: network namespace /absent does not exist");
    check("host-local", &ADD, &conf("1.0.0", ""), 7, "ipam: missing");
    let chained = "prevResult: missing; x must be chained after another plugin";
    for plugin in ["bandwidth", "firewall", "portmap", "tuning"] {
        check(plugin, &ADD, &conf("1.0.0", ""), 7, chained);
    }
    check(
        "tuning",
        &ADD,
        &conf("1.0.0", r#","sysctl":{"kernel.x":"1"}"#),
        7,
        "sysctl.kernel.x: is not below net",
    );
    check(
        "firewall",
        &ADD,
        &conf("1.0.0", r#","backend":"firewalld""#),
        2,
        "backend: \"firewalld\" is not supported",
    );
    let shaped = r#","shapedSubnets":["10.0.0.0/8"]"#;
    check("bandwidth", &ADD, &conf("1.0.0", shaped), 2, "shapedSubnets: [\"10.0.0.0/8\"] is not supported");
    let condition = r#","conditionsV6":["-x"]"#;
    check("portmap", &ADD, &conf("1.0.0", condition), 2, "conditionsV6[0]: \"-x\" is not supported");
    let old = "config version 1.0.0 does not allow STATUS; it needs 1.1.0 or newer";
    check("portmap", &[("CNI_COMMAND", "STATUS")], &conf("1.0.0", ""), 1, old);
    let mut evil = ADD;
    evil[1].1 = "../../etc";
    check("bridge", &evil, &conf("1.0.0", ""), 4, "invalid container id (CNI_CONTAINERID) \"../../etc\"");
}

#[test]
fn host_local_answers_in_the_version_it_was_asked_in() {
    let dir = tempfile::tempdir().unwrap();
    let call = |verb: &'static str, version: &str| {
        let conf = json!({"cniVersion": version, "name": "n", "type": "bridge",
            "ipam": {"type": "host-local", "subnet": "10.1.0.0/24", "dataDir": dir.path()}});
        let mut env = ADD;
        env[0].1 = verb;
        let output = run("host-local", &[], &env, &conf.to_string());
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
    };
    let held = || std::fs::read_to_string(Path::new(dir.path()).join("n/10.1.0.2"));
    let ip = json!({"address": "10.1.0.2/24", "gateway": "10.1.0.1"});
    assert_eq!(call("ADD", "1.1.0"), json!({"cniVersion": "1.1.0", "ips": [ip], "dns": {}}));
    assert_eq!(held().unwrap(), "c\r\neth0");
    let old = json!({"cniVersion": "0.2.0", "ip4": {"ip": "10.1.0.2/24", "gateway": "10.1.0.1"}, "dns": {}});
    assert_eq!(call("ADD", "0.2.0"), old);
    assert_eq!(call("ADD", "0.4.0")["ips"][0]["version"], "4");
    assert_eq!(call("CHECK", "1.1.0"), Value::Null);
    assert_eq!(call("DEL", "1.1.0"), Value::Null);
    assert!(held().is_err());
    assert_eq!(call("VERSION", "")["supportedVersions"].as_array().unwrap().len(), 7);
}
