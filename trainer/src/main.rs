//! Starts one rank and maps its outcome to an exit code.

use std::io::{self, ErrorKind, Write};
use std::os::unix::process::CommandExt;
use std::process::{self, ExitCode};

use clap::Parser;
use comm::env::{CONTROL_SOCKET, World};
use tracing::error;
use trainer::cli::{Cli, Command, TrainArgs};
use trainer::commands::{self, Answer};
use trainer::describe::describe;
use trainer::link::Link;
use trainer::log::print_error;
use trainer::measure::measure_all_reduce;
use trainer::run::Outcome;
use trainer::{Result, TrainError, caught, keep_panics_short, log, setup};

fn main() -> ExitCode {
    // `args_os` instead of `args`, which panics on arguments that are not UTF-8; clap reports those.
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    if args.first().is_some_and(|arg| arg == "--describe") {
        println!("{}", describe(args.get(1).is_some_and(|arg| arg == "gpus")));
        return ExitCode::SUCCESS;
    }
    let cli = Cli::parse();
    wait_passively();
    keep_panics_short();
    match (cli.command, cli.train) {
        (Some(command), _) => run(command),
        (None, Some(args)) => train(args),
        (None, None) => unreachable!("clap wants a command or a configuration"),
    }
}

/// Runs a subcommand and prints its answer on standard output.
fn run(command: Command) -> ExitCode {
    let answer = World::from_env().map_err(TrainError::from).and_then(|world| {
        log::start(world, false);
        caught(|| answer(command, world))
    });
    match answer {
        Ok(Answer { text, exit_code }) => match print(&text) {
            // A closed pipe is no failure: the reader may have seen enough.
            Err(error) if error.kind() != ErrorKind::BrokenPipe => {
                print_error(format_args!("trainer: cannot print the answer: {error}"));
                job::ExitCode::Setup.into()
            }
            _ => exit_code.into(),
        },
        Err(failure) => {
            print_error(format_args!("trainer: {failure}"));
            failure.exit_code().into()
        }
    }
}

fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

fn answer(command: Command, world: World) -> Result<Answer> {
    match command {
        Command::Models(args) => Ok(commands::models::models(&args).into()),
        Command::Summary(args) => Ok(commands::summary::summary(&args).into()),
        Command::Export(args) => {
            commands::export::export(&args).map(|path| format!("{}\n", path.display()).into())
        }
        Command::Augment(args) => {
            commands::augment::augment(&args).map(|path| format!("{}\n", path.display()).into())
        }
        Command::Eval(args) => commands::eval::eval(&args, world).map(Answer::from),
        Command::Predict(args) => commands::predict::predict(&args),
    }
}

fn train(args: TrainArgs) -> ExitCode {
    let (world, link) = match connect() {
        Ok(connected) => connected,
        Err(error) => {
            print_error(format_args!("trainer: {error}"));
            return error.exit_code().into();
        }
    };
    log::start(world, link.has_launcher());
    let ended = caught(|| match args.measure_all_reduce {
        true => measure_all_reduce(&args, world, &link).map(|()| Outcome::Done),
        false => setup::build(args, world, &link)?.train(),
    });
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

/// Re-executes this program with `OMP_WAIT_POLICY=passive`, unless the launcher or the user has set that
/// variable. OpenMP reads it when the program is loaded, so it cannot be set later. With the passive policy
/// idle OpenMP threads sleep; threads that spin slow down a machine that has other work.
fn wait_passively() {
    const POLICY: &str = "OMP_WAIT_POLICY";
    if std::env::var_os(POLICY).is_some() {
        return;
    }
    if let Ok(program) = std::env::current_exe() {
        // `exec` returns only if it fails; then this process continues with the default policy.
        let _ = process::Command::new(program)
            .args(std::env::args_os().skip(1))
            .env(POLICY, "passive")
            .exec();
    }
}
