//! Blocking work off the event loop, such as access to a network file system that may not answer.

use std::io;

use crate::error::LaunchError;

/// Runs `work` on a blocking thread and returns its result, so that the event loop goes on to handle signals
/// and other nodes. If the future is dropped, the thread is abandoned: nothing waits for it.
///
/// # Errors
/// When `work` panics.
pub async fn in_background<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, LaunchError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(io::Error::other).map_err(LaunchError::system("wait for a thread"))
}
