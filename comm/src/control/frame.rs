//! Length-prefixed frames of JSON.

use std::io::{self, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest body of a frame; a longer one is a protocol error. No message comes near it.
pub const MAX_FRAME_BYTES: usize = 64 * 1024;

/// Encodes a message as a whole frame, length prefix included.
///
/// # Errors
/// When the message is longer than [`MAX_FRAME_BYTES`].
pub fn encode<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message)?;
    let length = check_length(frame.len() - 4)?;
    frame[..4].copy_from_slice(&length.to_le_bytes());
    Ok(frame)
}

/// Decodes the message in a frame's body.
///
/// # Errors
/// When the body is not a valid message of this type.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> io::Result<T> {
    Ok(serde_json::from_slice(body)?)
}

/// Writes one message.
///
/// # Errors
/// Those of the stream, or as [`encode`].
pub fn write_frame<T: Serialize>(stream: &mut impl Write, message: &T) -> io::Result<()> {
    stream.write_all(&encode(message)?)
}

/// Reads one message; `None` at the end of the stream.
///
/// # Errors
/// Those of the stream or of [`decode`], or when the frame is longer than [`MAX_FRAME_BYTES`].
pub fn read_frame<T: DeserializeOwned>(stream: &mut impl Read) -> io::Result<Option<T>> {
    let mut length = [0; 4];
    let first = loop {
        match stream.read(&mut length) {
            Ok(0) => return Ok(None),
            Ok(count) => break count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    };
    stream.read_exact(&mut length[first..])?;
    let mut body = vec![0; body_len(length)?];
    stream.read_exact(&mut body)?;
    decode(&body).map(Some)
}

/// Returns the length in bytes of a frame's body from its four-byte length prefix.
///
/// # Errors
/// When it is longer than [`MAX_FRAME_BYTES`].
pub fn body_len(length: [u8; 4]) -> io::Result<usize> {
    check_length(u32::from_le_bytes(length) as usize).map(|length| length as usize)
}

fn check_length(length: usize) -> io::Result<u32> {
    u32::try_from(length).ok().filter(|_| length <= MAX_FRAME_BYTES).ok_or_else(|| {
        let text = format!("a frame of {length} bytes exceeds the limit of {MAX_FRAME_BYTES}");
        io::Error::new(io::ErrorKind::InvalidData, text)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::ToTrainer;

    #[test]
    fn frames_come_back_in_order_and_end_with_none() {
        let sent = [
            ToTrainer::Stop { reason: "signal".into() },
            ToTrainer::Value { key: "nccl".into(), value: "00ff".into() },
        ];
        let mut stream = Vec::new();
        for message in &sent {
            write_frame(&mut stream, message).unwrap();
        }
        let mut stream = stream.as_slice();
        for message in &sent {
            assert_eq!(read_frame::<ToTrainer>(&mut stream).unwrap().as_ref(), Some(message));
        }
        assert_eq!(read_frame::<ToTrainer>(&mut stream).unwrap(), None);
    }

    #[test]
    fn too_long_a_frame_is_refused_before_it_is_read() {
        let stream = u32::MAX.to_le_bytes();
        let error = read_frame::<ToTrainer>(&mut stream.as_slice()).unwrap_err();
        assert!(error.to_string().contains("4294967295 bytes"), "{error}");
    }

    #[test]
    fn a_frame_cut_short_is_an_error() {
        let frame = encode(&ToTrainer::Stop { reason: "x".into() }).unwrap();
        for length in [2, frame.len() - 1] {
            assert!(read_frame::<ToTrainer>(&mut &frame[..length]).is_err(), "{length} bytes");
        }
    }
}
