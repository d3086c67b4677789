//! Images of one's own: PNG and JPEG files in a folder a class, `root/train/CLASS/*` and
//! `root/test/CLASS/*`.
//!
//! They are decoded once, in parallel, into a file that is mapped from then on. It is made anew when a
//! file was added, removed or changed.

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

/// Ways to get it, for the end of a message.
pub(super) const WAYS: &str = "image_folder takes PNG and JPEG files from data.root/train/CLASS and \
                               data.root/test/CLASS";

/// Where `data.image_size` is not given.
const IMAGE_SIZE: usize = 32;
/// Red, green, blue: grey images become coloured ones.
const CHANNELS: usize = 3;

fn shape(data: &Data) -> [usize; 3] {
    let side = data.image_size.unwrap_or(IMAGE_SIZE);
    [CHANNELS, side, side]
}

/// Makes sure that the images are decoded.
pub(super) fn prepare(data: &Data) -> Result<Source, Problem> {
    let listing = Listing::of(&data.root)?;
    let shape = shape(data);
    let cache = data.root.join(format!(".images-{}px.cache", shape[1]));
    let key = listing.key(shape);
    if cache::check(&cache, &key).is_err() {
        let _lock = lock(&data.root, ".images.lock")?;
        // Another process may have made it while this one waited.
        if let Err(reason) = cache::check(&cache, &key) {
            let count = listing.train.len() + listing.test.len();
            tracing::info!("decoding {count} images into {}: {reason}", cache.display());
            cache::remove_unfinished(&data.root);
            cache::build(&cache, &key, &listing, shape)?;
        }
    }
    Ok(Source::ImageFolder { root: data.root.clone(), cache })
}

/// Counts files, and reads none.
pub(super) fn outline(data: &Data) -> Result<Outline, Problem> {
    let Listing { classes, train, test, .. } = Listing::of(&data.root)?;
    let images = [train.len(), test.len()];
    Ok(Outline { images, shape: shape(data), classes: classes.len() })
}

/// Maps what [`prepare`] has made. A limit takes images that are spread evenly over all.
pub(super) fn load(cache: &Path, limits: Limits) -> Result<DataSet, Problem> {
    cache::load(cache, limits)
}

#[cfg(test)]
mod tests;
