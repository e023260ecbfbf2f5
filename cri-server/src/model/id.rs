//! Identifiers of pod sandboxes and containers: 64 lower-case hexadecimal digits, made by the runtime.
//! A string that is not such an id never becomes a path.

use std::fmt;

const LENGTH: usize = 64;

/// Why a string is not an id.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not an id: expected 64 lower-case hexadecimal digits")]
pub struct InvalidId(String);

fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn random() -> String {
    let mut bytes = [0u8; LENGTH / 2];
    let mut filled = 0;
    while filled < bytes.len() {
        filled += rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())
            .expect("getrandom fails only with invalid flags or before the pool is ready, where it blocks");
    }
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// A fresh random id.
            pub fn generate() -> Self {
                Self(random())
            }

            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The first 13 digits: what people see in lists.
            pub fn short(&self) -> &str {
                &self.0[..13]
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(text: String) -> Result<Self, InvalidId> {
                if text.len() == LENGTH && is_hex(&text) { Ok(Self(text)) } else { Err(InvalidId(text)) }
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id!(
    /// Id of a pod sandbox.
    PodId
);
id!(
    /// Id of a container.
    ContainerId
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ids_are_ids() {
        let id = PodId::generate();
        assert_eq!(PodId::try_from(id.to_string()), Ok(id));
        for text in
            ["", "..", "../../etc", "ABC", &"A".repeat(64), &"a".repeat(63), &format!("{}/", "a".repeat(63))]
        {
            assert!(ContainerId::try_from(text.to_string()).is_err(), "{text}");
        }
    }
}
