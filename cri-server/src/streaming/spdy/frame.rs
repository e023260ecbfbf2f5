//! Frames and their bytes (2.2, 2.6). Pure; header blocks stay compressed here.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::streaming::mux::Part;

/// Bytes of every frame's head.
pub const HEAD: usize = 8;
/// Largest control frame that is taken, bytes without the head. Clients' frames have a few hundred.
pub const CONTROL_LIMIT: usize = 16 << 10;

const VERSION: u16 = 3;
const FLAG_FIN: u8 = 1;
const ID: u32 = 0x7fff_ffff;

/// The first eight bytes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// A control frame of this type and version.
    Control {
        /// Type of frame.
        kind: u16,
        /// Version of the protocol.
        version: u16,
        /// Flags.
        flags: u8,
        /// Bytes that follow.
        length: usize,
    },
    /// Bytes of a stream.
    Content {
        /// The stream.
        id: u32,
        /// Whether they are its last.
        part: Part,
        /// Bytes that follow.
        length: usize,
    },
}

/// A control frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Control {
    /// SYN_STREAM: the sender opens a stream.
    SynStream {
        /// Its number.
        id: u32,
        /// The last one when the sender will send nothing on it.
        part: Part,
        /// Compressed headers.
        block: Bytes,
    },
    /// SYN_REPLY: the receiver accepts it.
    SynReply {
        /// The stream.
        id: u32,
        /// The last one when the sender will send nothing on it.
        part: Part,
        /// Compressed headers.
        block: Bytes,
    },
    /// RST_STREAM
    RstStream {
        /// The stream.
        id: u32,
        /// Why.
        status: u32,
    },
    /// SETTINGS: numbers and values.
    Settings(Vec<(u32, u32)>),
    /// PING
    Ping(u32),
    /// GOAWAY
    GoAway {
        /// The last stream that was accepted.
        last_good: u32,
        /// Why.
        status: u32,
    },
    /// HEADERS: more headers of a stream.
    Headers {
        /// The stream.
        id: u32,
        /// The last one when the sender will send nothing more on it.
        part: Part,
        /// Compressed headers.
        block: Bytes,
    },
    /// WINDOW_UPDATE
    WindowUpdate {
        /// The stream; 0 is the connection.
        id: u32,
        /// Bytes that the window grows by.
        delta: u32,
    },
    /// A type that the specification does not know, and lets be ignored.
    Unknown(u16),
}

/// The bytes are no frame of SPDY/3.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub &'static str);

impl Head {
    /// Reads a head.
    pub fn parse(bytes: [u8; HEAD]) -> Self {
        let mut bytes = &bytes[..];
        let (first, second) = (bytes.get_u32(), bytes.get_u32());
        let (flags, length) = ((second >> 24) as u8, (second & 0xff_ffff) as usize);
        if first & !ID == 0 {
            return Self::Content { id: first, part: part(flags), length };
        }
        Self::Control { kind: first as u16, version: (first >> 16) as u16 & 0x7fff, flags, length }
    }
}

/// Appends the head of `length` bytes of a stream.
pub fn put_content_head(id: u32, part: Part, length: usize, buffer: &mut BytesMut) {
    buffer.put_u32(id & ID);
    buffer.put_u32(u32::from(fin(part)) << 24 | length as u32);
}

impl Control {
    /// Reads what follows the head of a control frame.
    pub fn parse(kind: u16, version: u16, flags: u8, mut payload: Bytes) -> Result<Self, Malformed> {
        if version != VERSION {
            return Err(Malformed("expected version 3"));
        }
        let part = part(flags);
        let frame = match kind {
            1 => {
                let id = id(&mut payload)?;
                need(&payload, 6)?;
                payload.advance(6);
                Self::SynStream { id, part, block: payload.split_off(0) }
            }
            2 => Self::SynReply { id: id(&mut payload)?, part, block: payload.split_off(0) },
            3 => Self::RstStream { id: id(&mut payload)?, status: number(&mut payload)? },
            4 => Self::Settings(settings(&mut payload)?),
            6 => Self::Ping(number(&mut payload)?),
            7 => Self::GoAway { last_good: id(&mut payload)?, status: number(&mut payload)? },
            8 => Self::Headers { id: id(&mut payload)?, part, block: payload.split_off(0) },
            9 => Self::WindowUpdate { id: id(&mut payload)?, delta: number(&mut payload)? & ID },
            kind => Self::Unknown(kind),
        };
        Ok(frame)
    }

    /// Appends the frame with its head.
    pub fn put(&self, buffer: &mut BytesMut) {
        match self {
            Self::SynStream { id, part, block } => {
                put_head(1, *part, 10 + block.len(), buffer);
                buffer.put_u32(*id);
                buffer.put_bytes(0, 6);
                buffer.put_slice(block);
            }
            Self::SynReply { id, part, block } => put_block(2, *id, *part, block, buffer),
            Self::RstStream { id, status } => put_pair(3, *id, *status, buffer),
            Self::Settings(settings) => {
                put_head(4, Part::Middle, 4 + 8 * settings.len(), buffer);
                buffer.put_u32(settings.len() as u32);
                for (number, value) in settings {
                    buffer.put_u32(*number);
                    buffer.put_u32(*value);
                }
            }
            Self::Ping(number) => {
                put_head(6, Part::Middle, 4, buffer);
                buffer.put_u32(*number);
            }
            Self::GoAway { last_good, status } => put_pair(7, *last_good, *status, buffer),
            Self::Headers { id, part, block } => put_block(8, *id, *part, block, buffer),
            Self::WindowUpdate { id, delta } => put_pair(9, *id, *delta, buffer),
            Self::Unknown(kind) => put_head(*kind, Part::Middle, 0, buffer),
        }
    }
}

fn part(flags: u8) -> Part {
    Part::from(flags & FLAG_FIN != 0)
}

fn fin(part: Part) -> u8 {
    match part {
        Part::Middle => 0,
        Part::Last => FLAG_FIN,
    }
}

fn put_head(kind: u16, part: Part, length: usize, buffer: &mut BytesMut) {
    buffer.put_u16(0x8000 | VERSION);
    buffer.put_u16(kind);
    buffer.put_u32(u32::from(fin(part)) << 24 | length as u32);
}

fn put_block(kind: u16, id: u32, part: Part, block: &[u8], buffer: &mut BytesMut) {
    put_head(kind, part, 4 + block.len(), buffer);
    buffer.put_u32(id);
    buffer.put_slice(block);
}

fn put_pair(kind: u16, first: u32, second: u32, buffer: &mut BytesMut) {
    put_head(kind, Part::Middle, 8, buffer);
    buffer.put_u32(first);
    buffer.put_u32(second);
}

fn settings(payload: &mut Bytes) -> Result<Vec<(u32, u32)>, Malformed> {
    let count = number(payload)? as usize;
    if payload.len() / 8 < count {
        return Err(Malformed("SETTINGS has fewer entries than it says"));
    }
    // The flags of an entry are in the first byte of its number.
    Ok((0..count).map(|_entry| (payload.get_u32() & 0xff_ffff, payload.get_u32())).collect())
}

fn id(payload: &mut Bytes) -> Result<u32, Malformed> {
    Ok(number(payload)? & ID)
}

fn number(payload: &mut Bytes) -> Result<u32, Malformed> {
    need(payload, 4)?;
    Ok(payload.get_u32())
}

fn need(payload: &Bytes, bytes: usize) -> Result<(), Malformed> {
    if payload.len() < bytes { Err(Malformed("a control frame is too short")) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn control() -> impl Strategy<Value = Control> {
        let id = 0..=ID;
        let block = prop::collection::vec(any::<u8>(), 0..200).prop_map(Bytes::from);
        let stream = (id.clone(), any::<bool>().prop_map(Part::from), block);
        let pair = (id.clone(), any::<u32>());
        prop_oneof![
            stream.clone().prop_map(|(id, part, block)| Control::SynStream { id, part, block }),
            stream.clone().prop_map(|(id, part, block)| Control::SynReply { id, part, block }),
            stream.prop_map(|(id, part, block)| Control::Headers { id, part, block }),
            pair.clone().prop_map(|(id, status)| Control::RstStream { id, status }),
            pair.clone().prop_map(|(last_good, status)| Control::GoAway { last_good, status }),
            (id.clone(), id).prop_map(|(id, delta)| Control::WindowUpdate { id, delta }),
            any::<u32>().prop_map(Control::Ping),
            prop::collection::vec((0..0x100_0000_u32, any::<u32>()), 0..20).prop_map(Control::Settings),
            (10..u16::MAX).prop_map(Control::Unknown),
        ]
    }

    fn parse(mut bytes: Bytes) -> Result<Control, Malformed> {
        let head = bytes.split_to(HEAD);
        match Head::parse(head[..].try_into().unwrap()) {
            Head::Control { kind, version, flags, length } => {
                assert_eq!(length, bytes.len(), "the head says what follows");
                Control::parse(kind, version, flags, bytes)
            }
            Head::Content { .. } => Err(Malformed("not a control frame")),
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(frame in control()) {
            let mut buffer = BytesMut::new();
            frame.put(&mut buffer);
            prop_assert_eq!(parse(buffer.freeze()), Ok(frame));
        }

        #[test]
        fn heads_of_content_are_read(id in 0..=ID, last: bool, length in 0..0x100_0000_usize) {
            let mut buffer = BytesMut::new();
            let part = Part::from(last);
            put_content_head(id, part, length, &mut buffer);
            let head = Head::parse(buffer[..].try_into().unwrap());
            prop_assert_eq!(head, Head::Content { id, part, length });
        }

        #[test]
        fn no_bytes_break_the_parser(kind: u16, flags: u8, payload in prop::collection::vec(any::<u8>(), 0..64)) {
            let length = payload.len();
            if let Ok(Control::Settings(settings)) = Control::parse(kind, VERSION, flags, payload.into()) {
                prop_assert!(settings.len() * 8 <= length, "memory follows what was received");
            }
        }
    }

    #[test]
    fn short_and_foreign_frames_are_refused() {
        let check = |kind, version, payload: &'static [u8]| {
            let parsed = Control::parse(kind, version, 0, Bytes::from_static(payload));
            assert!(parsed.is_err(), "{kind} {version} {payload:?}: {parsed:?}");
        };
        check(1, 3, b"\0\0\0\x01\0\0\0\0\0");
        check(3, 3, b"\0\0\0\x01");
        check(4, 3, b"\xff\xff\xff\xff");
        check(4, 3, b"\0\0\0\x02\0\0\0\x07\0\0\0\x01");
        check(6, 3, b"\0\0\0");
        check(6, 2, b"\0\0\0\x01");
        check(9, 3, b"\0\0\0\x01\0");
    }
}
