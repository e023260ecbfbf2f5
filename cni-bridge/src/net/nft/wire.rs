//! Netlink attributes as nf_tables writes them: numbers in network byte order, texts with their NUL.

/// A growing list of attributes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes {
    bytes: Vec<u8>,
}

impl Attributes {
    /// The encoded list.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// An attribute with `value` as it is.
    pub fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let start = self.open(kind);
        self.bytes.extend_from_slice(value);
        self.close(start)
    }

    /// A number.
    pub fn number(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// A text with its NUL.
    pub fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let start = self.open(kind);
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(0);
        self.close(start)
    }

    /// An attribute that holds attributes.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        const NESTED: u16 = 0x8000;
        let start = self.open(kind | NESTED);
        fill(self);
        self.close(start)
    }

    /// Attributes that are encoded already.
    pub fn append(&mut self, encoded: &[u8]) {
        self.bytes.extend_from_slice(encoded);
    }

    fn open(&mut self, kind: u16) -> usize {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        start
    }

    fn close(&mut self, start: usize) -> &mut Self {
        let length =
            u16::try_from(self.bytes.len() - start).expect("an attribute of ours stays far below 64 KiB");
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }
}

/// The attributes in `bytes`; stops at the first that is cut short.
pub fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?) & 0x3fff;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    })
}

/// The value of the first attribute of `kind`.
pub fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// A text attribute without its NUL.
pub fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).trim_end_matches('\0').to_owned()
}

/// A comment as user data: type, length, text with NUL. Tools show it beside the rule or element.
pub fn comment(text: &str) -> Vec<u8> {
    const COMMENT: u8 = 0;
    let length = u8::try_from(text.len() + 1).expect("owner tags and comments are bounded to 250 bytes");
    let mut data = vec![COMMENT, length];
    data.extend_from_slice(text.as_bytes());
    data.push(0);
    data
}

/// The text of a comment in user data.
pub fn read_comment(data: &[u8]) -> Option<String> {
    user_data(data, 0).map(text)
}

/// The first part of user data that has the type `kind`.
pub fn user_data(data: &[u8], kind: u8) -> Option<&[u8]> {
    let mut rest = data;
    loop {
        let (found, length) = (*rest.first()?, usize::from(*rest.get(1)?));
        let value = rest.get(2..2 + length)?;
        if found == kind {
            return Some(value);
        }
        rest = &rest[2 + length..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_nested() {
        let mut list = Attributes::default();
        list.text(1, "ab").nest(2, |inner| {
            inner.number(3, 0x0102_0304);
        });
        let bytes = list.into_bytes();
        let expect = [7, 0, 1, 0, b'a', b'b', 0, 0, 12, 0, 2, 0x80, 8, 0, 3, 0, 1, 2, 3, 4];
        assert_eq!(bytes, expect);
        assert_eq!(attribute(&bytes, 1).map(text), Some("ab".to_owned()));
        let nested = attribute(&bytes, 2).unwrap();
        assert_eq!(attributes(nested).collect::<Vec<_>>(), [(3, &[1u8, 2, 3, 4][..])]);
        assert_eq!(attribute(&bytes, 9), None);
        assert_eq!(attributes(&[200, 0, 1, 0, 5]).count(), 0);
        assert_eq!(attributes(&[0, 0, 1, 0]).count(), 0);
    }

    #[test]
    fn comments_round_trip() {
        assert_eq!(comment("ab"), [0, 3, b'a', b'b', 0]);
        assert_eq!(read_comment(&comment("x/y/z")), Some("x/y/z".to_owned()));
        assert_eq!(read_comment(&[1, 1, 9, 0, 2, b'a', 0]), Some("a".to_owned()));
        assert_eq!(read_comment(&[0, 9, b'a']), None);
        assert_eq!(read_comment(&[]), None);
    }
}
