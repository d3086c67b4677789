//! The learning rate of a step: a pure function of where the run is.
//!
//! Shapes follow the part of the run that is done, not the number of steps, so that a run that is resumed
//! on another number of ranks, whose steps are longer or shorter, goes on where it was.

mod shape;

use job::config::{Config, LrScaling, Schedule, Update};

/// Where a run is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Position {
    /// Optimizer steps taken.
    pub step: f64,
    /// Passes over the training set done, with the part of the one in progress.
    pub epochs: f64,
}

/// How long a run is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Length {
    /// Passes over the training set.
    pub epochs: f64,
    /// Steps of a pass.
    pub steps_per_epoch: f64,
    /// Steps after which it ends at the latest.
    pub max_steps: Option<u64>,
}

impl Length {
    /// Where a run is after `step` steps of the present size.
    fn after_steps(&self, step: f64) -> Position {
        Position { step, epochs: step / self.steps_per_epoch }
    }

    /// Where a run is after `epochs` passes with steps of the present size.
    fn after_epochs(&self, epochs: f64) -> Position {
        Position { step: epochs * self.steps_per_epoch, epochs }
    }

    /// How much of a run is done, a fraction.
    fn progress(&self, Position { step, epochs }: Position) -> f64 {
        let by_epochs = epochs / self.epochs;
        self.max_steps
            .map_or(by_epochs, |max_steps| by_epochs.max(step / max_steps as f64))
            .min(1.0)
    }
}

/// The learning rates of a run.
#[derive(Debug, Clone)]
pub struct LearningRate {
    /// Before the schedule.
    base: f64,
    schedule: Schedule,
    length: Length,
}

impl LearningRate {
    /// Of a run whose steps take `global_batch_size` images, `steps_per_epoch` steps a pass.
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

    /// Of the step that starts at `position`.
    pub fn at(&self, position: Position) -> f64 {
        self.warmup(position)
            * shape::rate(&self.schedule, self.base, self.seen_by_the_shape(position))
    }

    /// How much of the run is done at `position`, a fraction.
    pub fn progress(&self, position: Position) -> f64 {
        self.length.progress(position)
    }

    /// The factor of the warm-up: `(n + 1) / (warm-up + 1)` in the step after `n`.
    ///
    /// Source: Goyal et al., Accurate, Large Minibatch SGD, 2017; the numbers are those of PyTorch's
    /// `LinearLR` with a start factor of `1 / (warm-up + 1)`.
    fn warmup(&self, position: Position) -> f64 {
        let Schedule { warmup_steps, warmup_epochs, .. } = self.schedule;
        let (done, whole) = match warmup_epochs > 0.0 {
            true => {
                (self.length.after_epochs(position.epochs), self.length.after_epochs(warmup_epochs))
            }
            false => (position, self.length.after_steps(warmup_steps as f64)),
        };
        ((done.step + 1.0) / (whole.step + 1.0)).min(1.0)
    }

    fn seen_by_the_shape(&self, position: Position) -> shape::Input {
        let Schedule { warmup_steps, warmup_epochs, update, .. } = self.schedule;
        let length = &self.length;
        let warm_at = match warmup_epochs > 0.0 {
            true => length.after_epochs(warmup_epochs),
            false => length.after_steps(warmup_steps as f64),
        };
        let followed = match update {
            Some(Update::Epoch) => {
                let since = length.after_epochs(position.epochs.fract());
                Position {
                    step: position.step - since.step.round(),
                    epochs: position.epochs.floor(),
                }
            }
            _ => position,
        };
        let warm = length.progress(warm_at);
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
            // A step of a warm-up is one of so many.
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
