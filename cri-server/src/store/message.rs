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
    let text = String::deserialize(deserializer)?;
    let bytes = STANDARD.decode(text).map_err(serde::de::Error::custom)?;
    M::decode(bytes.as_slice()).map_err(serde::de::Error::custom)
}

/// SHA-256 of a message's encoding, in hexadecimal. Equal messages have equal digests: maps are ordered.
pub fn digest(message: &impl Message) -> String {
    Sha256::digest(message.encode_to_vec()).iter().map(|b| format!("{b:02x}")).collect()
}
