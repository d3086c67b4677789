//! Collects the metrics of a run and writes them to `metrics.jsonl`, TensorBoard events and the curves.

use std::io;
use std::time::{Duration, Instant};

use comm::env::World;
use job::config::{self, Config};
use job::metrics::{
    EmaRecord, EpochRecord, LossScaling, Record, StepRecord, StepSplit, SummaryRecord, TestRecord,
    WARMUP_STEPS,
};
use job::run_dir::RunDir;
use tch::Device;
use tracing::{info, warn};

use crate::Result;
use crate::checkpoint::State;
use crate::metrics::{EventFile, Writer, draw_curves};
use crate::step_times::StepTimes;
use crate::tally::Tally;

/// The result of an evaluation on the test images.
#[derive(Debug, Clone, Copy)]
pub struct Evaluation {
    /// Loss and accuracy of the weights.
    pub test: Tally,
    /// Loss and accuracy of the averaged weights; `None` without `train.ema_decay`.
    pub ema_test: Option<Tally>,
}

/// Collects the measurements of steps and epochs on every rank, and writes the records on rank 0.
pub struct Recorder {
    writer: Option<Writer>,
    /// The event file for TensorBoard; `None` if not configured, on ranks other than 0, and after it could
    /// not be written.
    events: Option<EventFile>,
    run_dir: RunDir,
    world: World,
    device: Device,
    train: config::Train,
    log_every: u64,
    started: Instant,
    seconds_to_first_step: Option<f64>,
    steps_taken: u64,
    window: Window,
    /// Images and seconds of all steps of this process since its warm-up.
    total: Throughput,
    /// The part of `total` in the epoch in progress.
    epoch: Throughput,
    step_ms: Vec<f64>,
    /// Milliseconds of each step since the host last waited for the device, of which a GPU may still
    /// execute some; on the CPU, of a single step.
    queued_ms: Vec<f64>,
    has_waited: bool,
    /// Whether the disk refused records, which are kept in memory until it takes them.
    is_behind: bool,
    /// The best test accuracy so far and its epoch, whether or not its checkpoint could be written.
    best: Option<(f64, usize)>,
}

/// Measurements of the steps since the last step record.
#[derive(Default)]
struct Window {
    times: StepTimes,
    /// Milliseconds of each step.
    step_ms: Vec<f64>,
    throughput: Throughput,
}

/// Number of images of some steps over all ranks, and the seconds that these steps took.
#[derive(Debug, Clone, Copy, Default)]
struct Throughput {
    images: f64,
    seconds: f64,
}

impl Throughput {
    fn add(&mut self, images: usize, time: Duration) {
        self.images += images as f64;
        self.seconds += time.as_secs_f64();
    }

    /// Returns `None` if no step was counted.
    fn images_per_s(self) -> Option<f64> {
        (self.seconds > 0.0).then(|| self.images / self.seconds)
    }
}

impl Recorder {
    /// Opens `metrics.jsonl` on rank 0, dropping the records of steps and epochs after `state`, which the
    /// run will write again. `started`: when this process started.
    ///
    /// # Errors
    /// When `metrics.jsonl` cannot be read or written.
    pub fn open(
        config: &Config,
        run_dir: &RunDir,
        state: &State,
        world: World,
        device: Device,
        started: Instant,
    ) -> Result<Self> {
        // The record of an epoch that ended early at `train.max_steps` is kept: the run will not write it
        // again.
        let epochs = match state.is_at_max_steps(&config.train) {
            true => state.epoch(),
            false => state.epochs_completed,
        };
        let open = || Writer::resume(&run_dir.metrics_path(), state.step, epochs);
        let create = || EventFile::create(&run_dir.tensorboard_dir(), state.step);
        let has_events = world.rank == 0 && config.metrics.tensorboard;
        Ok(Self {
            writer: (world.rank == 0).then(open).transpose()?,
            events: has_events.then(create).and_then(ok_or_warn),
            run_dir: RunDir::at(run_dir.root()),
            world,
            device,
            train: config.train.clone(),
            log_every: config.metrics.log_every,
            started,
            seconds_to_first_step: None,
            steps_taken: 0,
            window: Window::default(),
            total: Throughput::default(),
            epoch: Throughput::default(),
            step_ms: Vec::new(),
            queued_ms: Vec::new(),
            has_waited: false,
            is_behind: false,
            best: state.best_test_accuracy,
        })
    }

    /// Notes that the host has waited for the device since the last call of [`Self::step`].
    pub fn waited(&mut self) {
        self.has_waited = true;
    }

    /// Counts a step of `images` images over all ranks, and writes a step record if one is due. `gradients`
    /// is called only then, for the norm of the gradients and the loss scaling.
    pub fn step(
        &mut self,
        state: &mut State,
        lr: f64,
        times: StepTimes,
        images: usize,
        gradients: impl FnOnce() -> (f64, Option<LossScaling>),
    ) {
        self.seconds_to_first_step.get_or_insert_with(|| self.started.elapsed().as_secs_f64());
        self.steps_taken += 1;
        self.window.times.add(times);
        self.window.step_ms.push(milliseconds(times.total));
        if self.steps_taken > WARMUP_STEPS {
            self.window.throughput.add(images, times.total);
            self.total.add(images, times.total);
            self.epoch.add(images, times.total);
            self.queued_ms.push(milliseconds(times.total));
        }
        if std::mem::take(&mut self.has_waited) {
            // The mean over all of these steps, since the last one waited for the device to finish those
            // before it.
            let mean = self.queued_ms.iter().sum::<f64>() / self.queued_ms.len() as f64;
            self.step_ms.extend(self.queued_ms.drain(..).map(|_| mean));
        }
        if state.step.is_multiple_of(self.log_every) {
            let window = std::mem::take(&mut self.window);
            self.write_step(state, lr, &window, gradients);
            state.record_tally = Tally::default();
        }
    }

    fn write_step(
        &mut self,
        state: &State,
        lr: f64,
        window: &Window,
        gradients: impl FnOnce() -> (f64, Option<LossScaling>),
    ) {
        if self.writer.is_none() {
            return;
        }
        let mean = |sum: Duration| milliseconds(sum) / window.step_ms.len() as f64;
        let StepTimes { total, data, phases, skew } = window.times;
        let (grad_norm, loss_scaling) = gradients();
        // On a GPU the host does not observe when the phases of a step begin and end.
        let is_seen = !self.device.is_cuda();
        let split = is_seen.then(|| StepSplit {
            skew_ms: mean(skew),
            forward_ms: mean(phases.forward),
            backward_ms: mean(phases.backward),
            optimizer_ms: mean(phases.optimizer),
            each_step_ms: window.step_ms.clone(),
        });
        let record = StepRecord {
            step: state.step,
            epoch: state.epoch(),
            loss: state.record_tally.loss(),
            lr,
            images_per_s: window.throughput.images_per_s(),
            step_ms: mean(total),
            data_ms: is_seen.then(|| mean(data)),
            comm_exposed_ms: is_seen.then(|| mean(phases.comm_exposed)),
            split,
            grad_norm,
            loss_scaling,
        };
        self.write(&Record::Step(record), state.step);
    }

    /// On rank 0, writes a record, or keeps it in memory if the disk refuses it. If the TensorBoard events
    /// cannot be written, the run goes on without them.
    fn write(&mut self, record: &Record, step: u64) {
        let Some(writer) = &mut self.writer else { return };
        let ended = writer.write(record);
        // For a summary, the caller that waits until it is written logs the failure.
        if let Err(error) = &ended
            && !self.is_behind
            && !matches!(record, Record::Summary(_))
        {
            warn!("{error}; training goes on, keeping records in memory until they can be written");
        }
        self.is_behind = ended.is_err();
        let events = self.events.take();
        self.events = events.and_then(|mut it| ok_or_warn(it.write(record, step).map(|()| it)));
    }

    /// On rank 0, writes the records that are kept in memory.
    ///
    /// # Errors
    /// When the disk still refuses them.
    pub fn flush(&mut self) -> Result<()> {
        if let Some(writer) = &mut self.writer {
            writer.flush()?;
            self.is_behind = false;
        }
        Ok(())
    }

    /// Returns the images per second over all ranks since the warm-up of this process; 0 during the warm-up.
    pub fn images_per_s(&self) -> f64 {
        self.total.images_per_s().unwrap_or(0.0)
    }

    /// Writes the record of the epoch in progress, with the evaluation at its end if there was one.
    pub fn epoch(&mut self, state: &State, evaluation: Option<Evaluation>) {
        let images_per_s = std::mem::take(&mut self.epoch).images_per_s();
        if let Some(Evaluation { test, .. }) = evaluation
            && self.best.is_none_or(|(best, _)| test.accuracy() > best)
        {
            self.best = Some((test.accuracy(), state.epoch()));
        }
        if self.writer.is_none() {
            return;
        }
        let train = state.epoch_tally;
        let record = EpochRecord {
            epoch: state.epoch(),
            train_loss: train.loss(),
            train_accuracy: train.accuracy(),
            test: evaluation.map(|Evaluation { test, .. }| TestRecord {
                test_loss: test.loss(),
                test_accuracy: test.accuracy(),
            }),
            ema: evaluation.and_then(|evaluation| evaluation.ema_test).map(|test| EmaRecord {
                ema_test_loss: test.loss(),
                ema_test_accuracy: test.accuracy(),
            }),
            seconds: state.epoch_seconds,
            images_per_s,
        };
        let tested = record.test.map_or_else(String::new, |test| {
            let TestRecord { test_loss, test_accuracy } = test;
            format!(" test loss {test_loss:.4}, accuracy {test_accuracy:.4};")
        });
        let averaged = record.ema.map_or_else(String::new, |ema| {
            let EmaRecord { ema_test_loss, ema_test_accuracy } = ema;
            format!(" averaged weights: loss {ema_test_loss:.4}, accuracy {ema_test_accuracy:.4};")
        });
        info!(
            "epoch {}/{}: train loss {:.4}, accuracy {:.4};{tested}{averaged} {:.1} s, {:.0} images/s",
            record.epoch,
            self.train.epochs,
            record.train_loss,
            record.train_accuracy,
            record.seconds,
            train.images / state.epoch_seconds,
        );
        self.write(&Record::Epoch(record), state.step);
    }

    /// Redraws the curves on rank 0. A failure is only logged.
    pub fn draw(&self) {
        if self.writer.is_none() {
            return;
        }
        if let Err(error) = draw_curves(&self.run_dir) {
            warn!("cannot draw the curves: {error}");
        }
    }

    /// Returns whether a complete run has no summary in `metrics.jsonl`, because it was cut off between its
    /// last checkpoint and the summary. Always `false` on ranks other than 0.
    ///
    /// # Errors
    /// When `metrics.jsonl` cannot be read.
    pub fn lacks_summary(&self, state: &State) -> Result<bool> {
        let lacks = |writer: &Writer| Ok(!writer.has_summary(state.step)?);
        self.writer.as_ref().map_or(Ok(false), lacks)
    }

    /// Writes the summary on rank 0, or keeps it in memory for [`Self::flush`] if the disk refuses it.
    pub fn finish(&mut self, state: &State, peak_memory_bytes: u64) {
        if self.writer.is_none() {
            return;
        }
        self.step_ms.sort_by(f64::total_cmp);
        let record = SummaryRecord {
            world_size: self.world.world_size,
            batch_size_per_rank: self.train.microbatch_size(self.world.world_size),
            grad_accum_steps: self.train.microbatches(self.world.world_size),
            steps: state.step,
            images_per_s: self.total.images_per_s(),
            step_ms_p50: percentile(&self.step_ms, 0.5),
            step_ms_p95: percentile(&self.step_ms, 0.95),
            seconds_to_first_step: self.seconds_to_first_step,
            peak_memory_bytes,
            best_test_accuracy: self.best.map(|(accuracy, _)| accuracy),
        };
        if let Some((accuracy, epoch)) = self.best {
            info!("best test accuracy {accuracy:.4}, after epoch {epoch}");
        }
        self.write(&Record::Summary(record), state.step);
    }
}

/// Converts an error of the TensorBoard events into `None`, with a warning.
fn ok_or_warn<T>(events: io::Result<T>) -> Option<T> {
    events.inspect_err(|error| warn!("TensorBoard events are no longer written: {error}")).ok()
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Returns the value below which `fraction` of the sorted values lie, or `None` if there are no values.
fn percentile(sorted: &[f64], fraction: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    sorted.get((last as f64 * fraction).round() as usize).copied()
}
