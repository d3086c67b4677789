//! The limit on open file descriptors (`RLIMIT_NOFILE`). The launcher, which holds several for each rank,
//! raises its soft limit to the hard one. Processes that it starts to work beside it get the original limit
//! back, since programs that call `select` break with descriptors above 1024.

use std::io;
use std::sync::OnceLock;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The limit at the launcher's start, if it was raised since.
static BEFORE: OnceLock<Rlimit> = OnceLock::new();

/// Raises the soft limit to the hard one.
pub fn raise() {
    let before = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: before.maximum, maximum: before.maximum };
    if before.current != before.maximum && setrlimit(Resource::Nofile, raised).is_ok() {
        // Nobody else sets it.
        let _ = BEFORE.set(before);
    }
}

/// Restores the original limit in a child process, between fork and exec, where this may be called: it makes
/// a system call and does not allocate.
///
/// # Errors
/// When the system refuses.
pub fn restore() -> io::Result<()> {
    match BEFORE.get() {
        Some(before) => Ok(setrlimit(Resource::Nofile, *before)?),
        None => Ok(()),
    }
}
