//! The training loop: steps, agreement of ranks on when to stop, and reports to the launcher.

mod epoch_end;

use std::sync::Arc;
use std::time::{Duration, Instant};

use comm::Communicator;
use comm::control::{Phase, ToLauncher};
use comm::env::World;
use job::config::Config;
use job::metrics::LossScaling;
use job::run_dir::RunDir;
use job::shard::{self, Batch};
use tracing::info;

use crate::checkpoint::State;
use crate::cuda_graph::StepGraph;
use crate::data::{Augmenter, Images};
use crate::ema::Ema;
use crate::grad_sync::GradSync;
use crate::link::Link;
use crate::loss_scaler::MIN_SCALE;
use crate::model::Draw;
use crate::optim::Optimizer;
use crate::recorder::Recorder;
use crate::replica::Replica;
use crate::saver::{OnWriteError, Saver};
use crate::schedule::{LearningRate, Position};
use crate::step::{Microbatch, Phases, StepParts};
use crate::step_times::StepTimes;
use crate::tally::Counter;
use crate::{Result, TrainError, caught};

/// Largest number of steps on a GPU between two agreements of ranks on whether to stop.
const STOP_CHECK_STEPS: u64 = 10;

/// How a run ended without an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Trained to the end.
    Done,
    /// Saved a checkpoint and stopped, because a signal or the launcher asked for it.
    Stopped,
}

/// Why the steps of an epoch ended.
enum EpochEnd {
    /// Every sample of the epoch was trained on.
    Complete,
    /// `train.max_steps` is reached.
    MaxSteps,
    /// Some rank was asked to stop.
    Stop,
}

/// A run that is ready for its next step.
pub struct Run<'a> {
    /// Executes steps, on a GPU by a CUDA graph. Must be the first field, which is dropped first: dropping
    /// a communicator waits until graphs with its kernels are freed.
    pub step_graph: StepGraph,
    /// The configuration, as loaded.
    pub config: Config,
    /// This rank's number and the world size.
    pub world: World,
    /// The collectives between ranks.
    pub communicator: Arc<dyn Communicator>,
    /// The connection to the launcher.
    pub link: &'a Link,
    /// The directory of the run's files.
    pub run_dir: RunDir,
    /// Training images.
    pub train: Images,
    /// Test images.
    pub test: Images,
    /// The augmentation of training images; `None` if none is configured.
    pub augmenter: Option<Augmenter>,
    /// This rank's copy of the network.
    pub replica: Replica,
    /// The optimizer and its state.
    pub optimizer: Optimizer,
    /// The learning rate schedule.
    pub learning_rate: LearningRate,
    /// The moving average of the weights; `None` without `train.ema_decay`.
    pub ema: Option<Ema>,
    /// Reduces gradients over ranks.
    pub grad_sync: GradSync,
    /// Counts loss and correct answers.
    pub counter: Counter,
    /// The position of the run and its other state besides tensors.
    pub state: State,
    /// Writes metrics.
    pub recorder: Recorder,
    /// Writes checkpoints, and retries when the disk refuses them.
    pub saver: Saver,
}

impl Run<'_> {
    /// Trains to the end, or until a rank is asked to stop. Collective.
    ///
    /// # Errors
    /// The error that ended the run early. It has been reported to the launcher and to every rank that can
    /// be reached.
    pub fn train(mut self) -> Result<Outcome> {
        let ended = caught(|| self.epochs());
        self.step_graph.release();
        match &ended {
            Ok(_) => {
                // What remains takes no longer than a step, so the launcher's deadline for a step applies.
                self.link.state(Phase::Training, self.state.epoch(), self.state.step);
                self.communicator.finalize()?;
            }
            Err(error) => {
                // Reported before the abort makes other ranks fail: after the first report, the launcher
                // waits only briefly for more.
                self.link.failed(error);
                self.communicator.abort(&error.to_string(), error.blame());
            }
        }
        ended
    }

    fn epochs(&mut self) -> Result<Outcome> {
        if self.is_complete() {
            info!(
                "this run is complete: {} epochs, {} steps",
                self.state.epochs_completed, self.state.step
            );
            if self.recorder.lacks_summary(&self.state)? {
                self.recorder.finish(&self.state, self.peak_memory_bytes()?);
                self.recorder.draw();
            }
            self.write_records()?;
            return Ok(Outcome::Done);
        }
        while !self.is_complete() {
            let is_finished = match self.epoch()? {
                EpochEnd::Stop => false,
                EpochEnd::MaxSteps => self.finish_epoch(false)?,
                EpochEnd::Complete => self.finish_epoch(true)?,
            };
            if !is_finished {
                self.save(false, OnWriteError::End)?;
                let (step, run_dir) = (self.state.step, self.run_dir.root().display());
                info!(
                    "stopped at step {step}; to resume, run the same command with --run-dir \
                     {run_dir}"
                );
                return Ok(Outcome::Stopped);
            }
        }
        self.recorder.finish(&self.state, self.peak_memory_bytes()?);
        self.write_records()?;
        Ok(Outcome::Done)
    }

    fn is_complete(&self) -> bool {
        self.state.is_complete(&self.config.train)
    }

    fn is_at_max_steps(&self) -> bool {
        self.state.is_at_max_steps(&self.config.train)
    }

    fn epoch(&mut self) -> Result<EpochEnd> {
        let order = shard::epoch_order(
            self.train.len(),
            self.config.train.seed,
            self.state.epochs_completed,
        );
        while let Some(batch) = self.next_batch() {
            let stop = self.step(&order, &batch)?;
            if self.is_at_max_steps() {
                return Ok(EpochEnd::MaxSteps);
            }
            if stop {
                return Ok(EpochEnd::Stop);
            }
        }
        Ok(EpochEnd::Complete)
    }

    fn next_batch(&self) -> Option<Batch> {
        shard::next_batch(
            self.train.len(),
            self.state.samples_into_epoch,
            self.global_batch_size(),
            self.world.rank,
            self.world.world_size,
        )
    }

    /// Takes one step, and returns whether all ranks have agreed to stop after it.
    fn step(&mut self, order: &[u32], batch: &Batch) -> Result<bool> {
        let started = Instant::now();
        self.link.state(Phase::Training, self.state.epoch(), self.state.step);
        let lr = self.learning_rate();
        let after = self.position(self.state.step + 1, batch.global.end);
        self.optimizer.set_progress(self.learning_rate.progress(after));
        self.replica.model.set_draw(Draw {
            seed: self.config.train.seed,
            step: self.state.step,
            rank: self.world.rank,
        });
        let parts =
            batch.microbatches(self.config.train.batch_size_per_rank, self.world.world_size);
        let mut data = Duration::ZERO;
        let (link, epoch, step) = (self.link, self.state.epoch(), self.state.step);
        let microbatches = parts.into_iter().map(|part| {
            let started = Instant::now();
            link.state(Phase::Training, epoch, step); // a step of many microbatches may take long
            let indices = &order[part.local];
            let images = match &self.augmenter {
                Some(augmenter) => {
                    self.train.augmented_batch(indices, augmenter, self.state.epochs_completed)
                }
                None => self.train.batch(indices),
            };
            let batch = images.smoothed(self.config.train.label_smoothing);
            data += started.elapsed();
            Microbatch { batch, global_len: part.global_len }
        });
        let parts = StepParts {
            optimizer: &mut self.optimizer,
            grad_sync: &self.grad_sync,
            counter: &mut self.counter,
        };
        let images = batch.global.len();
        let phases = self.step_graph.step(&mut self.replica, parts, microbatches, images, lr)?;

        self.state.step += 1;
        if let Some(ema) = &mut self.ema {
            ema.after_step(self.state.step, &mut self.replica.flat, &mut self.optimizer)?;
        }
        self.state.samples_into_epoch = batch.global.end;
        let stop = self.exchange(lr)?;
        let mut times = self.times(data, phases)?;
        times.total = started.elapsed();
        self.state.epoch_seconds += times.total.as_secs_f64();
        let Self { recorder, state, optimizer, replica, .. } = self;
        let step = state.step;
        let gradients = || (optimizer.grad_norm(&replica.flat), loss_scaling(optimizer, step));
        recorder.step(state, lr, times, batch.global.len(), gradients);
        self.report();
        Ok(stop)
    }

    /// Returns the times of a step's parts, without its total: on the CPU the means over ranks, on a GPU
    /// this rank's own, since a collective would wait for the device.
    fn times(&self, data: Duration, phases: Phases) -> Result<StepTimes> {
        if self.replica.device.is_cuda() {
            return Ok(StepTimes { data, phases, ..StepTimes::default() });
        }
        StepTimes::over_ranks(&*self.communicator, data, phases)
    }

    /// If it is due after this step, sums loss and correct answers over ranks, checks that they are finite,
    /// and returns whether ranks have agreed to stop. Returns `false` if it is not due.
    fn exchange(&mut self, lr: f64) -> Result<bool> {
        let is_last = self.state.samples_into_epoch == self.train.len() || self.is_at_max_steps();
        // Reading the counts waits for the device, which is cheap on the CPU but too slow for every step on
        // a GPU. Records of steps need the counts, and a request to stop should not wait for long.
        let every = match self.replica.device.is_cuda() {
            true => self.config.metrics.log_every.min(STOP_CHECK_STEPS),
            false => 1,
        };
        let is_record = self.state.step.is_multiple_of(self.config.metrics.log_every);
        if !is_last && !is_record && !self.state.step.is_multiple_of(every) {
            return Ok(false);
        }
        let wants_to_stop = self.link.stop_reason().is_some();
        let (tally, stop) = self.counter.exchange(&*self.communicator, wants_to_stop)?;
        self.check_finite("training loss", tally.loss_sum, lr)?;
        self.check_loss_scale(lr)?;
        self.state.epoch_tally.add(tally);
        self.state.record_tally.add(tally);
        self.recorder.waited();
        Ok(stop)
    }

    fn check_finite(&self, what: &'static str, value: f64, lr: f64) -> Result<()> {
        if value.is_finite() {
            return Ok(());
        }
        let State { step, .. } = self.state;
        Err(TrainError::NotFinite { what, value, step, epoch: self.state.epoch(), lr })
    }

    /// Fails when the loss scale has fallen below [`MIN_SCALE`]: gradients that overflow at so small a
    /// scale are not finite without scaling either.
    fn check_loss_scale(&self, lr: f64) -> Result<()> {
        let scaler = self.optimizer.loss_scaler_state();
        match scaler.is_some_and(|scaler| f64::from(scaler.scale) < MIN_SCALE) {
            true => self.check_finite("gradient", f64::INFINITY, lr),
            false => Ok(()),
        }
    }

    /// Returns the learning rate of the next step.
    fn learning_rate(&self) -> f64 {
        self.learning_rate.at(self.position(self.state.step, self.state.samples_into_epoch))
    }

    /// Returns the position of the run after `step` steps and `samples_into_epoch` samples of the epoch in
    /// progress.
    fn position(&self, step: u64, samples_into_epoch: usize) -> Position {
        let within_epoch = samples_into_epoch as f64 / self.train.len() as f64;
        Position { step: step as f64, epochs: self.state.epochs_completed as f64 + within_epoch }
    }

    fn steps_per_epoch(&self) -> usize {
        shard::steps_per_epoch(self.train.len(), self.global_batch_size())
    }

    fn global_batch_size(&self) -> usize {
        self.config.train.global_batch_size(self.world.world_size)
    }

    fn report(&self) {
        // On a GPU the counts of an epoch's first steps are not exchanged immediately.
        let has_counts = self.state.epoch_tally.images > 0.0;
        if self.world.rank == 0 && has_counts && self.link.progress_is_due() {
            self.link.progress(&ToLauncher::Progress {
                epoch: self.state.epoch(),
                epochs: self.config.train.epochs,
                step: self.state.samples_into_epoch.div_ceil(self.global_batch_size()),
                steps: self.steps_per_epoch(),
                loss: self.state.epoch_tally.loss(),
                accuracy: self.state.epoch_tally.accuracy(),
                images_per_s: self.recorder.images_per_s(),
            });
        }
    }

    fn peak_memory_bytes(&self) -> Result<u64> {
        Ok(match self.replica.device {
            tch::Device::Cuda(device) => torch_ext::cuda_peak_bytes(device)?,
            _ => torch_ext::peak_rss_bytes(),
        })
    }
}

/// Returns the loss scaling part of the record of step `step`; `None` without loss scaling.
fn loss_scaling(optimizer: &Optimizer, step: u64) -> Option<LossScaling> {
    let scaler = optimizer.loss_scaler_state()?;
    let skipped_steps = step.saturating_sub(optimizer.steps());
    Some(LossScaling { loss_scale: scaler.scale.into(), skipped_steps })
}
