//! Mutual authentication at the start of a TCP connection between launchers, before anything else is said.
//!
//! Both ends prove that they know the job's token, the coordinator (node 0) first, so that a launcher tells
//! nothing to a stranger who listens at the right address. The proof is a keyed BLAKE3 hash over a fresh
//! nonce of each end, so a recording is worth nothing. The messages of the handshake have fixed lengths, so a
//! stranger cannot make this end read or store much. Afterwards each frame carries a keyed hash of its
//! content and its number.

use std::io;
use std::time::Duration;

use comm::control;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::token::Token;
use crate::frame::read_body;

/// The first bytes that a member sends; the digit changes when the handshake does.
const MAGIC: &[u8; 16] = b"lockstep join 1\n";

const HASH_BYTES: usize = 32;

type Nonce = [u8; HASH_BYTES];

/// Why a handshake has failed.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The other end does not speak this protocol.
    #[error("the peer is not a launcher of this version")]
    NotALauncher,
    /// The other end does not know the token.
    #[error("the peer has another token")]
    WrongToken,
    /// The member hung up before it was answered: this end was busy for longer than a member waits for an
    /// answer. The member tries again.
    #[error("the peer gave up before it was answered")]
    GaveUp,
    /// The member hung up where it was to prove that it knows the token.
    #[error("the peer closed the connection instead of proving its token: it may have another")]
    HungUp,
    /// The connection could not be made within this time.
    #[error("no answer within {0:?}")]
    Unreachable(Duration),
    /// The handshake took longer than this.
    #[error("the peer did not complete the handshake within {0:?}")]
    Silent(Duration),
    /// The connection broke.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Authenticates the frames in one direction of a connection, after the handshake.
pub struct Seal {
    key: [u8; HASH_BYTES],
    frames: u64,
}

/// What authenticates the two directions of a connection, as one end sees them.
pub struct Seals {
    /// For frames that this end sends.
    pub sending: Seal,
    /// For frames that this end receives.
    pub receiving: Seal,
}

/// Performs the coordinator's part of the handshake. The caller sets a timeout.
///
/// # Errors
/// [`HandshakeError`]; nothing that helps a stranger has been sent then.
pub async fn accept(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    token: &Token,
) -> Result<Seals, HandshakeError> {
    let mut magic = [0; MAGIC.len()];
    stream.read_exact(&mut magic).await?;
    if magic != *MAGIC {
        return Err(HandshakeError::NotALauncher);
    }
    let mut theirs = Nonce::default();
    stream.read_exact(&mut theirs).await?;
    if has_hung_up(stream).await? {
        return Err(HandshakeError::GaveUp);
    }
    let nonces = [theirs, nonce()?];
    stream.write_all(&nonces[1]).await?;
    stream.write_all(proof(token, "coordinator", &nonces).as_bytes()).await?;
    check(stream, token, "member", &nonces).await.map_err(|error| match error {
        HandshakeError::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            HandshakeError::HungUp
        }
        error => error,
    })?;
    Ok(Seals {
        sending: Seal::new(token, "to member", &nonces),
        receiving: Seal::new(token, "to coordinator", &nonces),
    })
}

/// Performs a member's part of the handshake. The caller sets a timeout.
///
/// # Errors
/// [`HandshakeError`]; nothing that helps a stranger has been sent then.
pub async fn connect(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    token: &Token,
) -> Result<Seals, HandshakeError> {
    let mine = nonce()?;
    stream.write_all(MAGIC).await?;
    stream.write_all(&mine).await?;
    let mut theirs = Nonce::default();
    stream.read_exact(&mut theirs).await?;
    let nonces = [mine, theirs];
    check(stream, token, "coordinator", &nonces).await?;
    stream.write_all(proof(token, "member", &nonces).as_bytes()).await?;
    Ok(Seals {
        sending: Seal::new(token, "to coordinator", &nonces),
        receiving: Seal::new(token, "to member", &nonces),
    })
}

/// Returns whether the member, which waits for this end's proof, has closed its connection instead.
async fn has_hung_up(stream: &mut (impl AsyncRead + Unpin)) -> Result<bool, HandshakeError> {
    let mut early = [0];
    tokio::select! {
        biased;
        read = stream.read(&mut early) => match read? {
            0 => Ok(true),
            _ => Err(HandshakeError::NotALauncher),
        },
        () = std::future::ready(()) => Ok(false),
    }
}

fn nonce() -> io::Result<Nonce> {
    let mut nonce = Nonce::default();
    getrandom::fill(&mut nonce).map_err(io::Error::other)?;
    Ok(nonce)
}

/// Returns the keyed hash by which the end with this `role` proves that it knows the token; for a direction
/// in place of a role, the key of its [`Seal`]. `nonces` are the member's and the coordinator's.
fn proof(token: &Token, role: &str, nonces: &[Nonce; 2]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new_keyed(token.key());
    hasher.update(&nonces[0]).update(&nonces[1]).update(role.as_bytes());
    hasher.finalize()
}

async fn check(
    stream: &mut (impl AsyncRead + Unpin),
    token: &Token,
    role: &str,
    nonces: &[Nonce; 2],
) -> Result<(), HandshakeError> {
    let mut theirs = [0; HASH_BYTES];
    stream.read_exact(&mut theirs).await?;
    // The comparison takes the same time wherever the hashes differ.
    match proof(token, role, nonces) == blake3::Hash::from_bytes(theirs) {
        true => Ok(()),
        false => Err(HandshakeError::WrongToken),
    }
}

impl Seal {
    fn new(token: &Token, direction: &str, nonces: &[Nonce; 2]) -> Self {
        Self { key: *proof(token, direction, nonces).as_bytes(), frames: 0 }
    }

    fn next(&mut self, body: &[u8]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(&self.frames.to_le_bytes()).update(body);
        self.frames += 1;
        hasher.finalize()
    }

    /// Encodes `message` as a frame: its length, the message, and its keyed hash.
    ///
    /// # Errors
    /// When the message is longer than [`control::MAX_FRAME_BYTES`].
    pub fn seal(&mut self, message: &impl Serialize) -> io::Result<Vec<u8>> {
        let mut frame = control::encode(message)?;
        let hash = self.next(&frame[4..]);
        frame.extend_from_slice(hash.as_bytes());
        Ok(frame)
    }

    /// Reads one frame, checks its hash, and returns the message. The caller sets a timeout.
    ///
    /// # Errors
    /// Those of the stream, its end included, and when the frame is too long or its hash is not that of the
    /// next frame of the other end.
    pub async fn read<T: DeserializeOwned>(
        &mut self,
        stream: &mut (impl AsyncRead + Unpin),
    ) -> io::Result<T> {
        let body = read_body(stream).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let mut hash = [0; HASH_BYTES];
        stream.read_exact(&mut hash).await?;
        if self.next(&body) != blake3::Hash::from_bytes(hash) {
            let text = "a frame failed authentication";
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        control::decode(&body)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;

    fn token() -> Token {
        let folder = tempfile::tempdir().unwrap();
        Token::create(&folder.path().join("token")).unwrap()
    }

    #[tokio::test]
    async fn ends_with_the_same_token_understand_each_other() {
        let (mut here, mut there) = duplex(1024);
        let token = token();
        let (accepted, connected) =
            tokio::join!(accept(&mut here, &token), connect(&mut there, &token));
        let (mut accepted, mut connected) = (accepted.unwrap(), connected.unwrap());
        for text in ["one", "two"] {
            let frame = accepted.sending.seal(&text).unwrap();
            here.write_all(&frame).await.unwrap();
            assert_eq!(connected.receiving.read::<String>(&mut there).await.unwrap(), text);
        }
        let frame = connected.sending.seal(&"back").unwrap();
        there.write_all(&frame).await.unwrap();
        assert_eq!(accepted.receiving.read::<String>(&mut here).await.unwrap(), "back");
    }

    #[tokio::test]
    async fn a_member_with_another_token_learns_that_and_proves_nothing() {
        let (mut here, mut there) = duplex(1024);
        let (mine, other) = (token(), token());
        let member = async {
            let error = connect(&mut there, &other).await.err();
            drop(there);
            error
        };
        let (accepted, refused) = tokio::join!(accept(&mut here, &mine), member);
        assert!(matches!(refused, Some(HandshakeError::WrongToken)));
        assert!(matches!(accepted, Err(HandshakeError::HungUp)), "it has sent no proof");
    }

    #[tokio::test]
    async fn a_replayed_handshake_is_worth_nothing() {
        let token = token();
        let (mut here, mut there) = duplex(1024);
        let recorded = [[7; HASH_BYTES], [9; HASH_BYTES]];
        let replay = async {
            there.write_all(MAGIC).await.unwrap();
            there.write_all(&recorded[0]).await.unwrap();
            there.read_exact(&mut [0; 2 * HASH_BYTES]).await.unwrap();
            there.write_all(proof(&token, "member", &recorded).as_bytes()).await.unwrap();
        };
        let (accepted, ()) = tokio::join!(accept(&mut here, &token), replay);
        assert!(matches!(accepted, Err(HandshakeError::WrongToken)));
    }

    #[tokio::test]
    async fn a_member_that_gave_up_waiting_is_not_taken_for_one_with_another_token() {
        let (mut here, mut there) = duplex(1024);
        there.write_all(MAGIC).await.unwrap();
        there.write_all(&[7; HASH_BYTES]).await.unwrap();
        drop(there);
        assert!(matches!(accept(&mut here, &token()).await, Err(HandshakeError::GaveUp)));
    }

    #[tokio::test]
    async fn garbage_and_too_long_or_replayed_frames_are_refused() {
        let token = token();
        let (mut here, mut there) = duplex(1024);
        there.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        assert!(matches!(accept(&mut here, &token).await, Err(HandshakeError::NotALauncher)));

        let nonces = [[0; HASH_BYTES]; 2];
        let seal = || Seal::new(&token, "to member", &nonces);
        let frame = seal().seal(&"Kill").unwrap();
        let twice = [frame.as_slice(), frame.as_slice()].concat();
        let (mut stream, mut opened) = (twice.as_slice(), seal());
        assert_eq!(opened.read::<String>(&mut stream).await.unwrap(), "Kill");
        assert!(opened.read::<String>(&mut stream).await.is_err());

        let long = u32::MAX.to_le_bytes();
        let error = seal().read::<String>(&mut long.as_slice()).await.unwrap_err().to_string();
        assert!(error.contains("4294967295 bytes"), "{error}");
    }
}
