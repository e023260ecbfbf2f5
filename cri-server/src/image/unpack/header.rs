//! Fields of tar headers. Pure.

use tar::{EntryType, Header};

use super::tar::Kind;
use crate::image::error::ImageError;

/// Whether a member has data.
pub fn is_regular(kind: EntryType) -> bool {
    matches!(kind, EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse)
}

/// What a member is.
pub fn kind(
    header: &Header,
    path: &[u8],
    link: Vec<u8>,
    map: Option<Vec<(u64, u64)>>,
) -> Result<Kind, ImageError> {
    let device = || -> Result<(u32, u32), ImageError> {
        let part = |at: usize| {
            u32::try_from(numeric(&header.as_bytes()[at..at + 8])?)
                .map_err(|_| ImageError::invalid("a device number is too large"))
        };
        Ok((part(329)?, part(337)?))
    };
    Ok(match header.entry_type() {
        EntryType::Regular if path.ends_with(b"/") => Kind::Directory,
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => Kind::File(map),
        EntryType::Directory => Kind::Directory,
        EntryType::Symlink => Kind::Symlink(link),
        EntryType::Link => Kind::HardLink(link),
        EntryType::Char => device().map(|(major, minor)| Kind::Character(major, minor))?,
        EntryType::Block => device().map(|(major, minor)| Kind::Block(major, minor))?,
        EntryType::Fifo => Kind::Fifo,
        other => {
            let what = format!("an entry has the unknown type {:?}", char::from(other.as_byte()));
            return Err(ImageError::invalid(what));
        }
    })
}

/// A user or group id; `u32::MAX` means "unchanged" to chown.
pub fn owner(id: u64) -> Result<u32, ImageError> {
    u32::try_from(id)
        .ok()
        .filter(|&id| id != u32::MAX)
        .ok_or_else(|| ImageError::invalid(format!("the owner id {id} is too large")))
}

/// What comes before the first NUL.
pub fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|&b| b == 0) {
        bytes.truncate(end);
    }
    bytes
}

/// A numeric field: octal digits between blanks, or big-endian binary when the top bit is set; blank is zero.
pub fn numeric(field: &[u8]) -> Result<u64, ImageError> {
    let wrong = || ImageError::invalid("an archive has a header with a malformed number");
    if field[0] & 0x80 != 0 {
        let negative = field[0] & 0x40 != 0;
        let (fill, first) = if negative { (0xff, field[0]) } else { (0, field[0] & 0x7f) };
        let bytes: Vec<u8> = std::iter::once(first).chain(field[1..].iter().copied()).collect();
        let (high, low) = bytes.split_at(bytes.len() - 8);
        // Fields of eight bytes are ids and device numbers: never negative.
        if high.iter().any(|&b| b != fill) || (negative && high.is_empty()) {
            return Err(wrong());
        }
        return Ok(low.iter().fold(0, |value, &byte| value << 8 | u64::from(byte)));
    }
    let text = field.split(|&b| b == 0).next().unwrap_or_default().trim_ascii();
    text.iter().try_fold(0u64, |value, &digit| match digit {
        b'0'..=b'7' => value.checked_mul(8).map(|v| v + u64::from(digit - b'0')).ok_or_else(wrong),
        _ => Err(wrong()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_binary() {
        let check = |field: &[u8], expect: Option<u64>| assert_eq!(numeric(field).ok(), expect, "{field:?}");
        check(b"0000644\0", Some(0o644));
        check(b"  644 \0 ", Some(0o644));
        check(b"\0\0\0\0\0\0\0\0", Some(0));
        check(b"        ", Some(0));
        check(b"0000689\0", None);
        check(b"-1\0\0\0\0\0\0", None);
        check(&[0x80, 0, 0, 0, 0, 1, 0, 0], Some(65536));
        check(&[0xff; 8], None);
        check(&[0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0], Some(8 << 30));
        check(&[0xff; 12], Some(u64::MAX));
        check(&[0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], None);
        check(b"77777777777777777777777", None);
    }
}
