//! How one request to a registry can fail, and what follows from it.

use std::sync::Arc;
use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::RETRY_AFTER;
use serde::Deserialize;

use crate::image::error::{Cause, ImageError};

const MAX_ERROR_BODY: usize = 16 << 10;

/// A failed request.
#[derive(Debug, Clone)]
pub enum Failure {
    /// There is no such thing.
    NotFound,
    /// Other credentials are needed.
    Denied(Option<Cause>),
    /// The registry, or the way to it, has a problem that may pass.
    Passing(Cause, Option<Duration>),
    /// The registry has a problem that stays.
    Lasting(Cause),
    /// The content is wrong.
    Invalid(ImageError),
}

/// What a registry or this client has to say about a failure.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct Message(pub String);

/// A failure with a message, as a cause.
pub fn cause(text: impl Into<String>) -> Cause {
    Arc::new(Message(text.into()))
}

impl Failure {
    /// Whether another try may help.
    pub fn may_pass(&self) -> bool {
        matches!(self, Failure::Passing(..))
    }

    /// The pause that the registry asked for.
    pub fn pause(&self) -> Option<Duration> {
        match self {
            Failure::Passing(_, pause) => *pause,
            _ => None,
        }
    }

    /// As an error about `what`.
    pub fn into_error(self, what: &str) -> ImageError {
        let what = what.to_string();
        match self {
            Failure::NotFound => ImageError::NotFound { what },
            Failure::Denied(source) => ImageError::Unauthorized { what, source },
            Failure::Passing(source, _) | Failure::Lasting(source) => {
                ImageError::Unavailable { what, source }
            }
            Failure::Invalid(error) => error,
        }
    }

    /// A failure below HTTP. URLs are left out: those of blob stores carry signatures.
    pub fn transport(error: reqwest::Error) -> Self {
        Failure::Passing(cause(chain(&error.without_url())), None)
    }

    /// Nothing came for too long.
    pub fn stalled(limit: Duration) -> Self {
        Failure::Passing(cause(format!("nothing arrived for {} ms", limit.as_millis())), None)
    }

    /// Too little came for too long.
    pub fn slow(bytes: u64, limit: Duration) -> Self {
        let text = format!("only {bytes} bytes arrived in {} ms", limit.as_millis());
        Failure::Passing(cause(text), None)
    }

    /// What the status of an unsuccessful answer means.
    pub async fn from_response(response: reqwest::Response, stall: Duration) -> Self {
        let status = response.status();
        let pause = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        let pause = pause.and_then(|seconds| seconds.trim().parse().ok()).map(Duration::from_secs);
        let said = tokio::time::timeout(stall, message(response)).await.ok().flatten();
        let text = match &said {
            Some(said) => format!("{status}: {said}"),
            None => status.to_string(),
        };
        match status {
            StatusCode::NOT_FOUND => Failure::NotFound,
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Failure::Denied(Some(cause(text))),
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => {
                Failure::Passing(cause(text), pause)
            }
            status if status.is_server_error() => Failure::Passing(cause(text), pause),
            _ => Failure::Lasting(cause(text)),
        }
    }
}

/// An error with all its sources on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}

/// The registry's own words, cleaned and cut.
async fn message(mut response: reqwest::Response) -> Option<String> {
    #[derive(Deserialize)]
    struct Body {
        errors: Vec<Line>,
    }
    #[derive(Deserialize)]
    struct Line {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let mut bytes = Vec::new();
    while let Ok(Some(piece)) = response.chunk().await {
        bytes.extend_from_slice(&piece);
        if bytes.len() > MAX_ERROR_BODY {
            return None;
        }
    }
    let body: Body = serde_json::from_slice(&bytes).ok()?;
    let line = body.errors.into_iter().next()?;
    let text = format!("{} {}", line.code, line.message);
    Some(text.chars().filter(|c| !c.is_control()).take(300).collect::<String>().trim().to_string())
}
