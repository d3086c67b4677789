//! Starts one trainer per GPU of this machine, watches them, and says what went wrong.

mod cli;
mod console;
mod coordinator;
mod error;
mod events;
mod gpus;
mod launch;
mod logs;
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

use crate::cli::Cli;
use crate::console::{Console, Style};
use crate::error::LaunchError;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let console = Console::new(cli.style());
    console.init_tracing();
    let ended = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(LaunchError::system("start an event loop"))
        .and_then(|runtime| runtime.block_on(launch::launch(&cli, &console)));
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
