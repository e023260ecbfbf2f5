//! One layer around every RPC: its name, its duration and its end, in the log; and the caller's deadline, whose
//! passing is DEADLINE_EXCEEDED (gRPC over HTTP/2, "Timeout").

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tonic::Status;
use tonic::codegen::http::{HeaderMap, Request, Response};
use tower::{Layer, Service};

/// Makes [`Trace`].
#[derive(Debug, Clone, Copy)]
pub struct TraceLayer;

/// Logs each call of the service within.
#[derive(Debug, Clone)]
pub struct Trace<S>(S);

impl<S> Layer<S> for TraceLayer {
    type Service = Trace<S>;

    fn layer(&self, service: S) -> Trace<S> {
        Trace(service)
    }
}

impl<S, B, R> Service<Request<B>> for Trace<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
    R: Default,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<R>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let path = request.uri().path().to_string();
        let started = Instant::now();
        let deadline = deadline(request.headers());
        let call = self.0.call(request);
        Box::pin(async move {
            let response = match deadline {
                None => call.await,
                Some(deadline) => match tokio::time::timeout(deadline, call).await {
                    Ok(response) => response,
                    Err(_) => Ok(Status::deadline_exceeded("the caller's deadline passed").into_http()),
                },
            };
            let micros = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
            let rpc = path.rsplit('/').next().unwrap_or_default();
            match response.as_ref().ok().and_then(|response| Status::from_header_map(response.headers())) {
                Some(status) => {
                    tracing::info!(rpc, micros, code = ?status.code(), message = status.message(), "failed");
                }
                None => tracing::debug!(rpc, micros, "done"),
            }
            response
        })
    }
}

/// How long the caller waits, less a moment: the answer is to come from here and not from the transport, which would
/// say CANCELLED.
fn deadline(headers: &HeaderMap) -> Option<Duration> {
    const MOMENT: Duration = Duration::from_millis(2);
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let value: u32 = digits.parse().ok()?;
    let timeout = match unit {
        "H" => Duration::from_secs(3600) * value,
        "M" => Duration::from_secs(60) * value,
        "S" => Duration::from_secs(1) * value,
        "m" => Duration::from_millis(1) * value,
        "u" => Duration::from_micros(1) * value,
        "n" => Duration::from_nanos(1) * value,
        _unknown => return None,
    };
    Some(timeout.saturating_sub(MOMENT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines() {
        let check = |text: &'static str, expect: Option<u64>| {
            let headers = HeaderMap::from_iter([("grpc-timeout".parse().unwrap(), text.parse().unwrap())]);
            assert_eq!(deadline(&headers), expect.map(Duration::from_millis), "{text}");
        };
        check("1m", Some(0));
        check("100m", Some(98));
        check("2S", Some(1998));
        check("99999999H", Some(99_999_999 * 3_600_000 - 2));
        check("", None);
        check("S", None);
        check("5x", None);
        check("-1S", None);
    }
}
