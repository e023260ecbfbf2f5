//! AppArmor and SELinux. Asking for confinement that the node lacks is an error; labels without SELinux are not:
//! the kubelet sets them on every node.

use std::borrow::Cow;

use proto::cri;
use proto::cri::security_profile::ProfileType;

use super::request::Request;
use super::{AppArmor, Availability, SpecError, selinux};

const LOCALHOST: &str = "localhost/";

/// A profile of the current field, or of the deprecated string that it replaced; `None` = nothing is asked for.
pub(super) fn profile<'a>(
    field: &str,
    current: Option<&'a cri::SecurityProfile>,
    deprecated: &str,
) -> Result<Option<Cow<'a, cri::SecurityProfile>>, SpecError> {
    if let Some(profile) = current {
        return Ok(Some(Cow::Borrowed(profile)));
    }
    let (kind, reference) = match deprecated {
        "" => return Ok(None),
        "runtime/default" | "docker/default" => (ProfileType::RuntimeDefault, ""),
        "unconfined" => (ProfileType::Unconfined, ""),
        other => match other.strip_prefix(LOCALHOST) {
            Some(reference) => (ProfileType::Localhost, reference),
            None => return Err(SpecError::invalid(field, format!("unknown profile {other:?}"))),
        },
    };
    let profile = cri::SecurityProfile { profile_type: kind as i32, localhost_ref: reference.into() };
    Ok(Some(Cow::Owned(profile)))
}

/// Kind and reference of a profile, checked against each other.
pub(super) fn parts<'a>(
    field: &str,
    profile: &'a cri::SecurityProfile,
) -> Result<(ProfileType, &'a str), SpecError> {
    let kind = ProfileType::try_from(profile.profile_type).map_err(|_| {
        SpecError::invalid(field, format!("unknown type of profile {}", profile.profile_type))
    })?;
    let reference = &profile.localhost_ref;
    let reference = reference.strip_prefix(LOCALHOST).unwrap_or(reference);
    match (kind, reference.is_empty()) {
        (ProfileType::Localhost, true) => {
            Err(SpecError::invalid(field, "type Localhost without localhost_ref"))
        }
        (ProfileType::Localhost, false) | (_, true) => Ok((kind, reference)),
        (_, false) => Err(SpecError::invalid(field, "localhost_ref is for type Localhost only")),
    }
}

pub(super) fn apparmor_profile(request: &Request<'_>) -> Result<Option<String>, SpecError> {
    const FIELD: &str = "linux.security_context.apparmor";
    let security = &request.security;
    let asked = profile(FIELD, security.apparmor.as_ref(), &security.apparmor_profile)?;
    let asked = asked.as_deref().map(|asked| parts(FIELD, asked)).transpose()?;
    let AppArmor::Enabled { default_profile, loaded } = &request.inputs.node.apparmor else {
        return match asked {
            None | Some((ProfileType::Unconfined, _)) => Ok(None),
            Some(_) => Err(SpecError::unsupported("an AppArmor profile", "this node has no AppArmor")),
        };
    };
    match asked {
        Some((ProfileType::Unconfined, _)) => Ok(None),
        Some((ProfileType::Localhost, name)) if loaded.contains(name) => Ok(Some(name.into())),
        Some((ProfileType::Localhost, name)) => {
            Err(SpecError::NotFound { what: "AppArmor profile", name: name.into() })
        }
        None | Some((ProfileType::RuntimeDefault, _)) if request.privileged() => Ok(None),
        None | Some((ProfileType::RuntimeDefault, _)) => Ok(default_profile.clone()),
    }
}

/// The process's label. A privileged container runs with that of its OCI runtime.
pub(super) fn selinux_process_label(request: &Request<'_>) -> Result<Option<String>, SpecError> {
    if let Some(options) = &request.security.selinux_options {
        selinux::check("linux.security_context.selinux_options", options)?;
    }
    let labels = request.inputs.selinux.filter(|_| !request.privileged());
    if labels.is_some() && request.inputs.handler.selinux == Availability::Missing {
        // It would run as the OCI runtime itself does.
        return Err(SpecError::unsupported("SELinux", "the handler's OCI runtime gives processes no label"));
    }
    Ok(labels.map(|labels| labels.process.clone()))
}

/// The label of what the OCI runtime mounts; none for one that knows no labels and would fail.
pub(super) fn selinux_mount_label(request: &Request<'_>) -> Option<String> {
    let labels = request.inputs.selinux.filter(|_| request.inputs.handler.selinux == Availability::Present);
    labels.map(|labels| labels.mount.clone())
}

#[cfg(test)]
mod tests {
    use super::super::fixture::Case;
    use super::*;

    fn enabled() -> AppArmor {
        AppArmor::Enabled {
            default_profile: Some("berth-default".into()),
            loaded: ["berth-default".to_string(), "mine".to_string()].into(),
        }
    }

    fn asked(kind: ProfileType, reference: &str) -> Option<cri::SecurityProfile> {
        Some(cri::SecurityProfile { profile_type: kind as i32, localhost_ref: reference.into() })
    }

    fn resolve(
        node: AppArmor,
        current: Option<cri::SecurityProfile>,
        deprecated: &str,
    ) -> Result<Option<String>, String> {
        let mut case = Case::new();
        case.node.apparmor = node;
        case.security().apparmor = current;
        case.security().apparmor_profile = deprecated.into();
        let inputs = case.inputs();
        apparmor_profile(&Request::new(&inputs).unwrap()).map_err(|e| e.to_string())
    }

    #[test]
    fn apparmor_without_apparmor_is_an_error_only_when_asked_for() {
        use ProfileType::*;
        let check = |current, deprecated: &str, fine: bool| {
            assert_eq!(resolve(AppArmor::Disabled, current, deprecated).is_ok(), fine, "{deprecated}");
        };
        check(None, "", true);
        check(None, "unconfined", true);
        check(asked(Unconfined, ""), "", true);
        check(asked(RuntimeDefault, ""), "", false);
        check(asked(Localhost, "mine"), "", false);
        check(None, "localhost/mine", false);
        check(None, "runtime/default", false);
    }

    #[test]
    fn the_new_field_wins_and_a_localhost_profile_must_be_loaded() {
        use ProfileType::*;
        let check = |current, deprecated: &str, expect: Result<Option<&str>, ()>| {
            let got = resolve(enabled(), current, deprecated);
            assert_eq!(got.as_ref().map(|p| p.as_deref()).map_err(|_| ()), expect, "{deprecated} {got:?}");
        };
        check(None, "", Ok(Some("berth-default")));
        check(asked(RuntimeDefault, ""), "", Ok(Some("berth-default")));
        check(asked(Unconfined, ""), "localhost/mine", Ok(None));
        check(asked(Localhost, "mine"), "unconfined", Ok(Some("mine")));
        check(asked(Localhost, "localhost/mine"), "", Ok(Some("mine")));
        check(None, "localhost/mine", Ok(Some("mine")));
        check(asked(Localhost, "absent"), "localhost/mine", Err(()));
        check(None, "localhost/absent", Err(()));
        check(None, "nonsense", Err(()));
        check(asked(Localhost, ""), "", Err(()));
        check(asked(Unconfined, "mine"), "", Err(()));
        check(Some(cri::SecurityProfile { profile_type: 7, ..Default::default() }), "", Err(()));
    }

    #[test]
    fn selinux_options_are_checked_and_labels_appear_only_with_selinux() {
        let mut case = Case::new();
        case.security().selinux_options =
            Some(cri::SeLinuxOption { level: "s0:c1,c2".into(), ..Default::default() });
        assert_eq!(case.generate().unwrap().process.selinux_label, None);
        case.selinux = Some(selinux::Labels { process: "u:r:t:s0".into(), mount: "u:r:f:s0".into() });
        let spec = case.generate().unwrap();
        assert_eq!(spec.process.selinux_label.as_deref(), Some("u:r:t:s0"));
        assert_eq!(spec.linux.mount_label.as_deref(), Some("u:r:f:s0"));
        case.security().selinux_options =
            Some(cri::SeLinuxOption { level: "s0\nx".into(), ..Default::default() });
        assert!(case.generate().is_err());
        case.security().selinux_options = None;
        case.handler.selinux = Availability::Missing;
        assert!(case.generate().is_err());
        let mut case = Case { selinux: case.selinux, handler: case.handler, ..Case::privileged() };
        case.security().selinux_options = None;
        assert_eq!(case.generate().unwrap().linux.mount_label, None);
        case.handler.selinux = Availability::Present;
        let spec = case.generate().unwrap();
        assert_eq!(spec.process.selinux_label, None);
        assert_eq!(spec.linux.mount_label.as_deref(), Some("u:r:f:s0"));
    }
}
