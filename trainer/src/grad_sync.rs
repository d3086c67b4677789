//! Gradients of all ranks become their sum, in which each rank has divided its loss by the global batch.
//!
//! Backward fills the flat gradient buffer from its start to its end. With overlap, a hook on each
//! parameter counts down its bucket, and a full bucket's all-reduce starts while backward goes on.
//! Buckets start in the same order on every rank, whatever the order in which they fill.
//!
//! In bf16, a bucket is rounded into a buffer of its own, and its sum widened back: half the bytes.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use comm::bucket::BucketPlan;
use comm::{Communicator, ReduceOp};
use job::config::{BucketCap, WireDtype};
use tch::{Device, Tensor};
use torch_ext::collective::{TensorWork, all_reduce, replayed, start_all_reduce};
use torch_ext::gather_grads;

use crate::bucket_cap::bucket_cap_bytes;
use crate::flat::{Flat, shared_bf16};
use crate::{Result, TrainError};

/// How gradients are communicated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// When each bucket is reduced.
    pub timing: Timing,
    /// How long a bucket is at most, unless it is a single parameter.
    pub bucket_cap: BucketCap,
    /// What elements are sent as.
    pub wire_dtype: WireDtype,
}

/// When gradients are reduced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timing {
    /// As soon as backward has made all of a bucket.
    Overlapped,
    /// When backward has ended.
    AfterBackward,
    /// Never: replicas diverge. For measuring what communication costs.
    Never,
}

/// Adds up gradients, bucket by bucket.
pub struct GradSync {
    shared: Arc<Shared>,
    /// Parameters in each bucket.
    lens: Vec<usize>,
    timing: Timing,
}

struct Shared {
    communicator: Arc<dyn Communicator>,
    /// Parameters of each bucket whose gradient is still to come.
    missing: Vec<AtomicUsize>,
    flight: Mutex<Flight>,
}

/// All-reduces under way.
struct Flight {
    buckets: Vec<Bucket>,
    /// The bucket that starts next; as many as there are while nobody expects gradients.
    next: usize,
    works: Vec<Result<TensorWork>>,
}

/// A part of the gradient buffer that is reduced at once.
struct Bucket {
    grads: Tensor,
    /// Where backward has left them, and the parts of `grads` that they belong in.
    scattered: Scattered,
    /// What is sent instead, where that is not the gradients themselves: `[len]` bf16.
    wire: Option<Tensor>,
}

/// Gradients that backward does not add to the flat buffer.
struct Scattered {
    leaves: Vec<Tensor>,
    places: Vec<Tensor>,
}

impl Bucket {
    /// Brings this rank's gradients together.
    fn gather(&mut self) -> torch_ext::Result<()> {
        gather_grads(&self.scattered.leaves, &self.scattered.places)
    }

    /// The tensor to reduce, filled from the gradients.
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

    /// Takes over what the tensor has been reduced to.
    fn unpack(&mut self) {
        if let Some(wire) = &self.wire {
            self.grads.copy_(wire);
        }
    }
}

impl GradSync {
    /// Buckets over the parameters of `flat`. Collective: every rank gives the same options.
    ///
    /// # Errors
    /// When a peer is gone or late, libtorch refuses a hook, or memory is short.
    pub fn new(
        flat: &Flat,
        communicator: Arc<dyn Communicator>,
        Options { timing, bucket_cap, wire_dtype }: Options,
    ) -> Result<Self> {
        // Alone, a rank has nobody to wait for.
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
        let mut ungathered = flat.ungathered().into_iter();
        let buckets = plan.buckets().iter().map(|bucket| {
            let (start, len) = (bucket.elements.start as i64, bucket.elements.len() as i64);
            let slice = |tensor: &Tensor| tensor.narrow(0, start, len);
            let (leaves, places) = ungathered.by_ref().take(bucket.parameters.len()).unzip();
            let scattered = Scattered { leaves, places };
            Bucket { grads: slice(&flat.grads), scattered, wire: wire.as_ref().map(slice) }
        });
        let buckets: Vec<_> = buckets.collect();
        let shared = Arc::new(Shared {
            communicator,
            missing: buckets.iter().map(|_| AtomicUsize::new(0)).collect(),
            flight: Mutex::new(Flight { next: buckets.len(), buckets, works: Vec::new() }),
        });
        if timing == Timing::Overlapped {
            for (place, parameter) in parameters.iter().enumerate() {
                // Buckets hold the parameters, and parameters their hooks.
                let (shared, bucket) =
                    (Arc::downgrade(&shared), plan.bucket_of(place).unwrap_or(0));
                torch_ext::on_gradient(parameter, move || {
                    if let Some(shared) = shared.upgrade() {
                        shared.ready(bucket);
                    }
                })?;
            }
        }
        let lens = plan.buckets().iter().map(|bucket| bucket.parameters.len()).collect();
        Ok(Self { shared, lens, timing })
    }

    /// Expects the gradients of the backward that follows.
    pub fn begin(&self) {
        if self.timing == Timing::Overlapped {
            for (missing, len) in self.shared.missing.iter().zip(&self.lens) {
                missing.store(*len, Ordering::Relaxed);
            }
            let mut flight = self.shared.lock();
            // A capture that failed may have left some.
            flight.works.clear();
            flight.next = 0;
        }
    }

    /// Who the ranks are.
    pub(crate) fn communicator(&self) -> &dyn Communicator {
        &*self.shared.communicator
    }

    /// Has gradients forgotten that backward has left and nobody has gathered: a capture that failed leaves
    /// memory that no kernel has written, to which the next backward would add.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub(crate) fn forget(&self) -> Result<()> {
        for leaf in self.shared.lock().buckets.iter().flat_map(|bucket| &bucket.scattered.leaves) {
            torch_ext::set_grad(leaf, &Tensor::new())?;
        }
        Ok(())
    }

    /// Has the all-reduces of a CUDA graph looked after, which was just replayed on `device`.
    ///
    /// # Errors
    /// When the communicator has failed.
    pub fn replayed(&self, device: Device) -> Result<()> {
        match self.timing {
            Timing::Never => Ok(()),
            _ => Ok(replayed(&*self.shared.communicator, device)?),
        }
    }

    /// Waits until the gradients of all ranks are summed, in place. Every rank has scaled its loss by
    /// the size of the global batch, so that the sum is the gradient of its mean also where ranks
    /// have different numbers of images. Buckets that did not fill, because a parameter had no part
    /// in the loss or the rank no images, are summed as they are.
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
                let Flight { works, buckets, .. } = &mut *flight;
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
    /// A parameter of `bucket` has its gradient.
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

    fn start_next(&self, flight: &mut Flight) {
        let work =
            flight.buckets[flight.next].pack().map_err(TrainError::from).and_then(|bucket| {
                Ok(start_all_reduce(&*self.communicator, bucket.shallow_clone(), ReduceOp::Sum)?)
            });
        flight.works.push(work);
        flight.next += 1;
    }

    fn lock(&self) -> MutexGuard<'_, Flight> {
        self.flight.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
