//! Asynchronous reading of the frames of [`comm::control`].

use std::io;

use comm::control;
use tokio::io::{AsyncRead, AsyncReadExt};

/// Reads the next frame and returns its body; `None` at the end of the stream.
///
/// # Errors
/// Those of the stream, its end within a frame included, and when the frame is longer than
/// [`control::MAX_FRAME_BYTES`].
pub async fn read_body(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    let first = stream.read(&mut length).await?;
    if first == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut length[first..]).await?;
    let mut body = vec![0; control::body_len(length)?];
    stream.read_exact(&mut body).await?;
    Ok(Some(body))
}
