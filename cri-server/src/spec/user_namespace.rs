//! The user namespace of a pod, as the request describes it.

use proto::cri::{IdMapping, NamespaceMode, PodSandboxConfig, UserNamespace};

use super::SpecError;
use crate::model::id_range::IdRange;

const FIELD: &str = "linux.security_context.namespace_options.userns_options";

/// Ids of the pod's own user namespace; `None` in the node's.
///
/// As the kubelet sends them: one mapping for users, the same one for groups, from 0 up.
pub fn ids(pod: &PodSandboxConfig) -> Result<Option<IdRange>, SpecError> {
    let context = pod.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let options = context.and_then(|context| context.namespace_options.as_ref());
    let Some(options) = options.and_then(|options| options.userns_options.as_ref()) else { return Ok(None) };
    match NamespaceMode::try_from(options.mode) {
        Ok(NamespaceMode::Node) => Ok(None),
        Ok(NamespaceMode::Pod) => of_pod(options).map(Some),
        Ok(other) => {
            let reason = format!("expected POD or NODE, got {}", other.as_str_name());
            Err(SpecError::invalid(format!("{FIELD}.mode"), reason))
        }
        Err(_) => Err(SpecError::invalid(
            format!("{FIELD}.mode"),
            format!("expected POD or NODE, got {}", options.mode),
        )),
    }
}

/// Whether a mount is to show the owners that the pod's user namespace has; `false` without mappings.
pub fn maps(mount: &proto::cri::Mount, ids: IdRange) -> Result<bool, SpecError> {
    if mount.uid_mappings.is_empty() && mount.gid_mappings.is_empty() {
        return Ok(false);
    }
    for (name, mappings) in [("uid_mappings", &mount.uid_mappings), ("gid_mappings", &mount.gid_mappings)] {
        if range(&format!("mounts.{name}"), mappings)? != ids {
            let reason = format!("expected those of the pod, {ids}");
            return Err(SpecError::invalid(format!("mounts.{name}"), reason));
        }
    }
    Ok(true)
}

fn of_pod(options: &UserNamespace) -> Result<IdRange, SpecError> {
    let users = range(&format!("{FIELD}.uids"), &options.uids)?;
    let groups = range(&format!("{FIELD}.gids"), &options.gids)?;
    if users != groups {
        let reason = format!("expected the same mapping as of users, {users}, got {groups}");
        return Err(SpecError::invalid(format!("{FIELD}.gids"), reason));
    }
    Ok(users)
}

fn range(field: &str, mappings: &[IdMapping]) -> Result<IdRange, SpecError> {
    let [IdMapping { container_id, host_id, length }] = *mappings else {
        let reason = format!("expected one mapping, got {}", mappings.len());
        return Err(SpecError::invalid(field, reason));
    };
    if container_id != 0 {
        let reason = format!("expected container_id 0, got {container_id}");
        return Err(SpecError::invalid(field, reason));
    }
    IdRange::new(host_id, length).ok_or_else(|| {
        let reason =
            format!("expected ids of the node from 1 to {}, got {length} from {host_id} on", u32::MAX - 1);
        SpecError::invalid(field, reason)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use NamespaceMode::{Container, Node, Pod, Target};

    fn mapping(container_id: u32, host_id: u32, length: u32) -> IdMapping {
        IdMapping { container_id, host_id, length }
    }

    fn pod(options: Option<UserNamespace>) -> PodSandboxConfig {
        let mut pod = PodSandboxConfig::default();
        let context = pod.linux.get_or_insert_default().security_context.get_or_insert_default();
        context.namespace_options.get_or_insert_default().userns_options = options;
        pod
    }

    #[test]
    fn one_mapping_from_zero_the_same_for_users_and_groups() {
        let check = |mode: i32, uids: &[IdMapping], gids: &[IdMapping], expect: Result<Option<u32>, &str>| {
            let options = UserNamespace { mode, uids: uids.to_vec(), gids: gids.to_vec() };
            let got = ids(&pod(Some(options)));
            match (got, expect) {
                (Ok(ids), Ok(first)) => assert_eq!(ids.map(|ids| ids.first), first),
                (Err(error), Err(field)) => assert!(error.to_string().contains(field), "{error}"),
                other => panic!("{other:?}"),
            }
        };
        let good = mapping(0, 1000, 100_000);
        check(Pod as i32, &[good], &[good], Ok(Some(1000)));
        check(Node as i32, &[], &[], Ok(None));
        for mode in [Container as i32, Target as i32, 7, -1] {
            check(mode, &[good], &[good], Err("userns_options.mode"));
        }
        check(Pod as i32, &[], &[], Err("uids: expected one mapping, got 0"));
        check(Pod as i32, &[good, good], &[good, good], Err("uids: expected one mapping, got 2"));
        check(Pod as i32, &[good], &[], Err("gids: expected one mapping, got 0"));
        check(Pod as i32, &[good], &[mapping(0, 2000, 100_000)], Err("gids: expected the same"));
        check(Pod as i32, &[good], &[mapping(0, 1000, 99_999)], Err("gids: expected the same"));
        check(Pod as i32, &[mapping(1, 1000, 10)], &[good], Err("uids: expected container_id 0"));
        for (host, length) in [(0, 10), (1000, 0), (u32::MAX, 1), (u32::MAX - 5, 10), (1, u32::MAX)] {
            let odd = mapping(0, host, length);
            check(Pod as i32, &[odd], &[odd], Err("uids: expected ids of the node"));
        }
        assert_eq!(ids(&pod(None)).unwrap(), None);
        assert_eq!(ids(&PodSandboxConfig::default()).unwrap(), None);
    }

    #[test]
    fn a_mount_has_the_mappings_of_the_pod_or_none() {
        let range = IdRange::new(1000, 10).unwrap();
        let check = |uids: &[IdMapping], gids: &[IdMapping], expect: Option<bool>| {
            let mount = proto::cri::Mount {
                uid_mappings: uids.to_vec(),
                gid_mappings: gids.to_vec(),
                ..Default::default()
            };
            assert_eq!(maps(&mount, range).ok(), expect);
        };
        let own = [mapping(0, 1000, 10)];
        check(&[], &[], Some(false));
        check(&own, &own, Some(true));
        check(&own, &[], None);
        check(&own, &[mapping(0, 1001, 10)], None);
        check(&[mapping(0, 1000, 9)], &own, None);
    }
}
