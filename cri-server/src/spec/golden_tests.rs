//! Whole specifications, compared with files under `tests/golden/spec`. `UPDATE_EXPECT=1` rewrites the files.

use std::path::PathBuf;

use proto::cri;
use proto::cri::security_profile::ProfileType;
use proto::cri::{MountPropagation, NamespaceMode};

use super::fixture::{Case, bind, device};
use super::*;

pub(super) fn check(name: &str, case: &Case) {
    let spec = case.generate().unwrap();
    let text = serde_json::to_string_pretty(&spec).unwrap() + "\n";
    assert_eq!(serde_json::from_str::<oci::Spec>(&text).unwrap(), spec, "{name} reads back");
    serde_json::from_str::<oci_spec::runtime::Spec>(&text).unwrap();
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/spec/{name}.json"));
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &text).unwrap();
    }
    let expect = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(text == expect, "{name} differs from {}; UPDATE_EXPECT=1 rewrites it", path.display());
}

/// What a kubelet asks for in a pod with its usual choices.
fn kubelet() -> Case {
    let mut case = Case::new();
    case.sandbox.metadata = Some(cri::PodSandboxMetadata {
        name: "web-0".into(),
        uid: "5d6e".into(),
        namespace: "shop".into(),
        attempt: 0,
    });
    case.config.image = Some(cri::ImageSpec {
        image: "sha256:0f0f".into(),
        user_specified_image: "registry.example/app:1".into(),
        ..Default::default()
    });
    case.config.command.clear();
    case.image = ImageConfig {
        entrypoint: vec!["/entry".into()],
        cmd: vec!["serve".into()],
        env: vec!["PATH=/app:/bin".into(), "MODE=image".into()],
        working_dir: "/app".into(),
        ..Default::default()
    };
    case.config.envs = vec![cri::KeyValue { key: "MODE".into(), value: b"pod".to_vec() }];
    (case.uid, case.gid, case.additional_gids, case.home) =
        (1000, 1000, vec![1000, 2000], "/home/app".into());
    case.resources().oom_score_adj = 999;
    case
}

fn capability(add: &[&str], drop: &[&str]) -> Option<cri::Capability> {
    let list = |names: &[&str]| names.iter().map(|name| name.to_string()).collect();
    Some(cri::Capability { add_capabilities: list(add), drop_capabilities: list(drop), ..Default::default() })
}

fn profile(kind: ProfileType, reference: &str) -> Option<cri::SecurityProfile> {
    Some(cri::SecurityProfile { profile_type: kind as i32, localhost_ref: reference.into() })
}

#[test]
fn default() {
    check("default", &kubelet());
}

#[test]
fn seccomp_default() {
    let mut case = kubelet();
    case.security().seccomp = profile(ProfileType::RuntimeDefault, "");
    case.security().no_new_privs = true;
    check("seccomp-default", &case);
}

#[test]
fn seccomp_localhost() {
    let mut case = kubelet();
    case.security().seccomp = profile(ProfileType::Localhost, "/var/lib/kubelet/seccomp/audit.json");
    case.seccomp_profile = Some(
        br#"{"defaultAction": "SCMP_ACT_LOG",
            "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
            "syscalls": [
              {"names": ["sethostname"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1, "args": null},
              {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
              {"names": ["chroot"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_CHROOT"]}}]}"#
            .to_vec(),
    );
    check("seccomp-localhost", &case);
}

#[test]
fn privileged() {
    let mut case = Case::privileged();
    case.security().seccomp = profile(ProfileType::RuntimeDefault, "");
    case.node.capabilities = capabilities::CapSet::named("CAP_SYS_RESOURCE")
        .map(|lacking| capabilities::CapSet::ALL.difference(lacking))
        .unwrap();
    case.node.devices = vec![
        device("/dev/kmsg", DeviceKind::Character, 1, 11),
        device("/dev/pts/0", DeviceKind::Character, 136, 0),
        device("/dev/sda", DeviceKind::Block, 8, 0),
    ];
    check("privileged", &case);
}

#[test]
fn host_network() {
    let mut case = kubelet();
    case.sandbox_namespaces().network = NamespaceMode::Node as i32;
    case.namespaces().network = NamespaceMode::Node as i32;
    (case.namespace_paths.network, case.namespace_paths.uts) = (None, None);
    check("host-network", &case);
}

#[test]
fn host_ipc() {
    let mut case = kubelet();
    case.sandbox_namespaces().ipc = NamespaceMode::Node as i32;
    case.namespaces().ipc = NamespaceMode::Node as i32;
    case.namespace_paths.ipc = None;
    case.pod_files.shm = Some("/dev/shm".into());
    check("host-ipc", &case);
}

#[test]
fn pid_modes() {
    for mode in [NamespaceMode::Pod, NamespaceMode::Node, NamespaceMode::Target] {
        let mut case = kubelet();
        case.namespaces().pid = mode as i32;
        if mode == NamespaceMode::Target {
            case.namespace_paths.pid = Some("/proc/4711/ns/pid".into());
        } else {
            case.sandbox_namespaces().pid = mode as i32;
        }
        check(&format!("pid-{}", mode.as_str_name().to_lowercase()), &case);
    }
}

#[test]
fn user_namespace() {
    let mut case = kubelet();
    case.sandbox_namespaces().userns_options = Some(super::fixture::user_namespace());
    check("user-namespace", &case);
}

#[test]
fn readonly_rootfs() {
    let mut case = kubelet();
    case.security().readonly_rootfs = true;
    case.security().masked_paths = vec!["/proc/kcore".into()];
    case.security().readonly_paths = vec!["/proc/sys".into()];
    check("readonly-rootfs", &case);
}

#[test]
fn mounts() {
    let mut case = kubelet();
    let volumes = "/var/lib/kubelet/pods/5d6e/volumes";
    case.mount(bind(&format!("{volumes}/data/sub"), "/data/sub"));
    case.mount(bind(&format!("{volumes}/data"), "/data"));
    case.mount(cri::Mount { readonly: true, ..bind(&format!("{volumes}/config"), "/etc/app/") });
    case.mount(bind("/var/lib/kubelet/pods/5d6e/etc-hosts", "/etc/hosts"));
    case.mount(cri::Mount {
        propagation: MountPropagation::PropagationHostToContainer as i32,
        ..bind("/mnt/in", "/mnt/in")
    });
    case.mount(cri::Mount {
        propagation: MountPropagation::PropagationBidirectional as i32,
        ..bind("/mnt/both", "/mnt/both")
    });
    case.mount(cri::Mount { readonly: true, recursive_read_only: true, ..bind("/mnt/ro", "/mnt/ro") });
    case.mount(cri::Mount { image: Some(Default::default()), readonly: true, ..bind("", "/model") });
    for source in &mut case.mount_sources {
        source.propagation = SourcePropagation::Shared;
    }
    case.handler.recursive_read_only = Availability::Present;
    case.image_volumes = vec![
        ImageVolume { destination: "/data".into(), source: "/volumes/0".into() },
        ImageVolume { destination: "/cache".into(), source: "/volumes/1".into() },
    ];
    check("mounts", &case);
}

fn limited(cgroups: CgroupVersion) -> Case {
    let mut case = kubelet();
    case.node.cgroups = cgroups;
    case.pids_limit = Some(4096);
    let resources = case.resources();
    (resources.cpu_period, resources.cpu_quota, resources.cpu_shares) = (100_000, 150_000, 1536);
    resources.memory_limit_in_bytes = 64 << 20;
    (resources.cpuset_cpus, resources.cpuset_mems) = ("0-1".into(), "0".into());
    let limit = |page_size: &str, limit| cri::HugepageLimit { page_size: page_size.into(), limit };
    resources.hugepage_limits = vec![limit("1GB", 0), limit("2MB", 4 << 20)];
    case
}

#[test]
fn resources_v1() {
    let mut case = limited(CgroupVersion::V1);
    case.node.swap_accounting = Availability::Missing;
    check("resources-v1", &case);
}

#[test]
fn resources_v2() {
    let mut case = limited(CgroupVersion::V2);
    case.resources().memory_swap_limit_in_bytes = 96 << 20;
    case.resources().unified.insert("memory.high".into(), (48 << 20).to_string());
    check("resources-v2", &case);
}

#[test]
fn capabilities_added_and_dropped() {
    let mut case = kubelet();
    case.security().capabilities = capability(&["ALL"], &["NET_RAW"]);
    check("capabilities-add-all", &case);
    case.security().capabilities = capability(&["NET_BIND_SERVICE"], &["ALL"]);
    check("capabilities-drop-all", &case);
}

#[test]
fn devices() {
    let mut case = kubelet();
    let ask = |host: &str, container: &str, permissions: &str| cri::Device {
        host_path: host.into(),
        container_path: container.into(),
        permissions: permissions.into(),
    };
    case.config.devices = vec![ask("/dev/fuse", "/dev/fuse", "rwm"), ask("/dev/dri", "/dev/gpu", "rw")];
    let gpu = |name: &str, minor| device(&format!("/dev/dri/{name}"), DeviceKind::Character, 226, minor);
    case.devices = vec![
        ResolvedDevice {
            host_path: "/dev/fuse".into(),
            nodes: vec![device("/dev/fuse", DeviceKind::Character, 10, 229)],
        },
        ResolvedDevice { host_path: "/dev/dri".into(), nodes: vec![gpu("card0", 0), gpu("renderD128", 128)] },
    ];
    check("devices", &case);
}

#[test]
fn tty() {
    let mut case = kubelet();
    case.config.tty = true;
    case.config.command = vec!["/bin/sh".into()];
    check("tty", &case);
}
