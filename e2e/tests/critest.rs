//! The CRI conformance suite on every runtime handler, against the committed list of exceptions.
//!
//! `E2E_PARALLEL` says how many specs run at once at least. For development: `E2E_FOCUS` is a regular expression of spec
//! names, `E2E_RUNTIME=containerd` runs the reference (whose exceptions are not ours: the verdict is then only printed).

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use e2e::critest::{Exceptions, Host, Outcome, Run, Suite, Transport, run};
use e2e::daemon::{Endpoint, Setup, handlers_present};
use e2e::gate;
use e2e::node::Node;
use e2e::paths;

/// Groups of specs that must pass, apart from the list.
const GROUPS: &str = r"\[k8s\.io\] (AppArmor|Container|PodSandbox|Idempotence|Image|Multiple Containers|Networking|Runtime info|Security Context|Streaming)";

/// The group that depends on the transport.
const STREAMING: &str = r"\[k8s\.io\] Streaming";

/// One suite of a handler on a node of its own, as often as `E2E_ROUNDS` says, each time in another order
/// (`E2E_SEED` repeats one).
fn check(handler: &str, focus: &str, parallel: u8, transport: Transport) -> Result<()> {
    if !gate::open(&format!("critest on {handler}")) {
        return Ok(());
    }
    if !handlers_present().iter().any(|(name, _)| *name == handler) {
        bail!("{handler} is not here: run `make setup`");
    }
    let focus = std::env::var("E2E_FOCUS").unwrap_or_else(|_| focus.to_owned());
    let rounds = number("E2E_ROUNDS")?.unwrap_or(1);
    let parallel = number("E2E_PARALLEL")?.map_or(Ok(parallel), u8::try_from)?.max(parallel);
    for round in 1..=rounds {
        let seed = number("E2E_SEED")?.unwrap_or_else(time_seed);
        let suite = Suite { handler, focus: &focus, seed, parallel, transport };
        let title = format!(
            "critest on {handler}, {parallel} at once, {transport:?}, seed {seed}, round {round} of {rounds}"
        );
        one_round(&suite, &title)?;
    }
    Ok(())
}

fn one_round(suite: &Suite, title: &str) -> Result<()> {
    let node = Node::start(Setup::with_handler(suite.handler))?;
    let report = run(&node, suite)?;
    let list = paths::workspace().join("e2e/critest/expected-skips.txt");
    let verdict =
        Exceptions::read(&list, &Run { handler: suite.handler, host: Host::look() })?.judge(&report);
    eprintln!("{title}: {verdict}");
    if node.setup().endpoint == Endpoint::Containerd {
        let failed = report.values().filter(|outcome| matches!(outcome, Outcome::Failed(_))).count();
        eprintln!("reference: {} specs, {failed} failed", report.len());
    } else {
        ensure!(verdict.off.is_empty(), "{title}: {verdict}");
    }
    node.end();
    Ok(())
}

fn number(variable: &str) -> Result<Option<u64>> {
    let Ok(text) = std::env::var(variable) else { return Ok(None) };
    text.parse().map(Some).with_context(|| format!("{variable}={text}: expected a number"))
}

/// Another order each time; ginkgo takes 63 bits.
fn time_seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.as_secs()
}

#[test]
fn crun_conforms() -> Result<()> {
    check("crun", GROUPS, 1, Transport::Spdy)
}

#[test]
fn runc_conforms() -> Result<()> {
    check("runc", GROUPS, 1, Transport::Spdy)
}

#[test]
fn youki_conforms() -> Result<()> {
    check("youki", GROUPS, 1, Transport::Spdy)
}

#[test]
fn crun_conforms_with_four_specs_at_once() -> Result<()> {
    check("crun", GROUPS, 4, Transport::Spdy)
}

#[test]
fn streams_conform_over_websocket() -> Result<()> {
    ["crun", "runc", "youki"]
        .into_iter()
        .try_for_each(|handler| check(handler, STREAMING, 1, Transport::WebSocket))
}
