//! What a test needs from the machine, checked once and said aloud when it lacks.

use crate::image::set;
use crate::paths;

/// True when the machine can run end-to-end tests; otherwise says what is missing, and fails the test when
/// `E2E_REQUIRE=1`.
#[must_use]
pub fn open(test: &str) -> bool {
    let missing = missing();
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
