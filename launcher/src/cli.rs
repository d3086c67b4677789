//! The command line.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use job::run_dir::Resume;

use crate::console::Style;
use crate::error::LaunchError;
use crate::plan::Request;

/// Starts one trainer per GPU of this machine (or N on the CPU), watches them, and says what went
/// wrong.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Exit codes: 0 done; 2 bad command line or configuration; 3 data missing or bad; \
                  4 a rank failed; 5 hang; 6 loss or gradient not finite; 7 out of memory; \
                  8 stopped by a signal (the same command with --run-dir goes on); \
                  9 set-up cannot work here.\n\nCtrl-C, SIGTERM, SIGUSR1 and SIGHUP save a \
                  checkpoint at the next step and stop; a second Ctrl-C stops at once."
)]
pub struct Cli {
    /// The configuration, a YAML file
    #[arg(value_name = "CONFIG")]
    pub config: PathBuf,

    /// One trainer per GPU, N of them [default: all that are visible]
    #[arg(long, value_name = "N", value_parser = at_least_one, conflicts_with = "cpu")]
    pub gpus: Option<usize>,

    /// N trainers on the CPU instead
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub cpu: Option<usize>,

    /// Override one configuration key by its dotted path, such as train.epochs=2; repeatable
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    pub overrides: Vec<String>,

    /// Where the run is kept [default: runs/CONFIG-TIME, in UTC]
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,

    /// Go on from the run directory's newest good checkpoint (auto), start over (never), or start
    /// from another run's or checkpoint's directory
    #[arg(long, value_name = "auto|never|DIR", default_value = "auto")]
    pub resume: Resume,

    /// Machines; this version runs on one
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub nodes: Option<usize>,

    /// This machine's place among them
    #[arg(long, value_name = "R")]
    pub node_rank: Option<usize>,

    /// Where the machines meet
    #[arg(long, value_name = "HOST:PORT")]
    pub rendezvous: Option<String>,

    /// Start all ranks again from the newest checkpoint when one fails, at most so many times
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub max_restarts: u32,

    /// Print the plan and stop: touches nothing and needs no data
    #[arg(long)]
    pub dry_run: bool,

    /// Only warnings, errors and the verdict
    #[arg(long, conflicts_with = "log_format")]
    pub quiet: bool,

    /// How log lines look on the terminal
    #[arg(long, value_name = "FORMAT", value_enum, default_value = "pretty")]
    pub log_format: LogFormat,
}

/// How log lines look on the terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Pretty,
    /// One JSON object a line.
    Json,
}

impl Cli {
    /// Which devices the command line asks for.
    pub fn request(&self) -> Request {
        match (self.cpu, self.gpus) {
            (Some(ranks), _) => Request::Cpu { ranks },
            (None, Some(ranks)) => Request::Gpus { ranks },
            (None, None) => Request::AllGpus,
        }
    }

    /// How much is shown, and in which form.
    pub const fn style(&self) -> Style {
        match (self.quiet, self.log_format) {
            (true, _) => Style::Quiet,
            (false, LogFormat::Pretty) => Style::Pretty,
            (false, LogFormat::Json) => Style::Json,
        }
    }

    /// Refuses what would need several machines.
    ///
    /// # Errors
    /// [`LaunchError::SeveralNodes`], naming the option.
    pub fn check_nodes(&self) -> Result<(), LaunchError> {
        let option = match self {
            Self { nodes: Some(nodes), .. } if *nodes > 1 => format!("--nodes {nodes}"),
            Self { node_rank: Some(rank), .. } if *rank > 0 => format!("--node-rank {rank}"),
            Self { rendezvous: Some(address), .. } => format!("--rendezvous {address}"),
            _ => return Ok(()),
        };
        Err(LaunchError::SeveralNodes(option))
    }
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be at least 1".to_owned()),
        Ok(number) => Ok(number),
        Err(_) => Err("not a whole number".to_owned()),
    }
}

fn key_value(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some((key, _)) if !key.trim().is_empty() => Ok(text.to_owned()),
        _ => Err("wants a dotted path and a value, such as train.epochs=2".to_owned()),
    }
}

/// The command line that goes on with the run in `run_dir`: the one that was given (`args`, the
/// program first), with another `--run-dir` and without `--resume`, quoted for a shell.
pub fn command_to_go_on(args: &[String], run_dir: &str) -> String {
    let mut words = Vec::new();
    let mut rest = args.iter().skip(1);
    while let Some(arg) = rest.next() {
        match arg.as_str() {
            "--run-dir" | "--resume" => {
                rest.next();
            }
            other if other.starts_with("--run-dir=") || other.starts_with("--resume=") => {}
            other => words.push(quote(other)),
        }
    }
    let program = args.first().map_or_else(|| "launcher".to_owned(), |program| quote(program));
    format!("{program} --run-dir {} {}", quote(run_dir), words.join(" "))
}

fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use clap::error::ErrorKind;

    use super::*;

    fn parse(args: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from([&["launcher"], args].concat())
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn devices_are_gpus_unless_cpu_is_said() {
        assert_eq!(parse(&["c.yaml"]).unwrap().request(), Request::AllGpus);
        assert_eq!(
            parse(&["c.yaml", "--gpus", "4"]).unwrap().request(),
            Request::Gpus { ranks: 4 }
        );
        assert_eq!(parse(&["--cpu", "2", "c.yaml"]).unwrap().request(), Request::Cpu { ranks: 2 });
    }

    #[test]
    fn contradictions_are_refused() {
        let kind = |args: &[&str]| parse(args).unwrap_err().kind();
        assert_eq!(kind(&["c", "--cpu", "2", "--gpus", "2"]), ErrorKind::ArgumentConflict);
        assert_eq!(kind(&["c", "--cpu", "0"]), ErrorKind::ValueValidation);
        assert_eq!(kind(&["c", "--set", "train.epochs"]), ErrorKind::ValueValidation);
        assert_eq!(kind(&["c", "--quiet", "--log-format", "json"]), ErrorKind::ArgumentConflict);
    }

    #[test]
    fn one_machine_is_fine_and_several_are_named() {
        assert!(parse(&["c", "--nodes", "1", "--node-rank", "0"]).unwrap().check_nodes().is_ok());
        for (args, named) in [
            (["--nodes", "2"], "--nodes 2"),
            (["--node-rank", "1"], "--node-rank 1"),
            (["--rendezvous", "a:1"], "--rendezvous a:1"),
        ] {
            let cli = parse(&[&["c"], &args[..]].concat()).unwrap();
            let error = cli.check_nodes().unwrap_err();
            assert!(error.to_string().contains(named), "{error}");
        }
    }

    #[test]
    fn the_command_to_go_on_is_the_same_with_the_run_directory() {
        let args = ["launcher", "--cpu", "2", "--resume", "never", "a b.yaml", "--run-dir=x"]
            .map(str::to_owned);
        let command = command_to_go_on(&args, "runs/a-1");
        assert_eq!(command, "launcher --run-dir runs/a-1 --cpu 2 'a b.yaml'");
    }
}
