//! Waiting on conditions: a test polls what it needs, with a deadline that fails by name, and never sleeps to be right.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Pause between two looks at a condition.
const PAUSE: Duration = Duration::from_millis(10);

/// Looks until `condition` gives a value; at the deadline fails with `what` and the last reason that was given.
pub fn until<T>(what: &str, deadline: Duration, mut condition: impl FnMut() -> Result<T>) -> Result<T> {
    let end = Instant::now() + deadline;
    loop {
        let reason = match condition() {
            Ok(value) => return Ok(value),
            Err(reason) => reason,
        };
        if Instant::now() >= end {
            bail!("{what} did not come true within {deadline:?}: {reason:#}");
        }
        std::thread::sleep(PAUSE);
    }
}

/// [`until`] for conditions that are themselves async.
pub async fn until_async<T, F>(what: &str, deadline: Duration, mut condition: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let end = Instant::now() + deadline;
    loop {
        let reason = match condition().await {
            Ok(value) => return Ok(value),
            Err(reason) => reason,
        };
        if Instant::now() >= end {
            bail!("{what} did not come true within {deadline:?}: {reason:#}");
        }
        tokio::time::sleep(PAUSE).await;
    }
}
