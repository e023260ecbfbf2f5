//! `portforward.k8s.io` over SPDY: finding the two streams of a pair, and forwarding each pair by itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{Failed, RESET, forward};
use crate::streaming::mux::{Arrived, Handle, Stream};
use crate::streaming::session::Target;
use crate::streaming::spdy::reset;

/// Most pairs at once: each has a task, a socket and two streams.
const PAIRS: usize = 256;

/// Which half of a pair a stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Half {
    Data,
    Error,
}

/// The half of a pair that came first.
struct Waiting {
    half: Half,
    stream: Stream,
    until: Instant,
}

/// Serves the pairs that a client opens, until it is gone. A pair whose second half does not come within `patience` is
/// given up.
pub async fn over_spdy<T: Target>(
    target: Arc<T>,
    pod_id: String,
    mut arrivals: mpsc::Receiver<Arrived>,
    handle: Handle,
    patience: Duration,
) {
    let mut pairs: BTreeMap<String, Waiting> = BTreeMap::new();
    let mut forwards = JoinSet::new();
    loop {
        let first = pairs.values().map(|waiting| waiting.until).min();
        let arrived = tokio::select! {
            arrived = arrivals.recv() => arrived,
            Some(_ended) = forwards.join_next() => continue,
            () = expired(first) => {
                give_up(&mut pairs, &handle);
                continue;
            }
        };
        let Some(arrived) = arrived else { break };
        let Some((half, port, request)) = describe(&arrived) else {
            arrived.refuse(reset::PROTOCOL_ERROR).await;
            continue;
        };
        while forwards.try_join_next().is_some() {}
        let mate = pairs.get(&request).map(|waiting| waiting.half);
        if mate == Some(half) || mate.is_none() && pairs.len() + forwards.len() >= PAIRS {
            arrived.refuse(reset::REFUSED_STREAM).await;
            continue;
        }
        let stream = arrived.accept().await;
        match pairs.remove(&request) {
            None => {
                pairs.insert(request, Waiting { half, stream, until: Instant::now() + patience });
            }
            Some(Waiting { stream: mate, .. }) => {
                let (data, error) = if half == Half::Data { (stream, mate) } else { (mate, stream) };
                let (target, pod_id, handle) = (target.clone(), pod_id.clone(), handle.clone());
                forwards
                    .spawn(async move { serve_pair(&*target, &pod_id, port, (data, error), &handle).await });
            }
        }
    }
    // The client opens no more streams; what it has goes on until it is gone.
    tokio::select! {
        () = async { while forwards.join_next().await.is_some() {} } => {}
        () = handle.table().gone.cancelled() => {}
    }
    handle.finish().await;
}

async fn serve_pair<T: Target>(
    target: &T,
    pod_id: &str,
    port: u16,
    (data, error): (Stream, Stream),
    handle: &Handle,
) {
    let ids = [data.id, error.id];
    let Stream { writer, .. } = error;
    if let Err(Failed) = forward(target, pod_id, port, data, writer).await {
        ids.into_iter().for_each(|id| handle.reset(id, RESET));
    }
}

/// What the headers of a stream say; `None` when they do not say it. Old clients send no request id: there the data
/// stream follows the error stream.
fn describe(arrived: &Arrived) -> Option<(Half, u16, String)> {
    let header = |name: &str| arrived.headers.get(name);
    let half = match header("streamtype")?.as_str() {
        "data" => Half::Data,
        "error" => Half::Error,
        _unknown => return None,
    };
    let port = header("port")?.parse().ok().filter(|port| *port != 0)?;
    let request = match header("requestid").filter(|request| !request.is_empty()) {
        Some(request) => request.clone(),
        None if half == Half::Error => arrived.id().to_string(),
        None => arrived.id().checked_sub(2)?.to_string(),
    };
    Some((half, port, request))
}

async fn expired(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}

fn give_up(pairs: &mut BTreeMap<String, Waiting>, handle: &Handle) {
    let now = Instant::now();
    let late = pairs.extract_if(.., |_request, waiting| waiting.until <= now);
    late.for_each(|(_request, waiting)| handle.reset(waiting.stream.id, RESET));
}
