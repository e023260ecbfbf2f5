//! The CRI conformance suite: runs it on a node and compares each spec with the committed list of exceptions.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::node::Node;
use crate::{cgroup, paths};

/// How a spec ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It passed.
    Passed,
    /// It was skipped, with the reason it gave.
    Skipped(String),
    /// It failed, with the message.
    Failed(String),
}

/// Outcomes by full spec name. Specs that the focus leaves out are not in it.
pub type Report = BTreeMap<String, Outcome>;

/// A run of the suite.
#[derive(Clone, Debug)]
pub struct Suite<'a> {
    /// The runtime handler.
    pub handler: &'a str,
    /// Regular expression of spec names.
    pub focus: &'a str,
    /// Order of the specs.
    pub seed: u64,
    /// How many specs run at once.
    pub parallel: u8,
    /// What carries exec, attach and port-forward.
    pub transport: Transport,
}

/// Protocol of the client's streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// SPDY/3.1, the default of every client.
    Spdy,
    /// WebSocket `v5.channel.k8s.io`, and SPDY tunnelled in WebSocket for port-forward.
    WebSocket,
}

/// Runs the suite on a node.
pub fn run(node: &Node, suite: &Suite) -> Result<Report> {
    let report = node.dirs().top().join("critest.json");
    let endpoint = format!("unix://{}", node.dirs().socket().display());
    let web_socket = match suite.transport {
        Transport::Spdy => &[][..],
        Transport::WebSocket => &["--websocket-exec", "--websocket-attach", "--websocket-portforward"],
    };
    let program = node
        .program(paths::peer("critest")?)
        .args([format!("--runtime-endpoint={endpoint}"), format!("--image-endpoint={endpoint}")])
        .arg(format!("--runtime-handler={}", suite.handler))
        // One is the default, and refused when it is asked for.
        .args((suite.parallel > 1).then(|| format!("--parallel={}", suite.parallel)))
        .args(web_socket)
        .arg(format!("--ginkgo.json-report={}", report.display()))
        .args(["--ginkgo.no-color", "--ginkgo.flake-attempts=1"])
        .args([format!("--ginkgo.seed={}", suite.seed), format!("--ginkgo.focus={}", suite.focus)])
        .deadline(Duration::from_secs(900));
    let ended = program.run()?;
    let text = std::fs::read_to_string(&report)
        .with_context(|| format!("critest left no report:\n{}{}", ended.stdout, ended.stderr))?;
    std::fs::write(node.dirs().top().join("critest.log"), ended.stdout)?;
    parse(&text)
}

/// Reads ginkgo's JSON report.
pub fn parse(text: &str) -> Result<Report> {
    let suites: Vec<Value> = serde_json::from_str(text).context("read critest's report")?;
    let specs = suites.iter().flat_map(|suite| suite["SpecReports"].as_array().into_iter().flatten());
    let mut report = Report::new();
    for spec in specs.filter(|spec| spec["LeafNodeType"] == "It") {
        let message = spec["Failure"]["Message"].as_str().unwrap_or_default().to_owned();
        let outcome = match spec["State"].as_str().unwrap_or_default() {
            "passed" => Outcome::Passed,
            // Left out by the focus: no reason is given.
            "skipped" if message.is_empty() => continue,
            "skipped" => Outcome::Skipped(message),
            "pending" => Outcome::Skipped("pending".to_owned()),
            _ => Outcome::Failed(message),
        };
        report.insert(name(spec), outcome);
    }
    if report.is_empty() {
        bail!("critest ran no spec");
    }
    Ok(report)
}

fn name(spec: &Value) -> String {
    let containers = spec["ContainerHierarchyTexts"].as_array().into_iter().flatten();
    let words = containers.chain([&spec["LeafNodeText"]]).filter_map(Value::as_str);
    words.collect::<Vec<_>>().join(" ").replace("[k8s.io] ", "").replace(" [Conformance]", "")
}

/// A line of the list of exceptions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    Skip,
    Fail,
}

/// One run of the suite, as far as the list of exceptions distinguishes them.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// The runtime handler.
    pub handler: &'a str,
    /// What the machine has.
    pub host: Host,
}

/// What a machine has that specs depend on.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    /// AppArmor is on.
    pub apparmor: bool,
    /// All controllers are in one hierarchy.
    pub cgroup2: bool,
}

impl Host {
    /// Looks at this machine.
    #[must_use]
    pub fn look() -> Self {
        let enabled = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").unwrap_or_default();
        Self { apparmor: enabled.starts_with('Y'), cgroup2: cgroup::is_v2() }
    }
}

impl Run<'_> {
    /// Whether a line for `<handler or *>[@<condition>]` is meant for this run.
    fn is_meant(&self, whom: &str) -> Result<bool> {
        let (handler, condition) = whom.split_once('@').unwrap_or((whom, ""));
        let holds = match condition {
            "" => true,
            "no-apparmor" => !self.host.apparmor,
            "cgroup1" => !self.host.cgroup2,
            "cgroup2" => self.host.cgroup2,
            other => bail!("unknown condition {other:?}: no-apparmor, cgroup1 or cgroup2"),
        };
        Ok(holds && (handler == "*" || handler == self.handler))
    }
}

/// What a list of exceptions says about one run.
#[derive(Clone, Debug, Default)]
pub struct Exceptions(BTreeMap<String, Expected>);

impl Exceptions {
    /// Reads the list at `path`; see its head for the format.
    pub fn read(path: &Path, run: &Run<'_>) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        Self::parse(&text, run)
    }

    /// Takes a list apart: `<handler or *>[@<condition>] <skip|fail> <spec name>`, `#` starts a comment line.
    pub fn parse(text: &str, run: &Run<'_>) -> Result<Self> {
        let mut found = BTreeMap::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let mut parts = line.splitn(3, ' ').map(str::trim);
            let (Some(whom), Some(kind), Some(spec)) = (parts.next(), parts.next(), parts.next()) else {
                bail!("line {} of the exceptions has fewer than three parts", number + 1);
            };
            let kind = match kind {
                "skip" => Expected::Skip,
                "fail" => Expected::Fail,
                _ => bail!("line {} of the exceptions says neither skip nor fail", number + 1),
            };
            if run.is_meant(whom).with_context(|| format!("line {} of the exceptions", number + 1))? {
                found.insert(spec.to_owned(), kind);
            }
        }
        Ok(Self(found))
    }

    /// Compares a report with the list: an empty verdict is a pass.
    #[must_use]
    pub fn judge(&self, report: &Report) -> Verdict {
        let mut verdict = Verdict::default();
        for (spec, outcome) in report {
            let expected = self.0.get(spec);
            match (outcome, expected) {
                (Outcome::Passed, None) => verdict.passed += 1,
                (Outcome::Passed, Some(kind)) => {
                    verdict.off.push(format!("passed, but is listed as {kind:?}: {spec}"));
                }
                (Outcome::Skipped(_), Some(Expected::Skip)) => verdict.skipped += 1,
                (Outcome::Failed(_), Some(Expected::Fail)) => verdict.failed += 1,
                (outcome, _) => verdict.off.push(format!("{spec}: {outcome:?}")),
            }
        }
        verdict
    }
}

/// How a report compares with its list.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// Specs that passed.
    pub passed: usize,
    /// Specs skipped as listed.
    pub skipped: usize,
    /// Specs failed as listed.
    pub failed: usize,
    /// What the list does not allow.
    pub off: Vec<String>,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { passed, skipped, failed, off } = self;
        write!(
            f,
            "{passed} passed, {skipped} skipped and {failed} failed as listed, {} off the list",
            off.len()
        )?;
        off.iter().try_for_each(|line| write!(f, "\n  {line}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = r#"[{"SpecReports": [
        {"LeafNodeType": "BeforeSuite", "State": "passed", "LeafNodeText": ""},
        {"LeafNodeType": "It", "State": "passed", "ContainerHierarchyTexts": ["[k8s.io] A", "b"], "LeafNodeText": "works [Conformance]"},
        {"LeafNodeType": "It", "State": "skipped", "ContainerHierarchyTexts": null, "LeafNodeText": "unfocused"},
        {"LeafNodeType": "It", "State": "skipped", "ContainerHierarchyTexts": [], "LeafNodeText": "lacks", "Failure": {"Message": "no kernel"}},
        {"LeafNodeType": "It", "State": "timedout", "ContainerHierarchyTexts": [], "LeafNodeText": "hangs", "Failure": {"Message": "late"}}
    ]}]"#;

    #[test]
    fn reports_are_read() {
        let report = parse(REPORT).unwrap();
        assert_eq!(report["A b works"], Outcome::Passed);
        assert_eq!(report["lacks"], Outcome::Skipped("no kernel".into()));
        assert_eq!(report["hangs"], Outcome::Failed("late".into()));
        assert_eq!(report.len(), 3);
    }

    fn check(list: &str, off: usize) {
        let run = Run { handler: "crun", host: Host { apparmor: false, cgroup2: true } };
        let verdict = Exceptions::parse(list, &run).unwrap().judge(&parse(REPORT).unwrap());
        assert_eq!(verdict.off.len(), off, "{list}: {verdict}");
    }

    #[test]
    fn anything_off_the_list_counts() {
        check("* skip lacks\ncrun fail hangs\n", 0);
        check("# why\nrunc skip lacks\n* fail hangs\n", 1);
        check("", 2);
        check("* skip lacks\n* fail hangs\n* fail A b works\n", 1);
        check("* fail lacks\n* fail hangs\n", 1);
        check("*@no-apparmor skip lacks\ncrun@cgroup2 fail hangs\n", 0);
        check("*@cgroup1 skip lacks\nrunc@cgroup2 fail hangs\n", 2);
        let run = Run { handler: "crun", host: Host { apparmor: true, cgroup2: false } };
        for wrong in ["* maybe x", "*@monday skip x", "x"] {
            assert!(Exceptions::parse(wrong, &run).is_err(), "{wrong}");
        }
    }
}
