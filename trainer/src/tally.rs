//! Losses and correct answers, accumulated on the device and summed over ranks.

use comm::{Communicator, ReduceOp};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::Result;

/// Sums over images of all ranks, as [`Counter::exchange`] returns them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Tally {
    /// Sum of the losses of the images.
    pub loss_sum: f64,
    /// Number of images that were classified correctly.
    #[serde(alias = "hits")] // the name in older checkpoints
    pub correct: f64,
    /// Number of images.
    pub images: f64,
}

impl Tally {
    /// Adds another tally.
    pub fn add(&mut self, other: Self) {
        self.loss_sum += other.loss_sum;
        self.correct += other.correct;
        self.images += other.images;
    }

    /// Returns the mean loss per image; NaN without images.
    pub fn loss(&self) -> f64 {
        self.loss_sum / self.images
    }

    /// Returns the fraction of images that were classified correctly; NaN without images.
    pub fn accuracy(&self) -> f64 {
        self.correct / self.images
    }
}

/// Accumulates loss and correct answers of one rank on the device, so that a step need not wait for its own
/// result.
pub struct Counter {
    /// `[4]` f64: sum of losses, correct answers, images, number of ranks that want to stop.
    sums: Tensor,
}

impl Counter {
    /// A counter whose sums are zero.
    pub fn new(device: Device) -> Self {
        Self { sums: Tensor::zeros([4], (Kind::Double, device)) }
    }

    /// Adds a batch: its logits `[N, classes]`, labels `[N]` i64, and the sum of its losses.
    pub fn add(&mut self, logits: &Tensor, labels: &Tensor, loss_sum: &Tensor) {
        let correct = logits.argmax(-1, false).eq_tensor(labels).sum(Kind::Double);
        let number =
            |value: f64| Tensor::full([0i64; 0], value, (Kind::Double, self.sums.device()));
        let (images, zero) = (number(labels.numel() as f64), number(0.0));
        let added =
            Tensor::stack(&[loss_sum.detach().to_kind(Kind::Double), correct, images, zero], 0);
        self.sums += added;
    }

    /// Returns the sums over all ranks since the last call, and whether any rank wants to stop. Resets the
    /// counter. Collective; waits for the device.
    ///
    /// # Errors
    /// When a peer is gone or late.
    pub fn exchange(
        &mut self,
        communicator: &dyn Communicator,
        wants_to_stop: bool,
    ) -> Result<(Tally, bool)> {
        if wants_to_stop {
            let _ = self.sums.get(3).fill_(1.0);
        }
        torch_ext::collective::all_reduce(communicator, &mut self.sums, ReduceOp::Sum)?;
        let sums = Vec::<f64>::try_from(&self.sums)?;
        // On a GPU an aborted collective also ends, with the buffer unchanged.
        communicator.check()?;
        let _ = self.sums.zero_();
        let tally = Tally { loss_sum: sums[0], correct: sums[1], images: sums[2] };
        Ok((tally, sums[3] > 0.0))
    }
}
