//! A group of one rank: every collective leaves the buffer as it is.

use std::sync::OnceLock;

use crate::communicator::check_request;
use crate::{Blame, Collective, CommError, Communicator, RawBuffer, Result, Work};

/// The communicator of a job with one rank, wherever its buffers lie.
#[derive(Debug, Default)]
pub struct Single {
    aborted: OnceLock<CommError>,
}

impl Communicator for Single {
    fn rank(&self) -> usize {
        0
    }

    fn world_size(&self) -> usize {
        1
    }

    fn backend(&self) -> &'static str {
        "single"
    }

    unsafe fn start(&self, collective: Collective, buffer: RawBuffer) -> Result<Work> {
        if let Some(error) = self.aborted.get() {
            return Err(error.clone());
        }
        check_request(self.backend(), collective, &buffer, 1)?;
        Ok(Work::done())
    }

    fn abort(&self, reason: &str, blame: Blame) {
        // The first reason stays.
        let _ = self.aborted.set(CommError::Aborted { by: 0, reason: reason.to_owned(), blame });
    }

    fn finalize(&self) -> Result<()> {
        Ok(())
    }
}
