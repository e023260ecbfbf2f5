//! Records of PAX extended headers (POSIX pax, "pax Extended Header"): `length key=value\n`. Pure.
//!
//! Values are binary: a capability or a name may contain a newline, so records are cut by their length.

use crate::image::error::ImageError;

const XATTR: &[u8] = b"SCHILY.xattr.";

/// What the extended headers of one entry say.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Pax {
    /// Name of the entry.
    pub path: Option<Vec<u8>>,
    /// Target of a link.
    pub link: Option<Vec<u8>>,
    /// Bytes of data in the archive.
    pub size: Option<u64>,
    /// Owner.
    pub uid: Option<u64>,
    /// Group.
    pub gid: Option<u64>,
    /// Modification time, seconds and nanoseconds.
    pub mtime: Option<(i64, u32)>,
    /// Extended attributes in order.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Sparse file of the GNU formats.
    pub sparse: SparseRecords,
}

/// The `GNU.sparse.*` records, formats 0.0, 0.1 and 1.0.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct SparseRecords {
    /// Major version of the format; 1 puts the map in front of the data.
    pub major: Option<u64>,
    /// Name of the file.
    pub name: Option<Vec<u8>>,
    /// Size of the file with its holes.
    pub real_size: Option<u64>,
    /// Offsets and lengths of the data, of formats 0.0 and 0.1.
    pub map: Vec<u64>,
}

impl Pax {
    /// Adds the records of one extended header; `max_xattrs` bounds the attributes.
    pub fn parse(&mut self, mut bytes: &[u8], max_xattrs: usize) -> Result<(), ImageError> {
        while !bytes.is_empty() {
            let (key, value, rest) = split(bytes).ok_or_else(|| malformed("record"))?;
            self.record(key, value)?;
            if self.xattrs.len() > max_xattrs {
                return Err(ImageError::invalid(format!("an entry has more than {max_xattrs} attributes")));
            }
            bytes = rest;
        }
        Ok(())
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), ImageError> {
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(number(value).ok_or_else(|| malformed("size"))?),
            b"uid" => self.uid = Some(number(value).ok_or_else(|| malformed("uid"))?),
            b"gid" => self.gid = Some(number(value).ok_or_else(|| malformed("gid"))?),
            b"mtime" => self.mtime = Some(time(value).ok_or_else(|| malformed("mtime"))?),
            _ if key.starts_with(XATTR) => self.xattr(&key[XATTR.len()..], value),
            _ if key.starts_with(b"GNU.sparse.") => self.sparse_record(&key[11..], value)?,
            _ => {}
        }
        Ok(())
    }

    fn xattr(&mut self, name: &[u8], value: &[u8]) {
        self.xattrs.retain(|(other, _)| other != name);
        self.xattrs.push((name.to_vec(), value.to_vec()));
    }

    fn sparse_record(&mut self, key: &[u8], value: &[u8]) -> Result<(), ImageError> {
        let parsed = || number(value).ok_or_else(|| malformed("sparse"));
        match key {
            b"major" => self.sparse.major = Some(parsed()?),
            b"name" => self.sparse.name = Some(value.to_vec()),
            b"size" | b"realsize" => self.sparse.real_size = Some(parsed()?),
            b"offset" | b"numbytes" => self.sparse.map.push(parsed()?),
            b"map" => {
                let numbers = value.split(|&b| b == b',').map(number).collect::<Option<Vec<u64>>>();
                self.sparse.map = numbers.ok_or_else(|| malformed("sparse"))?;
            }
            _ => {}
        }
        Ok(())
    }
}

fn malformed(what: &str) -> ImageError {
    ImageError::invalid(format!("malformed {what} in an extended header"))
}

/// Key, value and what follows the first record.
fn split(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().take(20).position(|&b| b == b' ')?;
    let length = usize::try_from(number(&bytes[..space])?).ok()?;
    if length < space + 2 || length > bytes.len() || bytes[length - 1] != b'\n' {
        return None;
    }
    let record = &bytes[space + 1..length - 1];
    let equals = record.iter().position(|&b| b == b'=')?;
    if record[..equals].is_empty() || record[..equals].contains(&0) {
        return None;
    }
    Some((&record[..equals], &record[equals + 1..], &bytes[length..]))
}

/// An unsigned decimal number.
pub fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Decimal seconds with an optional fraction and sign; digits beyond nanoseconds are cut.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let (negative, text) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds = i64::try_from(number(seconds.as_bytes())?).ok()?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let nanos: u32 = format!("{:0<9}", &fraction[..fraction.len().min(9)]).parse().ok()?;
    Some(match (negative, nanos) {
        (false, _) => (seconds, nanos),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanos),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length.to_string().len() + rest != length {
            length += 1;
        }
        [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
    }

    #[test]
    fn a_value_may_contain_any_byte() {
        let mut pax = Pax::default();
        let capability = b"\x01\0\0\x02\n =\n";
        pax.parse(&record(b"SCHILY.xattr.security.capability", capability), 8).unwrap();
        pax.parse(&[record(b"path", b"a\nb"), record(b"uid", b"70000")].concat(), 8).unwrap();
        assert_eq!(pax.xattrs, [(b"security.capability".to_vec(), capability.to_vec())]);
        assert_eq!(pax.path.unwrap(), b"a\nb");
        assert_eq!(pax.uid, Some(70000));
    }

    #[test]
    fn times_have_signs_and_fractions() {
        let check = |text: &str, expect| assert_eq!(time(text.as_bytes()), expect, "{text}");
        check("1.5", Some((1, 500_000_000)));
        check("1", Some((1, 0)));
        check("0.0000000019", Some((0, 1)));
        check("-1.25", Some((-2, 750_000_000)));
        check("1.x", None);
        check("1.é", None);
        check("", None);
        check("99999999999999999999", None);
    }

    #[test]
    fn malformed_records_are_refused() {
        let check = |bytes: &[u8]| assert!(Pax::default().parse(bytes, 2).is_err(), "{bytes:?}");
        check(b"x");
        check(b"5 a=b");
        check(b"99999999999999999999 a=b\n");
        check(b"100 a=b\n");
        check(b"3 \n");
        check(b"6 abc\n");
        check(b"5 =b\n");
        check(&record(b"size", b"-1"));
        check(
            &(0..3)
                .flat_map(|n| record(format!("SCHILY.xattr.user.{n}").as_bytes(), b""))
                .collect::<Vec<_>>(),
        );
    }
}
