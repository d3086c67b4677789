//! How many files may be open: the launcher, which holds several for each rank, takes what it may have. What it
//! starts gets the limit that it was started with: programs that call `select` break above 1024.

use std::io;
use std::sync::OnceLock;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The limit of the launcher's start, where it was raised.
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

/// Takes that back in a child, between fork and exec, where this may be called: it is a system call.
///
/// # Errors
/// When the system refuses.
pub fn restore() -> io::Result<()> {
    match BEFORE.get() {
        Some(before) => Ok(setrlimit(Resource::Nofile, *before)?),
        None => Ok(()),
    }
}
