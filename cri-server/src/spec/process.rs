//! The container's process: command line, working directory, OOM score, flags.

use super::oci::{Capabilities, Process, User};
use super::request::Request;
use super::{OomScore, SpecError, env, lsm};

/// Files are made with 0644 and directories with 0755, whatever the mask of the monitor is.
const UMASK: u32 = 0o022;

pub(super) fn process(request: &Request<'_>, capabilities: Capabilities) -> Result<Process, SpecError> {
    let inputs = request.inputs;
    Ok(Process {
        terminal: inputs.config.tty,
        console_size: None,
        user: user(request)?,
        args: command_line(request)?,
        env: env::environment(request)?,
        cwd: working_dir(request)?,
        capabilities,
        no_new_privileges: request.security.no_new_privs,
        apparmor_profile: lsm::apparmor_profile(request)?,
        selinux_label: lsm::selinux_process_label(request)?,
        oom_score_adj: oom_score(request)?,
    })
}

/// The primary group is always among the supplementary ones: a file that denies a group something denies it to
/// processes whose primary group it is.
fn user(request: &Request<'_>) -> Result<User, SpecError> {
    let user = request.inputs.user;
    let mut additional_gids = vec![user.gid];
    additional_gids.extend(user.additional_gids.iter().copied().filter(|gid| *gid != user.gid));
    if let Some(range) = request.modes.user {
        let mut ids = additional_gids.iter().chain([&user.uid]);
        if let Some(stranger) = ids.find(|id| range.on_node(**id).is_none()) {
            let last = range.length - 1;
            let reason = format!("expected ids of the pod's user namespace, 0 to {last}, got {stranger}");
            return Err(SpecError::invalid("the container's user", reason));
        }
    }
    Ok(User { uid: user.uid, gid: user.gid, umask: Some(UMASK), additional_gids })
}

/// Command and arguments of the request over entrypoint and arguments of the image: a command replaces both of
/// the image's, arguments only its arguments.
fn command_line(request: &Request<'_>) -> Result<Vec<String>, SpecError> {
    let (config, image) = (request.inputs.config, request.inputs.image);
    let (command, args) = if !config.command.is_empty() {
        (config.command.as_slice(), config.args.as_slice())
    } else {
        let entrypoint = match image.entrypoint.as_slice() {
            [empty] if empty.is_empty() => &[],
            entrypoint => entrypoint,
        };
        (entrypoint, if config.args.is_empty() { image.cmd.as_slice() } else { config.args.as_slice() })
    };
    checked_command_line("command", [command, args].concat())
}

/// A command line that can be executed: not empty, a program, no NUL bytes.
pub(super) fn checked_command_line(field: &str, line: Vec<String>) -> Result<Vec<String>, SpecError> {
    match line.first() {
        None => return Err(SpecError::invalid(field, "neither the request nor the image names a command")),
        Some(program) if program.is_empty() => {
            return Err(SpecError::invalid(field, "the program's name is empty"));
        }
        Some(_) => {}
    }
    if line.iter().any(|arg| arg.contains('\0')) {
        return Err(SpecError::invalid(field, "NUL byte in an argument"));
    }
    Ok(line)
}

fn working_dir(request: &Request<'_>) -> Result<String, SpecError> {
    let (config, image) = (&request.inputs.config.working_dir, &request.inputs.image.working_dir);
    let (field, dir) = if !config.is_empty() {
        ("working_dir", config.clone())
    } else if image.is_empty() {
        return Ok("/".into());
    } else if image.starts_with('/') {
        ("image working directory", image.clone())
    } else {
        ("image working directory", format!("/{image}"))
    };
    if !dir.starts_with('/') || dir.contains('\0') {
        return Err(SpecError::invalid(field, format!("{dir:?} is not an absolute path")));
    }
    // An inherited descriptor of an old OCI runtime would lead out of the root by /proc/self/fd.
    if in_proc(&dir) {
        return Err(SpecError::invalid(field, format!("{dir:?} is inside /proc")));
    }
    Ok(dir)
}

/// Whether the walk along `dir` ever goes below /proc: behind a magic link, `..` leads anywhere.
fn in_proc(dir: &str) -> bool {
    let mut parts: Vec<&str> = Vec::new();
    for part in dir.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
        if parts.len() > 1 && parts[0] == "proc" {
            return true;
        }
    }
    false
}

fn oom_score(request: &Request<'_>) -> Result<Option<i32>, SpecError> {
    let linux = request.inputs.config.linux.as_ref();
    let Some(resources) = linux.and_then(|linux| linux.resources.as_ref()) else { return Ok(None) };
    let score = resources.oom_score_adj;
    if !(-1000..=1000).contains(&score) {
        let reason = format!("{score} is not between -1000 and 1000");
        return Err(SpecError::invalid("linux.resources.oom_score_adj", reason));
    }
    let score = i32::try_from(score).expect("it is between -1000 and 1000");
    Ok(Some(match request.inputs.node.oom_score {
        OomScore::Any => score,
        OomScore::AtLeast(floor) => score.max(floor),
    }))
}

#[cfg(test)]
mod tests {
    use super::super::fixture::Case;
    use super::*;

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(|s| s.to_string()).collect()
    }

    #[test]
    fn a_command_replaces_the_entrypoint_and_its_arguments() {
        let check = |image: (&[&str], &[&str]), request: (&[&str], &[&str]), expect: Option<&[&str]>| {
            let mut case = Case::new();
            case.image.entrypoint = strings(image.0);
            case.image.cmd = strings(image.1);
            case.config.command = strings(request.0);
            case.config.args = strings(request.1);
            let line = command_line(&Request::new(&case.inputs()).unwrap()).ok();
            assert_eq!(line, expect.map(strings), "{image:?} {request:?}");
        };
        check((&["e"], &["c"]), (&[], &[]), Some(&["e", "c"]));
        check((&["e"], &["c"]), (&["x"], &[]), Some(&["x"]));
        check((&["e"], &["c"]), (&[], &["a"]), Some(&["e", "a"]));
        check((&["e"], &["c"]), (&["x"], &["a", "b"]), Some(&["x", "a", "b"]));
        check((&[], &["c", "d"]), (&[], &[]), Some(&["c", "d"]));
        check((&[""], &["c"]), (&[], &[]), Some(&["c"]));
        check((&["e"], &[]), (&[], &[]), Some(&["e"]));
        check((&[], &[]), (&[], &["a"]), Some(&["a"]));
        check((&[], &[]), (&[], &[]), None);
        check((&[""], &[]), (&[], &[]), None);
        check((&[], &[]), (&[""], &["a"]), None);
        check((&[], &[]), (&["x"], &["a\0b"]), None);
    }

    #[test]
    fn the_working_directory_is_absolute_and_not_in_proc() {
        let check = |image: &str, request: &str, expect: Option<&str>| {
            let mut case = Case::new();
            case.image.working_dir = image.into();
            case.config.working_dir = request.into();
            let dir = working_dir(&Request::new(&case.inputs()).unwrap()).ok();
            assert_eq!(dir.as_deref(), expect, "{image:?} {request:?}");
        };
        check("", "", Some("/"));
        check("/srv", "", Some("/srv"));
        check("/srv", "/tmp", Some("/tmp"));
        check("srv/app", "", Some("/srv/app"));
        check("", "tmp", None);
        check("", "/a\0", None);
        check("", "/proc/self/fd/7", None);
        check("", "//proc/./1/../self/fd/7", None);
        check("/tmp/../proc/self/fd/8/../../..", "", None);
        check("", "/srv/../proc/thread-self/fd/3", None);
        check("", "/process", Some("/process"));
        check("", "/proc", Some("/proc"));
    }

    #[test]
    fn the_oom_score_is_bounded_by_the_request_and_by_the_node() {
        let check = |node: OomScore, score: i64, expect: Option<i32>| {
            let mut case = Case::new();
            case.node.oom_score = node;
            case.resources().oom_score_adj = score;
            assert_eq!(oom_score(&Request::new(&case.inputs()).unwrap()).ok().flatten(), expect, "{score}");
        };
        check(OomScore::Any, -998, Some(-998));
        check(OomScore::AtLeast(0), -998, Some(0));
        check(OomScore::AtLeast(-500), 7, Some(7));
        check(OomScore::Any, 1000, Some(1000));
        check(OomScore::Any, 1001, None);
        check(OomScore::Any, -1001, None);
        check(OomScore::Any, i64::MIN, None);
        let case = Case::new();
        assert_eq!(oom_score(&Request::new(&case.inputs()).unwrap()).unwrap(), None);
    }

    #[test]
    fn the_primary_group_is_a_supplementary_one() {
        let mut case = Case::new();
        (case.gid, case.additional_gids) = (100, vec![5, 100, 7]);
        assert_eq!(user(&Request::new(&case.inputs()).unwrap()).unwrap().additional_gids, [100, 5, 7]);
    }
}
