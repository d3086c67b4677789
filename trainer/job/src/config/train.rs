//! The section `train`: length of the training and batch sizes.

use serde::{Deserialize, Serialize};

use super::validate::{Invalid, at_least_one, below_one, within};
use crate::counted;

/// Length of the training and batch sizes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Train {
    /// Passes over the training set.
    pub epochs: usize,
    /// Images per microbatch of a rank, that is, per forward and backward pass.
    pub batch_size_per_rank: usize,
    /// Microbatches per step, whose gradients are accumulated before ranks reduce them.
    pub grad_accum_steps: usize,
    /// Images per step over all ranks, however many: each rank takes its share, in as few microbatches of at
    /// most `batch_size_per_rank` as possible. `null`: `batch_size_per_rank` times `grad_accum_steps` times
    /// the ranks.
    pub global_batch_size: Option<usize>,
    /// Whether batch norm takes its statistics over the images of all ranks.
    pub sync_batch_norm: bool,
    /// Fraction of each training target that is spread evenly over all classes: at least 0, below 1.
    pub label_smoothing: f64,
    /// Decay of the moving average of the weights, that is, the fraction of it that an update keeps: at least
    /// 0, below 1. `null`: no average.
    pub ema_decay: Option<f64>,
    /// Steps between updates of the moving average.
    pub ema_every: u64,
    /// Seed of initial weights, order of samples, augmentation and synthetic images.
    pub seed: u64,
    /// Number of steps after which to stop, evaluate and save; `null`: after the last epoch.
    pub max_steps: Option<u64>,
}

impl Default for Train {
    fn default() -> Self {
        Self {
            epochs: 20,
            batch_size_per_rank: 64,
            grad_accum_steps: 1,
            global_batch_size: None,
            sync_batch_norm: false,
            label_smoothing: 0.0,
            ema_decay: None,
            ema_every: 1,
            seed: 0,
            max_steps: None,
        }
    }
}

impl Train {
    /// Checks ranges.
    pub(super) fn validate(&self) -> Result<(), Invalid> {
        within("train.epochs", self.epochs, 1..=1_000_000)?;
        within("train.batch_size_per_rank", self.batch_size_per_rank, 1..=65536)?;
        within("train.grad_accum_steps", self.grad_accum_steps, 1..=65536)?;
        if let Some(images) = self.global_batch_size {
            within("train.global_batch_size", images, 1..=1 << 24)?;
            if self.grad_accum_steps != 1 {
                let problem =
                    "follows from `train.global_batch_size` where that is given; leave it at 1";
                return Err(Invalid::new("train.grad_accum_steps", problem));
            }
        }
        below_one("train.label_smoothing", self.label_smoothing)?;
        below_one("train.ema_decay", self.ema_decay.unwrap_or(0.0))?;
        at_least_one("train.ema_every", self.ema_every)?;
        if self.ema_decay.is_none() && self.ema_every != 1 {
            let problem = "has no effect: `train.ema_decay` is null; set that, or remove this key";
            return Err(Invalid::new("train.ema_every", problem));
        }
        at_least_one("train.max_steps", self.max_steps.unwrap_or(1))
    }

    /// Returns the images per step of `world_size` ranks together.
    pub const fn global_batch_size(&self, world_size: usize) -> usize {
        match self.global_batch_size {
            Some(images) => images,
            None => self.batch_size_per_rank * self.grad_accum_steps * world_size,
        }
    }

    /// Returns the microbatches per full step, which are as many on each of `world_size` ranks.
    pub const fn microbatches(&self, world_size: usize) -> usize {
        self.global_batch_size(world_size).div_ceil(self.batch_size_per_rank * world_size)
    }

    /// Returns the number of images of the largest microbatch of a full step.
    pub const fn microbatch_size(&self, world_size: usize) -> usize {
        let of_rank = self.global_batch_size(world_size).div_ceil(world_size);
        of_rank.div_ceil(self.microbatches(world_size))
    }

    /// Checks that each of `world_size` ranks has at least one image in a full step.
    ///
    /// # Errors
    /// When there are more ranks than images per step.
    pub fn check_shared_by(&self, world_size: usize) -> Result<(), Invalid> {
        let images = self.global_batch_size(world_size);
        if images >= world_size {
            return Ok(());
        }
        let (images, ranks) = (counted(images, "image"), counted(world_size, "rank"));
        let problem = format!("{images} cannot be split over {ranks}; use fewer ranks");
        Err(Invalid::new("train.global_batch_size", problem))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_global_batch_is_shared_by_any_number_of_ranks_in_as_few_microbatches_as_can_be() {
        let train =
            Train { global_batch_size: Some(1024), batch_size_per_rank: 300, ..Train::default() };
        let on = |ranks| (train.microbatches(ranks), train.microbatch_size(ranks));
        assert_eq!([1, 2, 3, 4, 8].map(on), [(4, 256), (2, 256), (2, 171), (1, 256), (1, 128)]);
        assert_eq!([1, 3, 8].map(|ranks| train.global_batch_size(ranks)), [1024; 3]);
        assert!(train.check_shared_by(1024).is_ok());
        let error = train.check_shared_by(1025).unwrap_err().to_string();
        assert!(
            error.starts_with(
                "train.global_batch_size: 1024 images cannot be split over 1025 ranks"
            )
        );
    }

    #[test]
    fn without_one_ranks_make_it_larger() {
        let train = Train { batch_size_per_rank: 64, grad_accum_steps: 3, ..Train::default() };
        for ranks in 1..=8 {
            assert_eq!(train.global_batch_size(ranks), 192 * ranks);
            assert_eq!((train.microbatches(ranks), train.microbatch_size(ranks)), (3, 64));
            assert!(train.check_shared_by(ranks).is_ok());
        }
    }
}
