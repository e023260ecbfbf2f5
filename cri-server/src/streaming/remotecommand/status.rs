//! What is written to the error stream.

use serde_json::json;

/// How a client learns the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report {
    /// A text when something failed, nothing otherwise: up to version 3.
    Text,
    /// `metav1.Status` as JSON: from version 4 on.
    Status,
}

impl Report {
    /// The command has ended with this code.
    pub fn exit(self, code: i32) -> Option<String> {
        let message = format!("command terminated with non-zero exit code: {code}");
        match (self, code) {
            (Self::Text, 0) => None,
            (Self::Text, _failure) => Some(message),
            (Self::Status, 0) => Some(json!({ "metadata": {}, "status": "Success" }).to_string()),
            (Self::Status, code) => {
                let cause = json!({ "reason": "ExitCode", "message": code.to_string() });
                let status = json!({
                    "metadata": {},
                    "status": "Failure",
                    "message": message,
                    "reason": "NonZeroExitCode",
                    "details": { "causes": [cause] },
                });
                Some(status.to_string())
            }
        }
    }

    /// There was no result.
    pub fn failure(self, error: &str) -> Option<String> {
        match self {
            Self::Text => Some(error.to_string()),
            Self::Status => {
                let status = json!({
                    "metadata": {},
                    "status": "Failure",
                    "message": format!("Internal error occurred: {error}"),
                    "reason": "InternalError",
                    "details": { "causes": [{ "message": error }] },
                    "code": 500,
                });
                Some(status.to_string())
            }
        }
    }
}
