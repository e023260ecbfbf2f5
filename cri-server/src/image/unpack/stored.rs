//! Paths in records. A path is bytes, JSON is text: each byte becomes the character of that number.

use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde::de::{Deserialize, Deserializer, Error};
use serde::ser::Serializer;

fn write(path: &Path) -> String {
    path.as_os_str().as_bytes().iter().map(|&byte| char::from(byte)).collect()
}

fn read(text: &str) -> Option<PathBuf> {
    let bytes: Option<Vec<u8>> = text.chars().map(|c| u8::try_from(c).ok()).collect();
    Some(PathBuf::from(std::ffi::OsString::from_vec(bytes?)))
}

/// One path.
pub mod path {
    use super::*;

    /// Writes a path.
    pub fn serialize<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&write(path))
    }

    /// Reads a path.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
        read(&String::deserialize(from)?).ok_or_else(|| D::Error::custom("a character is no byte"))
    }
}

/// Several paths.
pub mod paths {
    use super::*;

    /// Writes paths.
    pub fn serialize<S: Serializer>(paths: &[PathBuf], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(paths.iter().map(|path| write(path)))
    }

    /// Reads paths.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<PathBuf>, D::Error> {
        let texts = Vec::<String>::deserialize(from)?;
        let paths: Option<Vec<_>> = texts.iter().map(|text| read(text)).collect();
        paths.ok_or_else(|| D::Error::custom("a character is no byte"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Needs;
    use super::*;

    #[test]
    fn any_bytes_survive() {
        let path = PathBuf::from(std::ffi::OsString::from_vec((1..=255).collect()));
        let needs = Needs { implied: vec![PathBuf::new(), path], links: Vec::new(), whiteouts: Vec::new() };
        let text = serde_json::to_string(&needs).unwrap();
        assert_eq!(serde_json::from_str::<Needs>(&text).unwrap(), needs);
    }
}
