//! Image folders: a user's own PNG and JPEG files, one folder per class, `root/train/CLASS/*` and
//! `root/test/CLASS/*`.
//!
//! Images are decoded once, in parallel, into a cache file, which is mapped into memory from then on. The
//! cache is rebuilt when an image file was added, removed or changed.

mod cache;
mod decode;
mod jpeg;
mod scan;

use std::path::Path;

use super::prepare::lock;
use super::{DataSet, Limits, Outline, Problem, Source};
use crate::config::Data;

pub use decode::read_image;
use scan::Listing;

/// Ways to obtain the data set, for the end of an error message.
pub(super) const WAYS: &str = "image_folder takes PNG and JPEG files from data.root/train/CLASS and \
                               data.root/test/CLASS";

/// Default of `data.image_size`, in pixels.
const IMAGE_SIZE: usize = 32;
/// Red, green and blue: grey images are converted to colour.
const CHANNELS: usize = 3;

fn shape(data: &Data) -> [usize; 3] {
    let side = data.image_size.unwrap_or(IMAGE_SIZE);
    [CHANNELS, side, side]
}

/// Makes sure that the cache of decoded images exists and is current.
pub(super) fn prepare(data: &Data) -> Result<Source, Problem> {
    let listing = Listing::of(&data.root)?;
    let shape = shape(data);
    let cache = data.root.join(format!(".images-{}px.cache", shape[1]));
    let key = listing.key(shape);
    if cache::check(&cache, &key).is_err() {
        let _lock = lock(&data.root, ".images.lock")?;
        // Another process may have built the cache while this one waited for the lock.
        if let Err(reason) = cache::check(&cache, &key) {
            let count = listing.train.len() + listing.test.len();
            tracing::info!("decoding {count} images into {}: {reason}", cache.display());
            cache::remove_unfinished(&data.root);
            cache::build(&cache, &key, &listing, shape)?;
        }
    }
    Ok(Source::ImageFolder { root: data.root.clone(), cache })
}

/// Counts image files, without reading any.
pub(super) fn outline(data: &Data) -> Result<Outline, Problem> {
    let Listing { classes, train, test, .. } = Listing::of(&data.root)?;
    let images = [train.len(), test.len()];
    Ok(Outline { images, shape: shape(data), classes: classes.len() })
}

/// Maps the cache that [`prepare`] has made. A limit selects images that are evenly spread.
pub(super) fn load(cache: &Path, limits: Limits) -> Result<DataSet, Problem> {
    cache::load(cache, limits)
}

#[cfg(test)]
mod tests;
