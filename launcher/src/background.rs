//! Work that may block, such as on a network file system that does not answer.

use std::io;

use crate::error::LaunchError;

/// Does `work` on a thread of its own, so that signals and other nodes are heard meanwhile. Nobody waits for the
/// thread where this is dropped.
///
/// # Errors
/// When `work` panics.
pub async fn in_background<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, LaunchError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(io::Error::other).map_err(LaunchError::system("wait for a thread"))
}
