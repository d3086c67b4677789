//! One optimizer step, and what it counts.

use std::borrow::Borrow;
use std::rc::Rc;
use std::time::{Duration, Instant};

use comm::{Communicator, ReduceOp};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};
use torch_ext::{AutocastDtype, ConvTable};

use crate::Result;
use crate::arithmetic::Arithmetic;
use crate::data::Batch;
use crate::flat::Flat;
use crate::grad_sync::GradSync;
use crate::model::{Mode, Module};
use crate::optim::Optimizer;

/// One rank's copy of the network.
pub struct Replica {
    /// Its numbers.
    pub flat: Flat,
    /// Its layers.
    pub model: Module,
    /// Where both are.
    pub device: Device,
    /// What the layers compute in.
    pub arithmetic: Arithmetic,
    /// How its convolutions are computed.
    pub convolutions: Rc<ConvTable>,
    /// What batch norm does in training steps: [`Mode::Eval`] freezes its statistics.
    pub norm_mode: Mode,
    /// Whether batch norm's statistics are those of all ranks' images.
    pub sync_batch_norm: bool,
}

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

impl Replica {
    /// The layers over `flat`, computed in `arithmetic`: for training, each rank with statistics of its own
    /// images, and libtorch's convolutions.
    pub fn new(flat: Flat, model: Module, arithmetic: Arithmetic) -> Self {
        Self {
            device: flat.parameters.device(),
            flat,
            model,
            arithmetic,
            convolutions: Rc::default(),
            norm_mode: Mode::Train,
            sync_batch_norm: false,
        }
    }

    /// Runs `body`, which calls the layers, in its arithmetic.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn in_precision<T>(&self, body: impl FnOnce(&Module) -> T) -> Result<T> {
        self.flat.refresh();
        self.convolutions.in_use(|| {
            Ok(match self.arithmetic {
                Arithmetic::Fp32 => body(&self.model),
                Arithmetic::Bf16 => self.autocast(AutocastDtype::Bf16, body)?,
                Arithmetic::Fp16 => self.autocast(AutocastDtype::Fp16, body)?,
            })
        })
    }

    fn autocast<T>(&self, dtype: AutocastDtype, body: impl FnOnce(&Module) -> T) -> Result<T> {
        Ok(torch_ext::autocast(self.device, dtype, || body(&self.model))?)
    }

    /// What batch norm does with a microbatch, or `None` where this rank has nothing to do in it. A
    /// single image has no variance over a 1x1 map: it takes the running statistics.
    fn mode_for(&self, microbatch: &Microbatch) -> Option<Mode> {
        let images = microbatch.batch.len();
        let together = if self.sync_batch_norm { microbatch.global_len } else { images };
        let mode = if together > 1 { self.norm_mode } else { Mode::Eval };
        (images > 0 || (self.sync_batch_norm && mode == Mode::Train)).then_some(mode)
    }
}

/// Sums over images. Of one rank, until [`Counter::exchange`] makes them those of all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Tally {
    /// Sum of the losses.
    pub loss_sum: f64,
    /// Images whose class was right.
    pub hits: f64,
    /// Images.
    pub images: f64,
}

impl Tally {
    /// Adds another tally.
    pub fn add(&mut self, other: Self) {
        self.loss_sum += other.loss_sum;
        self.hits += other.hits;
        self.images += other.images;
    }

    /// Mean loss of an image; NaN without images.
    pub fn loss(&self) -> f64 {
        self.loss_sum / self.images
    }

    /// Fraction of images whose class was right; NaN without images.
    pub fn accuracy(&self) -> f64 {
        self.hits / self.images
    }
}

/// Counts on the device, so that a step need not wait for its own result.
pub struct Counter {
    /// `[4]` f64: loss sum, hits, images, ranks that want to stop.
    sums: Tensor,
}

impl Counter {
    /// At zero.
    pub fn new(device: Device) -> Self {
        Self { sums: Tensor::zeros([4], (Kind::Double, device)) }
    }

    /// Adds a batch: logits `[N, classes]`, and the sum of its losses.
    pub fn add(&mut self, logits: &Tensor, labels: &Tensor, loss_sum: &Tensor) {
        let hits = logits.argmax(-1, false).eq_tensor(labels).sum(Kind::Double);
        let number =
            |value: f64| Tensor::full([0i64; 0], value, (Kind::Double, self.sums.device()));
        let (images, zero) = (number(labels.numel() as f64), number(0.0));
        let added =
            Tensor::stack(&[loss_sum.detach().to_kind(Kind::Double), hits, images, zero], 0);
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
        let tally = Tally { loss_sum: sums[0], hits: sums[1], images: sums[2] };
        Ok((tally, sums[3] > 0.0))
    }
}

/// What a step needs besides the replica.
pub struct StepParts<'a> {
    /// Takes the step.
    pub optimizer: &'a mut Optimizer,
    /// Sums gradients over ranks.
    pub grad_sync: &'a GradSync,
    /// Counts loss and hits.
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
/// gradients are ordered with the communicator's stream by events, loss and hits stay in
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
    let _ = replica.flat.grads.zero_();
    phases.forward = lap();
    let last = microbatches.len().saturating_sub(1);
    for (index, microbatch) in microbatches.enumerate() {
        lap();
        let microbatch: &Microbatch = microbatch.borrow();
        if index == last {
            grad_sync.begin();
        }
        if let Some(mode) = replica.mode_for(microbatch) {
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
