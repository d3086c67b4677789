//! The plan of what runs, from the command line and the configurations.

use std::path::{Path, PathBuf};

use job::config::{self, Config, Dataset, Model, Optimizer, OptimizerName, Schedule, Stem, Train};

use crate::cli::{Args, Mode, Variant};
use crate::error::{BenchError, Result};

/// The device on which ranks compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// CPU cores.
    Cpu,
    /// GPUs, one per rank.
    Gpu,
}

/// Everything that runs once per round.
pub struct Plan {
    /// The cases, in order.
    pub cases: Vec<Case>,
}

/// One configuration with one batch size, at several rank counts.
pub struct Case {
    /// Name in tables.
    pub name: String,
    /// Path of the configuration.
    pub config: PathBuf,
    /// The configuration's network.
    pub network: PeerNetwork,
    /// Sizes to run at, in the order of the command line.
    pub sizes: Vec<JobSize>,
    /// Epochs that the configuration trains for.
    pub epochs: usize,
    /// The contestants that run.
    pub contestants: Vec<Contestant>,
    /// Why no peer runs, if the configuration is not one that peers can train.
    pub without_peers: Option<String>,
}

/// A network, as options of the peers' program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerNetwork {
    /// Value of `--model`.
    pub model: &'static str,
    /// Value of `--stem`.
    pub stem: &'static str,
}

/// One size of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobSize {
    /// Number of nodes, with equally many ranks each.
    pub nodes: usize,
    /// Number of ranks on all nodes.
    pub ranks: usize,
    /// Images per rank and step.
    pub batch_per_rank: usize,
}

/// The accuracy to which a run trains, with its seed and time limit.
#[derive(Debug, Clone, Copy)]
pub struct Goal {
    /// Accuracy on the test images, a fraction.
    pub target: f64,
    /// Seed of the initial weights and of the order of samples.
    pub seed: u64,
    /// Seconds after which the run has failed.
    pub timeout_seconds: u64,
}

/// One run of a round.
#[derive(Clone, Copy)]
pub struct Run<'a> {
    /// The case.
    pub case: &'a Case,
    /// The size.
    pub size: JobSize,
    /// The contestant that trains.
    pub contestant: &'a Contestant,
}

/// A program and mode whose training is measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Contestant {
    /// Lockstep.
    Ours(Variant),
    /// Lockstep, with ranks that do not communicate.
    Isolated,
    /// PyTorch.
    Peer(Mode),
}

impl Contestant {
    /// Returns the name in tables.
    pub fn name(&self) -> String {
        match self {
            Self::Ours(variant) if variant.name.is_empty() => "Lockstep".to_owned(),
            Self::Ours(variant) => format!("Lockstep, {}", variant.name),
            Self::Isolated => "Lockstep, isolated".to_owned(),
            Self::Peer(mode) => format!("PyTorch DDP, {}", mode.name()),
        }
    }

    /// Returns the overrides of the configuration; none for PyTorch.
    pub fn overrides(&self) -> Vec<String> {
        match self {
            Self::Ours(variant) => variant.overrides.clone(),
            Self::Isolated => vec!["comm.backend=none".to_owned()],
            Self::Peer(_) => Vec::new(),
        }
    }

    /// Returns whether this is PyTorch.
    pub const fn is_peer(&self) -> bool {
        matches!(self, Self::Peer(_))
    }

    /// Returns whether the ranks do not communicate.
    pub const fn is_isolated(&self) -> bool {
        matches!(self, Self::Isolated | Self::Peer(Mode::None))
    }
}

impl Plan {
    /// Reads the configurations.
    ///
    /// # Errors
    /// When a configuration is invalid, or a global batch cannot be shared evenly.
    pub fn new(args: &Args) -> Result<Self> {
        let mut cases = Vec::new();
        for path in &args.configs {
            let config = config::load(path, &args.overrides)?;
            for variant in &args.variants {
                config::load(path, &[&args.overrides[..], &variant.overrides].concat())?;
            }
            let batches = batches(args, &config.train);
            for batch in batches {
                cases.push(Case::new(args, path, &config, batch)?);
            }
        }
        Ok(Self { cases })
    }

    /// Returns the runs of a round, in order.
    pub fn runs(&self) -> impl Iterator<Item = Run<'_>> {
        self.cases
            .iter()
            .flat_map(|case| {
                case.sizes.iter().flat_map(move |&size| {
                    case.contestants.iter().map(move |contestant| Run { case, size, contestant })
                })
            })
            // A single rank has no peer to communicate with.
            .filter(|run| run.size.ranks > 1 || !run.contestant.is_isolated())
    }

    /// Returns whether PyTorch runs at all.
    pub fn has_peers(&self) -> bool {
        self.runs().any(|run| run.contestant.is_peer())
    }
}

/// How the batch depends on the number of ranks.
#[derive(Debug, Clone, Copy)]
enum Batch {
    /// Weak scaling: images per rank.
    PerRank(usize),
    /// Strong scaling: images of all ranks.
    Global(usize),
}

fn batches(args: &Args, configured: &Train) -> Vec<Batch> {
    let weak = args.batch_per_rank.iter().map(|size| Batch::PerRank(*size));
    let batches: Vec<Batch> =
        weak.chain(args.global_batch.iter().map(|size| Batch::Global(*size))).collect();
    match (batches.is_empty(), configured.global_batch_size) {
        (false, _) => batches,
        (true, Some(size)) => vec![Batch::Global(size)],
        (true, None) => vec![Batch::PerRank(configured.batch_size_per_rank)],
    }
}

impl Case {
    fn new(args: &Args, path: &Path, config: &Config, batch: Batch) -> Result<Self> {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let name = match batch {
            Batch::PerRank(size) => format!("{stem}, weak scaling, batch {size} per rank"),
            Batch::Global(size) => format!("{stem}, strong scaling, global batch {size}"),
        };
        let sizes = args.sizes().into_iter().map(|(nodes, ranks)| size(nodes, ranks, batch));
        let without_peers = why_without_peers(config, args);
        let ours = std::iter::once(Variant::default()).chain(args.variants.iter().cloned());
        let peers = args.peers.iter().filter(|_| !args.no_peers && without_peers.is_none());
        Ok(Self {
            name,
            config: path.to_owned(),
            network: PeerNetwork::of(config),
            epochs: config.train.epochs,
            sizes: sizes.collect::<Result<_>>()?,
            contestants: ours
                .map(Contestant::Ours)
                .chain((!args.no_isolated).then_some(Contestant::Isolated))
                .chain(peers.map(|mode| Contestant::Peer(*mode)))
                .collect(),
            without_peers,
        })
    }
}

impl PeerNetwork {
    const fn of(config: &Config) -> Self {
        Self { model: config.model.name.as_str(), stem: config.model.stem.as_str() }
    }
}

const fn size(nodes: usize, ranks: usize, batch: Batch) -> Result<JobSize> {
    let batch_per_rank = match batch {
        _ if ranks == 0 => return Err(BenchError::NoRanks),
        Batch::PerRank(batch_per_rank) => batch_per_rank,
        Batch::Global(global_batch) if !global_batch.is_multiple_of(ranks) => {
            return Err(BenchError::Uneven { global_batch, ranks });
        }
        Batch::Global(global_batch) => global_batch / ranks,
    };
    Ok(JobSize { nodes, ranks, batch_per_rank })
}

/// Returns why peers cannot train this configuration, if so: they have only the notes' networks, AdamW and no
/// augmentation.
fn why_without_peers(config: &Config, args: &Args) -> Option<String> {
    if args.data.is_some() && config.data.dataset != Dataset::Cifar10 {
        return Some("the PyTorch script supports only CIFAR-10".to_owned());
    }
    let is_default =
        config.optimizer == Optimizer::default() && config.schedule == Schedule::default();
    if args.to_accuracy.is_some() && !is_default {
        return Some(
            "the PyTorch script supports only AdamW's defaults at a constant rate".to_owned(),
        );
    }
    if config.optimizer.name != OptimizerName::Adamw {
        return Some("the PyTorch script supports only AdamW".to_owned());
    }
    let Model { name, stem, .. } = config.model;
    let is_known = ["resnet18", "resnet34"].contains(&name.as_str()) && stem != Stem::Imagenet;
    if !is_known || config.model != (Model { name, stem, ..Model::default() }) {
        return Some("the PyTorch script supports only the notes' networks".to_owned());
    }
    (!config.data.augment.is_empty())
        .then(|| "the PyTorch script does not augment images".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::Cli;

    fn plan(yaml: &str, extra: &[&str]) -> Result<Plan> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("job.yaml");
        std::fs::write(&path, yaml).unwrap();
        let required =
            ["scaling", "--cpu", "1,2", "--out", "o", "--configs", path.to_str().unwrap()];
        Plan::new(&Cli::parse_from([&required, extra].concat()).run)
    }

    fn batches_of(case: &Case) -> Vec<(usize, usize)> {
        case.sizes.iter().map(|size| (size.ranks, size.batch_per_rank)).collect()
    }

    #[test]
    fn weak_scaling_keeps_the_batch_of_a_rank_and_strong_scaling_that_of_all() {
        let plan = plan("", &["--batch-per-rank", "64", "--global-batch", "128"]).unwrap();
        assert_eq!(plan.cases[0].name, "job, weak scaling, batch 64 per rank");
        assert_eq!(batches_of(&plan.cases[0]), [(1, 64), (2, 64)]);
        assert_eq!(plan.cases[1].name, "job, strong scaling, global batch 128");
        assert_eq!(batches_of(&plan.cases[1]), [(1, 128), (2, 64)]);
    }

    #[test]
    fn the_configuration_says_the_batch_where_the_command_line_does_not() {
        let per_rank = plan("train: {batch_size_per_rank: 32}", &[]).unwrap();
        assert_eq!(batches_of(&per_rank.cases[0]), [(1, 32), (2, 32)]);
        let global = plan("train: {global_batch_size: 32}", &[]).unwrap();
        assert_eq!(batches_of(&global.cases[0]), [(1, 32), (2, 16)]);
    }

    #[test]
    fn a_batch_that_ranks_cannot_share_is_refused() {
        let error = plan("", &["--global-batch", "63"]).err().unwrap().to_string();
        assert_eq!(error, "a global batch of 63 cannot be split evenly over 2 ranks");
    }

    #[test]
    fn everybody_runs_side_by_side() {
        let plan = plan("", &["--variant", "fp32:precision=fp32", "--peers", "tuned"]).unwrap();
        let names: Vec<_> = plan.cases[0].contestants.iter().map(Contestant::name).collect();
        assert_eq!(
            names,
            ["Lockstep", "Lockstep, fp32", "Lockstep, isolated", "PyTorch DDP, tuned"]
        );
    }

    #[test]
    fn a_single_rank_is_not_measured_in_isolation() {
        let plan = plan("", &["--peers", "none"]).unwrap();
        let runs: Vec<_> = plan.runs().map(|run| (run.size.ranks, run.contestant.name())).collect();
        let run = |ranks: usize, name: &str| (ranks, name.to_owned());
        assert_eq!(
            runs,
            [
                run(1, "Lockstep"),
                run(2, "Lockstep"),
                run(2, "Lockstep, isolated"),
                run(2, "PyTorch DDP, none"),
            ]
        );
    }

    fn plan_of(yaml: &str, extra: &[&str]) -> String {
        plan(yaml, extra).unwrap().cases[0].without_peers.clone().unwrap_or_default()
    }

    #[test]
    fn a_job_that_peers_do_not_know_runs_without_them() {
        let plan = plan("data: {augment: [flip]}", &[]).unwrap();
        assert!(!plan.has_peers());
        assert!(plan.cases[0].without_peers.as_deref().unwrap().contains("augment"));
        let real = ["--data", "d"];
        assert!(plan_of("data: {dataset: svhn}", &real).contains("CIFAR-10"));
        let to_accuracy = ["--data", "d", "--to-accuracy", "0.7"];
        assert!(plan_of("schedule: {name: cosine}", &to_accuracy).contains("constant rate"));
        assert_eq!(plan_of("schedule: {name: cosine}", &real), "");
    }

    #[test]
    fn a_variant_that_is_no_configuration_is_refused_before_anything_runs() {
        assert!(plan("", &["--variant", "x:precision=fp7"]).is_err());
    }
}
