//! One layer around every RPC: its name, its duration and its end, in the log.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use tonic::codegen::http::{Request, Response};
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
        let call = self.0.call(request);
        Box::pin(async move {
            let response = call.await;
            let micros = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
            let rpc = path.rsplit('/').next().unwrap_or_default();
            match response.as_ref().ok().and_then(|response| response.headers().get("grpc-status")) {
                Some(code) => {
                    let message = response.as_ref().ok().and_then(|r| r.headers().get("grpc-message"));
                    tracing::info!(rpc, micros, code = ?code, message = ?message, "failed");
                }
                None => tracing::debug!(rpc, micros, "done"),
            }
            response
        })
    }
}
