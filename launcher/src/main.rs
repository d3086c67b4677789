//! Starts one trainer per GPU of this machine, watches them, and says what went wrong.

mod about;
mod cli;
mod cluster;
mod console;
mod coordinator;
mod data;
mod deadline;
mod doctor;
mod error;
mod events;
mod gpus;
mod launch;
mod local;
mod logs;
mod mpi;
mod plan;
mod policy;
mod progress;
mod signals;
mod slurm;
mod spawn;
mod supervise;
mod topology;
mod verdict;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Program, Subcommands};
use crate::console::{Console, Style};
use crate::error::LaunchError;

fn main() -> ExitCode {
    let Program { command, cli } = Program::parse();
    let (cli, is_doctor) = match command {
        Some(Subcommands::MpiSlot) => return stand_in(mpi::helper::slot()),
        Some(Subcommands::MpiAgent { host, command }) => {
            return stand_in(mpi::helper::agent(&host, &command).map(|()| 0));
        }
        Some(Subcommands::Doctor(cli)) => (*cli, true),
        None => (cli, false),
    };
    let console = Console::new(cli.style());
    console.init_tracing();
    let work = async {
        if is_doctor { doctor::examine(&cli).await } else { launch::launch(&cli, &console).await }
    };
    let ended = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(LaunchError::system("start an event loop"))
        .and_then(|runtime| runtime.block_on(work));
    match ended {
        Ok(code) => code.into(),
        Err(error) => {
            match console.style() {
                Style::Json => tracing::error!(exit_code = error.exit_code() as u8, "{error}"),
                Style::Pretty | Style::Quiet => console.line(&format!("error: {error}")),
            }
            error.exit_code().into()
        }
    }
}

/// What `mpirun` starts is no launcher.
fn stand_in(ended: std::io::Result<u8>) -> ExitCode {
    ended.map_or_else(
        |error| {
            eprintln!("launcher: {error}");
            ExitCode::FAILURE
        },
        ExitCode::from,
    )
}
