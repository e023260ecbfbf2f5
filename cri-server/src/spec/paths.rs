//! Paths of /proc and /sys that a container must not read, or not write.
//!
//! The kubelet states both lists, and states none for `procMount: Unmasked`, which Kubernetes allows only with a
//! user namespace. On the wire that is the same as a client that says nothing. So an empty list is taken by its word
//! where the pod has a user namespace; elsewhere it means the defaults, so that no client has to know them to be
//! safe. (containerd leaves such a container unmasked.)

use super::SpecError;
use super::request::Request;

const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

const READONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// More CPUs than any machine has: a bound on the length of the list.
const MAX_CPUS: u32 = 8192;

pub(super) fn masked(request: &Request<'_>) -> Result<Vec<String>, SpecError> {
    let stated = &request.security.masked_paths;
    choose(request, "masked_paths", stated, || {
        let cpus = 0..request.inputs.node.cpus.min(MAX_CPUS);
        let throttles = cpus.map(|cpu| format!("/sys/devices/system/cpu/cpu{cpu}/thermal_throttle"));
        MASKED.iter().map(|path| path.to_string()).chain(throttles).collect()
    })
}

pub(super) fn readonly(request: &Request<'_>) -> Result<Vec<String>, SpecError> {
    let stated = &request.security.readonly_paths;
    choose(request, "readonly_paths", stated, || READONLY.iter().map(|path| path.to_string()).collect())
}

fn choose(
    request: &Request<'_>,
    field: &str,
    stated: &[String],
    default: impl FnOnce() -> Vec<String>,
) -> Result<Vec<String>, SpecError> {
    if let Some(path) = stated.iter().find(|path| !path.starts_with('/') || path.contains('\0')) {
        let field = format!("linux.security_context.{field}");
        return Err(SpecError::invalid(field, format!("{path:?} is not an absolute path")));
    }
    Ok(if request.privileged() {
        Vec::new()
    } else if stated.is_empty() && request.modes.user.is_none() {
        default()
    } else {
        stated.to_vec()
    })
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Case, user_namespace};
    use super::*;

    fn both(case: &Case) -> Result<(usize, usize), SpecError> {
        let inputs = case.inputs();
        let request = Request::new(&inputs)?;
        Ok((masked(&request)?.len(), readonly(&request)?.len()))
    }

    #[test]
    fn a_stated_list_is_taken_verbatim_and_an_empty_one_only_with_a_user_namespace() {
        let mut case = Case::new();
        case.node.cpus = 2;
        assert_eq!(both(&case).unwrap(), (14, 5));
        case.security().masked_paths = vec!["/proc/kcore".into()];
        assert_eq!(both(&case).unwrap(), (1, 5));
        case.security().readonly_paths = vec!["/proc/sys".into(), "/proc/bus".into()];
        assert_eq!(both(&case).unwrap(), (1, 2));

        let mut unmasked = Case::new();
        unmasked.sandbox_namespaces().userns_options = Some(user_namespace());
        assert_eq!(both(&unmasked).unwrap(), (0, 0));

        let mut privileged = Case::privileged();
        privileged.security().masked_paths = vec!["/proc/kcore".into()];
        assert_eq!(both(&privileged).unwrap(), (0, 0));
    }

    #[test]
    fn only_absolute_paths() {
        for path in ["", "proc", "/proc\0"] {
            let mut case = Case::new();
            case.security().masked_paths = vec![path.into()];
            assert!(both(&case).is_err(), "{path:?}");
        }
    }
}
