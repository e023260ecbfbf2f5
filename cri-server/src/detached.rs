//! Work that goes on when the client goes away, and whose panic ends nothing but itself.

use std::future::Future;

use crate::error::Error;

/// Runs `work` to its end, whether or not anybody still waits for it.
pub async fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    match tokio::spawn(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::Internal(format!("the operation did not end in order: {error}"))),
    }
}

/// Runs blocking `work` on a thread made for such work.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::Internal(format!("the operation did not end in order: {error}")))
}
