//! The training loop: steps, when ranks agree to stop, and what the launcher is told of them.

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
use crate::saver::{IfRefused, Saver};
use crate::schedule::{LearningRate, Position};
use crate::step::{Microbatch, Phases, StepParts};
use crate::step_times::StepTimes;
use crate::tally::Counter;
use crate::{Result, TrainError, caught};

/// Steps on a GPU after which ranks ask each other whether to stop, at the latest.
const STOP_CHECK_STEPS: u64 = 10;

/// How a run ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Trained to the end.
    Done,
    /// Saved and stopped because somebody asked.
    Stopped,
}

/// Why the steps of an epoch ended.
enum EpochEnd {
    /// Every sample was seen.
    Complete,
    /// `train.max_steps` is reached.
    MaxSteps,
    /// Some rank was asked to stop.
    Stop,
}

/// A run that is ready for its next step.
pub struct Run<'a> {
    /// Executes steps. The first field: a communicator that is dropped waits for graphs to be gone.
    pub step_graph: StepGraph,
    /// The configuration, as loaded.
    pub config: Config,
    /// This rank, and how many there are.
    pub world: World,
    /// The collectives between them.
    pub communicator: Arc<dyn Communicator>,
    /// The connection to the launcher.
    pub link: &'a Link,
    /// The directory that the run's files go to.
    pub run_dir: RunDir,
    /// Training images.
    pub train: Images,
    /// Test images.
    pub test: Images,
    /// What augments training images, where anything does.
    pub augmenter: Option<Augmenter>,
    /// The network.
    pub replica: Replica,
    /// The optimizer and its state.
    pub optimizer: Optimizer,
    /// The learning rate by step.
    pub learning_rate: LearningRate,
    /// The moving average of the weights, with `train.ema_decay`.
    pub ema: Option<Ema>,
    /// Reduces gradients over ranks.
    pub grad_sync: GradSync,
    /// Counts loss and correct answers.
    pub counter: Counter,
    /// How far the run is.
    pub state: State,
    /// Writes metrics.
    pub recorder: Recorder,
    /// Has checkpoints written.
    pub saver: Saver,
}

impl Run<'_> {
    /// Trains to the end, or until somebody asks to stop.
    ///
    /// # Errors
    /// Whatever ends the run early; every rank that can be reached is told.
    pub fn train(mut self) -> Result<Outcome> {
        let ended = caught(|| self.epochs());
        self.step_graph.release();
        match &ended {
            Ok(_) => {
                // What is left takes no longer than a step, and the launcher holds ranks to that.
                self.link.state(Phase::Training, self.state.epoch(), self.state.step);
                self.communicator.finalize()?;
            }
            Err(error) => {
                // Before the others say so: they have little time to be heard once one has spoken.
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
                self.save(false, IfRefused::End)?;
                let (step, run_dir) = (self.state.step, self.run_dir.root().display());
                info!(
                    "stopped at step {step}; to go on: the same command, with --run-dir {run_dir}"
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

    /// Takes one step, and says whether all ranks have agreed to stop after it.
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
            link.state(Phase::Training, epoch, step); // a step of many may take long
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

    /// On a GPU, asking other ranks would wait for the device.
    fn times(&self, data: Duration, phases: Phases) -> Result<StepTimes> {
        if self.replica.device.is_cuda() {
            return Ok(StepTimes { data, phases, ..StepTimes::default() });
        }
        StepTimes::over_ranks(&*self.communicator, data, phases)
    }

    /// Lets ranks add up what they counted, where it is time for it.
    fn exchange(&mut self, lr: f64) -> Result<bool> {
        let is_last = self.state.samples_into_epoch == self.train.len() || self.is_at_max_steps();
        // Reading the counts waits for the device: cheap on the CPU, and not for every step on a GPU.
        // A record needs them, and somebody who wants to stop does not want to wait.
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

    /// Gradients that overflow however little losses are scaled have another cause.
    fn check_loss_scale(&self, lr: f64) -> Result<()> {
        let scaler = self.optimizer.loss_scaler_state();
        match scaler.is_some_and(|scaler| f64::from(scaler.scale) < MIN_SCALE) {
            true => self.check_finite("gradient", f64::INFINITY, lr),
            false => Ok(()),
        }
    }

    /// Of the next step.
    fn learning_rate(&self) -> f64 {
        self.learning_rate.at(self.position(self.state.step, self.state.samples_into_epoch))
    }

    /// Where the run is in the epoch in progress.
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
        // On a GPU an epoch's first counts take a while to come.
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

/// For the record of step `step`.
fn loss_scaling(optimizer: &Optimizer, step: u64) -> Option<LossScaling> {
    let scaler = optimizer.loss_scaler_state()?;
    let skipped_steps = step.saturating_sub(optimizer.steps());
    Some(LossScaling { loss_scale: scaler.scale.into(), skipped_steps })
}
