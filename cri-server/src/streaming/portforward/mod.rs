//! Port-forward: pairs of streams, data and error, each to one connection into the pod.
//!
//! A failure is told on the pair's error stream and costs that pair alone.

mod pairs;

use std::sync::Arc;

use tokio::io::{AsyncWriteExt, copy_bidirectional_with_sizes};

use super::mux::{Handle, PIECE, Stream, Writer};
use super::session::Target;
use super::spdy::reset;
use crate::error::chain;
pub use pairs::over_spdy;

/// Serves a client with two channels for each of `ports`: data, then error.
pub async fn over_websocket<T: Target>(
    target: Arc<T>,
    pod_id: String,
    ports: Vec<u16>,
    streams: Vec<Stream>,
    handle: Handle,
) {
    let mut streams = streams.into_iter();
    let forwards = ports.into_iter().filter_map(|port| {
        let (mut data, mut error) = (streams.next()?, streams.next()?.writer);
        let (target, pod_id) = (&target, &pod_id);
        Some(async move {
            // Each channel begins with its port.
            for writer in [&mut data.writer, &mut error] {
                let _gone = writer.write_all(&port.to_le_bytes()).await;
            }
            let _failed = forward(&**target, pod_id, port, data, error).await;
        })
    });
    let all = futures_util::future::join_all(forwards);
    tokio::select! {
        _done = all => {}
        () = handle.table().gone.cancelled() => {}
    }
    handle.finish().await;
}

/// A forward has failed; the client was told why.
struct Failed;

/// Connects a pair of streams to `port`, until both directions have ended.
async fn forward<T: Target>(
    target: &T,
    pod_id: &str,
    port: u16,
    data: Stream,
    mut error: Writer,
) -> Result<(), Failed> {
    let Stream { reader, writer, .. } = data;
    let told = match target.connect(pod_id, port).await {
        Ok(mut connection) => {
            let mut client = tokio::io::join(reader, writer);
            match copy_bidirectional_with_sizes(&mut connection, &mut client, PIECE, PIECE).await {
                Ok(_copied) => return Ok(()),
                Err(error) => error.to_string(),
            }
        }
        Err(error) => chain(&error),
    };
    tracing::debug!(pod = pod_id, port, error = told, "a forwarded connection has failed");
    let text = format!("error forwarding port {port} to pod {pod_id}: {told}");
    let _gone = error.write_all(text.as_bytes()).await;
    Err(Failed)
}

/// What a pair of streams that failed is reset with.
const RESET: u32 = reset::CANCEL;
