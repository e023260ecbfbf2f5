//! Network configurations: finding, reading and checking them (CNI specification 1.1, section 1).
//!
//! The directory is read at each use: it holds a few small files, and so no change of it is ever missed and
//! nothing runs while the node is idle. Nothing here runs plugins.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};
use serde_json::{Map, Value};

use crate::host::fs::read_bounded;

const LIMIT: u64 = 1 << 20;
const MAX_PLUGINS: usize = 64;

/// A network: the plugins to run, in order.
#[derive(Debug, Clone, PartialEq)]
pub struct Network {
    /// Its name, unique on the node.
    pub name: String,
    /// Version of the specification that its plugins are called with.
    pub version: SpecVersion,
    /// CHECK must not be called.
    pub disable_check: bool,
    /// GC must not be called, because others use the network too.
    pub disable_gc: bool,
    /// The plugins in the order of ADD; at least one.
    pub plugins: Vec<Plugin>,
    /// The whole list as JSON: the file's bytes where possible.
    pub bytes: Vec<u8>,
}

/// One plugin of a network.
#[derive(Debug, Clone, PartialEq)]
pub struct Plugin {
    /// File name of its executable: has no `/` and is no `..`.
    pub kind: String,
    /// Its configuration object, as written, without `capabilities`.
    pub conf: Map<String, Value>,
    /// Capabilities that it wants arguments for.
    pub capabilities: Vec<String>,
}

/// A version of the CNI specification that Berth speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SpecVersion(u8, u8, u8);

impl SpecVersion {
    /// First version with CHECK and with `prevResult` at DEL.
    pub const V0_4_0: Self = Self(0, 4, 0);
    /// First version with GC and STATUS.
    pub const V1_1_0: Self = Self(1, 1, 0);

    const KNOWN: [Self; 7] = [
        Self(0, 1, 0),
        Self(0, 2, 0),
        Self(0, 3, 0),
        Self(0, 3, 1),
        Self::V0_4_0,
        Self(1, 0, 0),
        Self::V1_1_0,
    ];

    fn parse(text: &str) -> Option<Self> {
        Self::KNOWN.into_iter().find(|known| known.to_string() == text)
    }
}

impl fmt::Display for SpecVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// A file of the configuration directory that is no network configuration.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{}: {problem}", file.display())]
pub struct Rejected {
    /// The file.
    pub file: PathBuf,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{key}: {reason}")]
pub struct Problem {
    /// Path of the offending key, such as `plugins[1].type`, or `(file)`.
    pub key: String,
    /// Why it is refused.
    pub reason: String,
}

/// No file of the configuration directory is a usable network configuration.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("no CNI network configuration in {}{}", dir.display(), list(rejected))]
pub struct NoNetwork {
    /// The configuration directory.
    pub dir: PathBuf,
    /// The files that were looked at.
    pub rejected: Vec<Rejected>,
}

fn list(rejected: &[Rejected]) -> String {
    rejected.iter().map(|r| format!("; {r}")).collect()
}

/// Reads the first valid network of `dir` in the order of file names, and the files before it that are none.
pub fn load(dir: &Path) -> Result<(Network, Vec<Rejected>), NoNetwork> {
    let none = |rejected| NoNetwork { dir: dir.to_path_buf(), rejected };
    let unreadable = |file: &Path, error: io::Error| Rejected {
        file: file.to_path_buf(),
        problem: problem("(file)", error.to_string()),
    };
    let files = files(dir, &["conf", "conflist", "json"]).map_err(|e| none(vec![unreadable(dir, e)]))?;
    let mut rejected = Vec::new();
    for file in files {
        let network = match read(&file) {
            Ok(Some(bytes)) => parse(&file, &bytes),
            Ok(None) => continue,
            Err(error) => Err(problem("(file)", error.to_string())),
        };
        match network {
            Ok(network) => return Ok((network, rejected)),
            Err(problem) => rejected.push(Rejected { file, problem }),
        }
    }
    Err(none(rejected))
}

fn files(dir: &Path, extensions: &[&str]) -> io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|found| extensions.iter().any(|wanted| found == *wanted)) {
            files.push(path);
        }
    }
    files.sort_unstable();
    Ok(files)
}

/// The content of a regular file; `None` for a directory, and for a file that went away.
fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => file,
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    match FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) {
        FileType::RegularFile => read_bounded(std::fs::File::from(file), LIMIT).map(Some),
        FileType::Directory => Ok(None),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "not a regular file")),
    }
}

fn parse(file: &Path, bytes: &[u8]) -> Result<Network, Problem> {
    if file.extension().is_some_and(|extension| extension == "conflist") {
        let mut network = from_list(bytes, Plugins::MayBeElsewhere)?;
        add_plugins_of_directory(file, &mut network)?;
        return Ok(network);
    }
    let plugin = object(bytes)?;
    if plugin.contains_key("plugins") {
        return Err(problem("plugins", "a list of plugins belongs in a file named *.conflist".into()));
    }
    let mut wrapped = Map::new();
    for key in ["name", "cniVersion"] {
        wrapped.extend(plugin.get(key).map(|value| (key.to_string(), value.clone())));
    }
    wrapped.insert("plugins".into(), Value::Array(vec![Value::Object(plugin)]));
    from_list(Value::Object(wrapped).to_string().as_bytes(), Plugins::Inlined)
}

/// Appends `<directory>/<network>/*.conf`, unless the list says that all plugins are inlined.
fn add_plugins_of_directory(file: &Path, network: &mut Network) -> Result<(), Problem> {
    let mut list = object(&network.bytes)?;
    if !flag(&list, "loadOnlyInlinedPlugins")? {
        let dir = file.parent().unwrap_or(Path::new("/")).join(&network.name);
        let failed = |error: io::Error| problem(&dir.display().to_string(), error.to_string());
        let mut found = Vec::new();
        for file in files(&dir, &["conf"]).map_err(failed)? {
            let Some(bytes) = read(&file).map_err(failed)? else { continue };
            let key = file.display().to_string();
            let conf = Value::Object(object(&bytes).map_err(|p| problem(&key, p.reason))?);
            network.plugins.push(plugin(&key, &conf)?);
            found.push(conf);
        }
        if !found.is_empty() {
            let plugins = list.entry("plugins").or_insert_with(|| Value::Array(Vec::new()));
            plugins.as_array_mut().expect("it was parsed as an array or just inserted").extend(found);
            network.bytes = Value::Object(list).to_string().into_bytes();
        }
    }
    if network.plugins.is_empty() {
        return Err(problem("plugins", "missing".into()));
    }
    Ok(())
}

/// Where the plugins of a list may be.
#[derive(Clone, Copy, PartialEq)]
enum Plugins {
    Inlined,
    MayBeElsewhere,
}

/// Parses a complete network configuration list, such as the one kept in a record.
pub fn from_bytes(bytes: &[u8]) -> Result<Network, Problem> {
    from_list(bytes, Plugins::Inlined)
}

fn from_list(bytes: &[u8], place: Plugins) -> Result<Network, Problem> {
    let list = object(bytes)?;
    let name = match list.get("name") {
        Some(Value::String(name)) if is_network_name(name) => name.clone(),
        Some(other) => return Err(problem("name", format!("{other} is no network name"))),
        None => return Err(problem("name", "missing".into())),
    };
    let confs = match list.get("plugins") {
        Some(Value::Array(confs)) if !confs.is_empty() => confs.as_slice(),
        Some(Value::Array(_)) => return Err(problem("plugins", "empty".into())),
        Some(_) => return Err(problem("plugins", "not a list".into())),
        None if place == Plugins::MayBeElsewhere => &[],
        None => return Err(problem("plugins", "missing".into())),
    };
    if confs.len() > MAX_PLUGINS {
        return Err(problem("plugins", format!("more than {MAX_PLUGINS}")));
    }
    let plugins = confs.iter().enumerate().map(|(index, conf)| plugin(&format!("plugins[{index}]"), conf));
    Ok(Network {
        name,
        version: version(&list)?,
        disable_check: flag(&list, "disableCheck")?,
        disable_gc: flag(&list, "disableGC")?,
        plugins: plugins.collect::<Result<_, _>>()?,
        bytes: bytes.to_vec(),
    })
}

fn plugin(key: &str, conf: &Value) -> Result<Plugin, Problem> {
    let Value::Object(conf) = conf else { return Err(problem(key, "not an object".into())) };
    let kind = match conf.get("type") {
        Some(Value::String(kind)) if is_plugin_type(kind) => kind.clone(),
        Some(other) => return Err(problem(&format!("{key}.type"), format!("{other} is no plugin name"))),
        None => return Err(problem(&format!("{key}.type"), "missing".into())),
    };
    let mut conf = conf.clone();
    let capabilities = match conf.remove("capabilities") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Object(map)) => {
            map.into_iter().filter(|(_, wanted)| *wanted == Value::Bool(true)).map(|(name, _)| name).collect()
        }
        Some(_) => return Err(problem(&format!("{key}.capabilities"), "not an object".into())),
    };
    Ok(Plugin { kind, conf, capabilities })
}

/// The highest version that the list allows and Berth knows; a list without any means 0.1.0.
fn version(list: &Map<String, Value>) -> Result<SpecVersion, Problem> {
    let mut wanted = Vec::new();
    for key in ["cniVersion", "cniVersions"] {
        match list.get(key) {
            None => {}
            Some(Value::String(text)) if key == "cniVersion" => {
                wanted.extend((!text.is_empty()).then_some(text))
            }
            Some(Value::Array(all)) if key == "cniVersions" => {
                for value in all {
                    let Value::String(text) = value else {
                        return Err(problem(key, "not a list of strings".into()));
                    };
                    wanted.push(text);
                }
            }
            Some(other) => return Err(problem(key, format!("{other} is of the wrong type"))),
        }
    }
    if wanted.is_empty() {
        return Ok(SpecVersion(0, 1, 0));
    }
    let known = wanted.iter().filter_map(|text| SpecVersion::parse(text)).max();
    known.ok_or_else(|| {
        let newest = SpecVersion::V1_1_0;
        problem("cniVersion", format!("{wanted:?}: no version of the specification up to {newest}"))
    })
}

/// A boolean, which may be written as a string.
fn flag(list: &Map<String, Value>, key: &str) -> Result<bool, Problem> {
    match list.get(key) {
        None => Ok(false),
        Some(Value::Bool(value)) => Ok(*value),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(false),
        Some(other) => Err(problem(key, format!("{other} is neither true nor false"))),
    }
}

fn object(bytes: &[u8]) -> Result<Map<String, Value>, Problem> {
    serde_json::from_slice(bytes).map_err(|error| problem("(file)", format!("not a JSON object: {error}")))
}

fn problem(key: &str, reason: String) -> Problem {
    Problem { key: key.to_string(), reason }
}

/// Network names become parts of file names; the specification allows letters, digits and `_.-`.
fn is_network_name(name: &str) -> bool {
    let start = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    start && name.len() <= 128 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

/// A plugin is one file of the plugin directories, never a path.
fn is_plugin_type(kind: &str) -> bool {
    !kind.is_empty() && kind.len() <= 255 && !kind.contains(['/', '\0']) && kind != "." && kind != ".."
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem_of(text: &str) -> String {
        from_bytes(text.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn a_bad_list_is_named_by_its_key() {
        for (text, expect) in [
            ("", "(file): not a JSON object"),
            ("[]", "(file): not a JSON object"),
            ("{}", "name: missing"),
            (r#"{"name":7}"#, "name: 7 is no network name"),
            (r#"{"name":"../x"}"#, r#"name: "../x" is no network name"#),
            (r#"{"name":"n"}"#, "plugins: missing"),
            (r#"{"name":"n","plugins":[]}"#, "plugins: empty"),
            (r#"{"name":"n","plugins":{}}"#, "plugins: not a list"),
            (r#"{"name":"n","plugins":[1]}"#, "plugins[0]: not an object"),
            (r#"{"name":"n","plugins":[{"type":"a"},{}]}"#, "plugins[1].type: missing"),
            (r#"{"name":"n","plugins":[{"type":"../sh"}]}"#, r#"plugins[0].type: "../sh" is no plugin name"#),
            (r#"{"name":"n","plugins":[{"type":".."}]}"#, r#"plugins[0].type: ".." is no plugin name"#),
            (
                r#"{"name":"n","plugins":[{"type":"a","capabilities":[]}]}"#,
                "plugins[0].capabilities: not an object",
            ),
            (r#"{"name":"n","cniVersion":1,"plugins":[{"type":"a"}]}"#, "cniVersion: 1 is of the wrong type"),
            (
                r#"{"name":"n","cniVersion":"9.0.0","plugins":[{"type":"a"}]}"#,
                r#"cniVersion: ["9.0.0"]: no version"#,
            ),
            (
                r#"{"name":"n","disableGC":3,"plugins":[{"type":"a"}]}"#,
                "disableGC: 3 is neither true nor false",
            ),
        ] {
            assert!(problem_of(text).starts_with(expect), "{text}: {}", problem_of(text));
        }
    }

    #[test]
    fn the_highest_common_version_is_used() {
        for (keys, expect) in [
            ("", "0.1.0"),
            (r#""cniVersion":"","#, "0.1.0"),
            (r#""cniVersion":"0.3.1","#, "0.3.1"),
            (r#""cniVersion":"1.0.0","cniVersions":["0.4.0","1.1.0","9.9.9"],"#, "1.1.0"),
            (r#""cniVersion":"2.0.0","cniVersions":["0.4.0"],"#, "0.4.0"),
        ] {
            let text = format!(r#"{{{keys}"name":"n","plugins":[{{"type":"a"}}]}}"#);
            assert_eq!(from_bytes(text.as_bytes()).unwrap().version.to_string(), expect, "{text}");
        }
    }

    fn list(name: &str) -> String {
        format!(r#"{{"name":"{name}","cniVersion":"1.0.0","plugins":[{{"type":"a"}}]}}"#)
    }

    #[test]
    fn the_first_valid_file_wins_and_every_change_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let put = |file: &str, text: &str| std::fs::write(dir.path().join(file), text).unwrap();
        let name = || load(dir.path()).map(|(network, rejected)| (network.name, rejected.len()));
        assert!(name().unwrap_err().to_string().starts_with("no CNI network configuration in "));
        put("20-b.conflist", &list("b"));
        put("README", "no configuration");
        std::fs::create_dir(dir.path().join("00-dir.conf")).unwrap();
        assert_eq!(name().unwrap(), ("b".into(), 0));
        put("10-broken.conf", "{");
        assert_eq!(name().unwrap(), ("b".into(), 1));
        put("10-broken.conf", r#"{"name":"a","type":"x"}"#);
        assert_eq!(name().unwrap(), ("a".into(), 0));
        put("10-broken.conf", r#"{"name":"c","type":"x"}"#);
        assert_eq!(name().unwrap(), ("c".into(), 0));
        std::fs::remove_file(dir.path().join("10-broken.conf")).unwrap();
        put("new", &list("d"));
        std::fs::rename(dir.path().join("new"), dir.path().join("20-b.conflist")).unwrap();
        assert_eq!(name().unwrap(), ("d".into(), 0));
        std::fs::remove_file(dir.path().join("20-b.conflist")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, dir.path().join("1.conf"), FileType::Fifo, Mode::RUSR, 0)
            .unwrap();
        assert!(name().unwrap_err().to_string().ends_with("1.conf: (file): not a regular file"));
        std::fs::remove_dir_all(dir.path()).unwrap();
        assert_eq!(name().unwrap_err().rejected, []);
    }

    #[test]
    fn a_single_plugin_becomes_a_list_and_a_directory_adds_plugins() {
        let dir = tempfile::tempdir().unwrap();
        let put = |file: &str, text: &str| std::fs::write(dir.path().join(file), text).unwrap();
        put(
            "1.conf",
            r#"{"name":"one","cniVersion":"0.4.0","type":"x","capabilities":{"dns":true,"mac":false}}"#,
        );
        let network = load(dir.path()).unwrap().0;
        assert_eq!((network.version, network.plugins.len()), (SpecVersion::V0_4_0, 1));
        assert_eq!(network.plugins[0].capabilities, ["dns"]);
        assert!(!network.plugins[0].conf.contains_key("capabilities"));
        assert_eq!(from_bytes(&network.bytes).unwrap().plugins, network.plugins);

        std::fs::create_dir(dir.path().join("n")).unwrap();
        put("0.conflist", r#"{"name":"n","cniVersion":"1.1.0"}"#);
        assert_eq!(load(dir.path()).unwrap().1[0].problem.to_string(), "plugins: missing");
        put("n/2.conf", r#"{"type":"b"}"#);
        put("n/1.conf", r#"{"type":"a"}"#);
        let network = load(dir.path()).unwrap().0;
        assert_eq!(network.plugins.iter().map(|p| p.kind.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(from_bytes(&network.bytes).unwrap().plugins, network.plugins);
        put("0.conflist", r#"{"name":"n","loadOnlyInlinedPlugins":true,"plugins":[{"type":"z"}]}"#);
        assert_eq!(load(dir.path()).unwrap().0.plugins.len(), 1);
    }
}
