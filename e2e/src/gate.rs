//! What a test needs from the machine, checked once and said aloud when it lacks.

use std::path::Path;

use crate::image::set;
use crate::paths;

/// True when the machine can run end-to-end tests; otherwise says what is missing, and fails the test when
/// `E2E_REQUIRE=1`.
#[must_use]
pub fn open(test: &str) -> bool {
    judge(test, missing())
}

/// As [`open`], for a test that runs these tools of the machine and no container.
#[must_use]
pub fn open_for(test: &str, tools: &[&str]) -> bool {
    let root = (!rustix::process::geteuid().is_root()).then(|| "root".to_owned());
    let absent = tools.iter().filter(|tool| paths::in_path(tool).is_none()).map(|tool| (*tool).to_owned());
    judge(test, root.into_iter().chain(absent).collect())
}

/// As [`open`], for a test of SELinux. That is the kernel's to have: its lack is a failure only where
/// `E2E_REQUIRE_SELINUX=1`, as in the guest that is booted for it.
#[must_use]
pub fn open_with_selinux(test: &str) -> bool {
    if Path::new("/sys/fs/selinux/enforce").exists() {
        return open(test);
    }
    assert!(std::env::var_os("E2E_REQUIRE_SELINUX").is_none_or(|v| v != "1"), "{test} needs SELinux");
    eprintln!("SKIPPED {test}: needs a kernel with SELinux on (`make test-guest` boots one)");
    false
}

fn judge(test: &str, missing: Vec<String>) -> bool {
    if missing.is_empty() {
        return true;
    }
    let missing = missing.join(", ");
    assert!(std::env::var_os("E2E_REQUIRE").is_none_or(|v| v != "1"), "{test} needs {missing}");
    eprintln!("SKIPPED {test}: needs {missing} (run `make setup`; E2E_REQUIRE=1 makes this a failure)");
    false
}

/// What end-to-end tests need and this machine lacks.
fn missing() -> Vec<String> {
    let mut missing = Vec::new();
    if !rustix::process::geteuid().is_root() {
        missing.push("root".to_owned());
    }
    // Images are compiled here, unless somebody has handed them in.
    let compiler = if set::handed_in().is_none() { &["gcc"][..] } else { &[] };
    for tool in ["docker-registry", "busybox", "ip", "nft"].iter().chain(compiler) {
        if paths::in_path(tool).is_none() {
            missing.push((*tool).to_owned());
        }
    }
    missing
}
