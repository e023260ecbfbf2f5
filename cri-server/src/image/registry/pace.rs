//! How slow a registry may be. Without a bound, one that sends a byte now and then would hold its place among the
//! downloads, and others up who need the same layer, for ever.

use std::time::Duration;

use tokio::time::Instant;

use super::failure::Failure;

/// Bytes that have to come within each stall time that is spent waiting for the network.
pub const LEAST: u64 = 128 << 10;

/// The pace of one answer's body.
#[derive(Debug)]
pub struct Pace {
    stall: Duration,
    waited: Duration,
    brought: u64,
}

impl Pace {
    /// Nothing has been waited for yet.
    pub fn new(stall: Duration) -> Self {
        Self { stall, waited: Duration::ZERO, brought: 0 }
    }

    /// Waits for the next piece. Time between calls does not count: it is not the registry's.
    pub async fn next<T>(
        &mut self,
        piece: impl Future<Output = Result<T, reqwest::Error>>,
    ) -> Result<T, Failure> {
        let start = Instant::now();
        let piece = tokio::time::timeout(self.stall.saturating_sub(self.waited), piece).await;
        self.waited += start.elapsed();
        piece.map_err(|_| self.failure())?.map_err(Failure::transport)
    }

    /// Counts what a piece brought.
    pub fn count(&mut self, bytes: usize) {
        self.brought += bytes as u64;
        if self.brought >= LEAST {
            (self.brought, self.waited) = (0, Duration::ZERO);
        }
    }

    fn failure(&self) -> Failure {
        match self.brought {
            0 => Failure::stalled(self.stall),
            bytes => Failure::slow(bytes, self.stall),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stall_time_has_to_bring_something_each_time() {
        let check = async |piece: usize, stall: Duration, expect: Option<&str>| {
            let mut pace = Pace::new(stall);
            let arrives = || async {
                tokio::time::sleep(Duration::from_millis(5)).await;
                Ok(())
            };
            for _ in 0..100 {
                match pace.next(arrives()).await {
                    Ok(()) => pace.count(piece),
                    Err(Failure::Passing(cause, _)) => {
                        assert!(expect.is_some_and(|text| cause.to_string().contains(text)), "{cause}");
                        return;
                    }
                    Err(other) => panic!("{other:?}"),
                }
            }
            assert_eq!(expect, None, "{piece} bytes each 5 ms");
        };
        check(1, Duration::from_millis(100), Some("bytes arrived in 100 ms")).await;
        check(0, Duration::from_millis(100), Some("nothing arrived for 100 ms")).await;
        check(1, Duration::from_secs(100), None).await;
        check(LEAST as usize, Duration::from_secs(10), None).await;
    }
}
