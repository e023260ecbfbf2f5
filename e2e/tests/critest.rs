//! The CRI conformance suite on every runtime handler, against the committed list of exceptions.
//!
//! For development: `E2E_FOCUS` is a regular expression of spec names, `E2E_RUNTIME=containerd` runs the reference
//! (whose exceptions are not ours: the verdict is then only printed).

use anyhow::{Result, bail, ensure};
use e2e::critest::{Exceptions, Host, Outcome, Run, run};
use e2e::daemon::{Endpoint, Setup, handlers_present};
use e2e::gate;
use e2e::node::Node;
use e2e::paths;

/// Groups of specs that must pass, apart from the list.
const GROUPS: &str = r"\[k8s\.io\] (AppArmor|Container|PodSandbox|Idempotence|Image|Multiple Containers|Networking|Runtime info|Security Context)";

fn check(handler: &str) -> Result<()> {
    if !gate::open(&format!("critest on {handler}")) {
        return Ok(());
    }
    if !handlers_present().iter().any(|(name, _)| *name == handler) {
        bail!("{handler} is not here: run `make setup`");
    }
    let focus = std::env::var("E2E_FOCUS").unwrap_or_else(|_| GROUPS.to_owned());
    let node = Node::start(Setup::with_handler(handler))?;
    let report = run(&node, handler, &focus)?;
    let list = paths::workspace().join("e2e/critest/expected-skips.txt");
    let verdict = Exceptions::read(&list, &Run { handler, host: Host::look() })?.judge(&report);
    eprintln!("critest on {handler}: {verdict}");
    if node.setup().endpoint == Endpoint::Containerd {
        let failed = report.values().filter(|outcome| matches!(outcome, Outcome::Failed(_))).count();
        eprintln!("reference: {} specs, {failed} failed", report.len());
        node.end();
        return Ok(());
    }
    ensure!(verdict.off.is_empty(), "critest on {handler}: {verdict}");
    node.end();
    Ok(())
}

#[test]
fn crun_conforms() -> Result<()> {
    check("crun")
}

#[test]
fn runc_conforms() -> Result<()> {
    check("runc")
}

#[test]
fn youki_conforms() -> Result<()> {
    check("youki")
}
