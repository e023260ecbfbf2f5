//! What a stream client may send, read by the codecs of the streaming server: any bytes must be read or refused, and
//! what is read must come out the same when it is written again. A breach is a panic.
#![allow(clippy::panic, reason = "a panic is how a fuzz target reports")]

use bytes::{Bytes, BytesMut};
use streaming::spdy::frame::{self, Control};
use streaming::spdy::headers::{Deflater, Inflater};
use streaming::websocket::frame as websocket_frame;

/// The files of `cri-server` that hold the codecs, and nothing else of it.
#[path = "../../src/streaming"]
#[allow(dead_code)]
mod streaming {
    pub mod mux {
        mod part;
        pub use part::Part;
    }
    pub mod spdy {
        pub mod frame;
        pub mod headers;
    }
    pub mod websocket {
        pub mod frame;
    }
}

/// Frames of SPDY one after another, their header blocks inflated in turn, as on a connection. The first byte says
/// whether heads are the input's own, or right ones for what it says of them.
pub fn spdy(bytes: &[u8]) {
    match bytes.split_first() {
        Some((0, bytes)) => raw_spdy(bytes),
        Some((_, bytes)) => framed_spdy(bytes),
        None => {}
    }
}

fn raw_spdy(bytes: &[u8]) {
    let mut left = Bytes::copy_from_slice(bytes);
    let mut inflater = Inflater::new();
    while left.len() >= frame::HEAD {
        let head = left.split_to(frame::HEAD);
        let (frame::Head::Control { length, .. } | frame::Head::Content { length, .. }) = parse_head(&head);
        if length > left.len() {
            return;
        }
        let payload = left.split_to(length);
        let frame::Head::Control { kind, version, flags, .. } = parse_head(&head) else { continue };
        if !understood(Control::parse(kind, version, flags, payload), &mut inflater) {
            return;
        }
    }
}

/// Type, flags and length of a frame, one byte each, and what it holds.
fn framed_spdy(mut bytes: &[u8]) {
    let mut inflater = Inflater::new();
    while let [kind, flags, length, rest @ ..] = bytes {
        let (payload, next) = rest.split_at(rest.len().min(usize::from(*length)));
        let parsed = Control::parse(u16::from(*kind % 12), 3, *flags, Bytes::copy_from_slice(payload));
        if !understood(parsed, &mut inflater) {
            return;
        }
        bytes = next;
    }
}

/// Whether a connection goes on after this frame.
fn understood(parsed: Result<Control, frame::Malformed>, inflater: &mut Inflater) -> bool {
    let Ok(control) = parsed else { return false };
    same_when_written(&control);
    match control {
        Control::SynStream { block, .. }
        | Control::SynReply { block, .. }
        | Control::Headers { block, .. } => inflater.block(&block).is_ok(),
        _no_headers => true,
    }
}

fn parse_head(bytes: &[u8]) -> frame::Head {
    frame::Head::parse(bytes.try_into().expect("a head has this length"))
}

fn same_when_written(control: &Control) {
    let mut written = BytesMut::new();
    control.put(&mut written);
    let head = written.split_to(frame::HEAD);
    let frame::Head::Control { kind, version, flags, length } = parse_head(&head) else {
        panic!("{control:?} was written as content")
    };
    assert_eq!(length, written.len(), "{control:?}");
    assert_eq!(Control::parse(kind, version, flags, written.freeze()).as_ref(), Ok(control));
}

/// Header blocks that were compressed well, with one byte changed: the first two bytes say where and how.
pub fn headers(bytes: &[u8]) {
    let [at, change, rest @ ..] = bytes else { return };
    let texts: Vec<_> = rest.split(|byte| *byte == 0xff).map(String::from_utf8_lossy).collect();
    let pairs: Vec<(&str, &str)> = texts.chunks_exact(2).map(|pair| (&*pair[0], &*pair[1])).collect();
    let mut deflater = Deflater::new();
    let mut inflater = Inflater::new();
    for pairs in pairs.chunks(8) {
        let mut block = deflater.block(pairs).to_vec();
        if *change == 0 {
            // What is refused is refused for what it says, and the next block is still understood.
            if let Ok(found) = inflater.block(&block) {
                assert_eq!(found.len(), pairs.len());
            }
            continue;
        }
        let at = usize::from(*at) % block.len();
        block[at] ^= change;
        if inflater.block(&block).is_err() {
            return;
        }
    }
}

/// Frames of a WebSocket one after another, and their masks.
pub fn websocket(bytes: &[u8]) {
    let mut left = bytes;
    while let [one, two, rest @ ..] = left {
        let first = [*one, *two];
        let Some((head, payload)) = rest.split_at_checked(websocket_frame::Head::rest(first)) else { return };
        let Some(head) = websocket_frame::Head::parse(first, head) else { return };
        same_head_when_written(&head);
        let length = usize::try_from(head.length).unwrap_or(usize::MAX);
        let Some((payload, next)) = payload.split_at_checked(length) else { return };
        if let Some(mask) = head.mask {
            let mut twice = payload.to_vec();
            websocket_frame::apply_mask(mask, 3, &mut twice);
            websocket_frame::apply_mask(mask, 3, &mut twice);
            assert_eq!(twice, payload);
        }
        left = next;
    }
}

/// A length may be written longer than it need be, so that heads are compared, not bytes.
fn same_head_when_written(head: &websocket_frame::Head) {
    let mut written = BytesMut::new();
    head.put(&mut written);
    let first = [written[0], written[1]];
    assert_eq!(websocket_frame::Head::rest(first), written.len() - 2);
    assert_eq!(websocket_frame::Head::parse(first, &written[2..]), Some(*head));
}
