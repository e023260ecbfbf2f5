//! The configuration file: one TOML document, every key optional, unknown keys refused, everything validated
//! before a socket is bound. `deploy/config/cri-server.toml` is the commented default.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::host::cgroup::{CgroupPath, Driver, Slice};
use crate::spec::ExecBy;

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("read configuration {path}")]
    Read {
        /// The configuration file.
        path: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The file is not TOML, or has a key or a value that does not belong there.
    #[error("configuration {path}: {message}")]
    Parse {
        /// The configuration file.
        path: String,
        /// Line, key and what was expected.
        message: String,
    },
    /// A value cannot be used.
    #[error("configuration {path}: {}key `{key}`: {reason}", at_line(*line))]
    Invalid {
        /// The configuration file.
        path: String,
        /// Line of the key, from 1; `None` where the file has no part of it.
        line: Option<usize>,
        /// Dotted name of the key.
        key: String,
        /// What was expected.
        reason: String,
    },
}

/// The whole configuration.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Directory of what outlives a reboot: records, images, writable layers.
    pub root: PathBuf,
    /// Directory of what does not: sockets, bundles, mount points.
    pub state: PathBuf,
    /// Socket of the CRI service.
    pub socket: PathBuf,
    /// Group that may use the socket besides root: a number.
    pub socket_gid: Option<u32>,
    /// The monitor's program.
    pub monitor: PathBuf,
    /// Where network namespaces are pinned.
    pub netns_dir: PathBuf,
    /// Where specification files of CDI devices are; a later directory has priority.
    pub cdi_spec_dirs: Vec<PathBuf>,
    /// `error`, `warn`, `info`, `debug` or `trace`, or a filter of `tracing`.
    pub log_level: String,
    /// Form of the daemon's own log.
    pub log_format: LogFormat,
    /// cgroups.
    pub cgroup: CgroupConfig,
    /// OCI runtimes.
    pub runtime: RuntimeConfig,
    /// Network plugins.
    pub cni: CniConfig,
    /// Images.
    pub image: ImageConfig,
    /// Exec, attach and port-forward.
    pub streaming: StreamingConfig,
}

/// Form of the daemon's own log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// `[cgroup]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CgroupConfig {
    /// As the kubelet's `cgroupDriver`.
    pub driver: Driver,
    /// Parent of pods whose request names none: a path, or a slice of systemd; the driver's default by default.
    pub parent: Option<String>,
}

impl CgroupConfig {
    /// Parent of pods whose request names none.
    pub fn parent(&self) -> &str {
        self.parent.as_deref().unwrap_or(self.driver.default_parent())
    }
}

/// `[runtime]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RuntimeConfig {
    /// Handler of pods whose request names none.
    pub default_handler: String,
    /// Handlers by name.
    pub handlers: BTreeMap<String, HandlerConfig>,
    /// How long a pod's monitor may stay silent after a restart of the daemon before the pod is ended, in seconds.
    pub monitor_patience_s: u64,
}

/// `[runtime.handlers.NAME]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HandlerConfig {
    /// The OCI runtime's program, absolute.
    pub path: PathBuf,
    /// Its global arguments.
    #[serde(default)]
    pub args: Vec<String>,
    /// Its state directory; `<state>/oci/<handler>` by default.
    #[serde(default)]
    pub root: Option<PathBuf>,
    /// Who starts commands in its containers; by default the monitor, where it can join them.
    #[serde(default)]
    pub exec: Option<ExecBy>,
}

/// `[cni]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CniConfig {
    /// Where network configurations are; the first one in lexical order is used.
    pub conf_dir: PathBuf,
    /// Where plugins are.
    pub bin_dirs: Vec<PathBuf>,
    /// Where results are kept for DEL, as libcni does.
    pub cache_dir: PathBuf,
    /// Longest time for one verb of a network, in seconds.
    pub deadline_s: u64,
}

/// `[image]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ImageConfig {
    /// Layers downloaded at once, over all pulls.
    pub concurrent_downloads: usize,
    /// A download that brings less than 128 KiB in this long is tried again, at last given up, in seconds.
    pub no_progress_s: u64,
    /// Registries that are not reached in the ordinary way.
    pub registry: Vec<RegistryConfig>,
}

/// `[[image.registry]]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegistryConfig {
    /// Host, with port where the reference has one.
    pub host: String,
    /// URLs asked in this order before the host itself. `http://` is taken at its word.
    #[serde(default)]
    pub mirrors: Vec<String>,
    /// The host itself speaks plain HTTP.
    #[serde(default)]
    pub plain_http: bool,
}

/// `[streaming]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StreamingConfig {
    /// Where the server for exec, attach and port-forward listens. The kubelet must reach it.
    pub address: IpAddr,
    /// Its port; 0 is any free one.
    pub port: u16,
    /// Certificate chain, PEM; read again when it changes. With it the server speaks TLS.
    pub tls_cert: Option<PathBuf>,
    /// Its key, PEM.
    pub tls_key: Option<PathBuf>,
    /// A session on which nothing is said for this long is closed, in seconds.
    pub idle_timeout_s: u64,
    /// A client that has not opened its streams after this time is given up, in seconds.
    pub stream_creation_timeout_s: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            root: "/var/lib/berth".into(),
            state: "/run/berth".into(),
            socket: "/run/berth/cri.sock".into(),
            socket_gid: None,
            monitor: "/usr/libexec/berth/cri-monitor".into(),
            netns_dir: "/var/run/netns".into(),
            cdi_spec_dirs: vec!["/etc/cdi".into(), "/var/run/cdi".into()],
            log_level: "info".into(),
            log_format: LogFormat::Text,
            cgroup: CgroupConfig::default(),
            runtime: RuntimeConfig::default(),
            cni: CniConfig::default(),
            image: ImageConfig::default(),
            streaming: StreamingConfig::default(),
        }
    }
}

impl Default for CgroupConfig {
    fn default() -> Self {
        Self { driver: Driver::Cgroupfs, parent: None }
    }
}

impl Default for RuntimeConfig {
    fn default() -> Self {
        let crun = HandlerConfig { path: "/usr/bin/crun".into(), args: Vec::new(), root: None, exec: None };
        let handlers = BTreeMap::from([("crun".to_string(), crun)]);
        Self { default_handler: "crun".into(), handlers, monitor_patience_s: 60 }
    }
}

impl Default for CniConfig {
    fn default() -> Self {
        Self {
            conf_dir: "/etc/cni/net.d".into(),
            bin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
            cache_dir: "/var/lib/cni".into(),
            deadline_s: 60,
        }
    }
}

impl Default for ImageConfig {
    fn default() -> Self {
        Self { concurrent_downloads: 6, no_progress_s: 60, registry: Vec::new() }
    }
}

impl Default for StreamingConfig {
    fn default() -> Self {
        Self {
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 0,
            tls_cert: None,
            tls_key: None,
            idle_timeout_s: 4 * 60 * 60,
            stream_creation_timeout_s: 30,
        }
    }
}

impl Config {
    /// Reads and validates `path`.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: name.clone(), source })?;
        Self::parse(&name, &text)
    }

    fn parse(path: &str, text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| ConfigError::Parse {
            path: path.into(),
            message: error.to_string().trim().into(),
        })?;
        config.validate().map_err(|(key, reason)| {
            let line = line_of(text, &key);
            ConfigError::Invalid { path: path.into(), line, key, reason }
        })?;
        Ok(config)
    }

    fn validate(&self) -> Result<(), (String, String)> {
        for (key, path) in self.paths() {
            if !path.is_absolute() {
                return Err((key, format!("expected an absolute path, got {path:?}")));
            }
        }
        self.validate_cgroup_parent().map_err(|reason| ("cgroup.parent".to_string(), reason))?;
        let handler = &self.runtime.default_handler;
        if !self.runtime.handlers.contains_key(handler) {
            return Err((
                "runtime.default_handler".into(),
                format!("no handler named {handler:?} is configured"),
            ));
        }
        if self.streaming.tls_cert.is_some() != self.streaming.tls_key.is_some() {
            return Err((
                "streaming.tls_cert".into(),
                "expected `tls_cert` and `tls_key`, or neither".into(),
            ));
        }
        let positive = [
            ("cni.deadline_s", self.cni.deadline_s),
            ("image.concurrent_downloads", self.image.concurrent_downloads as u64),
            ("image.no_progress_s", self.image.no_progress_s),
            ("streaming.idle_timeout_s", self.streaming.idle_timeout_s),
            ("streaming.stream_creation_timeout_s", self.streaming.stream_creation_timeout_s),
        ];
        match positive.iter().find(|(_, value)| *value == 0) {
            Some((key, _)) => Err((key.to_string(), "expected a number above 0".into())),
            None => Ok(()),
        }
    }

    fn validate_cgroup_parent(&self) -> Result<(), String> {
        let parent = self.cgroup.parent();
        let checked = match self.cgroup.driver {
            Driver::Cgroupfs if !parent.starts_with('/') => {
                return Err(format!("expected an absolute path, got {parent:?}"));
            }
            Driver::Cgroupfs => CgroupPath::parent(parent).map(drop),
            Driver::Systemd => Slice::parse(parent).map(drop),
        };
        checked.map_err(|error| error.to_string())
    }

    fn paths(&self) -> Vec<(String, &PathBuf)> {
        let mut paths = vec![
            ("root".to_string(), &self.root),
            ("state".into(), &self.state),
            ("socket".into(), &self.socket),
            ("monitor".into(), &self.monitor),
            ("netns_dir".into(), &self.netns_dir),
            ("cni.conf_dir".into(), &self.cni.conf_dir),
            ("cni.cache_dir".into(), &self.cni.cache_dir),
        ];
        paths.extend(self.cdi_spec_dirs.iter().map(|path| ("cdi_spec_dirs".into(), path)));
        paths.extend(self.cni.bin_dirs.iter().map(|path| ("cni.bin_dirs".into(), path)));
        paths.extend(self.streaming.tls_cert.iter().map(|path| ("streaming.tls_cert".into(), path)));
        paths.extend(self.streaming.tls_key.iter().map(|path| ("streaming.tls_key".into(), path)));
        for (name, handler) in &self.runtime.handlers {
            paths.push((format!("runtime.handlers.{name}.path"), &handler.path));
            paths.extend(handler.root.iter().map(|path| (format!("runtime.handlers.{name}.root"), path)));
        }
        paths
    }
}

fn at_line(line: Option<usize>) -> String {
    line.map_or_else(String::new, |line| format!("line {line}: "))
}

/// The line of a dotted key, or of as much of its beginning as the text has: for a key that is missed there.
fn line_of(text: &str, key: &str) -> Option<usize> {
    let document = toml::de::DeTable::parse(text).ok()?;
    let mut table = document.get_ref();
    let mut offset = None;
    let mut rest = key;
    while !rest.is_empty() {
        // A name may have dots in it: the longest one that is there.
        let found = table.iter().filter(|(name, _)| is_first(name.get_ref(), rest));
        let Some((name, value)) = found.max_by_key(|(name, _)| name.get_ref().len()) else { break };
        offset = Some(name.span().start);
        rest = rest[name.get_ref().len()..].trim_start_matches('.');
        match value.get_ref() {
            toml::de::DeValue::Table(inner) => table = inner,
            _a_value => break,
        }
    }
    offset.map(|offset| 1 + text[..offset].matches('\n').count())
}

fn is_first(name: &str, key: &str) -> bool {
    key.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_keys_and_values_are_named() {
        let check = |text: &str, expect: &[&str]| {
            let error = Config::parse("c.toml", text).expect_err(text).to_string();
            for word in expect {
                assert!(error.contains(word), "{text}: {error}");
            }
        };
        check("rot = \"/x\"", &["line 1", "rot"]);
        check("\n[cni]\nbin_dir = []", &["line 3", "bin_dir"]);
        check("root = 7", &["line 1", "root"]);
        check("root = \"x\"", &["line 1: key `root`", "absolute"]);
        check("cdi_spec_dirs = [\"/etc/cdi\", \"x\"]", &["`cdi_spec_dirs`", "absolute"]);
        check("[cgroup]\ndriver = \"both\"", &["driver", "cgroupfs", "systemd"]);
        check("[cgroup]\nparent = \"berth\"", &["line 2: key `cgroup.parent`", "absolute"]);
        check("[cgroup]\nparent = \"/a.slice\"", &["cgroup.parent", "driver is cgroupfs"]);
        check("[cgroup]\ndriver = \"systemd\"\nparent = \"/berth\"", &["cgroup.parent", "driver is systemd"]);
        check("[cgroup]\ndriver = \"systemd\"\nparent = \"a--b.slice\"", &["cgroup.parent", "empty"]);
        check("[runtime]\ndefault_handler = \"kata\"", &["runtime.default_handler", "kata"]);
        check("\n[cni]\n# none\ndeadline_s = 0", &["line 4: key `cni.deadline_s`"]);
        check(
            "[image]\nno_progress_s = 1\n[runtime.handlers.b]\npath = \"/b\"",
            &["line 3", "runtime.default_handler"],
        );
        check("[streaming]\naddress = \"localhost\"", &["line 2", "address"]);
        check("[streaming]\ntls_cert = \"/c.pem\"", &["line 2", "streaming.tls_cert", "tls_key"]);
        check("[streaming]\ntls_key = \"/k.pem\"", &["line 1", "streaming.tls_cert", "tls_key"]);
        check("[streaming]\nidle_timeout_s = 0", &["streaming.idle_timeout_s"]);
        check("log_format = \"xml\"", &["line 1", "xml"]);
        check("[runtime.handlers.a]\npath = \"crun\"", &["line 2: key `runtime.handlers.a.path`"]);
        check(
            "[runtime.handlers]\n\"a.b\" = { path = \"crun\" }",
            &["line 2: key `runtime.handlers.a.b.path`"],
        );
        check("cni.cache_dir = \"x\"", &["line 1: key `cni.cache_dir`"]);
    }

    #[test]
    fn the_shipped_file_is_the_default() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/config/cri-server.toml");
        let shipped = Config::load(&path).unwrap();
        assert_eq!(format!("{shipped:?}"), format!("{:?}", Config::default()));
    }
}
