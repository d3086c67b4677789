//! Predicts the throughput of more GPUs from measured compute time, a model of collectives, and a schedule
//! that combines them. Pure except for reading its inputs; docs/prediction.md explains the model.

pub mod check;
mod cluster;
mod collective;
mod compute;
mod document;
mod network;
mod schedule;

#[cfg(test)]
mod published;

use job::config::{BucketCap, WireDtype};

use crate::cli::Args;
use crate::document::Block;
use crate::error::{BenchError, Result};

use cluster::Cluster;
use collective::Group;
pub use compute::Rate;
use compute::{Compute, ComputeCurve, compute_curve};
use network::Layers;
use schedule::{Communication, Timeline, simulate};

/// Exposed communication up to this share of a step counts as hidden.
const HIDDEN: f64 = 0.05;

/// Most GPUs that are considered when looking for the point where communication is no longer hidden.
const MOST_RANKS: usize = 1 << 16;

/// One network on one cluster.
#[derive(Clone)]
struct Model {
    layers: Layers,
    cluster: Cluster,
    batch_per_rank: usize,
    /// Compute time of a step at `batch_per_rank`.
    compute: Compute,
    /// Compute time of a step at any batch.
    compute_curve: ComputeCurve,
    bucket_cap_bytes: usize,
    wire_dtype: WireDtype,
    /// Source of `compute_curve`, for the report.
    basis: String,
}

/// A network to predict, and its settings that the command line may override.
struct Subject {
    layers: Layers,
    cap_mib: f64,
    batch: usize,
    wire_dtype: WireDtype,
    /// Stem of the configuration's file name; empty without one.
    stem: String,
}

/// The prediction of a step of `ranks` ranks.
#[derive(Debug, Clone, Copy)]
struct Step {
    ranks: usize,
    seconds: f64,
    timeline: Timeline,
}

/// Predicts what the command line asks for.
///
/// # Errors
/// When a file is missing or invalid, or the command line lacks something.
pub fn document(args: &Args) -> Result<Vec<Block>> {
    let mut blocks = vec![Block::Heading(1, "Prediction".to_owned())];
    for model in models(args)? {
        blocks.extend(document::of(&model, args));
    }
    Ok(blocks)
}

/// Default bucket size of PyTorch DDP.
const DEFAULT_BUCKET_MIB: usize = 25;

/// Returns the bucket size in MiB; the default for `auto`, which a trainer would measure.
fn bucket_mib(cap: BucketCap) -> usize {
    match cap {
        BucketCap::Mib(mib) => mib,
        BucketCap::Auto => DEFAULT_BUCKET_MIB,
    }
}

fn models(args: &Args) -> Result<Vec<Model>> {
    let prediction = &args.prediction;
    let cluster = Cluster::load(prediction.cluster.as_deref().unwrap_or_default())?;
    let wanted = |problem: &str| BenchError::Unexpected {
        what: "the command line",
        problem: problem.to_owned(),
    };
    let mut networks = Vec::new();
    if let Some(name) = &prediction.network {
        let layers = Layers::for_imagenet(name).ok_or_else(|| {
            wanted(&format!("--network {name}: no such network; `trainer models` lists them all"))
        })?;
        networks.push(Subject {
            layers,
            cap_mib: DEFAULT_BUCKET_MIB as f64,
            batch: 64,
            wire_dtype: WireDtype::Fp32,
            stem: String::new(),
        });
    }
    for path in &args.configs {
        let config = job::config::load(path, &args.overrides)?;
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let cap = bucket_mib(config.comm.bucket_cap_mib) as f64;
        let batch = config.train.batch_size_per_rank;
        if config.train.grad_accum_steps > 1 {
            let problem = "predictions are for one microbatch a step; set train.grad_accum_steps=1";
            return Err(wanted(problem));
        }
        if config.train.global_batch_size.is_some() && args.batch_per_rank.is_empty() {
            return Err(wanted(
                "--batch-per-rank is needed: the configuration has train.global_batch_size",
            ));
        }
        networks.push(Subject {
            layers: Layers::of_config(&config)?,
            cap_mib: cap,
            batch,
            wire_dtype: config.comm.wire_dtype,
            stem,
        });
    }
    let mut models = Vec::new();
    for Subject { mut layers, cap_mib, batch, wire_dtype, stem } in networks {
        if let Some(images) = prediction.critical_batch {
            layers.critical_batch = (images, "the command line");
        }
        let batches = match args.batch_per_rank.as_slice() {
            [] => vec![batch],
            batches => batches.to_vec(),
        };
        for batch_per_rank in batches {
            let (curve, basis) = compute_curve(prediction, &stem, batch_per_rank)?;
            let cap_mib = prediction.bucket_mib.unwrap_or(cap_mib);
            models.push(Model {
                layers: layers.clone(),
                cluster: cluster.clone(),
                batch_per_rank,
                compute: curve.at(batch_per_rank as f64),
                compute_curve: curve,
                bucket_cap_bytes: (cap_mib * f64::from(1 << 20)) as usize,
                wire_dtype,
                basis,
            });
        }
    }
    Ok(models)
}

impl Model {
    /// Predicts a step of `ranks` ranks.
    fn step(&self, ranks: usize) -> Step {
        let group = Group::new(&self.cluster, ranks);
        let communication = Communication {
            bucket_cap_bytes: self.bucket_cap_bytes,
            overlap: true,
            slowdown: self.cluster.slowdown_while_communicating.value,
        };
        let timeline = simulate(&self.layers.layers, &self.compute, &communication, |bytes| {
            group.all_reduce(bytes * self.wire_share()).seconds
        });
        let Compute { forward, rest, .. } = self.compute;
        let mut seconds = forward + timeline.communication_end + rest;
        if ranks > 1 {
            let slowest = self.cluster.step_noise.value * expected_maximum(ranks);
            seconds *= (1.0 + self.cluster.step_overhead.value) * (1.0 + slowest);
        }
        Step { ranks, seconds, timeline }
    }

    /// Returns the bytes on the wire as a fraction of the bytes of gradients in fp32.
    const fn wire_share(&self) -> f64 {
        match self.wire_dtype {
            WireDtype::Fp32 => 1.0,
            WireDtype::Bf16 => 0.5,
        }
    }

    fn images_per_s(&self, step: &Step) -> f64 {
        (step.ranks * self.batch_per_rank) as f64 / step.seconds
    }

    /// Returns the throughput as a fraction of that of as many ranks that need not wait for each other.
    fn efficiency(&self, step: &Step) -> f64 {
        self.compute.total() / step.seconds
    }

    /// Returns the lowest and the highest efficiency if all figures are off in the same direction.
    fn efficiency_range(&self, ranks: usize) -> (f64, f64) {
        let off = |part| {
            let model = Self { cluster: self.cluster.off_by(part), ..self.clone() };
            model.efficiency(&model.step(ranks))
        };
        (off(1.0), off(-1.0))
    }

    /// Returns the model at another batch per rank, which need not be whole.
    fn with_batch(&self, batch_per_rank: f64) -> Self {
        Self {
            batch_per_rank: batch_per_rank.round() as usize,
            compute: self.compute_curve.at(batch_per_rank),
            ..self.clone()
        }
    }

    fn with_bucket_mib(&self, mib: f64) -> Self {
        Self { bucket_cap_bytes: (mib * f64::from(1 << 20)) as usize, ..self.clone() }
    }

    fn is_hidden(&self, ranks: usize) -> bool {
        let step = self.step(ranks);
        step.timeline.exposed() <= HIDDEN * step.seconds
    }

    /// Returns the first of 2, 4, 8, ... ranks whose communication is not hidden.
    fn stops_hiding(&self) -> Option<usize> {
        let doublings = std::iter::successors(Some(2usize), |ranks| ranks.checked_mul(2));
        doublings.take_while(|ranks| *ranks <= MOST_RANKS).find(|ranks| !self.is_hidden(*ranks))
    }

    /// Returns the bucket size in MiB, of 25 and the powers of two from 1/4 to 256, with the shortest step.
    fn best_bucket_mib(&self, ranks: usize) -> (f64, Step) {
        let step = |mib: f64| (mib, self.with_bucket_mib(mib).step(ranks));
        let caps = (-2..=8).map(|power| 2f64.powi(power));
        let first = step(25.0);
        caps.map(step).fold(first, |a, b| if b.1.seconds < a.1.seconds { b } else { a })
    }

    /// Returns the smallest batch per rank, of the present one and its doublings, that hides communication.
    fn hiding_batch(&self, ranks: usize) -> Option<usize> {
        let batches = (0..=8).map(|power| self.batch_per_rank as f64 * 2f64.powi(power));
        batches
            .map(|batch| self.with_batch(batch))
            .find(|model| model.is_hidden(ranks))
            .map(|model| model.batch_per_rank)
    }

    /// Returns how many times sooner `step.ranks` ranks reach the same loss than one rank with its batch, if
    /// a batch of B images takes 1 + critical / B times the smallest possible number of steps.
    ///
    /// Source: McCandlish et al., An Empirical Model of Large-Batch Training, 2018, equation 2.11.
    fn training_speed_up(&self, step: &Step) -> f64 {
        let critical = self.layers.critical_batch.0;
        let steps = |images: f64| 1.0 + critical / images;
        let batch = self.batch_per_rank as f64;
        let alone = steps(batch) * self.compute.total();
        alone / (steps(batch * step.ranks as f64) * step.seconds)
    }
}

/// Returns the expected maximum of `n` samples of a standard normal distribution.
///
/// Source: Blom, Statistical Estimates and Transformed Beta-Variables, 1958; for the quantile,
/// Abramowitz and Stegun, Handbook of Mathematical Functions, 26.2.23.
fn expected_maximum(n: usize) -> f64 {
    let n = n as f64;
    let above = 1.0 - (n - 0.375) / (n + 0.25);
    let t = (-2.0 * above.ln()).sqrt();
    let numerator = 2.515_517 + t * (0.802_853 + t * 0.010_328);
    t - numerator / (1.0 + t * (1.432_788 + t * (0.189_269 + t * 0.001_308)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(images_per_s: f64) -> Model {
        let batch_per_rank = 64;
        let compute = Compute::from_step(batch_per_rank as f64 / images_per_s);
        Model {
            layers: Layers::for_imagenet("resnet50").unwrap(),
            cluster: Cluster::load("h100-nvlink-ib400").unwrap(),
            batch_per_rank,
            compute,
            compute_curve: ComputeCurve::new(vec![(batch_per_rank, compute)]),
            bucket_cap_bytes: 25 << 20,
            wire_dtype: WireDtype::Fp32,
            basis: String::new(),
        }
    }

    #[test]
    fn one_rank_is_as_fast_as_measured() {
        let model = model(2000.0);
        let step = model.step(1);
        assert!((model.images_per_s(&step) - 2000.0).abs() < 1e-6);
        assert_eq!(step.timeline.exposed(), 0.0);
    }

    #[test]
    fn efficiency_falls_with_ranks_and_lies_in_its_range() {
        let model = model(2000.0);
        let mut last = 1.0;
        for ranks in [8, 64, 512, 4096] {
            let efficiency = model.efficiency(&model.step(ranks));
            let (low, high) = model.efficiency_range(ranks);
            assert!(efficiency < last && (low..=high).contains(&efficiency), "{ranks}");
            last = efficiency;
        }
    }

    #[test]
    fn gradients_that_travel_in_bf16_take_less_time() {
        let [fp32, bf16] = [WireDtype::Fp32, WireDtype::Bf16]
            .map(|wire_dtype| Model { wire_dtype, ..model(2000.0) }.step(64).timeline);
        let ratio = bf16.communication / fp32.communication;
        assert!((0.5..0.9).contains(&ratio), "{ratio}");
        assert_eq!(bf16.buckets, fp32.buckets);
    }

    #[test]
    fn a_larger_batch_hides_what_a_smaller_one_does_not() {
        let fast = model(200_000.0);
        let ranks = fast.stops_hiding().unwrap();
        let batch = fast.hiding_batch(ranks).unwrap();
        assert!(batch > fast.batch_per_rank);
        assert!(fast.best_bucket_mib(ranks).1.seconds <= fast.step(ranks).seconds);
    }

    #[test]
    fn past_the_critical_batch_ranks_save_little_time() {
        let model = model(2000.0);
        let sooner = |ranks| model.training_speed_up(&model.step(ranks));
        assert!((sooner(1) - 1.0).abs() < 1e-9);
        // 64 ranks are within the critical batch of 15,000 images; 4096 are far beyond it.
        assert!(sooner(64) > 45.0 && sooner(4096) < 260.0, "{} {}", sooner(64), sooner(4096));
    }

    #[test]
    fn the_largest_of_many_is_as_tables_have_it() {
        // Harter, Biometrika 48, 1961: 0.56419, 1.42360, 2.50759 for 2, 8 and 100.
        for (n, expected) in [(2, 0.56419), (8, 1.42360), (100, 2.50759)] {
            assert!((expected_maximum(n) - expected).abs() < 0.03, "{n}: {}", expected_maximum(n));
        }
    }
}
