//! Which manifest of an index fits this node. Pure.

use serde::{Deserialize, Serialize};

/// Operating system, architecture and variant, as an OCI index names them (image-index.md).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// Operating system, `linux`.
    pub os: String,
    /// Architecture in Go's names: `amd64`, `arm64`, …
    pub architecture: String,
    /// Micro-architecture level, `v8` or none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// What this program was built for.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            other => other,
        };
        Self { os: "linux".into(), architecture: architecture.into(), variant: None }
    }

    /// How well `candidate` fits: none if it cannot run here, else the higher the better.
    pub fn rank(&self, candidate: &Platform) -> Option<u32> {
        if candidate.os != self.os || candidate.architecture != self.architecture {
            return None;
        }
        let (ours, theirs) = (level(self)?, level(candidate)?);
        (theirs <= ours).then_some(theirs)
    }
}

/// The number of the variant, with the baseline of the architecture where none is named.
fn level(platform: &Platform) -> Option<u32> {
    match platform.variant.as_deref() {
        Some(variant) if !variant.is_empty() => variant.trim_start_matches('v').parse().ok(),
        _ => Some(match platform.architecture.as_str() {
            "arm64" => 8,
            "arm" => 7,
            _ => 1,
        }),
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.iter().try_for_each(|variant| write!(f, "/{variant}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        let mut parts = text.split('/').map(String::from);
        Platform { os: parts.next().unwrap(), architecture: parts.next().unwrap(), variant: parts.next() }
    }

    #[test]
    fn the_best_variant_that_runs_here_wins() {
        let check = |ours: &str, theirs: &str, expect| {
            assert_eq!(platform(ours).rank(&platform(theirs)), expect, "{theirs} on {ours}");
        };
        check("linux/amd64", "linux/amd64", Some(1));
        check("linux/amd64", "linux/amd64/v1", Some(1));
        check("linux/amd64", "linux/amd64/v3", None);
        check("linux/amd64/v3", "linux/amd64/v2", Some(2));
        check("linux/arm64", "linux/arm64/v8", Some(8));
        check("linux/arm", "linux/arm/v6", Some(6));
        check("linux/amd64", "windows/amd64", None);
        check("linux/amd64", "unknown/unknown", None);
    }
}
