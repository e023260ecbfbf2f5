//! Streams a blob, going on after interruptions where it stopped, elsewhere if need be.

use reqwest::StatusCode;
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE};

use super::failure::{Failure, cause};
use super::pace::{LEAST, Pace};
use super::session::{Ask, Session};
use crate::image::digest::Digest;
use crate::image::error::ImageError;
use crate::image::unpack::BlobSink;

/// How a transfer ended.
enum End {
    /// All bytes are through.
    Complete,
    /// The unpacker wants no more.
    Unwanted,
    /// It broke.
    Broken(Failure),
}

/// A blob on its way.
struct Transfer<'a> {
    size: u64,
    done: u64,
    sink: &'a BlobSink,
    on_progress: &'a (dyn Fn(u64) + Sync),
}

impl Session {
    /// Sends the bytes of a blob to `sink`; `on_progress` gets the number of bytes so far. Succeeds also when the
    /// unpacker stops listening, which has its own error. The digest is for the receiver to check.
    pub async fn blob(
        &self,
        digest: Digest,
        size: u64,
        sink: BlobSink,
        on_progress: &(dyn Fn(u64) + Sync),
    ) -> Result<(), ImageError> {
        let what = format!("layer {} of {}", digest.short(), self.reference());
        let mut transfer = Transfer { size, done: 0, sink: &sink, on_progress };
        let (mut endpoint, mut failures) = (0, 0);
        loop {
            let before = transfer.done;
            let ask = Ask { path: format!("blobs/{digest}"), accept: None, from: before };
            let failure = match self.piece(endpoint, &ask, &mut transfer).await {
                End::Complete | End::Unwanted => return Ok(()),
                End::Broken(failure) => failure,
            };
            // A registry that brings a little each time would go on for ever.
            failures = if transfer.done - before >= LEAST { 1 } else { failures + 1 };
            let more_endpoints = endpoint + 1 < self.endpoint_count();
            let worn_out = !failure.may_pass() || failures >= self.attempts(endpoint);
            match (more_endpoints, worn_out) {
                (true, _) => (endpoint, failures) = (endpoint + 1, 0),
                (false, true) => return Err(failure.into_error(&what)),
                (false, false) => tokio::time::sleep(self.pause(failures, &failure)).await,
            }
        }
    }

    /// One request's worth.
    async fn piece(&self, endpoint: usize, ask: &Ask, transfer: &mut Transfer<'_>) -> End {
        if transfer.done == transfer.size {
            return End::Complete;
        }
        let mut response = match self.send(endpoint, ask).await {
            Ok(response) => response,
            Err(failure) => return End::Broken(failure),
        };
        let mut skip = match start(&response, ask.from, transfer.size) {
            Ok(start) => ask.from - start,
            Err(failure) => return End::Broken(failure),
        };
        let mut pace = Pace::new(self.stall());
        loop {
            let mut piece = match pace.next(response.chunk()).await {
                Ok(Some(piece)) => piece,
                Ok(None) if transfer.done == transfer.size => return End::Complete,
                Ok(None) => {
                    let text =
                        format!("the transfer ended after {} of {} bytes", transfer.done, transfer.size);
                    return End::Broken(Failure::Passing(cause(text), None));
                }
                Err(failure) => return End::Broken(failure),
            };
            pace.count(piece.len());
            // A registry that ignores ranges sends again what is there already.
            let repeated = skip.min(piece.len() as u64);
            skip -= repeated;
            let piece = piece.split_off(repeated as usize);
            if transfer.done + piece.len() as u64 > transfer.size {
                let text = format!("a layer is longer than the {} bytes announced", transfer.size);
                return End::Broken(Failure::Invalid(ImageError::invalid(text)));
            }
            transfer.done += piece.len() as u64;
            (transfer.on_progress)(transfer.done);
            if transfer.sink.send(piece).await.is_err() {
                return End::Unwanted;
            }
        }
    }
}

/// The offset of the first byte of an answer, checked against what was asked for.
fn start(response: &reqwest::Response, from: u64, size: u64) -> Result<u64, Failure> {
    let text = |name| {
        response.headers().get(name).and_then(|value: &reqwest::header::HeaderValue| value.to_str().ok())
    };
    if response.status() == StatusCode::PARTIAL_CONTENT {
        let range = text(CONTENT_RANGE).and_then(|range| range.trim().strip_prefix("bytes "));
        let first =
            range.and_then(|range| range.split('-').next()).and_then(|first| first.parse::<u64>().ok());
        return match first {
            Some(first) if first == from => Ok(from),
            _ => Err(Failure::Lasting(cause("the registry sent another part than asked for"))),
        };
    }
    let length = text(CONTENT_LENGTH).and_then(|length| length.parse::<u64>().ok());
    match length {
        Some(length) if length != size => {
            let text = format!("a layer has {length} bytes, {size} were announced");
            Err(Failure::Invalid(ImageError::invalid(text)))
        }
        _ => Ok(0),
    }
}
