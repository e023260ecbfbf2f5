//! The system call filter of a container: the default profile, a profile of the node's administrator, or none.
//!
//! A request that says nothing is unconfined (the kubelet's `seccompDefault` says something), and so is a
//! privileged container whatever it says.

mod default;
mod file;
mod syscalls;

use proto::cri;
use proto::cri::security_profile::ProfileType;

use super::capabilities::CapSet;
use super::oci::{Capabilities, Seccomp};
use super::request::Request;
use super::{Availability, Machine, MaskedEqual, SpecError, lsm};

pub use default::default_profile;

const FIELD: &str = "linux.security_context.seccomp";

/// Which filter a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Requested {
    /// None.
    Unconfined,
    /// The runtime's own.
    RuntimeDefault,
    /// A file of the node: an absolute path, or one below the kubelet's seccomp directory.
    Localhost(String),
}

/// The filter that a request asks for. For `Localhost` the caller reads the file into `Inputs::seccomp_profile`.
pub fn requested(config: &cri::ContainerConfig) -> Result<Requested, SpecError> {
    let security = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let Some(security) = security else { return Ok(Requested::Unconfined) };
    let profile = lsm::profile(FIELD, security.seccomp.as_ref(), &security.seccomp_profile_path)?;
    let Some(profile) = profile else { return Ok(Requested::Unconfined) };
    let (kind, reference) = lsm::parts(FIELD, &profile)?;
    Ok(match kind {
        _ if security.privileged => Requested::Unconfined,
        ProfileType::Unconfined => Requested::Unconfined,
        ProfileType::RuntimeDefault => Requested::RuntimeDefault,
        ProfileType::Localhost if reference.split('/').any(|part| part == "..") => {
            return Err(SpecError::invalid(FIELD, format!("localhost_ref {reference:?} goes up with `..`")));
        }
        ProfileType::Localhost => Requested::Localhost(reference.into()),
    })
}

pub(super) fn filter(request: &Request<'_>, granted: &Capabilities) -> Result<Option<Seccomp>, SpecError> {
    let node = request.inputs.node;
    let requested = requested(request.inputs.config)?;
    if requested != Requested::Unconfined && node.seccomp == Availability::Missing {
        return Err(SpecError::unsupported("a seccomp profile", "this node's kernel has no seccomp filters"));
    }
    let capabilities = granted.bounding.iter().filter_map(|name| CapSet::named(name)).collect();
    let mut filter = match requested {
        Requested::Unconfined => return Ok(None),
        Requested::RuntimeDefault => default_profile(capabilities, node.machine),
        Requested::Localhost(reference) => {
            let content = request.inputs.seccomp_profile;
            let content = content.ok_or(SpecError::MissingFact { fact: "the seccomp profile" })?;
            let target = file::Target { capabilities, machine: node.machine, kernel: node.kernel };
            file::parse(&reference, content, &target)?
        }
    };
    if request.inputs.handler.masked_equal == MaskedEqual::ValueTwoIsMask {
        swap_masks(&mut filter);
    }
    Ok(Some(filter))
}

fn swap_masks(filter: &mut Seccomp) {
    let args = filter.syscalls.iter_mut().flat_map(|rule| &mut rule.args);
    for arg in args.filter(|arg| arg.op == "SCMP_CMP_MASKED_EQ") {
        std::mem::swap(&mut arg.value, &mut arg.value_two);
    }
}

/// Calling conventions of a machine, the native one first. All are filtered: one that is not named is killed.
fn architectures(machine: Machine) -> &'static [&'static str] {
    match machine {
        Machine::X86_64 => &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        Machine::Aarch64 => &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::Case;
    use super::*;

    fn ask(kind: ProfileType, reference: &str) -> Option<cri::SecurityProfile> {
        Some(cri::SecurityProfile { profile_type: kind as i32, localhost_ref: reference.into() })
    }

    #[test]
    fn which_profile_a_request_means() {
        use ProfileType::*;
        let check = |current, deprecated: &str, expect: Option<Requested>| {
            let mut case = Case::new();
            case.security().seccomp = current;
            case.security().seccomp_profile_path = deprecated.into();
            assert_eq!(requested(&case.config).ok(), expect, "{deprecated}");
        };
        let local = |path: &str| Some(Requested::Localhost(path.into()));
        check(None, "", Some(Requested::Unconfined));
        check(Some(cri::SecurityProfile::default()), "", Some(Requested::RuntimeDefault));
        check(ask(RuntimeDefault, ""), "unconfined", Some(Requested::RuntimeDefault));
        check(ask(Unconfined, ""), "runtime/default", Some(Requested::Unconfined));
        check(ask(Localhost, "/p.json"), "", local("/p.json"));
        check(ask(Localhost, "localhost//p.json"), "", local("/p.json"));
        check(None, "runtime/default", Some(Requested::RuntimeDefault));
        check(None, "docker/default", Some(Requested::RuntimeDefault));
        check(None, "unconfined", Some(Requested::Unconfined));
        check(None, "localhost/profiles/p.json", local("profiles/p.json"));
        check(None, "/p.json", None);
        check(None, "localhost/", None);
        check(ask(Localhost, ""), "", None);
        check(ask(Localhost, "../../etc/shadow"), "", None);
        check(ask(RuntimeDefault, "p.json"), "", None);
        check(Some(cri::SecurityProfile { profile_type: 3, ..Default::default() }), "", None);
        assert_eq!(requested(&cri::ContainerConfig::default()).unwrap(), Requested::Unconfined);
    }

    #[test]
    fn a_privileged_container_is_unconfined() {
        let mut case = Case::privileged();
        case.security().seccomp = ask(ProfileType::RuntimeDefault, "");
        assert_eq!(case.generate().unwrap().linux.seccomp, None);
    }

    #[test]
    fn masks_are_where_the_runtime_looks_for_them() {
        let mut case = Case::new();
        case.security().seccomp = ask(ProfileType::RuntimeDefault, "");
        let first_mask = |case: &Case| {
            let filter = case.generate().unwrap().linux.seccomp.unwrap();
            let clone = filter.syscalls.into_iter().find(|rule| rule.names == ["clone"]).unwrap();
            (clone.args[0].value, clone.args[0].value_two)
        };
        assert_eq!(first_mask(&case), (0x7e02_0000, 0));
        case.handler.masked_equal = MaskedEqual::ValueTwoIsMask;
        assert_eq!(first_mask(&case), (0, 0x7e02_0000));
    }

    #[test]
    fn a_filter_needs_the_kernel_and_the_file() {
        let mut case = Case::new();
        case.security().seccomp = ask(ProfileType::Localhost, "/p.json");
        assert!(matches!(case.generate(), Err(SpecError::MissingFact { .. })));
        case.seccomp_profile = Some(b"{".to_vec());
        assert_eq!(case.generate().unwrap_err().to_string(), "parse seccomp profile \"/p.json\"");
        case.node.seccomp = Availability::Missing;
        assert!(matches!(case.generate(), Err(SpecError::Unsupported { .. })));
    }
}
