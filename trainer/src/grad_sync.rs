//! Gradient synchronization: sums gradients over ranks, each of which has divided its loss by the global
//! batch size.
//!
//! Backward fills the flat gradient buffer from its start to its end. With overlap, a hook on each
//! parameter decrements the counter of its bucket, and the all-reduce of a full bucket starts while
//! backward continues. All-reduces start in the same order on every rank, whatever the order in which
//! buckets fill.
//!
//! With `comm.wire_dtype: bf16`, a bucket is rounded into a separate buffer, and the sum is widened back to
//! f32, which halves the bytes that are sent.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use comm::bucket::BucketPlan;
use comm::{Communicator, ReduceOp};
use job::config::{BucketCap, WireDtype};
use tch::{Device, Tensor};
use torch_ext::collective::{TensorWork, all_reduce, start_all_reduce, watch_replay};
use torch_ext::gather_grads;

use crate::bucket_cap::bucket_cap_bytes;
use crate::flat::{Flat, shared_bf16};
use crate::{Result, TrainError};

/// How gradients are synchronized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// When each bucket is reduced.
    pub timing: Timing,
    /// Maximum size of a bucket; a bucket of a single parameter may be larger.
    pub bucket_cap: BucketCap,
    /// The dtype in which gradients are sent.
    pub wire_dtype: WireDtype,
}

/// When gradients are reduced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timing {
    /// As soon as backward has computed all gradients of a bucket.
    Overlapped,
    /// When backward has ended.
    AfterBackward,
    /// Never, so that replicas diverge. For a single rank, and for measuring the cost of communication.
    Never,
}

/// Sums gradients over ranks, bucket by bucket.
pub struct GradSync {
    shared: Arc<Shared>,
    /// Number of parameters in each bucket.
    lens: Vec<usize>,
    timing: Timing,
}

struct Shared {
    communicator: Arc<dyn Communicator>,
    /// Number of parameters of each bucket whose gradient backward has not computed yet.
    missing: Vec<AtomicUsize>,
    flight: Mutex<InFlight>,
}

/// The buckets and their all-reduces in flight.
struct InFlight {
    buckets: Vec<Bucket>,
    /// Index of the bucket whose all-reduce starts next; the number of buckets before the first
    /// [`GradSync::begin`] and after the last bucket has started.
    next: usize,
    works: Vec<Result<TensorWork>>,
}

/// A slice of the flat gradient buffer that one all-reduce covers.
struct Bucket {
    grads: Tensor,
    /// The bucket's gradients that backward leaves outside `grads`.
    scattered: Scattered,
    /// Buffer that is sent instead of `grads` with `comm.wire_dtype: bf16`: `[len]` bf16.
    wire: Option<Tensor>,
}

/// Gradients that backward leaves at the parameters (`leaves`), and the slices of the flat buffer
/// (`places`) that they are moved to. Both are empty where backward adds to the flat buffer.
struct Scattered {
    leaves: Vec<Tensor>,
    places: Vec<Tensor>,
}

impl Bucket {
    /// Moves this rank's scattered gradients into `grads`.
    fn gather(&mut self) -> torch_ext::Result<()> {
        gather_grads(&self.scattered.leaves, &self.scattered.places)
    }

    /// Returns the tensor to reduce, filled with this rank's gradients.
    fn pack(&mut self) -> torch_ext::Result<&mut Tensor> {
        self.gather()?;
        Ok(match &mut self.wire {
            None => &mut self.grads,
            Some(wire) => {
                wire.copy_(&self.grads);
                wire
            }
        })
    }

    /// Copies the reduced sum from the wire buffer back to `grads`.
    fn unpack(&mut self) {
        if let Some(wire) = &self.wire {
            self.grads.copy_(wire);
        }
    }
}

impl GradSync {
    /// Divides the parameters of `flat` into buckets and, with overlap, installs a gradient hook on each.
    /// Collective: every rank passes the same options.
    ///
    /// # Errors
    /// When a peer is gone or late, libtorch refuses a hook, or memory is short.
    pub fn new(
        flat: &Flat,
        communicator: Arc<dyn Communicator>,
        Options { timing, bucket_cap, wire_dtype }: Options,
    ) -> Result<Self> {
        // A single rank has nothing to reduce.
        let timing = if communicator.world_size() == 1 { Timing::Never } else { timing };
        let parameters: Vec<_> = flat.parameters_in_flat_order().collect();
        let sizes: Vec<_> = parameters.iter().map(|parameter| parameter.numel()).collect();
        let wire = match wire_dtype {
            WireDtype::Bf16 if timing != Timing::Never => {
                Some(shared_bf16(flat.grads.numel(), flat.grads.device(), &*communicator)?)
            }
            WireDtype::Bf16 | WireDtype::Fp32 => None,
        };
        let element_bytes = if wire.is_some() { 2 } else { size_of::<f32>() };
        let cap_bytes =
            bucket_cap_bytes(bucket_cap, timing, &flat.grads, element_bytes, &*communicator)?;
        let plan = BucketPlan::new(&sizes, element_bytes, cap_bytes);
        let mut deferred_gradients = flat.deferred_gradients().into_iter();
        let buckets = plan.buckets().iter().map(|bucket| {
            let (start, len) = (bucket.elements.start as i64, bucket.elements.len() as i64);
            let slice = |tensor: &Tensor| tensor.narrow(0, start, len);
            let (leaves, places) =
                deferred_gradients.by_ref().take(bucket.parameters.len()).unzip();
            let scattered = Scattered { leaves, places };
            Bucket { grads: slice(&flat.grads), scattered, wire: wire.as_ref().map(slice) }
        });
        let buckets: Vec<_> = buckets.collect();
        let shared = Arc::new(Shared {
            communicator,
            missing: buckets.iter().map(|_| AtomicUsize::new(0)).collect(),
            flight: Mutex::new(InFlight { next: buckets.len(), buckets, works: Vec::new() }),
        });
        if timing == Timing::Overlapped {
            for (index, bucket) in plan.buckets().iter().enumerate() {
                for parameter in &parameters[bucket.parameters.clone()] {
                    // A weak reference, to break a cycle: buckets hold the parameters, and parameters hold
                    // their hooks.
                    let shared = Arc::downgrade(&shared);
                    torch_ext::on_gradient(parameter, move || {
                        if let Some(shared) = shared.upgrade() {
                            shared.ready(index);
                        }
                    })?;
                }
            }
        }
        let lens = plan.buckets().iter().map(|bucket| bucket.parameters.len()).collect();
        Ok(Self { shared, lens, timing })
    }

    /// With overlap, prepares for the gradients of the next backward pass.
    pub fn begin(&self) {
        if self.timing == Timing::Overlapped {
            for (missing, len) in self.shared.missing.iter().zip(&self.lens) {
                missing.store(*len, Ordering::Relaxed);
            }
            let mut flight = self.shared.lock();
            // A failed capture may have left some.
            flight.works.clear();
            flight.next = 0;
        }
    }

    /// Returns the communicator over which gradients are reduced.
    pub(crate) fn communicator(&self) -> &dyn Communicator {
        &*self.shared.communicator
    }

    /// Discards gradients that backward has left at parameters and that were not gathered. A failed capture
    /// leaves gradients in memory that no kernel has written, and the next backward would add to them.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub(crate) fn discard_gradients(&self) -> Result<()> {
        for leaf in self.shared.lock().buckets.iter().flat_map(|bucket| &bucket.scattered.leaves) {
            torch_ext::set_grad(leaf, &Tensor::new())?;
        }
        Ok(())
    }

    /// Tells the communicator that a CUDA graph with its all-reduces was just replayed on `device`, so that
    /// it watches them for timeouts and failures.
    ///
    /// # Errors
    /// When the communicator has failed.
    pub fn watch_replay(&self, device: Device) -> Result<()> {
        match self.timing {
            Timing::Never => Ok(()),
            _ => Ok(watch_replay(&*self.shared.communicator, device)?),
        }
    }

    /// Waits until gradients are summed over ranks, in place. Every rank has divided its loss by
    /// the size of the global batch, so the sum is the gradient of the mean loss even if ranks
    /// have different numbers of images. Buckets that did not fill, because a parameter had no part
    /// in the loss or the rank had no images, are summed as they are. Collective.
    ///
    /// # Errors
    /// When a peer is gone or late; the error names it.
    pub fn finish(&self) -> Result<()> {
        let shared = &self.shared;
        let mut flight = shared.lock();
        match self.timing {
            Timing::Never => {
                for bucket in &mut flight.buckets {
                    bucket.gather()?;
                }
            }
            Timing::AfterBackward => {
                for bucket in &mut flight.buckets {
                    all_reduce(&*shared.communicator, bucket.pack()?, ReduceOp::Sum)?;
                    bucket.unpack();
                }
            }
            Timing::Overlapped => {
                while flight.next < flight.buckets.len() {
                    shared.start_next(&mut flight);
                }
                let InFlight { works, buckets, .. } = &mut *flight;
                for (work, bucket) in works.drain(..).zip(buckets) {
                    work?.wait()?;
                    bucket.unpack();
                }
            }
        }
        Ok(())
    }
}

impl Shared {
    /// Called by the hook of a parameter of `bucket` when its gradient is computed. Starts all-reduces of
    /// full buckets, in order.
    fn ready(&self, bucket: usize) {
        let before = self.missing[bucket].fetch_sub(1, Ordering::AcqRel);
        if before != 1 {
            return;
        }
        let mut flight = self.lock();
        while flight.next < self.missing.len()
            && self.missing[flight.next].load(Ordering::Acquire) == 0
        {
            self.start_next(&mut flight);
        }
    }

    fn start_next(&self, flight: &mut InFlight) {
        let work =
            flight.buckets[flight.next].pack().map_err(TrainError::from).and_then(|bucket| {
                Ok(start_all_reduce(&*self.communicator, bucket.shallow_clone(), ReduceOp::Sum)?)
            });
        flight.works.push(work);
        flight.next += 1;
    }

    fn lock(&self) -> MutexGuard<'_, InFlight> {
        self.flight.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
