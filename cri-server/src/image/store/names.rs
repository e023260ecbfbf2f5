//! Which image a name means.

use super::State;
use crate::image::digest::Digest;
use crate::image::reference::Reference;

/// Fewer digits of an id name nothing.
const MIN_PREFIX: usize = 12;

impl State {
    /// The id of the image that `name` means: an id first, then a reference, then the beginning of an id.
    pub(super) fn find(&self, name: &str) -> Option<Digest> {
        let hex = name.strip_prefix("sha256:").unwrap_or(name);
        if let Ok(id) = Digest::from_hex(hex) {
            return self.images.contains_key(&id).then_some(id);
        }
        let reference = name.parse::<Reference>().ok();
        let named = reference.and_then(|reference| self.names.get(&reference.to_string()).copied());
        named.or_else(|| self.find_prefix(hex))
    }

    fn find_prefix(&self, hex: &str) -> Option<Digest> {
        if hex.len() < MIN_PREFIX || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        let mut found = self.images.keys().filter(|id| id.hex().starts_with(hex));
        match (found.next(), found.next()) {
            (Some(id), None) => Some(*id),
            _ => None,
        }
    }
}
