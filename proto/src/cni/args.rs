//! What a runtime passes to a plugin in environment variables (SPEC "Parameters").

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::error::{CniError, ErrorCode};

/// The verb with what it needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Invocation {
    /// Attach the container whose network namespace is given.
    Add(Attachment, PathBuf),
    /// Undo ADD; the namespace may be gone or unknown.
    Del(Attachment, Option<PathBuf>),
    /// Verify that ADD's work is still in place.
    Check(Attachment, PathBuf),
    /// Remove what belongs to no valid attachment.
    Gc,
    /// Say whether ADD could work.
    Status,
    /// Say which versions are spoken.
    Version,
}

/// CNI_COMMAND.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Verb {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

/// One interface of one container: the unit that ADD makes and DEL removes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Attachment {
    /// CNI_CONTAINERID.
    #[serde(rename = "containerID")]
    pub container_id: ContainerId,
    /// CNI_IFNAME.
    pub ifname: IfName,
}

impl Invocation {
    /// Reads the variables through `get`; `None` when there is no CNI_COMMAND at all.
    ///
    /// # Errors
    /// [`ErrorCode::INVALID_ENVIRONMENT`] naming every variable that is missing, or the one that is malformed.
    pub fn from_env(get: &dyn Fn(&str) -> Option<String>) -> Result<Option<Self>, CniError> {
        let set = |key: &str| get(key).filter(|value| !value.is_empty());
        let Some(command) = set("CNI_COMMAND") else { return Ok(None) };
        let verb: Verb = command.parse()?;
        let missing: Vec<&str> = verb.required().iter().copied().filter(|key| set(key).is_none()).collect();
        if !missing.is_empty() {
            return Err(environment(format!("required env variables [{}] missing", missing.join(","))));
        }
        let attachment = || -> Result<Attachment, CniError> {
            Ok(Attachment {
                container_id: set("CNI_CONTAINERID").unwrap_or_default().parse()?,
                ifname: set("CNI_IFNAME").unwrap_or_default().parse()?,
            })
        };
        let netns = set("CNI_NETNS").map(PathBuf::from);
        Ok(Some(match verb {
            Verb::Add => Self::Add(attachment()?, netns.unwrap_or_default()),
            Verb::Del => Self::Del(attachment()?, netns),
            Verb::Check => Self::Check(attachment()?, netns.unwrap_or_default()),
            Verb::Gc => Self::Gc,
            Verb::Status => Self::Status,
            Verb::Version => Self::Version,
        }))
    }
}

impl Verb {
    /// As written in CNI_COMMAND.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }

    /// The variables that must not be empty.
    pub fn required(self) -> &'static [&'static str] {
        match self {
            Self::Add | Self::Check => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"],
            Self::Del => &["CNI_CONTAINERID", "CNI_IFNAME"],
            Self::Gc | Self::Status | Self::Version => &[],
        }
    }
}

impl FromStr for Verb {
    type Err = CniError;

    fn from_str(text: &str) -> Result<Self, CniError> {
        [Self::Add, Self::Del, Self::Check, Self::Gc, Self::Status, Self::Version]
            .into_iter()
            .find(|verb| verb.as_str() == text)
            .ok_or_else(|| environment(format!("unknown CNI_COMMAND: {text}")))
    }
}

/// CNI_ARGS: `KEY=VALUE;KEY=VALUE`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CniArgs(Vec<(String, String)>);

impl CniArgs {
    /// The value of `key`; the last one where it is repeated.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().rev().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// Refuses keys outside `known`, unless `IgnoreUnknown` is set, as runtimes do.
    ///
    /// # Errors
    /// [`ErrorCode::INVALID_ENVIRONMENT`] naming the unknown keys.
    pub fn expect_only(&self, known: &[&str]) -> Result<(), CniError> {
        if matches!(self.get("IgnoreUnknown"), Some("1" | "true" | "TRUE" | "True" | "t" | "T")) {
            return Ok(());
        }
        let keys = self.0.iter().map(|(key, _)| key.as_str());
        let unknown: Vec<&str> = keys.filter(|key| !known.contains(key) && *key != "IgnoreUnknown").collect();
        if unknown.is_empty() {
            return Ok(());
        }
        Err(environment(format!("CNI_ARGS: unknown keys {unknown:?} (IgnoreUnknown=1 allows them)")))
    }
}

impl FromStr for CniArgs {
    type Err = CniError;

    fn from_str(text: &str) -> Result<Self, CniError> {
        let pair = |pair: &str| match pair.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
            _ => Err(environment(format!("CNI_ARGS: {pair:?} is not KEY=VALUE"))),
        };
        text.split(';').filter(|part| !part.is_empty()).map(pair).collect::<Result<_, _>>().map(Self)
    }
}

/// Declares a newtype over text that `$valid` accepts.
macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $code:expr, $valid:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = CniError;

            fn from_str(text: &str) -> Result<Self, CniError> {
                let valid: fn(&str) -> bool = $valid;
                if valid(text) {
                    return Ok(Self(text.to_owned()));
                }
                let shown: String = text.chars().take(64).collect();
                Err(CniError::new($code, format!("invalid {} {shown:?}", $what)))
            }
        }

        impl TryFrom<String> for $name {
            type Error = CniError;

            fn try_from(text: String) -> Result<Self, CniError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// CNI_CONTAINERID: starts with a letter or digit, then letters, digits, `_`, `.`, `-`; at most 200 bytes.
    ContainerId,
    "container id (CNI_CONTAINERID)",
    ErrorCode::INVALID_ENVIRONMENT,
    is_identifier
);
name!(
    /// The `name` of a network: the same alphabet as [`ContainerId`].
    NetworkName,
    "network name (name)",
    ErrorCode::INVALID_NETWORK_CONFIG,
    is_identifier
);
name!(
    /// CNI_IFNAME: what the kernel accepts as an interface name.
    IfName,
    "interface name (CNI_IFNAME)",
    ErrorCode::INVALID_ENVIRONMENT,
    is_ifname
);

/// Whether `text` is an identifier of the specification; the length keeps file names made of it within 255 bytes.
fn is_identifier(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    text.len() <= 200
        && text.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
        && text.bytes().all(inner)
}

/// Whether the kernel accepts `text` as an interface name, and as nothing but a name: it fills in a number for `%d`.
fn is_ifname(text: &str) -> bool {
    let bad = |byte: u8| matches!(byte, b'/' | b':' | b'%') || !byte.is_ascii_graphic();
    (1..=15).contains(&text.len()) && text != "." && text != ".." && !text.bytes().any(bad)
}

fn environment(msg: String) -> CniError {
    CniError::new(ErrorCode::INVALID_ENVIRONMENT, msg)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Result<Option<Invocation>, String> {
        let get =
            |key: &str| pairs.iter().find(|(name, _)| *name == key).map(|(_, value)| (*value).to_owned());
        Invocation::from_env(&get).map_err(|error| {
            assert_eq!(error.code, ErrorCode::INVALID_ENVIRONMENT);
            error.msg
        })
    }

    #[test]
    fn each_verb_requires_its_variables() {
        let check = |verb: &str, missing: &str| {
            let expect = Err(format!("required env variables [{missing}] missing"));
            assert_eq!(parse(&[("CNI_COMMAND", verb)]), expect);
        };
        check("ADD", "CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME");
        check("CHECK", "CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME");
        check("DEL", "CNI_CONTAINERID,CNI_IFNAME");
        assert_eq!(parse(&[("CNI_COMMAND", "GC")]), Ok(Some(Invocation::Gc)));
        assert_eq!(parse(&[("CNI_COMMAND", "STATUS")]), Ok(Some(Invocation::Status)));
        assert_eq!(parse(&[("CNI_COMMAND", "VERSION")]), Ok(Some(Invocation::Version)));
        assert_eq!(parse(&[]), Ok(None));
        assert_eq!(parse(&[("CNI_COMMAND", "add")]), Err("unknown CNI_COMMAND: add".to_owned()));
    }

    #[test]
    fn del_needs_no_namespace() {
        let env =
            [("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", "c1"), ("CNI_IFNAME", "eth0"), ("CNI_NETNS", "")];
        let attachment = Attachment { container_id: "c1".parse().unwrap(), ifname: "eth0".parse().unwrap() };
        assert_eq!(parse(&env), Ok(Some(Invocation::Del(attachment, None))));
    }

    #[test]
    fn names_are_validated() {
        let id = |text: &str, ok| assert_eq!(text.parse::<ContainerId>().is_ok(), ok, "{text:?}");
        id("a", true);
        id("0a_b.c-d", true);
        id("", false);
        id("-a", false);
        id("../x", false);
        id("a/b", false);
        id("é", false);
        id(&"a".repeat(200), true);
        id(&"a".repeat(201), false);
        let ifname = |text: &str, ok| assert_eq!(text.parse::<IfName>().is_ok(), ok, "{text:?}");
        ifname("eth0", true);
        ifname("a234567890bcdef", true);
        ifname("a234567890bcdefg", false);
        ifname("..", false);
        ifname("a/b", false);
        ifname("a:1", false);
        ifname("a b", false);
        ifname("eth%d", false);
        ifname("", false);
    }

    #[test]
    fn cni_args_are_strict_unless_told() {
        let check = |text: &str, expect: Result<(), &str>| {
            let result = text.parse::<CniArgs>().and_then(|args| args.expect_only(&["IP"]));
            assert_eq!(result.map_err(|error| error.msg), expect.map_err(str::to_owned));
        };
        check("", Ok(()));
        check("IP=10.0.0.1", Ok(()));
        check("K8S_POD_NAME=a=b;IgnoreUnknown=1", Ok(()));
        check("X=1;IP=2", Err("CNI_ARGS: unknown keys [\"X\"] (IgnoreUnknown=1 allows them)"));
        check("X", Err("CNI_ARGS: \"X\" is not KEY=VALUE"));
        check("=1", Err("CNI_ARGS: \"=1\" is not KEY=VALUE"));
        assert_eq!("IP=1;IP=a=b".parse::<CniArgs>().unwrap().get("IP"), Some("a=b"));
    }
}
