//! The hub of container events: from those who change objects to those who listen.
//!
//! Events of one object come in the order of its life, each once; what an event says of the pod is never older than
//! what an earlier one said, and `created_at` rises strictly. Each reader has a queue of its own: one that does not
//! read loses its stream, with an error that says so, and costs nobody else anything.
//!
//! A reader gets what happens from its subscription on: who subscribes and lists then misses nothing. While nobody
//! listens, which is also so while the daemon is gone, the newest events are kept and go to the next reader first,
//! since a kubelet does not list again when it reconnects. Knows neither gRPC nor how an event is made up.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prost::Message;
use proto::cri::ContainerEventResponse;
use tokio::sync::mpsc;

use crate::error::Error;
use crate::model::stage::Stage;
use crate::store;

/// Events that a reader may be behind.
const QUEUE: usize = 1024;
/// Most bytes of them, as they go over the wire.
const QUEUE_BYTES: usize = 16 << 20;
/// Most bytes of events that are kept while nobody listens.
const KEPT_BYTES: usize = 1 << 20;
/// Longest time that an event is kept while nobody listens.
const KEPT_FOR: Duration = Duration::from_secs(300);

/// The hub.
#[derive(Debug, Default)]
pub struct Events {
    hub: Mutex<Hub>,
}

#[derive(Debug, Default)]
struct Hub {
    outlets: Vec<Outlet>,
    kept: VecDeque<Kept>,
    kept_bytes: usize,
    last_at: i64,
    closed: bool,
}

/// The hub's end of a reader.
#[derive(Debug)]
struct Outlet {
    queue: mpsc::Sender<Weighed>,
    backlog: Arc<Backlog>,
}

/// An event and its length, bytes.
type Weighed = (Arc<ContainerEventResponse>, usize);

/// What hub and reader know of a reader's queue.
#[derive(Debug, Default)]
struct Backlog {
    /// Length of what is in it.
    bytes: AtomicUsize,
    /// It was full.
    behind: AtomicBool,
}

#[derive(Debug)]
struct Kept {
    event: Arc<ContainerEventResponse>,
    since: Instant,
}

/// A subscription.
#[derive(Debug)]
pub struct Reader {
    kept: VecDeque<Kept>,
    queue: mpsc::Receiver<Weighed>,
    backlog: Arc<Backlog>,
}

impl Events {
    /// Tells the stages that `look` has reached since the last call for this object, whose `told` this is. Looks and
    /// makes up the events with the hub held, so that no older view follows a newer one: neither may block.
    pub fn announce(
        &self,
        told: &Mutex<Stage>,
        look: impl FnOnce() -> Stage,
        event: impl Fn(Stage) -> Option<ContainerEventResponse>,
    ) {
        let mut hub = self.hub();
        let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
        let reached = look();
        for mut event in told.passed(reached).filter_map(event) {
            event.created_at = store::now().max(hub.last_at + 1);
            hub.last_at = event.created_at;
            hub.publish(Arc::new(event));
        }
        *told = (*told).max(reached);
    }

    /// Events from now on, after those that nobody has heard.
    pub fn subscribe(&self) -> Reader {
        let mut hub = self.hub();
        let (sender, queue) = mpsc::channel(QUEUE);
        let backlog = Arc::<Backlog>::default();
        hub.kept_bytes = 0;
        let kept = std::mem::take(&mut hub.kept);
        if !hub.closed {
            hub.outlets.push(Outlet { queue: sender, backlog: backlog.clone() });
        }
        Reader {
            kept: kept.into_iter().filter(|kept| kept.since.elapsed() < KEPT_FOR).collect(),
            queue,
            backlog,
        }
    }

    /// Ends all subscriptions, present and future: the daemon goes.
    pub fn close(&self) {
        let mut hub = self.hub();
        hub.closed = true;
        hub.outlets.clear();
    }

    fn hub(&self) -> MutexGuard<'_, Hub> {
        self.hub.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Hub {
    fn publish(&mut self, event: Arc<ContainerEventResponse>) {
        let length = event.encoded_len();
        self.outlets.retain(|outlet| outlet.offer(&event, length));
        if self.outlets.is_empty() {
            self.keep(event);
        }
    }

    fn keep(&mut self, event: Arc<ContainerEventResponse>) {
        self.kept_bytes += event.encoded_len();
        self.kept.push_back(Kept { event, since: Instant::now() });
        while self
            .kept
            .front()
            .is_some_and(|oldest| self.kept_bytes > KEPT_BYTES || oldest.since.elapsed() > KEPT_FOR)
        {
            let oldest = self.kept.pop_front();
            self.kept_bytes -= oldest.map_or(0, |oldest| oldest.event.encoded_len());
        }
    }
}

impl Outlet {
    /// Puts an event into the queue; false where this ends the subscription.
    fn offer(&self, event: &Arc<ContainerEventResponse>, length: usize) -> bool {
        // Counted first, so that the reader never takes away what is not there.
        let before = self.backlog.bytes.fetch_add(length, Ordering::Relaxed);
        // A single event always has room.
        if before == 0 || before + length <= QUEUE_BYTES {
            match self.queue.try_send((event.clone(), length)) {
                Ok(()) => return true,
                Err(mpsc::error::TrySendError::Closed(_)) => return false,
                Err(mpsc::error::TrySendError::Full(_)) => {}
            }
        }
        self.backlog.behind.store(true, Ordering::Relaxed);
        false
    }
}

impl Reader {
    /// The next event; an error when this reader has fallen too far behind, which ends the subscription; `None` when
    /// it has ended.
    pub async fn next(&mut self) -> Option<Result<ContainerEventResponse, Error>> {
        if let Some(kept) = self.kept.pop_front() {
            return Some(Ok(owned(kept.event)));
        }
        match self.queue.recv().await {
            Some((event, length)) => {
                self.backlog.bytes.fetch_sub(length, Ordering::Relaxed);
                Some(Ok(owned(event)))
            }
            None => {
                let behind = self.backlog.behind.swap(false, Ordering::Relaxed);
                behind.then_some(Err(Error::Behind { events: QUEUE, mebibytes: QUEUE_BYTES >> 20 }))
            }
        }
    }
}

fn owned(event: Arc<ContainerEventResponse>) -> ContainerEventResponse {
    Arc::try_unwrap(event).unwrap_or_else(|shared| ContainerEventResponse::clone(&shared))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tell(events: &Events, told: &Mutex<Stage>, id: &str, reached: Stage) {
        let event = |stage: Stage| {
            let (container_id, container_event_type) = (id.to_string(), stage as i32 - 1);
            Some(ContainerEventResponse { container_id, container_event_type, ..Default::default() })
        };
        events.announce(told, || reached, event);
    }

    async fn heard(reader: &mut Reader, count: usize) -> Vec<(String, i32)> {
        let mut heard = Vec::new();
        let mut last = 0;
        for _ in 0..count {
            let event = reader.next().await.unwrap().unwrap();
            assert!(event.created_at > last, "{} after {last}", event.created_at);
            last = event.created_at;
            heard.push((event.container_id, event.container_event_type));
        }
        heard
    }

    #[tokio::test]
    async fn an_end_that_overtakes_the_start_is_told_after_it() {
        let events = Events::default();
        let mut reader = events.subscribe();
        let told = Mutex::default();
        for reached in [Stage::Created, Stage::Stopped, Stage::Started, Stage::Deleted, Stage::Deleted] {
            tell(&events, &told, "c", reached);
        }
        let expect = [0, 1, 2, 3].map(|kind| ("c".to_string(), kind));
        assert_eq!(heard(&mut reader, 4).await, expect);
        events.close();
        assert!(reader.next().await.is_none() && events.subscribe().next().await.is_none());
    }

    #[tokio::test]
    async fn a_reader_that_does_not_read_loses_its_stream_and_nobody_else_does() {
        let events = Events::default();
        let (mut slow, mut quick) = (events.subscribe(), events.subscribe());
        for number in 0..QUEUE + 10 {
            tell(&events, &Mutex::default(), &number.to_string(), Stage::Created);
            assert_eq!(heard(&mut quick, 1).await, [(number.to_string(), 0)]);
        }
        // All that it can have without a gap, then the reason.
        assert_eq!(heard(&mut slow, QUEUE).await.last(), Some(&((QUEUE - 1).to_string(), 0)));
        assert!(matches!(slow.next().await, Some(Err(Error::Behind { .. }))));
        assert!(slow.next().await.is_none());
    }

    #[tokio::test]
    async fn large_events_fill_a_queue_before_many_do() {
        let events = Events::default();
        let mut slow = events.subscribe();
        let large = "x".repeat(256 << 10);
        let fit = QUEUE_BYTES / large.len() - 1;
        (0..2 * fit).for_each(|_| tell(&events, &Mutex::default(), &large, Stage::Created));
        heard(&mut slow, fit).await;
        assert!(matches!(slow.next().await, Some(Err(Error::Behind { .. }))));
        // One that reads may hear as much as there is, and one event may be larger than all that fit.
        // What nobody heard is for somebody else.
        drop(events.subscribe());
        let mut quick = events.subscribe();
        for length in [1, 2 * QUEUE_BYTES, large.len(), large.len()] {
            let id = "x".repeat(length);
            tell(&events, &Mutex::default(), &id, Stage::Created);
            assert_eq!(heard(&mut quick, 1).await, [(id, 0)]);
        }
    }

    #[tokio::test]
    async fn what_nobody_heard_goes_to_the_next_reader_within_bounds() {
        let events = Events::default();
        drop(events.subscribe());
        tell(&events, &Mutex::default(), "missed", Stage::Created);
        let mut reader = events.subscribe();
        tell(&events, &Mutex::default(), "live", Stage::Created);
        assert_eq!(heard(&mut reader, 2).await, [("missed".to_string(), 0), ("live".to_string(), 0)]);
        drop(reader);
        let long = "x".repeat(1000);
        (0..5000).for_each(|_| tell(&events, &Mutex::default(), &long, Stage::Created));
        let reader = events.subscribe();
        assert!((900..1100).contains(&reader.kept.len()), "{}", reader.kept.len());
    }
}
