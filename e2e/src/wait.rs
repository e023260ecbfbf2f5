//! Waiting on conditions: a test polls what it needs, with a deadline that fails by name, and never sleeps to be right.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Pause between two looks at a condition.
const PAUSE: Duration = Duration::from_millis(10);

/// A deadline as it is on this machine: `E2E_SLOWNESS` says how many times slower it is than one with processors of
/// its own (1 where it says nothing). Everything here, and whoever sets a deadline elsewhere, goes by it.
#[must_use]
pub fn scaled(deadline: Duration) -> Duration {
    static SLOWNESS: LazyLock<u32> = LazyLock::new(|| {
        let text = std::env::var("E2E_SLOWNESS").unwrap_or_default();
        text.parse().unwrap_or(1).max(1)
    });
    deadline.saturating_mul(*SLOWNESS)
}

/// Looks until `condition` gives a value; at the deadline fails with `what` and the last reason that was given.
pub fn until<T>(what: &str, deadline: Duration, mut condition: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = scaled(deadline);
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
    let deadline = scaled(deadline);
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
