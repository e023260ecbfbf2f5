//! Bind mounts: what the request asks for, the image's volumes, the pod's files.

use std::path::{Path, PathBuf};

use proto::cri;
use proto::cri::MountPropagation;

use super::super::oci::Mount;
use super::super::request::Request;
use super::super::{Availability, MountSource, SourcePropagation, SpecError};
use super::destination;

const FIELD: &str = "mounts";

/// A mount of the request, and how it propagates.
pub(super) struct Wanted {
    pub mount: Mount,
    pub propagation: Propagation,
}

/// Ordered by how much of it `/` must have too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Propagation {
    Private,
    HostToContainer,
    Bidirectional,
}

impl Propagation {
    fn option(self) -> &'static str {
        match self {
            Self::Private => "rprivate",
            Self::HostToContainer => "rslave",
            Self::Bidirectional => "rshared",
        }
    }

    /// Propagation that the root mount needs; a private one is every runtime's default.
    pub fn of_root(self) -> Option<String> {
        (self != Self::Private).then(|| self.option().to_string())
    }
}

pub(super) fn of_request(request: &Request<'_>) -> Result<Vec<Wanted>, SpecError> {
    let asked = request.inputs.config.mounts.iter().enumerate();
    asked
        .map(|(index, asked)| {
            let source = request.inputs.mount_sources.get(index);
            wanted(request, asked, source.ok_or(SpecError::MissingFact { fact: "the source of a mount" })?)
        })
        .collect()
}

fn wanted(request: &Request<'_>, asked: &cri::Mount, source: &MountSource) -> Result<Wanted, SpecError> {
    check_source(request, asked)?;
    let place = destination(&format!("{FIELD}.container_path"), &asked.container_path)?;
    check_proc(request, &place)?;
    let propagation = propagation(asked, source)?;
    let access = access(request, asked, propagation)?;
    let mut options = vec!["rbind", propagation.option(), access];
    options.extend(restrictions(asked)?);
    Ok(Wanted { mount: bind(place, &source.path, &options), propagation })
}

/// What a mount may be asked to deny; each option once, whatever else is a matter of other fields.
fn restrictions(asked: &cri::Mount) -> Result<Vec<&'static str>, SpecError> {
    const KNOWN: [&str; 3] = ["nodev", "noexec", "nosuid"];
    if let Some(option) = asked.mount_options.iter().find(|option| !KNOWN.contains(&option.as_str())) {
        let expected = KNOWN.join(", ");
        return Err(invalid("mount_options", format!("expected some of {expected}, got {option:?}")));
    }
    Ok(KNOWN.into_iter().filter(|known| asked.mount_options.iter().any(|option| option == known)).collect())
}

fn check_source(request: &Request<'_>, asked: &cri::Mount) -> Result<(), SpecError> {
    let path = &asked.host_path;
    match &asked.image {
        Some(_) if !path.is_empty() => {
            Err(invalid("host_path", format!("{path:?} is set together with an image")))
        }
        Some(_) if !asked.readonly => Err(invalid("readonly", "an image can only be mounted read-only")),
        None if !path.starts_with('/') || path.contains('\0') => {
            Err(invalid("host_path", format!("{path:?} is not an absolute path")))
        }
        None if !asked.image_sub_path.is_empty() => {
            Err(invalid("image_sub_path", "it is set without an image"))
        }
        // Where the pod has a user namespace the source is a mapped mount already.
        _ if request.modes.user.is_none()
            && !(asked.uid_mappings.is_empty() && asked.gid_mappings.is_empty()) =>
        {
            Err(invalid("uid_mappings", "the pod has no user namespace"))
        }
        _ => Ok(()),
    }
}

/// Files of /proc that may be replaced: what lxcfs and the like provide.
const PROC_FILES: [&str; 10] = [
    "cpuinfo",
    "diskstats",
    "meminfo",
    "stat",
    "swaps",
    "uptime",
    "loadavg",
    "slabinfo",
    "net/dev",
    "sys/kernel/ns_last_pid",
];

/// A mount over /proc would take masks and security labels along to a place that somebody else controls.
pub(super) fn check_proc(request: &Request<'_>, place: &Path) -> Result<(), SpecError> {
    match place.strip_prefix("/proc") {
        Ok(below) if !request.privileged() && !PROC_FILES.iter().any(|file| below == Path::new(file)) => {
            Err(invalid("container_path", format!("{place:?} is inside /proc")))
        }
        _ => Ok(()),
    }
}

fn propagation(asked: &cri::Mount, source: &MountSource) -> Result<Propagation, SpecError> {
    let unknown = |_| invalid("propagation", format!("unknown propagation {}", asked.propagation));
    let mode = MountPropagation::try_from(asked.propagation).map_err(unknown)?;
    let (propagation, possible) = match mode {
        MountPropagation::PropagationPrivate => (Propagation::Private, true),
        MountPropagation::PropagationHostToContainer => {
            (Propagation::HostToContainer, source.propagation != SourcePropagation::Private)
        }
        MountPropagation::PropagationBidirectional => {
            (Propagation::Bidirectional, source.propagation == SourcePropagation::Shared)
        }
    };
    if asked.image.is_some() && propagation != Propagation::Private {
        return Err(invalid("propagation", "an image is mounted with private propagation only"));
    }
    if !possible {
        let need = match propagation {
            Propagation::Bidirectional => "a shared mount",
            _ => "a shared or slave mount",
        };
        return Err(invalid("propagation", format!("{:?} is not on {need}", asked.host_path)));
    }
    Ok(propagation)
}

fn access(
    request: &Request<'_>,
    asked: &cri::Mount,
    propagation: Propagation,
) -> Result<&'static str, SpecError> {
    if !asked.recursive_read_only {
        return Ok(if asked.readonly { "ro" } else { "rw" });
    }
    if !asked.readonly {
        return Err(invalid("recursive_read_only", "the mount is not read-only"));
    }
    if propagation != Propagation::Private {
        return Err(invalid("recursive_read_only", "the mount's propagation is not private"));
    }
    if request.inputs.handler.recursive_read_only == Availability::Missing {
        return Err(SpecError::RroUnsupported { host_path: asked.host_path.clone() });
    }
    Ok("rro")
}

/// The pod's files. They follow the root file system: read-only with it, except for shared memory.
pub(super) fn of_pod(request: &Request<'_>) -> Vec<Mount> {
    let files = request.inputs.pod_files;
    let access = if request.security.readonly_rootfs { "ro" } else { "rw" };
    let all = [
        ("/etc/hostname", &files.hostname, access),
        ("/etc/hosts", &files.hosts, access),
        ("/etc/resolv.conf", &files.resolv_conf, access),
        ("/dev/shm", &files.shm, "rw"),
    ];
    let present = all.into_iter().filter_map(|(place, file, access)| Some((place, file.as_ref()?, access)));
    present.map(|(place, file, access)| bind(place.into(), file, &["rbind", "rprivate", access])).collect()
}

pub(super) fn bind(destination: PathBuf, source: &Path, options: &[&str]) -> Mount {
    Mount {
        destination,
        kind: "bind".into(),
        source: source.into(),
        options: options.iter().map(|option| option.to_string()).collect(),
    }
}

fn invalid(name: &str, reason: impl Into<String>) -> SpecError {
    SpecError::invalid(format!("{FIELD}.{name}"), reason)
}

#[cfg(test)]
mod tests {
    use super::super::super::fixture::{Case, bind};
    use super::*;
    use MountPropagation::*;
    use SourcePropagation::{Private, Shared, Slave};

    /// Options of the request's mount and the propagation of `/`, or the error.
    fn resolve(case: &Case) -> Result<(String, Option<String>), SpecError> {
        let spec = case.generate()?;
        let mount = spec.mounts.iter().find(|m| m.source == Path::new("/src")).unwrap();
        Ok((mount.options.join(","), spec.linux.rootfs_propagation))
    }

    fn mounting(change: impl FnOnce(&mut cri::Mount), source: SourcePropagation) -> Case {
        let mut case = Case::new();
        let mut mount = bind("/src", "/data");
        change(&mut mount);
        case.mount(mount);
        case.mount_sources[0] = MountSource { path: "/src".into(), propagation: source };
        case.handler.recursive_read_only = Availability::Present;
        case
    }

    #[test]
    fn propagation_needs_a_source_that_has_it() {
        let check = |mode: MountPropagation, source, expect: Option<(&str, Option<&str>)>| {
            let got = resolve(&mounting(|m| m.propagation = mode as i32, source)).ok();
            let got = got.as_ref().map(|(options, root)| (options.as_str(), root.as_deref()));
            assert_eq!(got, expect, "{mode:?} {source:?}");
        };
        let private = Some(("rbind,rprivate,rw", None));
        let slave = Some(("rbind,rslave,rw", Some("rslave")));
        for source in [Private, Slave, Shared] {
            check(PropagationPrivate, source, private);
        }
        check(PropagationHostToContainer, Private, None);
        check(PropagationHostToContainer, Slave, slave);
        check(PropagationHostToContainer, Shared, slave);
        check(PropagationBidirectional, Private, None);
        check(PropagationBidirectional, Slave, None);
        check(PropagationBidirectional, Shared, Some(("rbind,rshared,rw", Some("rshared"))));
    }

    #[test]
    fn the_root_propagates_as_much_as_any_mount() {
        let mut case = mounting(|m| m.propagation = PropagationBidirectional as i32, Shared);
        case.mount(cri::Mount { propagation: PropagationHostToContainer as i32, ..bind("/b", "/b") });
        case.mount_sources[1].propagation = Shared;
        assert_eq!(resolve(&case).unwrap().1.as_deref(), Some("rshared"));
    }

    #[test]
    fn recursive_read_only_is_read_only_and_private() {
        let rro = |m: &mut cri::Mount| (m.readonly, m.recursive_read_only) = (true, true);
        assert_eq!(resolve(&mounting(rro, Private)).unwrap().0, "rbind,rprivate,rro");
        let refuse = |change: fn(&mut cri::Mount)| {
            let case = mounting(change, Shared);
            assert!(matches!(resolve(&case), Err(SpecError::InvalidArgument { .. })));
        };
        refuse(|m| m.recursive_read_only = true);
        refuse(|m| {
            (m.readonly, m.recursive_read_only) = (true, true);
            m.propagation = PropagationHostToContainer as i32;
        });
        refuse(|m| {
            (m.readonly, m.recursive_read_only) = (true, true);
            m.propagation = PropagationBidirectional as i32;
        });
        let mut case = mounting(rro, Private);
        case.handler.recursive_read_only = Availability::Missing;
        assert!(resolve(&case).unwrap_err().to_string().starts_with("RROUnsupported"));
    }

    #[test]
    fn images_are_mounted_read_only_and_executable() {
        let image = |m: &mut cri::Mount| {
            (m.image, m.readonly) = (Some(Default::default()), true);
            m.host_path.clear();
        };
        assert_eq!(resolve(&mounting(image, Private)).unwrap().0, "rbind,rprivate,ro");
        let refuse = |change: fn(&mut cri::Mount)| {
            let mut mount = bind("", "/data");
            (mount.image, mount.readonly) = (Some(Default::default()), true);
            change(&mut mount);
            assert!(resolve(&mounting(|m| *m = mount, Shared)).is_err());
        };
        refuse(|m| m.readonly = false);
        refuse(|m| m.host_path = "/src".into());
        refuse(|m| m.propagation = PropagationHostToContainer as i32);
    }

    #[test]
    fn a_mount_denies_what_it_is_asked_to() {
        let check = |options: &[&str], expect: Option<&str>| {
            let asked: Vec<String> = options.iter().map(|option| option.to_string()).collect();
            let got = resolve(&mounting(|m| m.mount_options = asked, Private)).ok();
            assert_eq!(got.map(|(options, _)| options).as_deref(), expect, "{options:?}");
        };
        check(&["noexec"], Some("rbind,rprivate,rw,noexec"));
        check(&["nosuid", "nodev", "noexec", "nosuid"], Some("rbind,rprivate,rw,nodev,noexec,nosuid"));
        for refused in ["exec", "ro", "rbind", "rshared", "size=1", "noexec,exec", "NOEXEC", ""] {
            check(&[refused], None);
        }
    }

    #[test]
    fn sources_and_options_that_mean_nothing_are_refused() {
        let refuse = |change: fn(&mut cri::Mount)| assert!(resolve(&mounting(change, Shared)).is_err());
        refuse(|m| m.host_path.clear());
        refuse(|m| m.host_path = "src".into());
        refuse(|m| m.host_path = "/s\0".into());
        refuse(|m| m.image_sub_path = "etc".into());
        refuse(|m| m.uid_mappings = vec![Default::default()]);
        refuse(|m| m.propagation = 3);
        refuse(|m| m.container_path = "/".into());
        refuse(|m| m.container_path = "data".into());
    }

    #[test]
    fn proc_is_not_for_others() {
        let check = |path: &str, privileged: bool, fine: bool| {
            let mut case = if privileged { Case::privileged() } else { Case::new() };
            case.mount(bind("/src", path));
            assert_eq!(resolve(&case).is_ok(), fine, "{path}");
        };
        check("/proc", false, false);
        check("/x/../proc", false, false);
        check("/proc/sys", false, false);
        check("/proc/self/attr", false, false);
        check("/proc/cpuinfo", false, true);
        check("/proc/net/dev", false, true);
        check("/procedure", false, true);
        check("/proc", true, true);
    }

    #[test]
    fn the_pods_files_are_read_only_with_the_root() {
        let mut case = Case::new();
        case.security().readonly_rootfs = true;
        let spec = case.generate().unwrap();
        assert!(spec.root.readonly);
        let access = |place: &str| {
            let mount = spec.mounts.iter().find(|m| m.destination == Path::new(place)).unwrap();
            mount.options.last().unwrap().as_str()
        };
        assert_eq!([access("/etc/hosts"), access("/etc/resolv.conf"), access("/etc/hostname")], ["ro"; 3]);
        assert_eq!(access("/dev/shm"), "rw");
    }
}
