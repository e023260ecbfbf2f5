//! Version.

use proto::cri::VersionResponse;

use crate::daemon::RUNTIME_NAME;

/// Name and version of the runtime.
pub fn version() -> VersionResponse {
    VersionResponse {
        version: "0.1.0".into(),
        runtime_name: RUNTIME_NAME.into(),
        runtime_version: env!("CARGO_PKG_VERSION").into(),
        runtime_api_version: "v1".into(),
    }
}
