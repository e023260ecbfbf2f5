//! Header blocks (2.6.10): length-prefixed names and values, deflated with one dictionary and one state for each
//! direction of a connection.

use std::collections::BTreeMap;

use bytes::{Buf, Bytes};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::frame::Malformed;

/// Largest block after inflation, bytes. Clients' blocks have a few hundred.
const BLOCK_LIMIT: usize = 16 << 10;
/// Most headers of a block.
const COUNT_LIMIT: u32 = 64;

/// Window of the compressor: enough for the dictionary, small because every connection has one.
const WINDOW_BITS: u8 = 11;

/// Reads the blocks of one direction, each in turn: after an error the state is lost.
pub struct Inflater(Decompress);

/// Writes the blocks of one direction.
pub struct Deflater(Compress);

impl Inflater {
    /// A fresh direction.
    pub fn new() -> Self {
        Self(Decompress::new(true))
    }

    /// Reads a block. Names are in lower case; values of one name are separated by NUL.
    pub fn block(&mut self, block: &[u8]) -> Result<BTreeMap<String, String>, Malformed> {
        parse(self.inflate(block)?.into())
    }

    fn inflate(&mut self, mut block: &[u8]) -> Result<Vec<u8>, Malformed> {
        let mut plain = Vec::with_capacity(1024);
        loop {
            let (taken, made) = (self.0.total_in(), plain.len());
            let step = self.0.decompress_vec(block, &mut plain, FlushDecompress::Sync);
            block = &block[(self.0.total_in() - taken) as usize..];
            match step {
                Ok(Status::StreamEnd) => return Err(Malformed("the header compression was ended")),
                Ok(Status::Ok | Status::BufError) => {}
                Err(error) if error.needs_dictionary().is_some() => {
                    let dictionary = dictionary();
                    self.0.set_dictionary(&dictionary).map_err(|_| Malformed("another dictionary"))?;
                    continue;
                }
                Err(_) => return Err(Malformed("a header block is not deflated")),
            }
            if plain.len() > BLOCK_LIMIT {
                return Err(Malformed("a header block is too large"));
            }
            if plain.len() < plain.capacity() {
                if block.is_empty() {
                    return Ok(plain);
                }
                if plain.len() == made && self.0.total_in() == taken {
                    return Err(Malformed("a header block cannot be inflated"));
                }
                continue;
            }
            plain.reserve(plain.len());
        }
    }
}

impl Deflater {
    /// A fresh direction.
    pub fn new() -> Self {
        let mut compress = Compress::new_with_window_bits(Compression::fast(), true, WINDOW_BITS);
        compress.set_dictionary(&dictionary()).expect("a fresh compressor takes a dictionary");
        Self(compress)
    }

    /// Writes a block of these headers.
    pub fn block(&mut self, headers: &[(&str, &str)]) -> Bytes {
        let mut plain = (headers.len() as u32).to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            plain.extend((text.len() as u32).to_be_bytes());
            plain.extend(text.as_bytes());
        }
        let mut block = Vec::with_capacity(plain.len() + 64);
        let end = self.0.total_in() + plain.len() as u64;
        loop {
            let rest = plain.len() - (end - self.0.total_in()) as usize;
            self.0
                .compress_vec(&plain[rest..], &mut block, FlushCompress::Sync)
                .expect("the compressor is never finished");
            if self.0.total_in() == end && block.len() < block.capacity() {
                return block.into();
            }
            block.reserve(block.len().max(64));
        }
    }
}

fn parse(mut plain: Bytes) -> Result<BTreeMap<String, String>, Malformed> {
    let count = number(&mut plain)?;
    if count > COUNT_LIMIT {
        return Err(Malformed("too many headers"));
    }
    let mut headers = BTreeMap::new();
    for _header in 0..count {
        let name = text(&mut plain)?;
        let value = text(&mut plain)?;
        if name.is_empty() || headers.insert(name.to_ascii_lowercase(), value).is_some() {
            return Err(Malformed("a header has no name or comes twice"));
        }
    }
    if plain.is_empty() { Ok(headers) } else { Err(Malformed("a header block has a tail")) }
}

fn text(plain: &mut Bytes) -> Result<String, Malformed> {
    let length = number(plain)? as usize;
    if plain.len() < length {
        return Err(Malformed("a header is longer than its block"));
    }
    String::from_utf8(plain.split_to(length).into()).map_err(|_| Malformed("a header is not UTF-8"))
}

fn number(plain: &mut Bytes) -> Result<u32, Malformed> {
    if plain.len() < 4 { Err(Malformed("a header block is too short")) } else { Ok(plain.get_u32()) }
}

/// The dictionary of 2.6.10.1: words with their lengths, then strings that are likely in values.
fn dictionary() -> Vec<u8> {
    let mut dictionary = Vec::with_capacity(1423);
    for word in WORDS.split('|') {
        dictionary.extend((word.len() as u32).to_be_bytes());
        dictionary.extend(word.as_bytes());
    }
    dictionary.extend(STRINGS.as_bytes());
    dictionary
}

const WORDS: &str = "options|head|post|put|delete|trace|accept|accept-charset|accept-encoding|accept-language|\
    accept-ranges|age|allow|authorization|cache-control|connection|content-base|content-encoding|content-language|\
    content-length|content-location|content-md5|content-range|content-type|date|etag|expect|expires|from|host|\
    if-match|if-modified-since|if-none-match|if-range|if-unmodified-since|last-modified|location|max-forwards|pragma|\
    proxy-authenticate|proxy-authorization|range|referer|retry-after|server|te|trailer|transfer-encoding|upgrade|\
    user-agent|vary|via|warning|www-authenticate|method|get|status|200 OK|version|HTTP/1.1|url|public|set-cookie|\
    keep-alive|origin";

const STRINGS: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
    203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden\
    404 Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug \
    Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,\
    application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdch\
    charset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The beginning of every SPDY/3 connection: a zlib head and the checksum of the dictionary.
    #[test]
    fn the_dictionary_is_that_of_the_specification() {
        assert_eq!(dictionary().len(), 1423);
        assert_eq!(Deflater::new().block(&[])[2..6], [0xe3, 0xc6, 0xa7, 0xc2]);
    }

    proptest! {
        #[test]
        fn blocks_share_their_state(blocks in prop::collection::vec(
            prop::collection::btree_map("[a-z-]{1,20}", "[ -~]{0,300}", 0..20), 1..8)) {
            let (mut deflater, mut inflater) = (Deflater::new(), Inflater::new());
            for block in blocks {
                let headers: Vec<_> = block.iter().map(|(name, value)| (&name[..], &value[..])).collect();
                let written = deflater.block(&headers);
                prop_assert_eq!(inflater.block(&written), Ok(block));
            }
        }

        #[test]
        fn no_bytes_break_the_inflater(blocks in prop::collection::vec(
            prop::collection::vec(any::<u8>(), 0..300), 1..4)) {
            let mut inflater = Inflater::new();
            for block in blocks {
                let _any = inflater.block(&block);
            }
        }

        #[test]
        fn a_changed_byte_does_not_break_the_inflater(at in 0..40_usize, to: u8) {
            let mut block = Deflater::new().block(&[("streamtype", "stdout"), ("port", "80")]).to_vec();
            let at = at % block.len();
            block[at] = to;
            let _any = Inflater::new().block(&block);
        }
    }

    #[test]
    fn bombs_are_bounded() {
        let long = "x".repeat(4 << 20);
        let block = Deflater::new().block(&[("streamtype", &long)]);
        assert!(block.len() < 64 << 10, "{}: a bomb is small", block.len());
        assert_eq!(Inflater::new().block(&block), Err(Malformed("a header block is too large")));
        let many: Vec<_> = (0..65).map(|number| format!("h{number}")).collect();
        let many: Vec<_> = many.iter().map(|name| (&name[..], "")).collect();
        let block = Deflater::new().block(&many);
        assert_eq!(Inflater::new().block(&block), Err(Malformed("too many headers")));
    }
}
