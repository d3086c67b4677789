//! Evaluation: loss and accuracy on images that the network is not trained on.

use comm::{Communicator, ReduceOp};
use job::config::Tta;
use job::shard;
use tch::{Kind, Tensor};

use crate::Result;
use crate::confusion::Confusion;
use crate::data::Images;
use crate::loss::cross_entropy_sum;
use crate::replica::Replica;
use crate::tally::{Counter, Tally};
use crate::tta;

/// Largest number of images in an evaluation batch; the result does not depend on it.
const BATCH_SIZE: usize = 500;
/// Largest number of pixels in an evaluation batch: those of [`BATCH_SIZE`] images of 64x64. Larger images
/// go in smaller batches, so that memory stays bounded.
const BATCH_PIXELS: usize = BATCH_SIZE * 64 * 64;

/// Returns the number of images in an evaluation batch of images of `area` pixels, at least 1.
pub fn batch_size(area: usize) -> usize {
    (BATCH_PIXELS / area.max(1)).clamp(1, BATCH_SIZE)
}

/// Returns loss and accuracy over all of `images`, each evaluated on exactly one rank, with test-time
/// augmentation `tta`. Returns `None` if `wants_to_stop` returned true on any rank before the last batch.
/// Collective.
///
/// First broadcasts rank 0's running statistics, which differ between ranks since each was trained on other
/// images; every rank keeps them, as in PyTorch DDP.
///
/// # Errors
/// When a peer is gone or late, or libtorch refuses.
pub fn evaluate(
    replica: &mut Replica,
    images: &Images,
    tta: Tta,
    communicator: &dyn Communicator,
    wants_to_stop: &dyn Fn() -> bool,
) -> Result<Option<Tally>> {
    torch_ext::collective::broadcast(communicator, &mut replica.flat.buffers, 0)?;
    let mut counter = Counter::new(replica.device);
    let mut sum = Tally::default();
    let mut batches = batches(images, communicator).into_iter().peekable();
    while let Some(batch) = batches.next() {
        if let Some((logits, labels)) = outputs(replica, images, &batch, tta)? {
            counter.add(&logits, &labels, &cross_entropy_sum(&logits, &labels));
        }
        let (tally, stop) = counter.exchange(communicator, wants_to_stop())?;
        sum.add(tally);
        if stop && batches.peek().is_some() {
            return Ok(None);
        }
    }
    Ok(Some(sum))
}

/// Returns loss and accuracy as [`evaluate`] does, and the confusion matrix. `classes`: number of outputs
/// of the network. Ranks must have the same running statistics: none are broadcast. Collective.
///
/// # Errors
/// As [`evaluate`].
pub fn evaluate_by_class(
    replica: &mut Replica,
    images: &Images,
    classes: usize,
    tta: Tta,
    communicator: &dyn Communicator,
) -> Result<(Tally, Confusion)> {
    let mut counter = Counter::new(replica.device);
    let cells = (classes * classes) as i64;
    // f64, which represents such counts exactly, and which every backend can sum.
    let mut counts = Tensor::zeros([cells], (Kind::Double, replica.device));
    for batch in batches(images, communicator) {
        let Some((logits, labels)) = outputs(replica, images, &batch, tta)? else { continue };
        counter.add(&logits, &labels, &cross_entropy_sum(&logits, &labels));
        let cell = &labels * classes as i64 + logits.argmax(-1, false);
        counts += cell.bincount(None::<&Tensor>, cells).to_kind(Kind::Double);
    }
    torch_ext::collective::all_reduce(communicator, &mut counts, ReduceOp::Sum)?;
    let (tally, _) = counter.exchange(communicator, false)?;
    let counts = Vec::<f64>::try_from(&counts)?.into_iter().map(|count| count as u64).collect();
    Ok((tally, Confusion::new(classes, counts)))
}

/// Returns the indices of this rank's images, batch by batch. The number of batches is the same on every
/// rank; the last ones may be empty.
fn batches(images: &Images, communicator: &dyn Communicator) -> Vec<Vec<u32>> {
    let (rank, world_size) = (communicator.rank(), communicator.world_size());
    let size = batch_size(images.area());
    // No rank has more images than the first.
    let count = shard::evaluation_shard(images.len(), 0, world_size).len().div_ceil(size);
    let mine = shard::evaluation_shard(images.len(), rank, world_size);
    let mut indices = mine.map(|index| index as u32);
    (0..count).map(|_| indices.by_ref().take(size).collect()).collect()
}

/// Returns logits `[N, classes]` and labels `[N]` of the images at `indices`, or `None` if there are none.
fn outputs(
    replica: &Replica,
    images: &Images,
    indices: &[u32],
    tta: Tta,
) -> Result<Option<(Tensor, Tensor)>> {
    if indices.is_empty() {
        return Ok(None);
    }
    let batch = images.batch(indices);
    let logits =
        tch::no_grad(|| replica.in_precision(|model| tta::logits(model, &batch.images, tta)))?;
    Ok(Some((logits, batch.targets.labels)))
}

#[cfg(test)]
mod tests {
    use super::batch_size;

    #[test]
    fn large_images_go_through_the_network_in_smaller_batches() {
        assert_eq!(
            [32, 64, 224, 512, 4096].map(|side| batch_size(side * side)),
            [500, 500, 40, 7, 1]
        );
    }
}
