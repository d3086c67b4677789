//! Gradients of all ranks become their sum.

use comm::bucket::{BucketCaps, BucketPlan};
use comm::{Communicator, ReduceOp};

use crate::Result;
use crate::flat::Flat;

/// Adds up gradients, bucket by bucket, after backward has filled them.
pub struct GradSync {
    plan: BucketPlan,
}

impl GradSync {
    /// Buckets of at most `bucket_cap_mib` over the parameters of `flat`.
    pub fn new(flat: &Flat, bucket_cap_mib: usize) -> Self {
        let cap_bytes = bucket_cap_mib << 20;
        let caps = BucketCaps { cap_bytes, first_cap_bytes: cap_bytes };
        Self { plan: BucketPlan::new(&flat.parameter_lens(), size_of::<f32>(), caps) }
    }

    /// Sums the gradients of all ranks, in place. Every rank has scaled its loss by the size of
    /// the global batch, so that the sum is the gradient of its mean also where ranks have
    /// different numbers of images.
    ///
    /// # Errors
    /// When a peer is gone or late; the error names it.
    pub fn all_reduce(&self, flat: &Flat, communicator: &dyn Communicator) -> Result<()> {
        if communicator.world_size() == 1 {
            return Ok(());
        }
        for bucket in self.plan.buckets() {
            let range = &bucket.elements;
            let mut bucket = flat.grads.narrow(0, range.start as i64, range.len() as i64);
            torch_ext::collective::all_reduce(communicator, &mut bucket, ReduceOp::Sum)?;
        }
        Ok(())
    }
}
