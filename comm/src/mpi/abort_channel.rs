//! Delivers an abort to ranks that wait in a collective: every rank has a receive posted for it.

use std::ffi::c_int;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use mpi::ffi;

use super::handle::Comm;
use super::request::{At, Request, checked};
use crate::blame::{self, Blame};
use crate::{CommError, Result};

const TAG: c_int = 1;
const MESSAGE_BYTES: usize = 1024;

/// The posted receive of a rank, and the means to send an abort to all others.
pub(super) struct AbortChannel {
    group: Comm,
    rank: usize,
    world_size: usize,
    /// The receive under way and the buffer that it writes: the sender's rank in four bytes, then a packed
    /// reason.
    inbox: Mutex<Option<(Request, Box<[u8; MESSAGE_BYTES]>)>>,
    aborted: OnceLock<CommError>,
}

impl AbortChannel {
    /// Posts the receive in `group`, of `world_size` ranks, which carries nothing else.
    pub(super) fn open(group: Comm, world_size: usize, at: At) -> Result<Self> {
        let mut message = Box::new([0; MESSAGE_BYTES]);
        let mut request = Request::null();
        // SAFETY: the box is not moved or freed until the request has ended or was cancelled, or it is
        // leaked.
        checked(at, unsafe {
            ffi::MPI_Irecv(
                message.as_mut_ptr().cast(),
                MESSAGE_BYTES as c_int,
                ffi::RSMPI_UINT8_T,
                ffi::RSMPI_ANY_SOURCE,
                TAG,
                group.0,
                request.as_mut_ptr(),
            )
        })?;
        let inbox = Mutex::new(Some((request, message)));
        Ok(Self { group, rank: at.rank, world_size, inbox, aborted: OnceLock::new() })
    }

    /// Returns the abort that was received, or sent by this rank, if there is one.
    pub(super) fn received(&self, at: At) -> Option<CommError> {
        if let Some(error) = self.aborted.get() {
            return Some(error.clone());
        }
        let mut inbox = self.lock();
        let (request, _) = inbox.as_mut()?;
        if !request.test(at).unwrap_or(false) {
            return None;
        }
        let (_, message) = inbox.take()?;
        let by = u32::from_le_bytes([message[0], message[1], message[2], message[3]]) as usize;
        let end =
            message.iter().skip(4).position(|&byte| byte == 0).map_or(MESSAGE_BYTES, |n| n + 4);
        let (reason, blame) = blame::unpack(&message[4..end]);
        Some(self.aborted.get_or_init(|| CommError::Aborted { by, reason, blame }).clone())
    }

    /// Sends an abort to all other ranks, without waiting for any.
    pub(super) fn send(&self, reason: &str, blame: Blame) {
        let packed = blame::pack(reason, &blame, MESSAGE_BYTES - 5);
        let error = CommError::Aborted { by: self.rank, reason: reason.to_owned(), blame };
        if self.aborted.set(error).is_err() {
            return;
        }
        let mut message = [0; MESSAGE_BYTES];
        message[..4].copy_from_slice(&(self.rank as u32).to_le_bytes());
        message[4..4 + packed.len()].copy_from_slice(&packed);
        // MPI may read this for as long as the process lives: nothing waits for the requests.
        let message: &'static [u8; MESSAGE_BYTES] = Box::leak(Box::new(message));
        for peer in (0..self.world_size).filter(|&peer| peer != self.rank) {
            let mut request = Request::null();
            // SAFETY: the message is never freed. An unreachable peer is ignored.
            unsafe {
                ffi::MPI_Isend(
                    message.as_ptr().cast(),
                    MESSAGE_BYTES as c_int,
                    ffi::RSMPI_UINT8_T,
                    peer as c_int,
                    TAG,
                    self.group.0,
                    request.as_mut_ptr(),
                );
            }
        }
    }

    /// Passes `result` on, after sending an error that this rank has seen itself to all other ranks.
    pub(super) fn broadcast_error<T>(&self, result: Result<T>) -> Result<T> {
        result.inspect_err(|error| {
            if !matches!(error, CommError::Aborted { .. }) {
                self.send(&error.to_string(), error.blame());
            }
        })
    }

    /// Cancels the receive.
    pub(super) fn close(&self) {
        if let Some((request, _message)) = self.lock().take() {
            request.cancel();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<(Request, Box<[u8; MESSAGE_BYTES]>)>> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for AbortChannel {
    fn drop(&mut self) {
        // Leaked, not cancelled: MPI may no longer be callable, and may still write to it.
        let inbox = self.inbox.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, message)) = inbox.take() {
            Box::leak(message);
        }
    }
}
