//! The style of the source as a test: what people can read at a glance is checked here, the rest is clippy's.
//!
//! Text-based and quick. Generated code (`proto/src/gen`) is apart. `TIDY_ROOT` names another tree to check.
#![allow(clippy::unwrap_used, reason = "all of this is a test")]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Most lines of a file before its tests.
const FILE_LINES: usize = 400;
/// Most lines of a function; the tables of tests may be longer.
const FUNCTION_LINES: usize = 60;
/// Words that say nothing about what a thing is.
const EMPTY_WORDS: [&str; 6] = ["Manager", "Helper", "Util", "Common", "Info", "Data"];
/// What the root of the repository holds, apart from dot-files and what git ignores.
const TOP_LEVEL: [&str; 16] = [
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "Makefile",
    "README.md",
    "SECURITY.md",
    "cni-bridge",
    "cni-overlay",
    "cri-server",
    "csi-nfs",
    "deploy",
    "e2e",
    "proto",
    "rust-toolchain.toml",
];

/// Who may not name what: files below a path, the words, and why.
const BOUNDARIES: [(&str, &[&str], &str); 15] = [
    ("cri-server/src/model/", &["std::fs", "tokio", "tonic", "proto::", "async fn"], "model is pure"),
    ("cri-server/src/spec/", &["std::fs", "tokio", "tonic", "async fn"], "spec is pure"),
    (
        "cri-server/src/monitor/",
        &["tokio", "tonic", "crate::rpc", "crate::service"],
        "the monitor is one thread",
    ),
    ("cri-server/src/host/", &["tonic", "crate::rpc", "crate::service", "crate::cli"], "host knows no RPC"),
    ("cri-server/src/image/", &["tonic", "crate::rpc", "crate::service", "crate::cli"], "image knows no RPC"),
    ("cri-server/src/store/", &["tonic", "crate::rpc", "crate::service", "crate::cli"], "store knows no RPC"),
    ("cri-server/src/rpc/", &["tonic", "crate::rpc::", "crate::service", "crate::cli"], "an RPC is one file"),
    ("cri-server/src/steps/", &["tonic", "crate::rpc", "crate::service"], "steps are below the RPCs"),
    ("cri-server/src/cli/", &["tonic::Status"], "gRPC is named in service and error"),
    ("cri-server/src/daemon.rs", &["tonic"], "gRPC is named in service and error"),
    ("cri-server/src/recover.rs", &["tonic", "crate::service"], "gRPC is named in service and error"),
    ("cni-bridge/", &["tonic", "tokio", "cri_server"], "plugins are plain programs"),
    ("proto/src/cni/", &["std::fs", "std::net::Tcp", "tokio", "std::process::Command"], "proto does no I/O"),
    ("cri-server/", &["cni_bridge", "csi_nfs", "cni_overlay"], "crates meet in proto"),
    ("csi-nfs/", &["cni_bridge", "cri_server", "cni_overlay"], "crates meet in proto"),
];

fn root() -> PathBuf {
    std::env::var_os("TIDY_ROOT").map_or_else(e2e::paths::workspace, PathBuf::from)
}

/// A source file: its path below the root, and its lines before the tests.
struct Source {
    path: String,
    lines: Vec<String>,
    whole: String,
}

fn sources() -> Vec<Source> {
    let root = root();
    let mut paths = Vec::new();
    for member in ["proto", "cri-server", "csi-nfs", "cni-bridge", "cni-overlay", "e2e"] {
        collect(&root.join(member), &mut paths);
    }
    let read = |path: PathBuf| {
        let whole = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<String> = whole.lines().map(str::to_owned).collect();
        let tests = if is_tests(&path) {
            Some(0)
        } else {
            lines.iter().position(|line| line.trim_start().starts_with("#[cfg(test)]"))
        };
        let lines = lines[..tests.unwrap_or(lines.len())].to_vec();
        Source { path: path.strip_prefix(&root).unwrap().display().to_string(), lines, whole }
    };
    paths.into_iter().map(read).collect()
}

/// Whether a file below `src` is the tests of its neighbour.
fn is_tests(path: &Path) -> bool {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    stem == "tests" || stem.ends_with("_tests")
}

fn collect(dir: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() && !path.ends_with("gen") && !path.ends_with("target") {
            collect(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
}

/// Fails with every finding, one a line.
fn report(findings: &[String]) {
    let mut text = String::new();
    findings.iter().for_each(|finding| writeln!(text, "  {finding}").unwrap());
    assert!(findings.is_empty(), "{} findings:\n{text}", findings.len());
}

/// Collects what `look` finds in each source file.
fn check(look: impl Fn(&Source, &mut Vec<String>)) {
    let sources = sources();
    assert!(sources.len() > 10, "no sources below {}", root().display());
    let mut findings = Vec::new();
    sources.iter().for_each(|source| look(source, &mut findings));
    report(&findings);
}

#[test]
fn files_are_short() {
    check(|source, findings| {
        if source.lines.len() > FILE_LINES {
            findings.push(format!("{}: {} lines, at most {FILE_LINES}", source.path, source.lines.len()));
        }
    });
}

#[test]
fn functions_are_short() {
    check(|source, findings| {
        if source.path.contains("/tests/") {
            return;
        }
        for (at, line) in source.lines.iter().enumerate().filter(|(_, line)| is_function(line)) {
            let length = function_length(&source.lines[at..]);
            if length > FUNCTION_LINES {
                findings.push(format!("{}:{}: {length} lines: {}", source.path, at + 1, line.trim()));
            }
        }
    });
}

fn is_function(line: &str) -> bool {
    let line = line.trim_start();
    let words: Vec<&str> = line.split_whitespace().take(5).collect();
    let qualifiers = ["pub", "pub(crate)", "pub(super)", "async", "const", "unsafe"];
    let first = words.iter().find(|word| !qualifiers.contains(word));
    first == Some(&"fn")
}

/// Lines from the signature to the closing brace, which rustfmt puts at the signature's own column.
fn function_length(lines: &[String]) -> usize {
    let Some(first) = lines.first() else { return 0 };
    if first.ends_with('}') || first.ends_with(';') {
        return 1;
    }
    let column = first.len() - first.trim_start().len();
    let closing = format!("{}}}", " ".repeat(column));
    lines.iter().position(|line| *line == closing).map_or(1, |end| end + 1)
}

#[test]
fn modules_say_what_they_own() {
    check(|source, findings| {
        let first = source.whole.lines().find(|line| !line.starts_with("#!")).unwrap_or_default();
        if !first.starts_with("//!") && !is_tests(Path::new(&source.path)) {
            findings.push(format!("{}: does not open with //!", source.path));
        }
    });
}

#[test]
fn names_say_something() {
    check(|source, findings| {
        for (at, line) in source.lines.iter().enumerate() {
            let words: Vec<&str> = line.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
            for pair in
                words.windows(2).filter(|p| ["struct", "enum", "trait", "type", "mod"].contains(&p[0]))
            {
                // A file of an RPC has the RPC's name.
                let rpc = pair[0] == "mod" && source.path.ends_with("rpc/mod.rs");
                if !rpc
                    && EMPTY_WORDS.iter().any(|word| has_word(pair[1], word))
                    && !line.trim_start().starts_with("//")
                {
                    findings.push(format!("{}:{}: {}", source.path, at + 1, pair[1]));
                }
            }
        }
    });
}

/// Whether a CamelCase or snake_case name has that word in it, singular or plural.
fn has_word(name: &str, word: &str) -> bool {
    let plural = format!("{word}s");
    let mut words = Vec::new();
    for part in name.split('_') {
        let mut start = 0;
        for (at, letter) in part.char_indices().skip(1) {
            if letter.is_uppercase() {
                words.push(&part[start..at]);
                start = at;
            }
        }
        words.push(&part[start..]);
    }
    words.iter().any(|found| found.eq_ignore_ascii_case(word) || found.eq_ignore_ascii_case(&plural))
}

#[test]
fn words_are_split() {
    for (name, word, expect) in [
        ("PodManager", "Manager", true),
        ("utils", "Util", true),
        ("Database", "Data", false),
        ("Datum", "Data", false),
    ] {
        assert_eq!(has_word(name, word), expect, "{name} {word}");
    }
}

#[test]
fn imports_go_one_way() {
    check(|source, findings| {
        for (below, words, why) in BOUNDARIES.iter().filter(|(below, ..)| source.path.starts_with(below)) {
            for (at, line) in source.lines.iter().enumerate() {
                let code = line.split("//").next().unwrap_or_default();
                let imports =
                    code.trim_start().starts_with("use ") || code.contains("::") || code.contains("fn ");
                let table = below.ends_with("rpc/") && source.path.ends_with("/mod.rs");
                for word in words.iter().filter(|word| imports && names(code, word) && !table) {
                    findings.push(format!("{}:{}: {word} ({why})", source.path, at + 1));
                }
            }
        }
    });
}

/// Whether `code` has `word` as a whole path, not as the end of a longer name.
fn names(code: &str, word: &str) -> bool {
    code.match_indices(word).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let after = code[at + word.len()..].chars().next();
        let inside = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
        !inside(before) && (word.ends_with(':') || !inside(after))
    })
}

#[test]
fn nothing_is_left_for_later() {
    // Put together here, so that this file does not find itself.
    let words = [["TO", "DO"], ["FIX", "ME"], ["XX", "X"], ["#[ign", "ore"], ["#[should", "_panic"]];
    let words = words.map(|halves| halves.concat());
    check(|source, findings| {
        for (at, line) in source.whole.lines().enumerate() {
            if let Some(word) = words.iter().find(|word| line.contains(*word)) {
                findings.push(format!("{}:{}: {word}", source.path, at + 1));
            }
        }
    });
}

#[test]
fn no_code_is_commented_out() {
    check(|source, findings| {
        for (at, line) in source.lines.iter().enumerate() {
            let Some(comment) = line.trim_start().strip_prefix("// ") else { continue };
            let code = comment.ends_with(';') || comment.ends_with('{') || comment.starts_with("let ");
            if code && comment.contains(['(', '=', ':']) {
                findings.push(format!("{}:{}: {comment}", source.path, at + 1));
            }
        }
    });
}

#[test]
fn switches_are_enums() {
    check(|source, findings| {
        for (at, line) in source.lines.iter().enumerate().filter(|(_, line)| is_function(line)) {
            let end = source.lines[at..].iter().position(|line| line.ends_with('{') || line.ends_with(';'));
            let signature = source.lines[at..=at + end.unwrap_or(0)].join(" ");
            let parameters = signature.split("->").next().unwrap_or_default();
            // `From<bool>` is where a switch becomes an enum, and a visitor of serde's visits what there is.
            let switch = parameters.contains(": bool,") || parameters.contains(": bool)");
            if switch && !parameters.contains("fn from(") && !parameters.contains("fn visit_bool<") {
                findings.push(format!("{}:{}: a bool parameter: {}", source.path, at + 1, line.trim()));
            }
        }
    });
}

#[test]
fn unsafe_code_says_why_it_is_sound() {
    check(|source, findings| {
        let lines: Vec<&str> = source.whole.lines().collect();
        for (at, line) in lines.iter().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            let block = code.contains("unsafe {") || code.contains("unsafe impl");
            let above = &lines[at.saturating_sub(6)..at];
            if block && !code.contains('"') && !above.iter().any(|line| line.contains("SAFETY:")) {
                findings.push(format!("{}:{}: no // SAFETY: above", source.path, at + 1));
            }
        }
    });
}

#[test]
fn the_top_level_is_fixed() {
    let mut findings = Vec::new();
    for entry in std::fs::read_dir(root()).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !TOP_LEVEL.contains(&name.as_str()) && !name.starts_with('.') && name != "target" {
            findings.push(name);
        }
    }
    report(&findings);
}

#[test]
fn the_readmes_commands_exist() {
    let makefile = std::fs::read_to_string(root().join("Makefile")).unwrap();
    let targets: BTreeSet<&str> =
        makefile.lines().filter_map(|line| line.split_once(':')).map(|(target, _)| target).collect();
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let mut named = BTreeSet::new();
    for code in readme.split('`').flat_map(|piece| piece.lines()) {
        if let Some(rest) = code.trim_start().strip_prefix("make ") {
            named.extend(rest.split_whitespace().next());
        }
    }
    assert!(named.contains("test") && named.contains("demo"), "the README names {named:?}");
    let unknown: Vec<String> = named.difference(&targets).map(|name| format!("make {name}")).collect();
    report(&unknown);
    let ci = std::fs::read_to_string(root().join(".ci/run")).unwrap();
    for line in ci.lines().filter_map(|line| line.strip_prefix("make ")) {
        assert!(named.contains(line), "CI runs `make {line}`, which the README does not name");
    }
}
