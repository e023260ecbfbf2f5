//! All mounts of a container, in the order in which they are made: the file systems that every container has, the
//! image's volumes, the pod's files, what the request mounts.
//!
//! A mount of the request takes the place of any other with the same destination. Parents come before children, so
//! that nothing is hidden that was meant to be seen.

mod standard;
mod volumes;
mod wanted;

pub use volumes::image_volumes;

use std::path::{Path, PathBuf};

use super::oci::Mount;
use super::request::Request;
use super::{PropagationWords, SpecError, devices};

/// The list, and the propagation that `/` needs for it.
pub(super) struct Mounts {
    pub list: Vec<Mount>,
    pub rootfs_propagation: Option<String>,
}

pub(super) fn assemble(request: &Request<'_>) -> Result<Mounts, SpecError> {
    let asked = wanted::of_request(request)?;
    let rootfs_propagation =
        asked.iter().map(|mount| mount.propagation).max().and_then(|most| most.of_root());
    let mut bound: Vec<Mount> = asked.into_iter().map(|mount| mount.mount).collect();
    for extra in wanted::of_pod(request).into_iter().chain(devices::binds(request)?) {
        if !bound.iter().any(|mount| mount.destination == extra.destination) {
            bound.push(extra);
        }
    }
    let mut volumes = volumes::of_image(request)?;
    volumes.retain(|volume| !bound.iter().any(|mount| mount.destination == volume.destination));
    // Stable: of two mounts of the request on one place, the later one stays on top.
    for mounts in [&mut bound, &mut volumes] {
        mounts.sort_by_key(|mount| mount.destination.components().count());
    }
    // Links of the image may lead two names to one place: what the request mounts there must stay on top.
    volumes.append(&mut bound);
    let mut list = standard::file_systems(request);
    list.retain(|mount| !volumes.iter().any(|bound| mount.destination.starts_with(&bound.destination)));
    list.append(&mut volumes);
    let rootfs_propagation = match request.inputs.handler.propagation {
        PropagationWords::Recursive => rootfs_propagation,
        PropagationWords::Plain => rootfs_propagation.map(|word| word.trim_start_matches('r').to_string()),
    };
    Ok(Mounts { list, rootfs_propagation })
}

/// A place inside the container: absolute, not the root, `.` and `..` taken away as the kernel would at a root.
pub(super) fn destination(field: &str, path: &str) -> Result<PathBuf, SpecError> {
    if !path.starts_with('/') || path.contains('\0') {
        return Err(SpecError::invalid(field, format!("{path:?} is not an absolute path")));
    }
    let mut clean = PathBuf::from("/");
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(clean.pop()),
            part => clean.push(part),
        }
    }
    if clean == Path::new("/") {
        return Err(SpecError::invalid(field, format!("{path:?} is the root directory")));
    }
    Ok(clean)
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Case, bind};
    use super::*;
    use proptest::prelude::*;

    fn destinations(case: &Case) -> Vec<String> {
        let spec = case.generate().unwrap();
        spec.mounts.iter().map(|m| m.destination.to_str().unwrap().to_string()).collect()
    }

    const STANDARD: [&str; 6] = ["/proc", "/dev", "/dev/pts", "/dev/mqueue", "/sys", "/sys/fs/cgroup"];
    const POD: [&str; 4] = ["/etc/hostname", "/etc/hosts", "/etc/resolv.conf", "/dev/shm"];

    #[test]
    fn every_container_has_the_same_file_systems_and_the_pods_files() {
        let got = destinations(&Case::new());
        assert_eq!(got[..6], STANDARD);
        let mut pod = got[6..].to_vec();
        pod.sort();
        let mut expect = POD.map(String::from).to_vec();
        expect.sort();
        assert_eq!(pod, expect);
    }

    #[test]
    fn a_mount_of_the_request_replaces_others_on_its_place() {
        let check = |path: &str, gone: &[&str]| {
            let mut case = Case::new();
            case.mount(bind("/src", path));
            let got = destinations(&case);
            let clean = destination("", path).unwrap();
            assert_eq!(got.iter().filter(|d| Path::new(d) == clean).count(), 1, "{path}");
            for lost in STANDARD.iter().chain(&POD).filter(|d| Path::new(d) != clean) {
                assert_eq!(!got.iter().any(|d| d == lost), gone.contains(lost), "{path}: {lost}");
            }
        };
        check("/etc/hosts", &[]);
        check("/etc//./hosts", &[]);
        check("/etc", &[]);
        check("/dev/shm", &[]);
        check("/dev", &["/dev/pts", "/dev/mqueue"]);
        check("/sys", &["/sys/fs/cgroup"]);
        check("/sys/fs/cgroup", &[]);
        check("/srv", &[]);
    }

    #[test]
    fn destinations_are_clean_and_inside() {
        let check = |path: &str, expect: Option<&str>| {
            assert_eq!(destination("f", path).ok(), expect.map(PathBuf::from), "{path:?}");
        };
        check("/a", Some("/a"));
        check("//a///b/./c/", Some("/a/b/c"));
        check("/a/../../../b", Some("/b"));
        check("/a b/\u{e4}", Some("/a b/\u{e4}"));
        check("/", None);
        check("/..", None);
        check("/a/..", None);
        check("", None);
        check("a", None);
        check("../a", None);
        check("/a\0b", None);
    }

    #[test]
    fn of_two_mounts_on_one_place_the_later_is_on_top() {
        let mut case = Case::new();
        case.mount(bind("/one", "/data"));
        case.mount(bind("/two", "/data/"));
        let spec = case.generate().unwrap();
        let sources: Vec<_> = spec.mounts.iter().filter(|m| m.destination == Path::new("/data")).collect();
        assert_eq!([&sources[0].source, &sources[1].source], [Path::new("/one"), Path::new("/two")]);
    }

    proptest! {
        #[test]
        fn parents_come_before_children(
            paths in prop::collection::vec(prop::collection::vec("[ab]|\\.\\.|\\.", 1..5), 1..12),
        ) {
            let mut case = Case::new();
            for path in paths.iter().map(|parts| format!("/x/{}", parts.join("/"))) {
                if destination("f", &path).is_ok() {
                    case.mount(bind("/src", &path));
                }
            }
            let list = case.generate().unwrap().mounts;
            for (at, mount) in list.iter().enumerate() {
                let hides = |later: &Mount| {
                    later.destination != mount.destination && mount.destination.starts_with(&later.destination)
                };
                prop_assert!(!list[at + 1..].iter().any(hides));
            }
        }
    }
}
