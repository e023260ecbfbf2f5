//! The sizes of a client's terminal: JSON objects, one after another.

use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;

use crate::streaming::session::TerminalSize;

/// Most bytes without a whole object.
const LIMIT: usize = 4 << 10;

#[derive(Deserialize)]
struct Size {
    #[serde(rename = "Width", alias = "width")]
    width: u16,
    #[serde(rename = "Height", alias = "height")]
    height: u16,
}

/// Passes sizes on until the client ends, or sends what is none.
pub async fn follow(mut client: impl AsyncRead + Unpin, sizes: &mpsc::Sender<TerminalSize>) {
    let mut text = Vec::new();
    loop {
        let read = (&mut client).take((LIMIT - text.len()) as u64).read_buf(&mut text).await;
        if !matches!(read, Ok(1..)) {
            return;
        }
        let Some((found, rest)) = parse(&text) else { return };
        text.drain(..rest);
        for size in found {
            if sizes.send(size).await.is_err() {
                return;
            }
        }
    }
}

/// The sizes at the beginning of `text` and where the rest begins; `None` when it can become no size. A size of zero is
/// none: clients send it when they have no terminal.
fn parse(text: &[u8]) -> Option<(Vec<TerminalSize>, usize)> {
    let mut values = serde_json::Deserializer::from_slice(text).into_iter::<Size>();
    let (mut found, mut rest) = (Vec::new(), 0);
    loop {
        match values.next() {
            Some(Ok(Size { width, height })) => {
                rest = values.byte_offset();
                if width > 0 && height > 0 {
                    found.push(TerminalSize { width, height });
                }
            }
            Some(Err(error)) if !error.is_eof() => return None,
            Some(Err(_)) | None => return Some((found, rest)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_found_whatever_the_pieces() {
        let check = |text: &str, expect: Option<(&[(u16, u16)], usize)>| {
            let found = parse(text.as_bytes()).map(|(sizes, rest)| {
                (sizes.iter().map(|size| (size.width, size.height)).collect::<Vec<_>>(), rest)
            });
            assert_eq!(found, expect.map(|(sizes, rest)| (sizes.to_vec(), rest)), "{text}");
        };
        check("", Some((&[], 0)));
        check(r#"{"Width":80,"Height":24}"#, Some((&[(80, 24)], 24)));
        check("{\"Width\":80,\"Height\":24}\n{\"Width\":1,", Some((&[(80, 24)], 24)));
        check(r#"{"width":1,"height":2}{"Width":3,"Height":4}"#, Some((&[(1, 2), (3, 4)], 44)));
        check(r#"{"Width":0,"Height":24}"#, Some((&[], 23)));
        check(r#"{"Width":80"#, Some((&[], 0)));
        check(r#"{"Width":-1,"Height":24}"#, None);
        check("size", None);
    }

    #[tokio::test]
    async fn endless_text_ends_the_stream() {
        let (sizes, mut receiver) = mpsc::channel(1);
        follow(tokio::io::repeat(b' ').take(1 << 30), &sizes).await;
        follow(&b"{\"Width\":80,\"Height\":24}"[..], &sizes).await;
        assert_eq!(receiver.recv().await, Some(TerminalSize { width: 80, height: 24 }));
    }
}
