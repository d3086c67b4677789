//! The learning rate schedule: a pure function of the position of the run.
//!
//! Schedules follow the fraction of the run that is done, not the number of steps. So a run that is resumed
//! with another number of ranks, whose steps take more or fewer images, continues at the same learning rate.

mod shape;

use job::config::{Config, LrScaling, Schedule, Update};

/// The position of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Position {
    /// Number of optimizer steps taken.
    pub step: f64,
    /// Number of epochs done, including the fraction of the one in progress.
    pub epochs: f64,
}

/// The length of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Length {
    /// Number of epochs.
    pub epochs: f64,
    /// Number of steps per epoch.
    pub steps_per_epoch: f64,
    /// Number of steps after which the run ends at the latest.
    pub max_steps: Option<u64>,
}

impl Length {
    /// Returns the position of a run after `step` steps of the present batch size.
    fn after_steps(&self, step: f64) -> Position {
        Position { step, epochs: step / self.steps_per_epoch }
    }

    /// Returns the position of a run after `epochs` epochs with steps of the present batch size.
    fn after_epochs(&self, epochs: f64) -> Position {
        Position { step: epochs * self.steps_per_epoch, epochs }
    }

    /// Returns the fraction of the run that is done at a position, by epochs or by `max_steps`, whichever
    /// is larger.
    fn progress(&self, Position { step, epochs }: Position) -> f64 {
        let by_epochs = epochs / self.epochs;
        self.max_steps
            .map_or(by_epochs, |max_steps| by_epochs.max(step / max_steps as f64))
            .min(1.0)
    }
}

/// The learning rate schedule of a run.
#[derive(Debug, Clone)]
pub struct LearningRate {
    /// The learning rate to which the schedule applies, already scaled by the batch size.
    base: f64,
    schedule: Schedule,
    length: Length,
}

impl LearningRate {
    /// Creates the schedule of a run with `global_batch_size` images per step and `steps_per_epoch` steps
    /// per epoch.
    pub fn new(config: &Config, global_batch_size: usize, steps_per_epoch: usize) -> Self {
        let optimizer = &config.optimizer;
        let times = global_batch_size as f64 / optimizer.lr_batch_size() as f64;
        let scale = match optimizer.lr_scaling {
            LrScaling::None => 1.0,
            LrScaling::Linear => times,
            LrScaling::Sqrt => times.sqrt(),
        };
        let length = Length {
            epochs: config.train.epochs as f64,
            steps_per_epoch: steps_per_epoch as f64,
            max_steps: config.train.max_steps,
        };
        Self { base: optimizer.lr * scale, schedule: config.schedule.clone(), length }
    }

    /// Returns the learning rate of the step that starts at `position`.
    pub fn at(&self, position: Position) -> f64 {
        self.warmup(position)
            * shape::rate(&self.schedule, self.base, self.seen_by_the_shape(position))
    }

    /// Returns the fraction of the run that is done at `position`.
    pub fn progress(&self, position: Position) -> f64 {
        self.length.progress(position)
    }

    /// Returns the warm-up factor: `(n + 1) / (warm-up steps + 1)`, at most 1, for the step that follows
    /// `n` steps.
    ///
    /// Source: Goyal et al., Accurate, Large Minibatch SGD, 2017; the numbers are those of PyTorch's
    /// `LinearLR` with a start factor of `1 / (warm-up + 1)`.
    fn warmup(&self, position: Position) -> f64 {
        let done = match self.schedule.warmup_epochs > 0.0 {
            true => self.length.after_epochs(position.epochs),
            false => position,
        };
        let whole = self.warmup_end();
        ((done.step + 1.0) / (whole.step + 1.0)).min(1.0)
    }

    /// Returns where the warm-up ends.
    fn warmup_end(&self) -> Position {
        let Schedule { warmup_steps, warmup_epochs, .. } = self.schedule;
        match warmup_epochs > 0.0 {
            true => self.length.after_epochs(warmup_epochs),
            false => self.length.after_steps(warmup_steps as f64),
        }
    }

    fn seen_by_the_shape(&self, position: Position) -> shape::Input {
        let length = &self.length;
        let followed = match self.schedule.update {
            Some(Update::Epoch) => {
                let since = length.after_epochs(position.epochs.fract());
                Position {
                    step: position.step - since.step.round(),
                    epochs: position.epochs.floor(),
                }
            }
            _ => position,
        };
        let warm = length.progress(self.warmup_end());
        let rest = (length.progress(followed) - warm) / (1.0 - warm);
        let progress = if warm < 1.0 { rest.max(0.0) } else { 0.0 };
        shape::Input { steps: position.step as u64, epochs: position.epochs as u64, progress }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.yaml");
        std::fs::write(&path, text).unwrap();
        job::config::load(&path, &[]).unwrap()
    }

    #[test]
    fn the_rate_follows_the_global_batch() {
        let lr = |scaling: &str, global_batch_size| {
            let config = config(&format!("optimizer: {{lr: 0.1, {scaling}}}"));
            let rate = LearningRate::new(&config, global_batch_size, 10);
            rate.at(Position { step: 0.0, epochs: 0.0 })
        };
        assert_eq!(lr("lr_scaling: none", 4096), 0.1);
        assert!((lr("lr_scaling: linear", 1024) - 0.4).abs() < 1e-12);
        assert!((lr("lr_scaling: sqrt", 1024) - 0.2).abs() < 1e-12);
        assert!((lr("lr_scaling: linear, lr_batch_size: 64", 32) - 0.05).abs() < 1e-12);
    }

    #[test]
    fn a_run_resumed_with_larger_steps_goes_on_where_it_was() {
        let config = config(
            "{train: {epochs: 10}, schedule: {name: cosine, warmup_epochs: 2}, optimizer: {lr: 1}}",
        );
        let [small, large] = [100, 25].map(|steps| LearningRate::new(&config, 1, steps));
        for epochs in [0.0, 0.5, 1.99, 2.0, 3.25, 7.0, 9.99] {
            let position = Position { step: epochs * 100.0, epochs };
            let (before, after) = (small.at(position), large.at(position));
            // The warm-up factors differ by at most one step of the coarser warm-up.
            assert!((before - after).abs() <= 1.0 / 50.0, "{before} and {after} at {epochs}");
        }
    }

    #[test]
    fn a_run_that_ends_after_max_steps_has_gone_through_its_schedule() {
        let config = config(
            "{train: {epochs: 90, max_steps: 10}, schedule: {name: polynomial}, optimizer: {lr: 1}}",
        );
        let rate = LearningRate::new(&config, 1, 40);
        for step in 0..10u32 {
            let position = Position { step: step.into(), epochs: f64::from(step) / 40.0 };
            let expected = 1.0 - f64::from(step) / 10.0;
            assert!((rate.at(position) - expected).abs() < 1e-12, "step {step}");
        }
    }
}
