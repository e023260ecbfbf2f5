//! Protobuf messages inside JSON records: base64 of their encoding, so that fields unknown to JSON survive.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use prost::Message;
use serde::{Deserialize, Deserializer, Serializer};
use sha2::{Digest, Sha256};

/// Serializes a message.
pub fn serialize<M: Message, S: Serializer>(message: &M, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&STANDARD.encode(message.encode_to_vec()))
}

/// Deserializes a message.
pub fn deserialize<'de, M: Message + Default, D: Deserializer<'de>>(deserializer: D) -> Result<M, D::Error> {
    decode(&String::deserialize(deserializer)?)
}

fn decode<M: Message + Default, E: serde::de::Error>(text: &str) -> Result<M, E> {
    let bytes = STANDARD.decode(text).map_err(E::custom)?;
    M::decode(bytes.as_slice()).map_err(E::custom)
}

/// Messages that may be absent.
pub mod optional {
    use prost::Message;
    use serde::{Deserialize, Deserializer, Serializer};

    use super::{STANDARD, decode};
    use base64::Engine;

    /// Serializes a message, if there is one.
    pub fn serialize<M: Message, S: Serializer>(
        message: &Option<M>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match message {
            Some(message) => serializer.serialize_some(&STANDARD.encode(message.encode_to_vec())),
            None => serializer.serialize_none(),
        }
    }

    /// Deserializes a message, if there is one.
    pub fn deserialize<'de, M: Message + Default, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<M>, D::Error> {
        Option::<String>::deserialize(deserializer)?.map(|text| decode(&text)).transpose()
    }
}

/// SHA-256 of a message's encoding, in hexadecimal. Equal messages have equal digests: maps are ordered.
pub fn digest(message: &impl Message) -> String {
    Sha256::digest(message.encode_to_vec()).iter().map(|b| format!("{b:02x}")).collect()
}
