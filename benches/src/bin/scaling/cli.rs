//! The command line.

use std::path::PathBuf;

use clap::{ArgGroup, Parser, Subcommand, ValueEnum};

use crate::curves::NamedRun;
use crate::plan::Device;
use crate::predict::Rate;

/// Measures training at several rank counts, beside PyTorch DDP in the same rounds; compares two such
/// measurements; predicts what more GPUs would do.
#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// What to do with existing measurements, instead of measuring or predicting.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// Options of measuring and predicting.
    #[command(flatten)]
    pub run: Args,
}

/// Subcommands that work on existing measurements.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Shows what changed from one results.json to another, and whether it is outside the noise
    ///
    /// The test is the exact two-sided Mann-Whitney test on the images/s of the rounds (on the seconds
    /// of the seeds for time to accuracy), at 5 %. It assumes nothing of how rounds spread but that
    /// they are independent. It cannot call anything a change with fewer than four rounds on a side.
    Compare {
        /// Results before the change
        #[arg(value_name = "A.json")]
        before: PathBuf,
        /// Results after the change
        #[arg(value_name = "B.json")]
        after: PathBuf,
    },
    /// Predicts the steps of a results.json from its isolated ranks and from all_reduce by itself, and
    /// shows both; benches/check_prediction.sh measures all of it
    Check {
        /// Results that have a variant for each bucket size
        #[arg(value_name = "results.json")]
        results: PathBuf,
        /// Output of the binary all_reduce, one file for each rank count
        #[arg(value_name = "ALL_REDUCE.json", required = true)]
        all_reduce: Vec<PathBuf>,
    },
    /// Draws test accuracy by epoch of runs in one picture, OUT.svg and OUT.png
    Curves {
        /// A line's name, and the metrics.jsonl of a run or the file that torch_ddp.py wrote with --json
        #[arg(value_name = "NAME=FILE", required = true)]
        runs: Vec<NamedRun>,
        /// The pictures, without their extension
        #[arg(long)]
        out: PathBuf,
    },
    /// Writes table, pictures and HTML of a results.json again, beside it
    Render {
        /// The results
        #[arg(value_name = "results.json")]
        results: PathBuf,
    },
}

/// What to measure or to predict.
#[derive(Debug, clap::Args)]
#[command(group = ArgGroup::new("ranks").args(["cpu", "gpus", "predict"]))]
pub struct Args {
    /// Rank counts on the CPU [default where there is no GPU: 1,2]
    #[arg(long, value_name = "N,N", value_delimiter = ',')]
    pub cpu: Vec<usize>,

    /// Rank counts on GPUs, one rank each [default: powers of two, and all there are]
    #[arg(long, value_name = "N,N", value_delimiter = ',')]
    pub gpus: Vec<usize>,

    /// Predict these GPU counts instead of measuring
    #[arg(long, value_name = "N,N", value_delimiter = ',', requires = "cluster")]
    pub predict: Vec<usize>,

    #[command(flatten)]
    pub prediction: Prediction,

    /// Node counts, within a Slurm job: on one node all rank counts, on each of several the largest
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_values_t = [1],
          conflicts_with = "predict")]
    pub nodes: Vec<usize>,

    /// Configurations [default: configs/resnet18.yaml of this project]
    #[arg(long, value_name = "FILE,FILE", value_delimiter = ',')]
    pub configs: Vec<PathBuf>,

    /// Weak scaling: images per rank and step [default: the configuration's]
    #[arg(long, value_name = "N,N", value_delimiter = ',')]
    pub batch_per_rank: Vec<usize>,

    /// Strong scaling: images of all ranks per step
    #[arg(long, value_name = "N,N", value_delimiter = ',')]
    pub global_batch: Vec<usize>,

    /// Timed steps of a run, a multiple of 10; 10 more come before them
    #[arg(long, default_value_t = 60, value_parser = whole_records)]
    pub steps: u64,

    /// Use only the first N training images, for all contestants; a multiple of the batch leaves no smaller
    /// last batch in an epoch
    #[arg(long, value_name = "N")]
    pub train_images: Option<usize>,

    /// Stop timing the steps of a one-rank peer after this time, so that slow ones need not take all steps
    #[arg(long, value_name = "SECONDS")]
    pub peer_seconds: Option<f64>,

    /// Rounds; everything runs once per round
    #[arg(long, default_value_t = 5)]
    pub repeats: usize,

    /// Modes in which PyTorch runs
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Mode::Plain, Mode::Tuned, Mode::TunedFp32, Mode::None])]
    pub peers: Vec<Mode>,

    /// Measure Lockstep only
    #[arg(long, conflicts_with = "peers")]
    pub no_peers: bool,

    /// Leave out Lockstep's ranks that do not communicate, with which the others are compared
    #[arg(long)]
    pub no_isolated: bool,

    /// Also train to this test accuracy, a fraction; needs --data
    #[arg(long, value_name = "FRACTION", value_parser = fraction, requires = "data")]
    pub to_accuracy: Option<f64>,

    /// Number of seeds with which to train to it
    #[arg(long, value_name = "N", default_value_t = 3, requires = "to_accuracy")]
    pub seeds: u64,

    /// The Python that has PyTorch
    #[arg(long, value_name = "PATH", default_value = "python3")]
    pub python: PathBuf,

    /// The program that the peers run
    #[arg(long, value_name = "FILE",
          default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/peers/torch_ddp.py"),
          hide_default_value = true)]
    pub peer_script: PathBuf,

    /// Folder with CIFAR-10's .bin files, or its parent [default: synthetic images, for all]
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,

    /// Override a configuration key in all runs of Lockstep; repeatable
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,

    /// Run Lockstep once more per round with other keys, such as all-taps:performance.live_taps=false;
    /// repeatable
    #[arg(long = "variant", value_name = "NAME:KEY=VALUE,KEY=VALUE", value_parser = variant)]
    pub variants: Vec<Variant>,

    /// Time after which a run has failed
    #[arg(long, default_value_t = 600)]
    pub timeout_seconds: u64,

    /// Pause before each run
    #[arg(long, default_value_t = 1)]
    pub pause_seconds: u64,

    /// Wait until other processes use less than this share of the machine, and repeat runs that they
    /// disturbed, if on one node; disturbed runs stay in results.json but out of the table
    #[arg(long, value_name = "SHARE")]
    pub max_others: Option<f64>,

    /// Folder for results.json, table.md, report.html and the pictures
    /// [default: benches/results/MODEL_HARDWARE_DATE]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

/// Configuration that is measured if `--configs` is not given.
const DEFAULT_CONFIG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/resnet18.yaml");

impl Args {
    /// Fills in the default configuration and the default rank counts where none are given.
    pub fn with_defaults(mut self, visible_gpus: impl FnOnce() -> usize) -> Self {
        if self.configs.is_empty() && self.prediction.network.is_none() {
            self.configs = vec![DEFAULT_CONFIG.into()];
        }
        if [&self.cpu, &self.gpus, &self.predict].iter().all(|counts| counts.is_empty()) {
            match visible_gpus() {
                0 => self.cpu = vec![1, 2],
                all => self.gpus = up_to(all),
            }
        }
        self
    }

    /// Returns pairs of node and rank counts to measure, in order.
    pub fn sizes(&self) -> Vec<(usize, usize)> {
        let counts = if self.gpus.is_empty() { &self.cpu } else { &self.gpus };
        let most = counts.iter().copied().max().unwrap_or(0);
        let of_nodes = |&nodes: &usize| match nodes {
            1 => counts.iter().map(|&ranks| (1, ranks)).collect(),
            several => vec![(several, several * most)],
        };
        self.nodes.iter().flat_map(of_nodes).collect()
    }

    /// Returns the device on which ranks compute.
    pub const fn device(&self) -> Device {
        if self.gpus.is_empty() { Device::Cpu } else { Device::Gpu }
    }
}

/// Returns the powers of two below `all`, and `all`.
fn up_to(all: usize) -> Vec<usize> {
    let powers = std::iter::successors(Some(1), |count: &usize| count.checked_mul(2));
    powers.take_while(|count| *count < all).chain([all]).collect()
}

/// Inputs of a prediction.
#[derive(Debug, clap::Args)]
pub struct Prediction {
    /// Cluster to predict for: a name in benches/clusters, or a YAML file
    #[arg(long, value_name = "NAME|FILE", requires = "predict")]
    pub cluster: Option<String>,

    /// A network for ImageNet, instead of a configuration's
    #[arg(long, value_name = "NAME", requires = "predict", conflicts_with = "configs")]
    pub network: Option<String>,

    /// Images/s of one GPU, at the batch of a rank or as RATE@BATCH at several, where nothing was measured
    #[arg(
        long,
        value_name = "RATE,RATE",
        value_delimiter = ',',
        requires = "predict",
        conflicts_with = "measured"
    )]
    pub images_per_s: Vec<Rate>,

    /// Measurement of one rank at the batch of a rank
    #[arg(long, value_name = "results.json", requires = "predict")]
    pub measured: Option<PathBuf>,

    /// Bucket size in MiB [default: the configuration's, or 25]
    #[arg(long, value_name = "MIB", requires = "predict")]
    pub bucket_mib: Option<f64>,

    /// The batch from which a larger one no longer saves steps, in images; see docs/prediction.md
    #[arg(long, value_name = "IMAGES", requires = "predict")]
    pub critical_batch: Option<f64>,
}

/// A way to run PyTorch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// The notes' script as a user would move it to DDP.
    Plain,
    /// As someone who knows PyTorch well would write it.
    Tuned,
    /// Tuned, in fp32: on a CPU with small images it may be faster.
    TunedFp32,
    /// Tuned, with `torch.compile`.
    Compile,
    /// Tuned, with `torch.compile`'s mode reduce-overhead; one GPU only.
    CompileGraph,
    /// Tuned, as one CUDA graph; one GPU only.
    CudaGraph,
    /// Tuned, with ranks that do not communicate.
    None,
}

impl Mode {
    /// Returns the name that the command line uses.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Tuned => "tuned",
            Self::TunedFp32 => "tuned-fp32",
            Self::Compile => "compile",
            Self::CompileGraph => "compile-graph",
            Self::CudaGraph => "cuda-graph",
            Self::None => "none",
        }
    }
}

/// Lockstep with other configuration keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Variant {
    /// Name in tables; empty for Lockstep without changes.
    pub name: String,
    /// Overrides, each `key=value`.
    pub overrides: Vec<String>,
}

/// Parses `name:key=value,key=value`. A comma inside brackets does not separate keys.
fn variant(text: &str) -> Result<Variant, String> {
    let wanted = || "expected NAME:KEY=VALUE,..., such as fp32:precision=fp32".to_owned();
    let (name, keys) = text.split_once(':').ok_or_else(wanted)?;
    let mut overrides = vec![String::new()];
    let mut depth = 0;
    for c in keys.chars() {
        match c {
            '[' | '{' => depth += 1,
            ']' | '}' => depth -= 1,
            _ => {}
        }
        match overrides.last_mut() {
            Some(last) if c != ',' || depth > 0 => last.push(c),
            _ => overrides.push(String::new()),
        }
    }
    let is_pair = |text: &String| text.split_once('=').is_some_and(|(key, _)| !key.is_empty());
    if name.is_empty() || !overrides.iter().all(is_pair) {
        return Err(wanted());
    }
    Ok(Variant { name: name.to_owned(), overrides })
}

/// Parses a number of steps that fills whole records: times are read from the trainer's, one every ten steps.
fn whole_records(text: &str) -> Result<u64, String> {
    let steps: u64 = text.parse().map_err(|error| format!("{error}"))?;
    if steps > 0 && steps.is_multiple_of(10) {
        return Ok(steps);
    }
    Err("must be a positive multiple of 10".to_owned())
}

fn fraction(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|error| format!("{error}"))?;
    let problem = || "must be above 0 and below 1".to_owned();
    (value > 0.0 && value < 1.0).then_some(value).ok_or_else(problem)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_variant_is_a_name_and_keys() {
        let parsed = variant("slow:precision=fp32,data.augment=[crop,flip]").unwrap();
        assert_eq!(parsed.name, "slow");
        assert_eq!(parsed.overrides, ["precision=fp32", "data.augment=[crop,flip]"]);
        for bad in ["slow", ":a=b", "slow:", "slow:a", "slow:a=b,"] {
            assert!(variant(bad).is_err(), "{bad}");
        }
    }

    fn parse(extra: &[&str]) -> Result<Args, clap::Error> {
        let all = [&["scaling", "--configs", "c", "--out", "o"], extra].concat();
        Cli::try_parse_from(all).map(|cli| cli.run)
    }

    #[test]
    fn ranks_are_on_the_cpu_or_on_gpus_or_predicted() {
        assert_eq!(parse(&["--cpu", "1,2"]).unwrap().cpu, [1, 2]);
        let predicted = parse(&["--predict", "8,64", "--cluster", "c"]).unwrap();
        assert_eq!(predicted.predict, [8, 64]);
        for bad in [
            &["--cpu", "1", "--steps", "5"][..],
            &["--cpu", "1", "--gpus", "1"],
            &["--predict", "8"],
            &["--cpu", "1", "--to-accuracy", "0.7"],
            &["--cpu", "1", "--to-accuracy", "70", "--data", "d"],
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn all_gpus_are_measured_or_two_ranks_where_nothing_is_said() {
        let parsed =
            |extra: &[&str]| Cli::try_parse_from([&["scaling"], extra].concat()).unwrap().run;
        let on_cpu = parsed(&[]).with_defaults(|| 0);
        assert_eq!((on_cpu.sizes(), on_cpu.device()), (vec![(1, 1), (1, 2)], Device::Cpu));
        assert!(on_cpu.configs[0].exists());
        for (visible, measured) in [(1, &[1][..]), (4, &[1, 2, 4]), (6, &[1, 2, 4, 6])] {
            assert_eq!(parsed(&[]).with_defaults(|| visible).gpus, measured);
        }
        let given = parsed(&["--cpu", "2", "--configs", "c"]).with_defaults(|| 8);
        assert_eq!((given.cpu, given.gpus, given.configs), (vec![2], vec![], vec!["c".into()]));
        let network = ["--predict", "8", "--cluster", "c", "--network", "resnet50"];
        assert!(parsed(&network).with_defaults(|| 8).configs.is_empty());
    }

    #[test]
    fn several_nodes_have_the_most_ranks_each() {
        assert_eq!(parse(&["--cpu", "1,2"]).unwrap().sizes(), [(1, 1), (1, 2)]);
        let sizes = parse(&["--gpus", "1,4", "--nodes", "1,2,3"]).unwrap().sizes();
        assert_eq!(sizes, [(1, 1), (1, 4), (2, 8), (3, 12)]);
        assert!(parse(&["--predict", "8", "--cluster", "c", "--nodes", "2"]).is_err());
    }

    #[test]
    fn two_results_are_compared_without_the_rest() {
        let cli = Cli::try_parse_from(["scaling", "compare", "a.json", "b.json"]).unwrap();
        assert!(matches!(cli.command, Some(Command::Compare { .. })));
    }
}
