//! Loss and accuracy on images that are not trained on.

use comm::Communicator;
use job::shard;

use crate::Result;
use crate::data::Images;
use crate::model::Mode;
use crate::step::{Counter, Replica, Tally, cross_entropy_sum};

/// Images that go through the network together; the result does not depend on it.
const BATCH_SIZE: usize = 500;

/// Counts every image once, over all ranks. Collective; every rank ends with rank 0's running
/// statistics, as PyTorch DDP's do, since each rank saw other images.
///
/// # Errors
/// When a peer is gone or late, or libtorch refuses.
pub fn evaluate(
    replica: &mut Replica,
    images: &Images,
    communicator: &dyn Communicator,
) -> Result<Tally> {
    torch_ext::collective::broadcast(communicator, &mut replica.flat.buffers, 0)?;
    let range =
        shard::evaluation_shard(images.len(), communicator.rank(), communicator.world_size());
    let indices: Vec<u32> = range.map(|index| index as u32).collect();
    let mut counter = Counter::new(replica.device);
    for chunk in indices.chunks(BATCH_SIZE) {
        let batch = images.batch(chunk);
        tch::no_grad(|| {
            replica.in_precision(|model| {
                let logits = model.forward(&batch.images, Mode::Eval);
                counter.add(&logits, &batch.labels, &cross_entropy_sum(&logits, &batch.labels));
            })
        })?;
    }
    Ok(counter.exchange(communicator, false)?.0)
}
