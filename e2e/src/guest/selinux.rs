//! SELinux in the guest: a small policy of the harness's own, compiled here, loaded there before any step is taken.
//! It is enforced.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::mount::{MountFlags, mount};

use crate::exec::Program;

/// Name of the compiled policy beside the job's file.
pub const FILE: &str = "policy";
/// Where the kernel takes a policy, and tells of it.
const MOUNT: &str = "/sys/fs/selinux";
/// The policy but for its categories, of which there is one statement each.
const SOURCE: &str = include_str!("../../selinux/policy.conf");
/// Stands in the source for the categories.
const CATEGORIES: &str = "@CATEGORIES@";
/// How many a policy for containers has.
const COUNT: u32 = 1024;
/// The binary form. A kernel reads all that are older than its own.
const VERSION: &str = "31";
/// Where an engine looks for what containers get, and what stands there.
const CONFIGURATION: [(&str, &str); 2] = [
    ("/etc/selinux/config", "SELINUX=enforcing\nSELINUXTYPE=guest\n"),
    (
        "/etc/selinux/guest/contexts/lxc_contexts",
        "process = \"system_u:system_r:container_t:s0\"\nfile = \"system_u:object_r:container_file_t:s0\"\n\
         ro_file = \"system_u:object_r:container_ro_file_t:s0\"\n",
    ),
];

/// Compiles the policy into the file `target`.
pub fn compile(target: &Path) -> Result<()> {
    let source = target.with_extension("conf");
    std::fs::write(&source, text()).with_context(|| format!("write {}", source.display()))?;
    let compiler = Program::new("checkpolicy").args(["-M", "-U", "allow", "-c", VERSION, "-o"]);
    compiler.arg(target).arg(&source).ok().context("compile the SELinux policy (run `make test-guest`)")?;
    Ok(())
}

fn text() -> String {
    let categories = (0..COUNT).fold(String::new(), |mut text, number| {
        let _never_fails = writeln!(text, "category c{number};");
        text
    });
    SOURCE.replace(CATEGORIES, &categories)
}

/// Loads a compiled policy: from here on it is enforced, and the calling process is the node's.
#[allow(clippy::disallowed_methods, reason = "the guest's own mounts are made here")]
pub fn load(policy: &Path) -> Result<()> {
    mount("selinuxfs", MOUNT, "selinuxfs", MountFlags::empty(), c"").context("mount selinuxfs")?;
    for (path, text) in CONFIGURATION {
        let path = Path::new(path);
        std::fs::create_dir_all(path.parent().unwrap_or(path))?;
        std::fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    }
    let policy = std::fs::read(policy).context("read the policy")?;
    // One write: the kernel takes no part of a policy.
    std::fs::write(Path::new(MOUNT).join("load"), policy).context("load the policy")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_has_all_categories() {
        let text = text();
        assert!(!text.contains(CATEGORIES));
        assert_eq!(text.matches("\ncategory c").count(), 1024);
        assert!(text.contains("\ncategory c0;\n") && text.contains("\ncategory c1023;\n"));
    }
}
