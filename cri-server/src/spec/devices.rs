//! Device nodes and the cgroup's device rules. The OCI runtime adds null, zero, full, random, urandom, tty and
//! ptmx by itself; the rules name them all the same, so that they do not depend on which runtime it is.

use std::path::{Path, PathBuf};

use super::oci::{Device, DeviceRule, Mount};
use super::request::Request;
use super::{DeviceKind, HostDevice, ResolvedDevice, SpecError, mounts};

const FIELD: &str = "devices";

/// Character devices that every container may use: kind of access, major, minor (none = all).
const DEFAULT: [(i64, Option<i64>); 9] = [
    (1, Some(3)), // null
    (1, Some(5)), // zero
    (1, Some(7)), // full
    (1, Some(8)), // random
    (1, Some(9)), // urandom
    (5, Some(0)), // tty
    (5, Some(1)), // console
    (5, Some(2)), // ptmx
    (136, None),  // pts
];

/// Directories and names of /dev that belong to the container itself.
const OWN: [&str; 6] = ["pts", "shm", "mqueue", "fd", "console", "ptmx"];

/// Nodes to make. A user namespace cannot make any.
pub(super) fn nodes(request: &Request<'_>) -> Result<Vec<Device>, SpecError> {
    if request.modes.user.is_some() {
        return Ok(Vec::new());
    }
    Ok(placed(request)?.into_iter().map(|(device, path)| node(device, path)).collect())
}

/// Nodes of the host to bind where none can be made. OCI runtimes do so as well, but of two paths know only one.
pub(super) fn binds(request: &Request<'_>) -> Result<Vec<Mount>, SpecError> {
    if request.modes.user.is_none() {
        return Ok(Vec::new());
    }
    let bind = |(device, path): (&HostDevice, PathBuf)| Mount {
        destination: path,
        kind: "bind".into(),
        source: device.path.clone(),
        options: ["bind", "rprivate"].map(String::from).to_vec(),
    };
    Ok(placed(request)?.into_iter().map(bind).collect())
}

/// Devices with their places: all of the node's when privileged, then the request's, which win.
fn placed<'a>(request: &Request<'a>) -> Result<Vec<(&'a HostDevice, PathBuf)>, SpecError> {
    let mut list: Vec<(&HostDevice, PathBuf)> = Vec::new();
    if request.privileged() {
        let devices = request.inputs.node.devices.iter().filter(|device| !is_own(&device.path));
        list.extend(devices.map(|device| (device, device.path.clone())));
    }
    for (index, asked) in request.inputs.config.devices.iter().enumerate() {
        let resolved = resolved(request, index)?;
        let base = container_path(asked)?;
        for device in &resolved.nodes {
            let below = device.path.strip_prefix(&resolved.host_path).map_err(|_| {
                SpecError::invalid(FIELD, format!("{:?} is not below {:?}", device.path, resolved.host_path))
            })?;
            let path = if below.as_os_str().is_empty() { base.clone() } else { base.join(below) };
            list.retain(|(_, known)| *known != path);
            list.push((device, path));
        }
    }
    Ok(list)
}

/// The allow-list: nothing, the defaults, the request's. Everything when privileged.
pub(super) fn rules(request: &Request<'_>) -> Result<Vec<DeviceRule>, SpecError> {
    if request.privileged() {
        return Ok(vec![DeviceRule {
            allow: true,
            kind: None,
            major: None,
            minor: None,
            access: "rwm".into(),
        }]);
    }
    let mut rules =
        vec![DeviceRule { allow: false, kind: None, major: None, minor: None, access: "rwm".into() }];
    for kind in ["c", "b"] {
        // A node may be made (CAP_MKNOD decides); opening it is another matter.
        rules.push(rule(kind, None, None, "m"));
    }
    rules.extend(DEFAULT.iter().map(|(major, minor)| rule("c", Some(*major), *minor, "rwm")));
    for (index, asked) in request.inputs.config.devices.iter().enumerate() {
        let access = access(&asked.permissions)?;
        for device in &resolved(request, index)?.nodes {
            let (major, minor) = (i64::from(device.major), i64::from(device.minor));
            rules.push(rule(letter(device.kind), Some(major), Some(minor), access));
        }
    }
    Ok(rules)
}

fn rule(kind: &str, major: Option<i64>, minor: Option<i64>, access: &str) -> DeviceRule {
    DeviceRule { allow: true, kind: Some(kind.into()), major, minor, access: access.into() }
}

fn resolved<'a>(request: &Request<'a>, index: usize) -> Result<&'a ResolvedDevice, SpecError> {
    let inputs = request.inputs;
    let resolved = inputs.devices.get(index).ok_or(SpecError::MissingFact { fact: "a device" })?;
    if resolved.nodes.is_empty() {
        return Err(SpecError::device_missing(Path::new(&inputs.config.devices[index].host_path)));
    }
    Ok(resolved)
}

fn container_path(asked: &proto::cri::Device) -> Result<PathBuf, SpecError> {
    // As with other runtimes, a device without a place goes to the same path.
    let path = if asked.container_path.is_empty() { &asked.host_path } else { &asked.container_path };
    mounts::destination(&format!("{FIELD}.container_path"), path)
}

fn access(permissions: &str) -> Result<&str, SpecError> {
    let valid = !permissions.is_empty() && permissions.bytes().all(|b| b"rwm".contains(&b));
    if valid {
        Ok(permissions)
    } else {
        Err(SpecError::invalid(
            format!("{FIELD}.permissions"),
            format!("{permissions:?} is not made of the letters r, w and m"),
        ))
    }
}

fn node(device: &HostDevice, path: PathBuf) -> Device {
    Device {
        path,
        kind: letter(device.kind).into(),
        major: device.major.into(),
        minor: device.minor.into(),
        file_mode: device.mode & 0o7777,
        uid: device.uid,
        gid: device.gid,
    }
}

fn letter(kind: DeviceKind) -> &'static str {
    match kind {
        DeviceKind::Character => "c",
        DeviceKind::Block => "b",
    }
}

fn is_own(path: &Path) -> bool {
    path.strip_prefix("/dev").is_ok_and(|below| OWN.iter().any(|own| below.starts_with(own)))
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Case, device};
    use super::*;

    fn asking(host: &str, container: &str, permissions: &str, nodes: Vec<HostDevice>) -> Case {
        let mut case = Case::new();
        case.config.devices = vec![proto::cri::Device {
            host_path: host.into(),
            container_path: container.into(),
            permissions: permissions.into(),
        }];
        case.devices = vec![ResolvedDevice { host_path: host.into(), nodes }];
        case
    }

    fn resolve(case: &Case) -> Result<(Vec<String>, Vec<String>), SpecError> {
        let inputs = case.inputs();
        let request = Request::new(&inputs)?;
        let nodes = nodes(&request)?;
        let nodes = nodes.iter().map(|d| format!("{} {} {}:{}", d.path.display(), d.kind, d.major, d.minor));
        let rules = rules(&request)?;
        let rules = rules.iter().skip(12).map(|r| {
            format!("{} {}:{} {}", r.kind.as_deref().unwrap(), r.major.unwrap(), r.minor.unwrap(), r.access)
        });
        Ok((nodes.collect(), rules.collect()))
    }

    #[test]
    fn a_device_or_a_directory_of_devices() {
        let check = |case: Case, nodes: &[&str], rules: &[&str]| {
            let (got_nodes, got_rules) = resolve(&case).unwrap();
            assert_eq!(
                (got_nodes.as_slice(), got_rules.as_slice()),
                (&nodes.map_owned()[..], &rules.map_owned()[..])
            );
        };
        let fuse = device("/dev/fuse", DeviceKind::Character, 10, 229);
        let sda = device("/dev/sda", DeviceKind::Block, 8, 0);
        check(
            asking("/dev/fuse", "/dev/fuse", "rwm", vec![fuse.clone()]),
            &["/dev/fuse c 10:229"],
            &["c 10:229 rwm"],
        );
        check(asking("/dev/sda", "/dev/xvda", "r", vec![sda]), &["/dev/xvda b 8:0"], &["b 8:0 r"]);
        check(asking("/dev/fuse", "", "mrw", vec![fuse]), &["/dev/fuse c 10:229"], &["c 10:229 mrw"]);
        let cards = vec![
            device("/dev/dri/card0", DeviceKind::Character, 226, 0),
            device("/dev/dri/by-path/x", DeviceKind::Character, 226, 128),
        ];
        check(
            asking("/dev/dri", "/dev/gpu", "rw", cards),
            &["/dev/gpu/card0 c 226:0", "/dev/gpu/by-path/x c 226:128"],
            &["c 226:0 rw", "c 226:128 rw"],
        );
    }

    trait MapOwned {
        fn map_owned(&self) -> Vec<String>;
    }

    impl MapOwned for [&str] {
        fn map_owned(&self) -> Vec<String> {
            self.iter().map(|s| s.to_string()).collect()
        }
    }

    #[test]
    fn devices_that_cannot_be_given() {
        let fuse = || vec![device("/dev/fuse", DeviceKind::Character, 10, 229)];
        let check = |case: Case, message: &str| assert_eq!(resolve(&case).unwrap_err().to_string(), message);
        check(asking("/dev/no", "/dev/no", "rwm", vec![]), "device \"/dev/no\" is not on this node");
        for permissions in ["", "rx", "RW", "rw\n"] {
            let message =
                format!("invalid devices.permissions: {permissions:?} is not made of the letters r, w and m");
            check(asking("/dev/fuse", "/dev/fuse", permissions, fuse()), &message);
        }
        check(
            asking("/dev/fuse", "fuse", "r", fuse()),
            "invalid devices.container_path: \"fuse\" is not an absolute path",
        );
        let mut unresolved = asking("/dev/fuse", "/dev/fuse", "r", fuse());
        unresolved.devices.clear();
        assert!(matches!(resolve(&unresolved), Err(SpecError::MissingFact { .. })));
    }

    #[test]
    fn a_privileged_container_has_the_nodes_devices_but_its_own_terminals() {
        let mut case = Case::privileged();
        case.node.devices = vec![
            device("/dev/kmsg", DeviceKind::Character, 1, 11),
            device("/dev/ptmx", DeviceKind::Character, 5, 2),
            device("/dev/pts/0", DeviceKind::Character, 136, 0),
            device("/dev/console", DeviceKind::Character, 5, 1),
            device("/dev/mapper/x", DeviceKind::Block, 253, 0),
        ];
        let spec = case.generate().unwrap();
        let paths: Vec<_> = spec.linux.devices.iter().map(|d| d.path.to_str().unwrap()).collect();
        assert_eq!(paths, ["/dev/kmsg", "/dev/mapper/x"]);
        assert_eq!(spec.linux.resources.devices.len(), 1);
        assert!(spec.linux.resources.devices[0].allow);
    }

    #[test]
    fn the_first_rule_denies_everything() {
        let spec = Case::new().generate().unwrap();
        let rules = &spec.linux.resources.devices;
        assert!(!rules[0].allow && rules[0].access == "rwm" && rules[0].kind.is_none());
        assert!(rules[1..].iter().all(|r| r.kind.as_deref() == Some("c") || r.access == "m"));
    }
}
