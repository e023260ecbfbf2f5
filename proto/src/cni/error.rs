//! The CNI error object and its numeric codes (SPEC "Error").

use std::fmt;

use serde::{Deserialize, Serialize};

use super::version::SpecVersion;

/// A failure as it goes over the wire: code, short message, longer details.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CniError {
    /// What kind of failure; also the exit status of a plugin where it fits.
    pub code: ErrorCode,
    /// One line that says what failed and, for bad input, which key.
    pub msg: String,
    /// Why, where the message does not say it; may be empty.
    pub details: String,
}

/// A numeric error code: 1–99 belong to the specification, 100 and up to plugins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ErrorCode(pub u32);

impl ErrorCode {
    /// The configuration's `cniVersion` is not spoken, or lacks the verb.
    pub const INCOMPATIBLE_VERSION: Self = Self(1);
    /// A key or value of the configuration is not supported; the message names both.
    pub const UNSUPPORTED_FIELD: Self = Self(2);
    /// The container is unknown or gone: the runtime need not call DEL.
    pub const UNKNOWN_CONTAINER: Self = Self(3);
    /// An environment variable is missing or malformed.
    pub const INVALID_ENVIRONMENT: Self = Self(4);
    /// Reading standard input, a file or the kernel failed.
    pub const IO_FAILURE: Self = Self(5);
    /// The configuration cannot be decoded.
    pub const DECODING_FAILURE: Self = Self(6);
    /// The network configuration is invalid.
    pub const INVALID_NETWORK_CONFIG: Self = Self(7);
    /// CNI_NETNS is not a network namespace that may be used.
    pub const INVALID_NETNS: Self = Self(8);
    /// A passing condition: the runtime should try again later.
    pub const TRY_AGAIN_LATER: Self = Self(11);
    /// STATUS: ADD would fail.
    pub const NOT_AVAILABLE: Self = Self(50);
    /// STATUS: ADD would fail, and existing containers have limited connectivity.
    pub const LIMITED_CONNECTIVITY: Self = Self(51);
    /// First of the plugins' own codes; Berth uses it for what the kernel refused.
    pub const PLUGIN: Self = Self(100);
    /// A defect of the plugin itself (a panic, output that cannot be encoded).
    pub const INTERNAL: Self = Self(999);

    /// The exit status for this code: the code where it fits in 1–255, else 1.
    pub fn exit_status(self) -> u8 {
        match u8::try_from(self.0) {
            Ok(0) | Err(_) => 1,
            Ok(status) => status,
        }
    }
}

/// The error object as written to standard output.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ErrorObject {
    #[serde(default)]
    cni_version: String,
    code: ErrorCode,
    #[serde(default)]
    msg: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    details: String,
}

impl CniError {
    /// An error without details.
    pub fn new(code: ErrorCode, msg: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: String::new() }
    }

    /// Bad value at a key path of the configuration, such as `ipam.ranges[0][1].subnet`.
    pub fn config(path: &str, problem: impl fmt::Display) -> Self {
        Self::new(ErrorCode::INVALID_NETWORK_CONFIG, format!("{path}: {problem}"))
    }

    /// A key that the specification or the reference plugins know and this plugin does not support.
    pub fn unsupported(path: &str, value: impl fmt::Display) -> Self {
        Self::new(ErrorCode::UNSUPPORTED_FIELD, format!("{path}: {value} is not supported"))
    }

    /// `what` failed, with the whole chain of causes in the details.
    pub fn caused(code: ErrorCode, what: impl Into<String>, cause: &dyn std::error::Error) -> Self {
        Self { code, msg: what.into(), details: chain(Some(cause)) }
    }

    /// `error` as the message, with what lies below it in the details.
    pub fn from_error(code: ErrorCode, error: &dyn std::error::Error) -> Self {
        Self { code, msg: error.to_string(), details: chain(error.source()) }
    }

    /// The object's JSON, in the version of the configuration that failed.
    pub fn to_json(&self, version: SpecVersion) -> String {
        let object = ErrorObject {
            cni_version: version.to_string(),
            code: self.code,
            msg: self.msg.clone(),
            details: self.details.clone(),
        };
        serde_json::to_string(&object).expect("strings and a number always encode")
    }

    /// Reads an error object; `None` when `json` is none.
    pub fn parse(json: &[u8]) -> Option<Self> {
        let object: ErrorObject = serde_json::from_slice(json).ok()?;
        Some(Self { code: object.code, msg: object.msg, details: object.details })
    }
}

/// An error and its causes, joined by colons.
fn chain(first: Option<&dyn std::error::Error>) -> String {
    let texts = std::iter::successors(first, |error| error.source()).map(ToString::to_string);
    texts.collect::<Vec<_>>().join(": ")
}

impl fmt::Display for CniError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.msg.as_str(), self.details.as_str()) {
            ("", details) => f.write_str(details),
            (msg, "") => f.write_str(msg),
            (msg, details) => write!(f, "{msg}: {details}"),
        }
    }
}

impl std::error::Error for CniError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_survive_the_wire() {
        let check = |error: CniError, json: &str| {
            assert_eq!(error.to_json(SpecVersion::V1_0_0), json);
            assert_eq!(CniError::parse(json.as_bytes()), Some(error));
        };
        check(
            CniError::config("mtu", "must be 68 to 65535"),
            r#"{"cniVersion":"1.0.0","code":7,"msg":"mtu: must be 68 to 65535"}"#,
        );
        let cause = std::io::Error::other("disk on fire");
        check(
            CniError::caused(ErrorCode::IO_FAILURE, "reading lock", &cause),
            r#"{"cniVersion":"1.0.0","code":5,"msg":"reading lock","details":"disk on fire"}"#,
        );
        assert_eq!(CniError::parse(b"panic: oops"), None);
    }

    #[test]
    fn exit_statuses_are_never_zero() {
        let check = |code, status| assert_eq!(ErrorCode(code).exit_status(), status);
        check(0, 1);
        check(7, 7);
        check(255, 255);
        check(256, 1);
        check(999, 1);
    }
}
