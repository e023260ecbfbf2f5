//! User, groups, capabilities, the promise of no new privileges, and the filter of system calls.

use rustix::fs::{FileType, Gid, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::filter::Filter;
use super::sys;
use crate::spec::capabilities::CapSet;
use crate::spec::oci::{Capabilities, Process};

/// Becomes root of the user namespace that was joined: the node's root is nobody there.
pub fn become_root() -> Result<(), String> {
    let become_root = || {
        rustix::thread::set_thread_groups(&[])?;
        rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)?;
        rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)
    };
    become_root().map_err(|error| format!("becoming root of the container's user namespace: {error}"))
}

/// Lets the process's user open its pipes again, as `/dev/stdout` for example. What cannot be had is no obstacle.
pub fn give_pipes(process: &Process) {
    for fd in [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()] {
        let is_pipe = |status: rustix::fs::Stat| FileType::from_raw_mode(status.st_mode) == FileType::Fifo;
        if rustix::fs::fstat(fd).is_ok_and(is_pipe) {
            let _some_are_of_others = rustix::fs::fchown(fd, Some(Uid::from_raw(process.user.uid)), None);
        }
    }
}

/// Becomes the process's user, for good.
pub fn take(process: &Process) -> Result<(), String> {
    let sets = &process.capabilities;
    drop_bounding(set_of("bounding", &sets.bounding)?)?;
    become_user(process)?;
    limit(sets)
}

/// Promises no new privileges: after that, a filter can be loaded without any.
pub fn renounce() -> Result<(), String> {
    rustix::thread::set_no_new_privs(true).map_err(|error| format!("promising no new privileges: {error}"))
}

/// Loads the container's filter, if it has one.
pub fn load(filter: Option<&Filter>) -> Result<(), String> {
    let Some(filter) = filter else { return Ok(()) };
    sys::load_filter(filter).map_err(|error| format!("loading the filter of system calls: {error}"))
}

fn set_of(field: &str, names: &[String]) -> Result<CapabilitySet, String> {
    let known = |name: &String| {
        CapSet::named(name)
            .ok_or_else(|| format!("process.capabilities.{field}: {name:?} is not a capability"))
    };
    let sets: Vec<_> = names.iter().map(known).collect::<Result<_, _>>()?;
    Ok(CapabilitySet::from_bits_retain(sets.into_iter().collect::<CapSet>().bits()))
}

/// Keeps no more than `kept`, of all that the kernel knows.
fn drop_bounding(kept: CapabilitySet) -> Result<(), String> {
    for capability in (0..u64::BITS).map(|number| CapabilitySet::from_bits_retain(1 << number)) {
        match rustix::thread::capability_is_in_bounding_set(capability) {
            Err(rustix::io::Errno::INVAL) => break,
            Ok(true) if !kept.contains(capability) => {
                rustix::thread::remove_capability_from_bounding_set(capability)
                    .map_err(|error| format!("limiting capabilities: {error}"))?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn become_user(process: &Process) -> Result<(), String> {
    let user = &process.user;
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    let groups: Vec<_> = user.additional_gids.iter().map(|gid| Gid::from_raw(*gid)).collect();
    let become_it = || {
        rustix::thread::set_keep_capabilities(true)?;
        rustix::thread::set_thread_groups(&groups)?;
        rustix::thread::set_thread_res_gid(gid, gid, gid)?;
        rustix::thread::set_thread_res_uid(uid, uid, uid)?;
        rustix::thread::set_keep_capabilities(false)
    };
    become_it().map_err(|error| format!("becoming user {} of group {}: {error}", user.uid, user.gid))
}

fn limit(sets: &Capabilities) -> Result<(), String> {
    let wanted = CapabilitySets {
        effective: set_of("effective", &sets.effective)?,
        permitted: set_of("permitted", &sets.permitted)?,
        inheritable: set_of("inheritable", &sets.inheritable)?,
    };
    let ambient = set_of("ambient", &sets.ambient)?;
    let take = || {
        rustix::thread::set_capabilities(None, wanted)?;
        rustix::thread::clear_ambient_capability_set()?;
        ambient.iter().try_for_each(|one| rustix::thread::configure_capability_in_ambient_set(one, true))
    };
    take().map_err(|error| format!("taking the capabilities: {error}"))
}
