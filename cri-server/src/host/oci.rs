//! The OCI runtime, as a program. The monitor runs it; the daemon does only where the monitor is gone.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::processes::{Said, end_all};
use super::program::ProgramCopy;
use crate::spec::{Availability, CgroupMount, Commands, ExecBy, HandlerFacts, MaskedEqual, PropagationWords};

/// Longest answer read, bytes.
const ANSWER_LIMIT: u64 = 1 << 20;

/// Longest time for a question to an OCI runtime: a busy node must not be taken for a runtime that cannot.
const PROBE: Duration = Duration::from_secs(10);

/// First kernel with all that `enter` calls: `mount_setattr`.
const ENTER_KERNEL: (u32, u32) = (5, 12);

/// What an OCI runtime can do: from its `features`, or from its version where it has none. Run from `copy`, if any.
/// `None` when it does not say which one it is: then nothing is known of it.
pub fn probe(program: &Path, copy: Option<&ProgramCopy>) -> Option<HandlerFacts> {
    let name = program.file_name().unwrap_or_default();
    let from_memory = copy.map(ProgramCopy::path);
    let program = from_memory.as_deref().unwrap_or(program);
    let version = version(program)?;
    let (recursive_read_only, user_namespaces, labels) = match ask(program, "features") {
        Some(features) => {
            (lists_rro(&features), lists_user_namespaces(&features), !denies_selinux(&features))
        }
        None => (is_recent_crun(&version), is_recent_crun(&version), true),
    };
    let availability = |is| if is { Availability::Present } else { Availability::Missing };
    let facts = HandlerFacts {
        recursive_read_only: availability(recursive_read_only),
        user_namespaces: availability(user_namespaces),
        selinux: availability(labels),
        commands: commands(&version, name, super::node::kernel()),
        ..HandlerFacts::default()
    };
    Some(match version.starts_with("youki") {
        // Its features do not list `rro`, which it knows all the same.
        true => HandlerFacts {
            recursive_read_only: Availability::Present,
            masked_equal: MaskedEqual::ValueTwoIsMask,
            propagation: PropagationWords::Plain,
            cgroup_mount: CgroupMount::NotInJoinedPids,
            ..facts
        },
        false => facts,
    })
}

/// crun by another name makes other containers: as krun, virtual machines.
fn commands(version: &str, name: &OsStr, kernel: (u32, u32)) -> Commands {
    let is = |known: &str| version.strip_prefix(known).is_some_and(|rest| rest.starts_with(' '));
    let is_by_name = |known: &str| is(known) && name == known;
    match () {
        () if is("youki") => Commands::ByMonitor,
        () if (is_by_name("crun") || is_by_name("runc")) && kernel >= ENTER_KERNEL => Commands::ByBoth,
        () => Commands::ByRuntime,
    }
}

/// What an OCI runtime says of its version and of how it was built.
pub fn version(program: &Path) -> Option<String> {
    ask(program, "--version")
}

/// Whether the program says that it is crun or youki, which run from a copy of themselves; `None` when it says nothing.
pub fn copies_itself(program: &Path) -> Option<bool> {
    let is = |version: String| version.starts_with("crun version ") || version.starts_with("youki ");
    version(program).map(is)
}

#[allow(clippy::disallowed_methods, reason = "host/ starts programs")]
fn ask(program: &Path, question: &str) -> Option<String> {
    let mut command = Command::new(program);
    command.arg(question).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = spawn(&mut command).ok()?;
    let stdout = child.stdout.take()?;
    // The pipe ends with the program; a program that hangs is killed, which ends the pipe too.
    let (ended, end) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        let text =
            crate::host::fs::read_bounded(stdout, ANSWER_LIMIT).ok().and_then(|b| String::from_utf8(b).ok());
        // Nobody listens any more when the deadline has passed.
        ended.send(()).unwrap_or_default();
        text
    });
    if end.recv_timeout(PROBE).is_err() {
        child.kill().ok()?;
    }
    let status = child.wait().ok()?;
    reader.join().ok()?.filter(|_| status.success())
}

/// Starts a program. One whose file somebody still holds open for writing is tried again for a second.
#[allow(clippy::disallowed_methods, reason = "host/ starts programs")]
fn spawn(command: &mut Command) -> io::Result<Child> {
    let mut pause = Duration::from_millis(2);
    loop {
        match command.spawn() {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && pause.as_secs() < 1 => {
                std::thread::sleep(pause);
                pause *= 2;
            }
            other => return other,
        }
    }
}

fn lists_rro(features: &str) -> bool {
    let features: serde_json::Value = serde_json::from_str(features).unwrap_or_default();
    features["mountOptions"].as_array().is_some_and(|options| options.iter().any(|option| option == "rro"))
}

fn lists_user_namespaces(features: &str) -> bool {
    let features: serde_json::Value = serde_json::from_str(features).unwrap_or_default();
    let namespaces = features["linux"]["namespaces"].as_array();
    namespaces.is_some_and(|kinds| kinds.iter().any(|kind| kind == "user"))
}

/// Whether it says that it gives processes no SELinux labels. What is older than that question does.
fn denies_selinux(features: &str) -> bool {
    let features: serde_json::Value = serde_json::from_str(features).unwrap_or_default();
    features["linux"]["selinux"]["enabled"] == false
}

/// crun has `rro` from 1.5 on, and `features` from 1.8.6 on.
fn is_recent_crun(version: &str) -> bool {
    let Some(number) = version.lines().next().and_then(|line| line.strip_prefix("crun version ")) else {
        return false;
    };
    let mut parts = number.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) >= (1, 5)
}

/// How to call an OCI runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OciRuntime {
    /// Name of the runtime handler.
    pub name: String,
    /// The program.
    pub path: PathBuf,
    /// Its global arguments.
    pub args: Vec<String>,
    /// Its state directory.
    pub root: PathBuf,
    /// Who is to start commands in its containers, if anybody said.
    pub exec: Option<ExecBy>,
}

impl OciRuntime {
    /// With the argument that makes it read `cgroups_path` as a name for systemd, where it is one.
    pub fn for_cgroup(mut self, cgroups_path: &str) -> Self {
        if !cgroups_path.starts_with('/') {
            self.args.push("--systemd-cgroup".into());
        }
        self
    }

    /// Writes the state of the running container `id` to `images` with CRIU; the container goes on.
    pub async fn checkpoint(&self, id: &str, images: &Path) -> Result<(), String> {
        let mut command = self.command();
        command.args(["checkpoint", "--leave-running", "--file-locks", "--image-path"]).arg(images);
        command.arg("--work-path").arg(images).arg(id);
        match command.output().await {
            Ok(output) if output.status.success() => Ok(()),
            Ok(output) => {
                Err(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()))
            }
            Err(error) => Err(format!("{}: {error}", self.path.display())),
        }
    }

    /// The program with its state directory and global arguments; killed with the one who waits for it.
    #[allow(clippy::disallowed_methods, reason = "host/ starts programs")]
    fn command(&self) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(&self.path);
        command.arg("--root").arg(&self.root).args(&self.args);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    /// Kills every run of the runtime that makes or starts the container `id` and has outlived the monitor which began
    /// it, and waits until it is gone: it would go on making what is being removed. Blocks for up to `patience`.
    pub fn end_runs(&self, id: &str, patience: Duration) -> io::Result<()> {
        let (path, root) = (self.path.as_os_str().as_bytes(), self.root.as_os_str().as_bytes());
        end_all(Said::Arguments, patience, &|arguments| {
            let makes = |argument: &&[u8]| [&b"create"[..], b"start", b"exec"].contains(argument);
            arguments.first() == Some(&path)
                && arguments.contains(&root)
                && arguments.iter().any(makes)
                && arguments.last() == Some(&id.as_bytes())
        })
    }

    /// Deletes what the runtime still knows of the container `id`; nothing known is success.
    pub async fn delete(&self, id: &str, deadline: Duration) -> Result<(), String> {
        if !self.root.join(id).exists() {
            return Ok(());
        }
        let mut command = self.command();
        command.args(["delete", "--force", id]);
        match tokio::time::timeout(deadline, command.output()).await {
            Ok(Ok(output)) if output.status.success() => Ok(()),
            Ok(Ok(_)) if !self.root.join(id).exists() => Ok(()),
            Ok(Ok(output)) => Err(format!(
                "{} delete {id}: {}: {}",
                self.path.display(),
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            )),
            Ok(Err(error)) => Err(format!("{} delete {id}: {error}", self.path.display())),
            Err(_) => {
                Err(format!("{} delete {id}: took longer than {} s", self.path.display(), deadline.as_secs()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_it_can_is_known_by_features_or_version() {
        assert!(lists_rro(r#"{"mountOptions":["ro","rro"]}"#));
        assert!(!lists_rro(r#"{"mountOptions":["ro"]}"#));
        assert!(!lists_rro("Usage: ..."));
        assert!(lists_user_namespaces(r#"{"linux":{"namespaces":["pid","user"]}}"#));
        assert!(!lists_user_namespaces(r#"{"linux":{"namespaces":["pid"]}}"#));
        assert!(denies_selinux(r#"{"linux":{"selinux":{"enabled":false}}}"#));
        assert!(!denies_selinux(r#"{"linux":{"selinux":{"enabled":true}}}"#) && !denies_selinux("{}"));
        let check = |version: &str, expect| assert_eq!(is_recent_crun(version), expect, "{version}");
        check("crun version 1.8.1\ncommit: x", true);
        check("crun version 1.4.5", false);
        check("crun version 2.0", true);
        check("runc version 1.1.5", false);
    }

    #[test]
    fn commands_of_runtimes_that_are_not_known_are_left_to_them() {
        let check = |version: &str, name: &str, expect| {
            assert_eq!(commands(version, OsStr::new(name), (6, 1)), expect, "{name}: {version}");
        };
        check("crun version 1.8.1\ncommit: x", "crun", Commands::ByBoth);
        check("crun version 1.8.1\ncommit: x", "krun", Commands::ByRuntime);
        check("runc version 1.4.3", "runc", Commands::ByBoth);
        check("youki version: 0.7.0", "youki", Commands::ByMonitor);
        check("runsc version release-1", "runsc", Commands::ByRuntime);
        check("kata-runtime  : 3.2.0", "kata-runtime", Commands::ByRuntime);
        assert_eq!(commands("runc version 1.4.3", OsStr::new("runc"), (5, 10)), Commands::ByRuntime);
    }

    #[test]
    fn runs_for_one_container_end() {
        use std::os::unix::process::CommandExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("runtime");
        let root = dir.path().join("root");
        let run = |verb: &str, id: &str| {
            #[allow(clippy::disallowed_methods, reason = "stands for the OCI runtime")]
            let mut command = Command::new("/bin/sh");
            command.arg0(&path).args(["-c", "read line", "--root"]).arg(&root).args([verb, id]);
            command.stdin(Stdio::piped()).spawn().unwrap()
        };
        let mut wanted = run("create", "one");
        let mut others = [run("create", "two"), run("delete", "one")];
        let input = wanted.stdin.take();
        let runtime = OciRuntime {
            name: "r".into(),
            path: path.clone(),
            args: Vec::new(),
            root: root.clone(),
            exec: None,
        };
        let reaper = std::thread::spawn(move || wanted.wait().unwrap());
        runtime.end_runs("one", Duration::from_secs(30)).unwrap();
        assert!(reaper.join().unwrap().code().is_none(), "it ended by itself");
        drop(input);
        for other in &mut others {
            assert!(other.try_wait().unwrap().is_none(), "another run was ended");
            drop(other.stdin.take());
            other.wait().unwrap();
        }
    }
}
