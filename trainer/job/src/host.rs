//! The machine that this process runs on.

/// Returns the host name of this machine.
pub fn name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
