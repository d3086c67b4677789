//! The two stand-ins that `mpirun` starts. Each hands what it was started with to a launcher, and then waits.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::net::UnixStream;

use comm::control::write_frame;
use serde::{Deserialize, Serialize};

use super::FROM_SLOT;
use crate::spawn::block_stop_signals;

/// Environment variable with the path of the launcher's socket for stand-ins.
pub const HUB: &str = "LOCKSTEP_MPI_HUB";

/// What a stand-in hands to the launcher.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToHub {
    /// A rank's place in MPI, from [`slot`].
    Slot {
        /// The rank that MPI has assigned.
        rank: usize,
        /// The variables that make a process that rank.
        env: Vec<(String, String)>,
    },
    /// A daemon that `mpirun` wants on another node, from [`agent`].
    Daemon {
        /// The node's name.
        host: String,
        /// The daemon's command line, for a shell.
        command: String,
    },
}

/// Stands in for a rank: hands its place in MPI to the launcher and waits. Returns the exit status that the
/// launcher sends, or 1 when the launcher is gone.
///
/// # Errors
/// When this process was not started by `mpirun` under a launcher.
pub fn slot() -> io::Result<u8> {
    // Slurm signals every process of a step, and mpirun has reset the signal mask that it was started with.
    block_stop_signals()?;
    let rank = std::env::var("PMIX_RANK").ok().and_then(|rank| rank.parse().ok());
    let rank =
        rank.ok_or_else(|| io::Error::other("PMIX_RANK is not set: is mpirun Open MPI's?"))?;
    let mut hub = connect()?;
    write_frame(&mut hub, &ToHub::Slot { rank, env: of_rank(std::env::vars_os()) })?;
    let mut code = [1];
    // The stream ends, and leaves the status at 1, when the launcher is gone.
    let _ = hub.read(&mut code)?;
    Ok(code[0])
}

/// Returns those of `all` variables that make a process a rank of MPI. MPI's own are UTF-8; the user's need
/// not be, and those that are not are left out.
fn of_rank(all: impl Iterator<Item = (OsString, OsString)>) -> Vec<(String, String)> {
    let text =
        all.filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    text.filter(|(name, _)| FROM_SLOT.iter().any(|it| name.starts_with(it))).collect()
}

/// Stands in for ssh: hands a daemon's command line to the launcher, and waits until the launcher is gone or
/// done with MPI.
///
/// # Errors
/// When this process was not started by `mpirun` under a launcher.
pub fn agent(host: &str, command: &[String]) -> io::Result<()> {
    block_stop_signals()?;
    let mut hub = connect()?;
    let daemon = ToHub::Daemon { host: host.to_owned(), command: command.join(" ") };
    write_frame(&mut hub, &daemon)?;
    let mut end = [0];
    let _ = hub.read(&mut end)?;
    Ok(())
}

fn connect() -> io::Result<UnixStream> {
    let path =
        std::env::var_os(HUB).ok_or_else(|| io::Error::other(format!("{HUB} is not set")))?;
    UnixStream::connect(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    #[test]
    fn a_variable_that_is_no_text_does_not_keep_a_rank_from_its_place() {
        let bad = (OsString::from("OMPI_FOO"), OsString::from_vec(vec![0xff]));
        let others = [("PMIX_RANK", "3"), ("HOME", "/root")];
        let others = others.map(|(name, value)| (name.into(), value.into()));
        let found = of_rank(others.into_iter().chain([bad]));
        assert_eq!(found, [("PMIX_RANK".to_owned(), "3".to_owned())]);
    }
}
