//! GetContainerEvents.

use crate::daemon::Daemon;
use crate::events::Reader;

/// Every event from now on, after those that nobody has heard; `events` says what a reader can rely on.
pub fn get_container_events(daemon: &Daemon) -> Reader {
    daemon.events.subscribe()
}
