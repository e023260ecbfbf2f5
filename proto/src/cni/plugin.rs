//! The plugin skeleton: reads environment and standard input, calls the verb, writes the result or the error.
//!
//! Knows the protocol, nothing about networks. Standard output carries one JSON object or nothing; anything for
//! people goes to standard error.

use std::io::{Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::args::{Attachment, CniArgs, Invocation};
use super::conf::{NetConf, parse_map};
use super::error::{CniError, ErrorCode};
use super::result::CniResult;
use super::version::SpecVersion;

/// The largest configuration that is read, in bytes; GC of many thousand attachments fits.
pub const MAX_CONFIG_BYTES: u64 = 8 << 20;

/// A CNI plugin: one method per verb (VERSION is answered by the skeleton).
pub trait Plugin {
    /// The plugin's name, as in `type`.
    fn name(&self) -> &'static str;
    /// Attaches the container; what fails half-way is undone by the plugin.
    fn add(&self, request: &Request, attachment: &Attachment, netns: &Path) -> Result<CniResult, CniError>;
    /// Undoes [`Plugin::add`]. Whatever is gone already is success.
    fn del(&self, request: &Request, attachment: &Attachment, netns: Option<&Path>) -> Result<(), CniError>;
    /// Verifies that what ADD made is still in place.
    fn check(&self, request: &Request, attachment: &Attachment, netns: &Path) -> Result<(), CniError>;
    /// Removes what belongs to this network and to none of the valid attachments.
    fn gc(&self, request: &Request) -> Result<(), CniError>;
    /// Whether ADD could work now.
    fn status(&self, request: &Request) -> Result<(), CniError>;
    /// Makes the packet filter's rules of a living attachment again, where they were lost; `prevResult` is its final
    /// result. Not a verb of the specification. A plugin without rules has nothing to do.
    fn repair(&self, _: &Request, _: &Attachment) -> Result<(), CniError> {
        Ok(())
    }
}

/// What every verb gets besides its target.
#[derive(Debug, Clone)]
pub struct Request {
    /// The configuration.
    pub conf: NetConf,
    /// CNI_ARGS.
    pub args: CniArgs,
    /// CNI_PATH: where delegated plugins are looked up.
    pub path: Vec<PathBuf>,
    /// CNI_NETNS_OVERRIDE: whether CNI_NETNS may be the plugin's own namespace.
    pub own_netns: OwnNetns,
}

/// Whether CNI_NETNS may be the plugin's own network namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnNetns {
    /// It is an error.
    Refused,
    /// The runtime says that it means it.
    Allowed,
}

/// A plugin program's `main`: environment, standard streams; the exit status is returned.
pub fn main(plugin: &dyn Plugin) -> u8 {
    let get = |key: &str| std::env::var(key).ok();
    let (reply, status) = respond(plugin, &get, &mut std::io::stdin().lock());
    match reply {
        Reply::Json(json) => {
            let mut stdout = std::io::stdout().lock();
            if stdout.write_all(json.as_bytes()).and_then(|()| stdout.flush()).is_err() {
                return ErrorCode::IO_FAILURE.exit_status();
            }
        }
        Reply::About => {
            let versions: Vec<&str> = SpecVersion::ALL.iter().map(|version| version.as_str()).collect();
            let (name, version) = (plugin.name(), env!("CARGO_PKG_VERSION"));
            eprintln!("CNI {name} plugin v{version}");
            eprintln!("CNI protocol versions supported: {}", versions.join(", "));
        }
        Reply::Nothing => {}
    }
    status
}

/// What goes to the caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// A JSON object for standard output.
    Json(String),
    /// Called by a person without CNI_COMMAND: who this is, on standard error.
    About,
    /// Success without a result.
    Nothing,
}

/// Runs one invocation; returns the reply and the exit status. A panic becomes an error object.
pub fn respond(
    plugin: &dyn Plugin,
    get: &dyn Fn(&str) -> Option<String>,
    stdin: &mut dyn Read,
) -> (Reply, u8) {
    let mut version = SpecVersion::LATEST;
    let outcome = catch_unwind(AssertUnwindSafe(|| dispatch(plugin, get, stdin, &mut version)));
    let outcome = outcome.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
        let msg = format!("the {} plugin has a defect", plugin.name());
        Err(CniError { code: ErrorCode::INTERNAL, msg, details: text })
    });
    match outcome {
        Ok(reply) => (reply, 0),
        Err(error) => (Reply::Json(error.to_json(version)), error.code.exit_status()),
    }
}

fn dispatch(
    plugin: &dyn Plugin,
    get: &dyn Fn(&str) -> Option<String>,
    stdin: &mut dyn Read,
    version: &mut SpecVersion,
) -> Result<Reply, CniError> {
    let Some(invocation) = Invocation::from_env(get)? else { return Ok(Reply::About) };
    if invocation == Invocation::Version {
        return Ok(Reply::Json(supported_versions()));
    }
    let request = read_request(get, stdin, version)?;
    require_version(&invocation, *version)?;
    match invocation {
        Invocation::Add(attachment, netns) => {
            let result = plugin.add(&request, &attachment, &netns)?.to_json(*version)?;
            return Ok(Reply::Json(result.to_string()));
        }
        Invocation::Del(attachment, netns) => plugin.del(&request, &attachment, netns.as_deref())?,
        Invocation::Check(attachment, netns) => plugin.check(&request, &attachment, &netns)?,
        Invocation::Gc => plugin.gc(&request)?,
        Invocation::Status => plugin.status(&request)?,
        Invocation::Version => {}
    }
    Ok(Reply::Nothing)
}

fn read_request(
    get: &dyn Fn(&str) -> Option<String>,
    stdin: &mut dyn Read,
    version: &mut SpecVersion,
) -> Result<Request, CniError> {
    let mut bytes = Vec::new();
    let read = stdin.take(MAX_CONFIG_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(|error| CniError::caused(ErrorCode::IO_FAILURE, "reading standard input", &error))?;
    if bytes.len() as u64 > MAX_CONFIG_BYTES {
        let msg = format!("standard input: configuration is longer than {MAX_CONFIG_BYTES} bytes");
        return Err(CniError::new(ErrorCode::DECODING_FAILURE, msg));
    }
    let map = parse_map(&bytes)?;
    *version = SpecVersion::of_key(map.get("cniVersion").and_then(Value::as_str))?;
    let own_netns = match get("CNI_NETNS_OVERRIDE").as_deref() {
        Some("1" | "true" | "TRUE" | "True") => OwnNetns::Allowed,
        _ => OwnNetns::Refused,
    };
    let path = get("CNI_PATH").unwrap_or_default();
    let path = path.split(':').filter(|part| !part.is_empty()).map(PathBuf::from).collect();
    let args = get("CNI_ARGS").unwrap_or_default().parse()?;
    Ok(Request { conf: NetConf::new(map)?, args, path, own_netns })
}

/// CHECK came with 0.4.0, GC and STATUS with 1.1.0.
fn require_version(invocation: &Invocation, version: SpecVersion) -> Result<(), CniError> {
    let (verb, least) = match invocation {
        Invocation::Check(..) => ("CHECK", SpecVersion::V0_4_0),
        Invocation::Gc => ("GC", SpecVersion::V1_1_0),
        Invocation::Status => ("STATUS", SpecVersion::V1_1_0),
        Invocation::Add(..) | Invocation::Del(..) | Invocation::Version => return Ok(()),
    };
    if version >= least {
        return Ok(());
    }
    let msg = format!("config version {version} does not allow {verb}; it needs {least} or newer");
    Err(CniError::new(ErrorCode::INCOMPATIBLE_VERSION, msg))
}

fn supported_versions() -> String {
    let versions: Vec<&str> = SpecVersion::ALL.iter().map(|version| version.as_str()).collect();
    json!({"cniVersion": SpecVersion::LATEST.as_str(), "supportedVersions": versions}).to_string()
}
