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

/// What goes through the network at once.
pub struct Microbatch {
    /// This rank's images; may be none.
    pub batch: Batch,
    /// Images of all ranks.
    pub global_len: usize,
}

impl Microbatch {
    /// The same images in memory of their own.
    pub fn copy(&self) -> Self {
        Self { batch: self.batch.copy(), global_len: self.global_len }
    }
}

/// What a step needs besides the replica.
pub struct StepParts<'a> {
    /// Takes the step.
    pub optimizer: &'a mut Optimizer,
    /// Sums gradients over ranks.
    pub grad_sync: &'a GradSync,
    /// Counts loss and correct answers.
    pub counter: &'a mut Counter,
}

/// How long the phases of a step took on the host; on a GPU, how long it took to queue them.
#[derive(Debug, Clone, Copy, Default)]
pub struct Phases {
    /// Clearing gradients, and from the images to the loss.
    pub forward: Duration,
    /// From the loss to this rank's gradients.
    pub backward: Duration,
    /// Waiting for the other ranks' gradients.
    pub comm_exposed: Duration,
    /// Changing the weights.
    pub optimizer: Duration,
}

/// One step on this rank's part of a global batch of `global_batch_size` images, which goes through
/// the network in `microbatches`. Where all of them are empty the rank still takes part in the
/// collectives. Gradients are added up over microbatches, and reduced over ranks as the last one makes
/// them. Making microbatches belongs to no phase.
///
/// On a GPU the step is queued and the host waits for nothing: batches come through pinned memory,
/// gradients are ordered with the communicator's stream by events, loss and correct answers stay in
/// [`Counter`]. What does wait for the device is [`Counter::exchange`], the gradient's norm of a step
/// record, evaluation, a checkpoint, and cuDNN, which measures its kernels in the first step of a
/// shape.
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

/// The part of [`train_step`] that is the device's: on a GPU it can be captured into a CUDA graph.
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

/// The mode in which a microbatch goes through the network, or `None` where this rank has nothing to do in it. A
/// single image has no variance over a 1x1 map: batch norm takes the running statistics.
fn mode_for(replica: &Replica, microbatch: &Microbatch) -> Option<Mode> {
    let images = microbatch.batch.len();
    let together = if replica.sync_batch_norm { microbatch.global_len } else { images };
    let mode = if together > 1 { replica.mode } else { Mode::TrainFrozenNorm };
    (images > 0 || (replica.sync_batch_norm && mode == Mode::Train)).then_some(mode)
}
