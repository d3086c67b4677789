//! Starts one trainer per GPU of this machine, watches them, and says what went wrong.

mod about;
mod background;
mod cli;
mod cluster;
mod console;
mod control_server;
mod data;
mod deadline;
mod descriptors;
mod doctor;
mod error;
mod events;
mod frame;
mod gpus;
mod launch;
mod local;
mod logs;
mod memory;
mod mpi;
mod plan;
mod policy;
mod private_folder;
mod progress;
mod signals;
mod slurm;
mod spawn;
mod study;
mod supervise;
mod topology;
mod verdict;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command, LaunchArgs};
use crate::console::{Console, Style};
use crate::error::LaunchError;
use crate::study::StudyCli;

/// What the launcher is to do.
enum Task {
    Launch(LaunchArgs),
    Doctor(LaunchArgs),
    Study(StudyCli),
}

impl Task {
    const fn style(&self) -> Style {
        match self {
            Self::Launch(cli) | Self::Doctor(cli) => cli.style(),
            Self::Study(cli) => cli.style(),
        }
    }
}

fn main() -> ExitCode {
    let Cli { command, launch } = Cli::parse();
    let task = match command {
        Some(Command::MpiSlot) => return stand_in(mpi::helper::slot()),
        Some(Command::MpiAgent { host, command }) => {
            return stand_in(mpi::helper::agent(&host, &command).map(|()| 0));
        }
        Some(Command::Doctor(cli)) => Task::Doctor(*cli),
        Some(Command::Study(cli)) => Task::Study(cli),
        None => Task::Launch(launch),
    };
    descriptors::raise();
    let console = Console::new(task.style());
    console.init_tracing();
    let work = async {
        match &task {
            Task::Launch(cli) => launch::launch(cli, &console).await,
            Task::Doctor(cli) => doctor::examine(cli).await,
            Task::Study(cli) => study::study(cli).await,
        }
    };
    let ended = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(LaunchError::system("start an event loop"))
        .and_then(|runtime| {
            let ended = runtime.block_on(work);
            // Does not wait for blocking threads, such as one that still reads images.
            runtime.shutdown_background();
            ended
        });
    let code = ended.unwrap_or_else(|error| {
        match console.style() {
            Style::Json => tracing::error!(exit_code = error.exit_code() as u8, "{error}"),
            Style::Pretty | Style::Quiet => console.line(&format!("error: {error}")),
        }
        error.exit_code()
    });
    console.flush();
    code.into()
}

/// Turns the result of a stand-in, which `mpirun` has started, into an exit code. An error is written to
/// standard error: there is no console yet.
fn stand_in(ended: std::io::Result<u8>) -> ExitCode {
    ended.map_or_else(
        |error| {
            // Standard error may be a file on a full disk.
            let _ = writeln!(std::io::stderr(), "launcher: {error}");
            ExitCode::FAILURE
        },
        ExitCode::from,
    )
}
