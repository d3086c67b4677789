//! Starts one rank and turns how it ended into an exit code.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use clap::Parser;
use comm::env::{CONTROL_SOCKET, World};
use tracing::error;
use trainer::cli::Cli;
use trainer::link::Link;
use trainer::run::Outcome;
use trainer::{Result, TrainError, log, setup};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let (world, link) = match connect() {
        Ok(connected) => connected,
        Err(error) => {
            eprintln!("trainer: {error}");
            return error.exit_code().into();
        }
    };
    log::start(world, link.has_launcher());
    let ended = catch_unwind(AssertUnwindSafe(|| setup::build(cli, world, &link)?.train()))
        .unwrap_or_else(|payload| Err(TrainError::from_panic(&*payload)));
    match ended {
        Ok(Outcome::Done) => job::ExitCode::Done.into(),
        Ok(Outcome::Stopped) => job::ExitCode::Stopped.into(),
        Err(failure) => {
            error!("{failure}");
            link.failed(&failure);
            failure.exit_code().into()
        }
    }
}

fn connect() -> Result<(World, Link)> {
    let world = World::from_env()?;
    let socket = std::env::var_os(CONTROL_SOCKET).map(std::path::PathBuf::from);
    Ok((world, Link::connect(socket.as_deref(), world.rank)?))
}
