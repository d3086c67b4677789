//! One optimizer step.

use std::borrow::Borrow;
use std::time::{Duration, Instant};

use crate::Result;
use crate::data::Batch;
use crate::grad_sync::GradSync;
use crate::model::Mode;
use crate::optim::Optimizer;
use crate::replica::Replica;
use crate::tally::Counter;

/// A batch that goes through the network at once: the whole step's, or a part of it with gradient
/// accumulation.
pub struct Microbatch {
    /// This rank's images and their targets; may be empty.
    pub batch: Batch,
    /// Number of images of this microbatch on all ranks together.
    pub global_len: usize,
}

impl Microbatch {
    /// Returns a deep copy.
    pub fn copy(&self) -> Self {
        Self { batch: self.batch.copy(), global_len: self.global_len }
    }
}

/// The parts that a step needs besides the replica.
pub struct StepParts<'a> {
    /// Updates the parameters.
    pub optimizer: &'a mut Optimizer,
    /// Sums gradients over ranks.
    pub grad_sync: &'a GradSync,
    /// Counts loss and correct answers.
    pub counter: &'a mut Counter,
}

/// Time that the host spent in each phase of a step. On a GPU this is the time to queue the phase's work.
#[derive(Debug, Clone, Copy, Default)]
pub struct Phases {
    /// Clearing the gradients, and the forward pass up to the loss.
    pub forward: Duration,
    /// The backward pass, up to this rank's gradients.
    pub backward: Duration,
    /// Waiting for all-reduces of gradients: the communication that backward does not hide.
    pub comm_exposed: Duration,
    /// The optimizer's update of the parameters.
    pub optimizer: Duration,
}

/// Takes one step on this rank's part of a global batch of `global_batch_size` images, which goes through
/// the network in `microbatches`. A rank whose microbatches are all empty still takes part in the
/// collectives. Gradients are accumulated over microbatches, and reduced over ranks during the last one's
/// backward. The time that `microbatches` takes to produce its items belongs to no phase. Collective.
///
/// On a GPU the step is queued and the host does not wait for the device: batches come through pinned memory,
/// gradients are ordered with the communicator's stream by events, loss and correct answers stay in
/// [`Counter`]. Only [`Counter::exchange`], the gradient norm of a step record, evaluation, a checkpoint, and
/// cuDNN's benchmark of its kernels in the first step of each shape wait for the device.
///
/// # Errors
/// When a peer is gone or late, or libtorch refuses.
///
/// Source: Li et al., PyTorch Distributed, VLDB 2020, section 3.
pub fn train_step(
    replica: &mut Replica,
    mut parts: StepParts<'_>,
    microbatches: impl ExactSizeIterator<Item = Microbatch>,
    global_batch_size: usize,
    lr: f64,
) -> Result<Phases> {
    let count = microbatches.len();
    parts.optimizer.begin_step(lr);
    let phases = queue_step(replica, &mut parts, microbatches, global_batch_size)?;
    parts.optimizer.end_step(&replica.flat);
    replica.flat.batches_tracked += count as i64;
    Ok(phases)
}

/// The part of [`train_step`] that runs on the device; on a GPU it can be captured into a CUDA graph.
pub(crate) fn queue_step(
    replica: &mut Replica,
    parts: &mut StepParts<'_>,
    microbatches: impl ExactSizeIterator<Item = impl Borrow<Microbatch>>,
    global_batch_size: usize,
) -> Result<Phases> {
    let mut phases = Phases::default();
    let mut started = Instant::now();
    let mut lap = || std::mem::replace(&mut started, Instant::now()).elapsed();
    let StepParts { optimizer, grad_sync, counter } = parts;
    replica.flat.clear_gradients();
    phases.forward = lap();
    let last = microbatches.len().saturating_sub(1);
    for (index, microbatch) in microbatches.enumerate() {
        lap();
        let microbatch: &Microbatch = microbatch.borrow();
        if index == last {
            grad_sync.begin();
        }
        if let Some(mode) = mode_for(replica, microbatch) {
            let batch = &microbatch.batch;
            let (logits, loss_sum) = replica.in_precision(|model| {
                let logits = model.forward(&batch.images, mode);
                let loss = batch.targets.loss_sum(&logits);
                (logits, loss)
            })?;
            phases.forward += lap();
            optimizer.scaled(&loss_sum / global_batch_size as f64).backward();
            counter.add(&logits, &batch.targets.labels, &loss_sum);
        }
        phases.backward += lap();
    }
    grad_sync.finish()?;
    phases.comm_exposed = lap();
    optimizer.apply(&replica.flat)?;
    phases.optimizer = lap();
    Ok(phases)
}

/// Returns the mode in which a microbatch goes through the network, or `None` if this rank has nothing to
/// compute for it. A single image has no variance over a 1x1 map, so batch norm takes the running
/// statistics for it.
fn mode_for(replica: &Replica, microbatch: &Microbatch) -> Option<Mode> {
    let images = microbatch.batch.len();
    let together = if replica.sync_batch_norm { microbatch.global_len } else { images };
    let mode = if together > 1 { replica.mode } else { Mode::TrainFrozenNorm };
    (images > 0 || (replica.sync_batch_norm && mode == Mode::Train)).then_some(mode)
}
