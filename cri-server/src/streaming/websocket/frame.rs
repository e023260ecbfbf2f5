//! Heads of frames (RFC 6455, 5.2). Pure.

use bytes::{BufMut, BytesMut};

/// Largest payload of a control frame, bytes.
pub const CONTROL_LIMIT: u64 = 125;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Opcode {
    /// More of the message that was begun.
    Continuation = 0,
    /// Begins a message of text.
    Text = 1,
    /// Begins a message of bytes.
    Binary = 2,
    /// Ends the connection.
    Close = 8,
    /// Asks for a pong.
    Ping = 9,
    /// Answers a ping.
    Pong = 10,
}

/// The head of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// What the frame is.
    pub opcode: Opcode,
    /// Whether it is the last one of its message.
    pub last: bool,
    /// What its payload is masked with.
    pub mask: Option<[u8; 4]>,
    /// Bytes of its payload.
    pub length: u64,
}

/// Close codes (RFC 6455, 7.4.1).
pub mod close {
    /// All is said.
    pub const NORMAL: u16 = 1000;
    /// The client breaks the protocol.
    pub const PROTOCOL_ERROR: u16 = 1002;
}

impl Head {
    /// How many bytes follow the first two of a head.
    pub fn rest(first: [u8; 2]) -> usize {
        let length = match first[1] & 0x7f {
            126 => 2,
            127 => 8,
            _short => 0,
        };
        length + if first[1] & 0x80 != 0 { 4 } else { 0 }
    }

    /// Reads a head; `rest` is as long as [`Self::rest`] says. `None` when the protocol forbids it.
    pub fn parse(first: [u8; 2], rest: &[u8]) -> Option<Self> {
        let opcode = match first[0] & 0x0f {
            0 => Opcode::Continuation,
            1 => Opcode::Text,
            2 => Opcode::Binary,
            8 => Opcode::Close,
            9 => Opcode::Ping,
            10 => Opcode::Pong,
            _reserved => return None,
        };
        let masked = first[1] & 0x80 != 0;
        let (number, mask) = rest.split_at_checked(rest.len() - if masked { 4 } else { 0 })?;
        let length = match (first[1] & 0x7f, number) {
            (126, number) => u64::from(u16::from_be_bytes(number.try_into().ok()?)),
            (127, number) => u64::from_be_bytes(number.try_into().ok()?),
            (short, _none) => u64::from(short),
        };
        let last = first[0] & 0x80 != 0;
        let control = opcode as u8 >= 8;
        let forbidden = first[0] & 0x70 != 0 || length >> 63 != 0;
        if forbidden || control && (!last || length > CONTROL_LIMIT) {
            return None;
        }
        Some(Self { opcode, last, mask: mask.try_into().ok(), length })
    }

    /// Appends the head.
    pub fn put(&self, buffer: &mut BytesMut) {
        buffer.put_u8(if self.last { 0x80 } else { 0 } | self.opcode as u8);
        let masked = if self.mask.is_some() { 0x80 } else { 0 };
        match self.length {
            0..126 => buffer.put_u8(masked | self.length as u8),
            126..0x1_0000 => {
                buffer.put_u8(masked | 126);
                buffer.put_u16(self.length as u16);
            }
            _long => {
                buffer.put_u8(masked | 127);
                buffer.put_u64(self.length);
            }
        }
        buffer.extend_from_slice(self.mask.as_ref().map_or(&[], |mask| &mask[..]));
    }
}

/// Masks or unmasks bytes that stand `offset` bytes after the beginning of their payload.
pub fn apply_mask(mask: [u8; 4], offset: u64, bytes: &mut [u8]) {
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte ^= mask[(offset as usize + at) % 4];
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(
            last: bool, mask: Option<[u8; 4]>, length in prop_oneof![0..200_u64, 0..1_u64 << 20, 0..1_u64 << 63],
            opcode in prop::sample::select(vec![Opcode::Continuation, Opcode::Text, Opcode::Binary]),
        ) {
            let head = Head { opcode, last, mask, length };
            let mut buffer = BytesMut::new();
            head.put(&mut buffer);
            let first = [buffer[0], buffer[1]];
            prop_assert_eq!(Head::rest(first), buffer.len() - 2);
            prop_assert_eq!(Head::parse(first, &buffer[2..]), Some(head));
        }

        #[test]
        fn no_bytes_break_the_parser(first: [u8; 2], rest: [u8; 12]) {
            let _any = Head::parse(first, &rest[..Head::rest(first)]);
        }
    }

    #[test]
    fn forbidden_heads_are_refused() {
        let check = |first: [u8; 2], rest: &[u8]| {
            assert_eq!(Head::parse(first, rest), None, "{first:?}");
        };
        check([0x83, 0], &[]); // reserved opcode
        check([0xc2, 0], &[]); // reserved bit
        check([0x09, 0], &[]); // control frame in parts
        check([0x89, 126], &[0, 126]); // large control frame
        check([0x82, 127], &[0x80, 0, 0, 0, 0, 0, 0, 0]); // negative length
    }

    #[test]
    fn masks_go_on_from_piece_to_piece() {
        let mut whole = *b"abcdefgh";
        let mut parts = whole;
        apply_mask([1, 2, 3, 4], 0, &mut whole);
        apply_mask([1, 2, 3, 4], 0, &mut parts[..3]);
        apply_mask([1, 2, 3, 4], 3, &mut parts[3..]);
        assert_eq!(whole, parts);
    }
}
