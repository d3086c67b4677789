//! The command line.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use job::ExitCode;
use job::run_dir::Resume;

use crate::cluster::address::Rendezvous;
use crate::cluster::{Cluster, TokenSource};
use crate::console::Style;
use crate::deadline::Deadline;
use crate::error::LaunchError;
use crate::plan::Request;
use crate::slurm;
use crate::study::StudyCli;

/// Starts one trainer per GPU of this machine (or N on the CPU), watches them, and says what went
/// wrong. On several machines, start one launcher on each.
#[derive(Debug, Parser)]
#[command(
    version,
    args_conflicts_with_subcommands = true,
    after_help = format!(
        "{}.\n\nCtrl-C, SIGTERM, SIGUSR1 and SIGHUP save a checkpoint at the next step and stop; the \
         same command with --run-dir goes on. A second Ctrl-C stops at once.",
        ExitCode::help()
    )
)]
pub struct Cli {
    /// The subcommand; without one, a training run is launched.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// What to train, on which devices and nodes.
    #[command(flatten)]
    pub launch: LaunchArgs,
}

/// What to train, on which devices and nodes.
#[derive(Debug, Args)]
pub struct LaunchArgs {
    /// The configuration, a YAML file
    #[arg(value_name = "CONFIG")]
    config: Option<PathBuf>,

    /// Number of GPUs to use, one trainer on each [default: all visible ones]
    #[arg(long, value_name = "N", value_parser = at_least_one, conflicts_with = "cpu")]
    pub gpus: Option<usize>,

    /// Start N trainers on the CPU instead
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub cpu: Option<usize>,

    /// Override one configuration key by its dotted path, such as train.epochs=2; repeatable
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    pub overrides: Vec<String>,

    /// Directory of the run [default: runs/CONFIG-TIME, in UTC]
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,

    /// Resume from the newest good checkpoint of the run directory (auto), start a new run and refuse a
    /// directory that holds one (never), or start from the run or checkpoint in DIR
    #[arg(long, value_name = "auto|never|DIR", default_value = "auto")]
    pub resume: Resume,

    /// Number of machines, with a launcher on each [default: from Slurm, else 1]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub nodes: Option<usize>,

    /// Rank of this machine, from 0 [default: from Slurm]
    #[arg(long, value_name = "R")]
    pub node_rank: Option<usize>,

    /// Address at which node 0's launcher waits for the others [default: from Slurm]
    #[arg(long, value_name = "HOST:PORT")]
    pub rendezvous: Option<Rendezvous>,

    /// File with the secret that the launchers of a job share; node 0's creates it if it does not exist.
    /// LOCKSTEP_TOKEN, if set, takes precedence [default: a file in ~/.lockstep for each job]
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,

    /// How long to wait for the other launchers
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = at_least_one)]
    pub join_timeout: usize,

    /// When the job will be ended from outside, as a time or a span from now; a checkpoint is saved before
    /// [default: from Slurm]
    #[arg(long, value_name = "TIME|1h30m")]
    pub deadline: Option<Deadline>,

    /// How often to restart all ranks from the newest checkpoint after a rank has failed
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub max_restarts: u32,

    /// Print the plan and exit; writes nothing, and needs no data except for image_folder
    #[arg(long)]
    pub dry_run: bool,

    /// Print only warnings, errors and the verdict
    #[arg(long, conflicts_with = "log_format")]
    pub quiet: bool,

    /// Format of log lines on the terminal
    #[arg(long, value_name = "FORMAT", value_enum, default_value = "pretty")]
    pub log_format: LogFormat,
}

/// Subcommands: what the launcher does besides launching a training run.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Check whether a run can work here; takes the options of the run
    Doctor(Box<LaunchArgs>),
    /// Run every configuration of a study and draw its figures
    Study(StudyCli),
    /// Stands in for a rank that mpirun starts.
    #[command(hide = true)]
    MpiSlot,
    /// Stands in for ssh when mpirun starts a daemon.
    #[command(hide = true)]
    MpiAgent {
        /// The node's name.
        host: String,
        /// The daemon's command line.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
}

/// How log lines look on the terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Text for people.
    Pretty,
    /// One JSON object per line.
    Json,
}

impl LaunchArgs {
    /// Returns which devices the command line asks for.
    pub fn request(&self) -> Request {
        Request::of(self.cpu, self.gpus)
    }

    /// Returns how much is shown on the terminal, and in which form.
    pub const fn style(&self) -> Style {
        match (self.quiet, self.log_format) {
            (true, _) => Style::Quiet,
            (false, LogFormat::Pretty) => Style::Pretty,
            (false, LogFormat::Json) => Style::Json,
        }
    }

    /// Returns the path of the configuration file, if one was given.
    pub fn config(&self) -> Option<&Path> {
        self.config.as_deref()
    }

    /// Returns the nodes of the job; `None` if there is only one. Options take precedence over Slurm's
    /// environment variables, which `lookup` reads.
    ///
    /// # Errors
    /// [`LaunchError::Nodes`] when options or Slurm's variables are missing or do not fit together,
    /// [`LaunchError::SeveralLaunchers`] when `srun` started several launchers on a node, and
    /// [`LaunchError::Token`] when there is no place for a token.
    pub fn cluster(
        &self,
        lookup: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Cluster>, LaunchError> {
        let step = slurm::step(lookup)?;
        let wrong = |text: String| Err(LaunchError::Nodes(text));
        let nodes = self.nodes.or(step.as_ref().map(|step| step.nodes));
        let node_rank = self.node_rank.or(step.as_ref().map(|step| step.node_rank));
        let rendezvous = self.rendezvous.clone();
        let rendezvous = rendezvous.or(step.as_ref().map(|step| step.rendezvous.clone()));
        let nodes = match (nodes, node_rank, &rendezvous) {
            (None, None, None) => return Ok(None),
            (None, ..) => return wrong("--node-rank and --rendezvous require --nodes".to_owned()),
            (Some(1), None | Some(0), _) => return Ok(None),
            (Some(nodes), ..) => nodes,
        };
        let Some(node_rank) = node_rank else {
            return wrong(format!("--nodes {nodes} requires --node-rank, from 0 to {}", nodes - 1));
        };
        if node_rank >= nodes {
            return wrong(format!(
                "--node-rank {node_rank} of --nodes {nodes}: node ranks start at 0"
            ));
        }
        let Some(rendezvous) = rendezvous else {
            return wrong(format!(
                "--nodes {nodes} requires --rendezvous NODE0:PORT, with a free port"
            ));
        };
        let job = match &step {
            Some(step) if self.rendezvous.is_none() => format!("slurm-{}", step.id),
            _ => rendezvous.to_string(),
        };
        Ok(Some(Cluster {
            nodes,
            node_rank,
            rendezvous,
            join_timeout: Duration::from_secs(self.join_timeout as u64),
            token_source: TokenSource::choose(self.token_file.clone(), &job)?,
            run_dir: self.run_dir.clone(),
        }))
    }
}

/// Parses a whole number that must be at least 1.
pub fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be at least 1".to_owned()),
        Ok(number) => Ok(number),
        Err(_) => Err("not a whole number".to_owned()),
    }
}

fn key_value(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some((key, _)) if !key.trim().is_empty() => Ok(text.to_owned()),
        _ => Err("expected a dotted path and a value, such as train.epochs=2".to_owned()),
    }
}

/// Returns the command line that resumes the run in `run_dir`, quoted for a shell: the given one (`args`, the
/// program first) with `--run-dir` replaced and without `--resume`.
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

    fn parse(args: &[&str]) -> Result<LaunchArgs, clap::Error> {
        Ok(Cli::try_parse_from([&["launcher"], args].concat())?.launch)
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
    fn several_machines_want_all_that_says_which() {
        let cluster = |args: &[&str]| parse(&[&["c"], args].concat()).unwrap().cluster(|_| None);
        assert!(cluster(&[]).unwrap().is_none());
        assert!(cluster(&["--nodes", "1", "--node-rank", "0"]).unwrap().is_none());
        let whole = ["--nodes", "2", "--node-rank", "1", "--rendezvous", "a:1"];
        let found = cluster(&whole).unwrap().unwrap();
        assert_eq!((found.nodes, found.node_rank), (2, 1));
        assert_eq!(found.rendezvous.to_string(), "a:1");
        for (args, named) in [
            (&whole[..2], "requires --node-rank"),
            (&whole[..4], "requires --rendezvous"),
            (&whole[2..], "require --nodes"),
            (&["--nodes", "2", "--node-rank", "2"], "node ranks start at 0"),
        ] {
            let error = cluster(args).unwrap_err();
            assert!(error.to_string().contains(named), "{error}");
        }
    }

    #[test]
    fn under_slurm_nothing_need_be_said() {
        let slurm = |name: &str| {
            let value = match name {
                "SLURM_STEP_ID" => "0",
                "SLURM_STEP_NUM_NODES" => "2",
                "SLURM_NODEID" => "1",
                "SLURM_STEP_NODELIST" => "n[1-2]",
                "SLURM_JOB_ID" => "7",
                _ => return None,
            };
            Some(value.to_owned())
        };
        let found = parse(&["c"]).unwrap().cluster(slurm).unwrap().unwrap();
        assert_eq!((found.nodes, found.node_rank), (2, 1));
        assert_eq!(found.rendezvous, Rendezvous::of_job("n1".to_owned(), 7));
        let said = parse(&["c", "--rendezvous", "a:1"]).unwrap().cluster(slurm).unwrap().unwrap();
        assert_eq!(said.rendezvous.to_string(), "a:1");
    }

    #[test]
    fn the_command_to_go_on_is_the_same_with_the_run_directory() {
        let args = ["launcher", "--cpu", "2", "--resume", "never", "a b.yaml", "--run-dir=x"]
            .map(str::to_owned);
        let command = command_to_go_on(&args, "runs/a-1");
        assert_eq!(command, "launcher --run-dir runs/a-1 --cpu 2 'a b.yaml'");
    }
}
