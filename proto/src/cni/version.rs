//! Versions of the CNI specification and the choice between them.

use std::fmt;
use std::str::FromStr;

use super::error::{CniError, ErrorCode};

/// A version of the CNI specification that Berth speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SpecVersion {
    /// `ip4` and `ip6` results; the version of a configuration that names none.
    V0_1_0,
    /// As 0.1.0, with the VERSION verb.
    V0_2_0,
    /// Several interfaces, addresses and chaining.
    V0_3_0,
    /// As 0.3.0.
    V0_3_1,
    /// Adds CHECK and `prevResult` for DEL.
    V0_4_0,
    /// Drops `version` from addresses.
    V1_0_0,
    /// Adds GC, STATUS and more fields of interfaces and routes.
    V1_1_0,
}

impl SpecVersion {
    /// Every version, oldest first.
    pub const ALL: [SpecVersion; 7] =
        [Self::V0_1_0, Self::V0_2_0, Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];
    /// The newest version.
    pub const LATEST: SpecVersion = Self::V1_1_0;

    /// As written in `cniVersion`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V0_1_0 => "0.1.0",
            Self::V0_2_0 => "0.2.0",
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// The version that a `cniVersion` key means: absent and empty are 0.1.0.
    ///
    /// # Errors
    /// [`ErrorCode::INCOMPATIBLE_VERSION`] for anything but the exact text of a known version.
    pub fn of_key(text: Option<&str>) -> Result<Self, CniError> {
        match text {
            None | Some("") => Ok(Self::V0_1_0),
            Some(text) => text.parse(),
        }
    }

    /// The highest version among `cniVersion` and `cniVersions` that is known here (SPEC 1.1, "Version negotiation").
    ///
    /// # Errors
    /// [`ErrorCode::INCOMPATIBLE_VERSION`] when none is known.
    pub fn negotiate(version: Option<&str>, versions: &[String]) -> Result<Self, CniError> {
        let own = Self::of_key(version);
        let listed = versions.iter().filter_map(|text| text.parse().ok()).max();
        match (own, listed) {
            (Ok(own), Some(listed)) => Ok(own.max(listed)),
            (Ok(own), None) => Ok(own),
            (Err(_), Some(listed)) => Ok(listed),
            (Err(error), None) => Err(error),
        }
    }
}

impl fmt::Display for SpecVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for SpecVersion {
    type Err = CniError;

    fn from_str(text: &str) -> Result<Self, CniError> {
        Self::ALL.into_iter().find(|version| version.as_str() == text).ok_or_else(|| {
            let known: Vec<&str> = Self::ALL.iter().map(|version| version.as_str()).collect();
            CniError::new(
                ErrorCode::INCOMPATIBLE_VERSION,
                format!("incompatible CNI versions; config is {text:?}, plugin supports {known:?}"),
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_known_version_is_chosen() {
        let check = |version: Option<&str>, versions: &[&str], expect: Option<SpecVersion>| {
            let versions: Vec<String> = versions.iter().map(|v| (*v).to_owned()).collect();
            assert_eq!(SpecVersion::negotiate(version, &versions).ok(), expect, "{version:?} {versions:?}");
        };
        check(None, &[], Some(SpecVersion::V0_1_0));
        check(Some(""), &[], Some(SpecVersion::V0_1_0));
        check(Some("0.4.0"), &["1.0.0", "0.3.1"], Some(SpecVersion::V1_0_0));
        check(Some("1.1.0"), &["1.0.0"], Some(SpecVersion::V1_1_0));
        check(Some("2.0.0"), &["2.0.0", "1.0.0"], Some(SpecVersion::V1_0_0));
        check(Some("2.0.0"), &["2.1.0"], None);
        check(Some("1.0"), &[], None);
        check(Some(" 1.0.0"), &[], None);
    }
}
