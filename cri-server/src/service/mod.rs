//! The RPC table: one to three lines per RPC. Only this module and `error` name tonic.

mod admin;
pub mod client;
mod image;
mod lists;
mod runtime;
mod trace;

use std::pin::Pin;
use std::sync::Arc;

use proto::admin::admin_server::AdminServer;
use proto::cri::image_service_server::ImageServiceServer;
use proto::cri::runtime_service_server::RuntimeServiceServer;
use tokio::net::UnixListener;
use tokio_stream::Stream;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Response, Status};

use crate::daemon::Daemon;
use crate::streaming::Streaming;

/// Largest message in either direction, bytes: what the kubelet allows.
const MESSAGE_LIMIT: usize = 16 << 20;
/// Size of one piece of an archive in transit, bytes.
const CHUNK: usize = 256 << 10;

/// The services around one daemon.
#[derive(Clone)]
pub struct Service {
    daemon: Arc<Daemon>,
    streaming: Arc<Streaming>,
}

/// A stream of messages.
type Items<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The answer that sends these messages and ends.
fn items<T: Send + 'static>(messages: Vec<T>) -> Response<Items<T>> {
    Response::new(Box::pin(tokio_stream::iter(messages.into_iter().map(Ok))))
}

/// Serves on `listener` until `shutdown` resolves and the calls in flight have ended.
pub async fn serve(
    daemon: Arc<Daemon>,
    streaming: Streaming,
    listener: UnixListener,
    shutdown: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let service = Service { daemon: daemon.clone(), streaming: Arc::new(streaming) };
    let runtime = RuntimeServiceServer::new(service.clone())
        .max_decoding_message_size(MESSAGE_LIMIT)
        .max_encoding_message_size(MESSAGE_LIMIT);
    let admin = AdminServer::new(service.clone());
    let image = ImageServiceServer::new(service)
        .max_decoding_message_size(MESSAGE_LIMIT)
        .max_encoding_message_size(MESSAGE_LIMIT);
    tonic::transport::Server::builder()
        .layer(trace::TraceLayer)
        .add_service(lists::Lists { daemon, within: runtime })
        .add_service(image)
        .add_service(admin)
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), shutdown)
        .await
}
