//! From the text of files to the OCI specification: a golden file with every field, and all that is refused.

use std::io;
use std::path::Path;

use proto::cri;

use super::super::fixture::{Case, device, user_namespace};
use super::super::{DeviceKind, HostDevice, SpecError};
use super::*;

/// Every field that a specification may have.
const FULL: &str = r#"
cdiVersion: "1.0.0"
kind: vendor.com/gpu
annotations: {for: tools}
containerEdits:
  env: [ALL=1, MODE=cdi]
  mounts:
    - {hostPath: /usr/lib/gpu, containerPath: /usr/lib/gpu, options: [ro, nosuid, nodev, bind]}
    - {hostPath: tmpfs, containerPath: /run/gpu, type: tmpfs, options: [size=1m]}
  hooks:
    - {hookName: createContainer, path: /usr/bin/hook, args: [hook, --ldconfig], env: [A=b], timeout: 5}
    - {hookName: prestart, path: /usr/bin/hook}
devices:
  - name: "0"
    annotations: {also: for tools}
    containerEdits:
      env: [GPU=0]
      deviceNodes:
        - {path: /dev/gpu0, hostPath: /dev/vendor/gpu0}
        - {path: /dev/gpuctl, type: c, major: 195, minor: 255, fileMode: 0660, permissions: rw, uid: 1, gid: 44}
        - {path: /dev/gpublock, type: b, major: 8, permissions: none}
        - {path: /dev/gpupipe, type: p}
      hooks:
        - {hookName: createRuntime, path: /bin/a}
        - {hookName: startContainer, path: /bin/b}
        - {hookName: poststart, path: /bin/c}
        - {hookName: poststop, path: /bin/d}
      intelRdt: {closID: gold, l3CacheSchema: "L3:0=f", memBwSchema: "MB:0=50", enableCMT: true, enableMBM: true}
      additionalGids: [0, 44, 45]
  - name: "1"
    containerEdits:
      env: [GPU=1]
      additionalGids: [45]
      mounts:
"#;

fn source(path: &str, priority: usize, format: Format) -> Source {
    Source { path: path.into(), priority, format }
}

fn yaml(text: &str) -> Registry {
    let mut registry = Registry::default();
    registry.add(source("/etc/cdi/x.yaml", 0, Format::Yaml), text.as_bytes());
    registry
}

/// A node with one GPU.
fn look(path: &Path) -> io::Result<HostDevice> {
    match path.to_str() {
        Some("/dev/vendor/gpu0") => Ok(device("/dev/vendor/gpu0", DeviceKind::Character, 195, 0)),
        _other => Err(io::Error::from(io::ErrorKind::NotFound)),
    }
}

fn edits(registry: &Registry, names: &[&str]) -> Result<Edits, CdiError> {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    Edits::of(registry, &names, look)
}

#[test]
fn every_field_of_a_file_reaches_the_specification() {
    let mut case = Case::new();
    (case.uid, case.gid, case.additional_gids) = (1000, 1000, vec![2000]);
    case.config.envs = vec![cri::KeyValue { key: "MODE".into(), value: b"pod".to_vec() }];
    case.cdi = edits(&yaml(FULL), &["vendor.com/gpu=0", "vendor.com/gpu=1"]).unwrap();
    super::super::golden_tests::check("cdi", &case);
}

#[test]
fn a_mount_comes_before_those_below_it_and_replaces_its_like() {
    let mut case = Case::new();
    case.mount(super::super::fixture::bind("/src", "/opt/x/y"));
    case.cdi.mounts = ["/opt/x", "/etc/hosts"].map(oci_mount).to_vec();
    let mounts = case.generate().unwrap().mounts;
    let at = |place: &str| mounts.iter().position(|mount| mount.destination == Path::new(place)).unwrap();
    assert!(at("/opt/x") < at("/opt/x/y"));
    assert_eq!(mounts.iter().filter(|mount| mount.destination == Path::new("/etc/hosts")).count(), 1);
    assert_eq!(mounts[at("/etc/hosts")].source, Path::new("/vendor"));
}

fn oci_mount(place: &str) -> super::super::oci::Mount {
    let (kind, options) = ("bind".to_string(), vec!["rbind".to_string()]);
    super::super::oci::Mount { destination: place.into(), kind, source: "/vendor".into(), options }
}

#[test]
fn a_user_namespace_has_nodes_bound_and_groups_of_its_own() {
    let mut case = Case::new();
    case.sandbox_namespaces().userns_options = Some(user_namespace());
    case.cdi = edits(&yaml(FULL), &["vendor.com/gpu=0"]).unwrap();
    let spec = case.generate().unwrap();
    assert!(spec.linux.devices.is_empty());
    let bound = spec.mounts.iter().find(|mount| mount.destination == Path::new("/dev/gpu0")).unwrap();
    assert_eq!((bound.source.as_path(), bound.kind.as_str()), (Path::new("/dev/vendor/gpu0"), "bind"));
    case.cdi.additional_gids = vec![70_000];
    assert!(matches!(case.generate(), Err(SpecError::InvalidArgument { .. })));
}

#[test]
fn a_privileged_container_keeps_its_one_rule() {
    let mut case = Case::privileged();
    case.cdi = edits(&yaml(FULL), &["vendor.com/gpu=0"]).unwrap();
    let spec = case.generate().unwrap();
    assert_eq!((spec.linux.devices.len(), spec.linux.resources.devices.len()), (4, 1));
}

#[test]
fn json_and_every_version() {
    for version in ["0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0"] {
        let mut registry = Registry::default();
        let text = format!(
            r#"{{"cdiVersion": "{version}", "kind": "v/c", "devices":
                [{{"name": "a", "containerEdits": {{"env": ["A=1"], "mounts": null}}}}]}}"#
        );
        registry.add(source("/etc/cdi/x.json", 0, Format::Json), text.as_bytes());
        assert_eq!(edits(&registry, &["v/c=a"]).unwrap().env, ["A=1"], "{version}: {:?}", registry.unread());
    }
}

#[test]
fn the_file_of_highest_priority_counts_and_equals_conflict() {
    let text = |value: &str| {
        format!("cdiVersion: 0.5.0\nkind: v/c\ndevices: [{{name: a, containerEdits: {{env: [V={value}]}}}}]")
    };
    let mut registry = Registry::default();
    for (path, priority) in [("/etc/cdi/low.yaml", 0), ("/run/cdi/one.yaml", 1)] {
        registry.add(source(path, priority, Format::Yaml), text(path).as_bytes());
    }
    assert_eq!(edits(&registry, &["v/c=a"]).unwrap().env, ["V=/run/cdi/one.yaml"]);
    registry.add(source("/run/cdi/two.yaml", 1, Format::Yaml), text("two").as_bytes());
    let error = edits(&registry, &["v/c=a"]).unwrap_err().to_string();
    for word in ["\"v/c=a\"", "/run/cdi/one.yaml", "/run/cdi/two.yaml"] {
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn a_device_that_is_nowhere_is_named_with_the_files_that_were_not_used() {
    let error = edits(&yaml("cdiVersion: 9.9.9\nkind: v/c\ndevices: []\n"), &["v/c=a"]).unwrap_err();
    let error = error.to_string();
    for word in ["\"v/c=a\"", "/etc/cdi/x.yaml", "cdiVersion", "9.9.9"] {
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn nodes_that_are_not_there_or_of_another_kind() {
    let check = |node: &str, words: &[&str]| {
        let text = format!(
            "cdiVersion: 0.5.0\nkind: v/c\ndevices: [{{name: a, containerEdits: {{deviceNodes: [{node}]}}}}]"
        );
        let error = edits(&yaml(&text), &["v/c=a"]).unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{node}: {error}");
    };
    check("{path: /dev/absent}", &["/dev/absent"]);
    check("{path: /dev/x, hostPath: /dev/absent, type: c}", &["/dev/absent"]);
    check("{path: /dev/x, hostPath: /dev/vendor/gpu0, type: b}", &["/dev/vendor/gpu0", "\"c\"", "\"b\""]);
}

/// An edit of a device, and a word of the reason why the file is not used.
const BAD: [(&str, &str); 22] = [
    ("{}", "changes nothing"),
    ("", "changes nothing"),
    ("{env: [NOVALUE]}", "NAME=value"),
    ("{env: [=x]}", "NAME=value"),
    ("{env: [\"A=\\0\"]}", "NAME=value"),
    ("{env: {A: b}}", "sequence"),
    ("{envs: [A=b]}", "envs"),
    ("{netDevices: [{hostInterfaceName: eth0, name: eth1}]}", "netDevices"),
    ("{deviceNodes: [{hostPath: /dev/null}]}", "path"),
    ("{deviceNodes: [{path: dev/null}]}", "deviceNodes.path"),
    ("{deviceNodes: [{path: /dev/null, hostPath: null0}]}", "deviceNodes.hostPath"),
    ("{deviceNodes: [{path: /dev/null, type: x}]}", "`x`"),
    ("{deviceNodes: [{path: /dev/null, major: -1}]}", "-1"),
    ("{deviceNodes: [{path: /dev/null, major: 4294967296}]}", "4294967296"),
    ("{deviceNodes: [{path: /dev/null, permissions: rx}]}", "deviceNodes.permissions"),
    ("{deviceNodes: [{path: /dev/null, fileMode: \"0999\"}]}", "fileMode"),
    ("{mounts: [{hostPath: \"\", containerPath: /x}]}", "mounts.hostPath"),
    ("{mounts: [{hostPath: /x, containerPath: x}]}", "mounts.containerPath"),
    ("{hooks: [{hookName: sometime, path: /x}]}", "sometime"),
    ("{hooks: [{hookName: prestart, path: x}]}", "hooks.path"),
    ("{intelRdt: {closID: a/b}}", "intelRdt.closID"),
    ("{additionalGids: [-1]}", "-1"),
];

#[test]
fn bad_files_are_refused_whole_with_the_field() {
    let unread = |text: &str| {
        let registry = yaml(text);
        registry.unread().first().cloned().unwrap_or_else(|| panic!("it is used: {text}"))
    };
    for (edit, word) in BAD {
        let text = format!("cdiVersion: 0.7.0\nkind: v/c\ndevices:\n- name: a\n  containerEdits: {edit}\n");
        assert!(unread(&text).contains(word), "{edit}: {}", unread(&text));
    }
    let device = "{name: a, containerEdits: {env: [A=b]}}";
    for (text, word) in [
        (format!("kind: v/c\ndevices: [{device}]"), "cdiVersion"),
        (format!("cdiVersion: 0.2.0\nkind: v/c\ndevices: [{device}]"), "0.2.0"),
        (format!("cdiVersion: 0.5.0\nkind: vc\ndevices: [{device}]"), "kind"),
        ("cdiVersion: 0.5.0\nkind: v/c".to_string(), "devices"),
        (format!("cdiVersion: 0.5.0\nkind: v/c\ndevices: [{device}, {device}]"), "twice"),
        (format!("cdiVersion: 0.5.0\nkind: v/c\ndevices: [{{name: -x, {}]", &device[10..]), "\"-x\""),
        (format!("cdiVersion: 0.5.0\nkind: v/c\nextra: 1\ndevices: [{device}]"), "extra"),
        ("- a\n".to_string(), "Document"),
        (String::new(), ""),
    ] {
        assert!(unread(&text).contains(word), "{text}: {}", unread(&text));
    }
}
