//! The programs that the guest runs: built here by cargo, and found again by what cargo says of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::exec::Program;
use crate::paths;

/// Packages that are built together, as `make test` builds them: another selection would build all libraries anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selection {
    /// Everything but the harness.
    Products,
    /// The harness and its tests.
    Harness,
}

impl Selection {
    fn args(self) -> &'static [&'static str] {
        match self {
            Self::Products => &["--workspace", "--exclude", "e2e"],
            Self::Harness => &["-p", "e2e"],
        }
    }
}

/// Programs by target name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Built {
    /// Test programs; a library's unit tests have the library's name.
    pub tests: BTreeMap<String, PathBuf>,
    /// Binaries that tests start.
    pub binaries: BTreeMap<String, PathBuf>,
}

impl Built {
    /// Has cargo build the tests of these packages, which is quick when they are there.
    pub fn by_cargo(selections: &[Selection]) -> Result<Self> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut said = String::new();
        for selection in selections {
            let program = Program::new(&cargo).args(["test", "--no-run", "--quiet"]).args(selection.args());
            let program = program.arg("--message-format=json-render-diagnostics").dir(&paths::workspace());
            let ended = program.deadline(Duration::from_secs(3600)).run()?;
            ensure!(ended.status.success(), "cargo cannot build the tests:\n{}", ended.stderr);
            said += &ended.stdout;
        }
        Ok(Self::parse(&said))
    }

    fn parse(said: &str) -> Self {
        let mut built = Self::default();
        for artifact in said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
            let (Some(path), Some(name)) =
                (artifact["executable"].as_str(), artifact["target"]["name"].as_str())
            else {
                continue;
            };
            let is_test = artifact["profile"]["test"] == true;
            // The unit tests of a binary's own file have its name too, and nothing in them.
            if is_test && artifact["target"]["kind"][0] == "bin" {
                continue;
            }
            let list = if is_test { &mut built.tests } else { &mut built.binaries };
            list.insert(name.to_owned(), PathBuf::from(path));
        }
        built
    }

    /// The test program of that name.
    pub fn test(&self, name: &str) -> Result<&Path> {
        self.tests.get(name).map(PathBuf::as_path).with_context(|| format!("cargo built no test {name}"))
    }

    /// The binary of that name.
    pub fn binary(&self, name: &str) -> Result<&Path> {
        self.binaries.get(name).map(PathBuf::as_path).with_context(|| format!("cargo built no binary {name}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cargo_says_is_taken_apart() {
        let said = r#"{"reason":"compiler-artifact","target":{"name":"a","kind":["lib"]},"profile":{"test":true},"executable":"/t/a-1"}
{"reason":"compiler-artifact","target":{"name":"a","kind":["lib"]},"profile":{"test":false},"executable":null}
{"reason":"compiler-artifact","target":{"name":"b","kind":["bin"]},"profile":{"test":false},"executable":"/t/b"}
{"reason":"compiler-artifact","target":{"name":"b","kind":["bin"]},"profile":{"test":true},"executable":"/t/b-2"}
{"reason":"build-finished","success":true}"#;
        let built = Built::parse(said);
        assert_eq!(built.test("a").unwrap(), Path::new("/t/a-1"));
        assert_eq!(built.binary("b").unwrap(), Path::new("/t/b"));
        assert!(built.test("b").is_err());
    }
}
