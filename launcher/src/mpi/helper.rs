//! The two stand-ins that `mpirun` starts. Each hands over what it was started with and then waits.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::net::UnixStream;

use comm::control::write_frame;
use serde::{Deserialize, Serialize};

use super::FROM_SLOT;
use crate::spawn::block_stop_signals;

/// The variable that holds the path of the launcher's socket for these processes.
pub const HUB: &str = "LOCKSTEP_MPI_HUB";

/// What they hand over.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToHub {
    /// A rank's place in MPI.
    Slot {
        /// MPI's rank.
        rank: usize,
        /// The variables that make a process that rank.
        env: Vec<(String, String)>,
    },
    /// A daemon that is wanted on another node.
    Daemon {
        /// The node's name.
        host: String,
        /// A shell command.
        command: String,
    },
}

/// In place of a rank: ends with the status that the launcher says, or with 1 when it is gone.
///
/// # Errors
/// When this process was not started by `mpirun` under a launcher.
pub fn slot() -> io::Result<u8> {
    // Slurm signals every process of a step, and mpirun has reset what it was started with.
    block_stop_signals()?;
    let rank = std::env::var("PMIX_RANK").ok().and_then(|rank| rank.parse().ok());
    let rank =
        rank.ok_or_else(|| io::Error::other("PMIX_RANK is not set: is mpirun Open MPI's?"))?;
    let mut hub = connect()?;
    write_frame(&mut hub, &ToHub::Slot { rank, env: of_rank(std::env::vars_os()) })?;
    let mut code = [1];
    // Nothing comes when the launcher is gone.
    let _ = hub.read(&mut code)?;
    Ok(code[0])
}

/// The variables that make a process a rank. MPI's own are UTF-8; the user's need not be.
fn of_rank(all: impl Iterator<Item = (OsString, OsString)>) -> Vec<(String, String)> {
    let text =
        all.filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    text.filter(|(name, _)| FROM_SLOT.iter().any(|it| name.starts_with(it))).collect()
}

/// In place of ssh: waits as long as the launcher does.
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
