//! The machine.

/// This machine's name for itself.
pub fn name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
