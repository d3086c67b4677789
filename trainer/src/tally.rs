//! Losses and correct answers, counted on the device and added up over ranks.

use comm::{Communicator, ReduceOp};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::Result;

/// Sums over images. Of one rank, until [`Counter::exchange`] makes them those of all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Tally {
    /// Sum of the losses.
    pub loss_sum: f64,
    /// Images whose class was right.
    #[serde(alias = "hits")] // in checkpoints from before
    pub correct: f64,
    /// Images.
    pub images: f64,
}

impl Tally {
    /// Adds another tally.
    pub fn add(&mut self, other: Self) {
        self.loss_sum += other.loss_sum;
        self.correct += other.correct;
        self.images += other.images;
    }

    /// Mean loss of an image; NaN without images.
    pub fn loss(&self) -> f64 {
        self.loss_sum / self.images
    }

    /// Fraction of images whose class was right; NaN without images.
    pub fn accuracy(&self) -> f64 {
        self.correct / self.images
    }
}

/// Counts on the device, so that a step need not wait for its own result.
pub struct Counter {
    /// `[4]` f64: sum of losses, correct answers, images, ranks that want to stop.
    sums: Tensor,
}

impl Counter {
    /// A counter whose sums are zero.
    pub fn new(device: Device) -> Self {
        Self { sums: Tensor::zeros([4], (Kind::Double, device)) }
    }

    /// Adds a batch: logits `[N, classes]`, and the sum of its losses.
    pub fn add(&mut self, logits: &Tensor, labels: &Tensor, loss_sum: &Tensor) {
        let correct = logits.argmax(-1, false).eq_tensor(labels).sum(Kind::Double);
        let number =
            |value: f64| Tensor::full([0i64; 0], value, (Kind::Double, self.sums.device()));
        let (images, zero) = (number(labels.numel() as f64), number(0.0));
        let added =
            Tensor::stack(&[loss_sum.detach().to_kind(Kind::Double), correct, images, zero], 0);
        self.sums += added;
    }

    /// Adds up what all ranks have counted since the last call, and says whether any of them wants
    /// to stop. Collective; waits for the device.
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
        // On a device, an aborted collective ends too, and leaves what was there.
        communicator.check()?;
        let _ = self.sums.zero_();
        let tally = Tally { loss_sum: sums[0], correct: sums[1], images: sums[2] };
        Ok((tally, sums[3] > 0.0))
    }
}
