//! The cache of an image folder: its decoded images in one file.
//!
//! The file has training images and test images, `[N, H, W, C]` bytes, then a description in JSON, the
//! description's length in eight bytes, and [`MAGIC`]. It is written under a temporary name and renamed when
//! it is complete.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;
use rayon::iter::{IntoParallelRefIterator, ParallelIterator};
use serde::{Deserialize, Serialize};

use super::super::{DataSet, Dataset, Images, Limits, Normalization, Pixels, Problem};
use super::read_image;
use super::scan::{ImageFile, Listing};
use crate::files;

const MAGIC: &[u8; 8] = b"LOCKSTEP";
/// Bytes of the trailer: the description's length and the magic bytes.
const END_BYTES: usize = 16;
/// Number of images that are decoded in parallel before they are written.
const IMAGES_AT_A_TIME: usize = 1024;
/// Largest number of broken images that an error names; the others are only counted.
const MOST_NAMED: usize = 5;

/// The description at the end of the file.
#[derive(Debug, Serialize, Deserialize)]
struct Description {
    /// Key of the image files that were decoded, see [`Listing::key`].
    key: String,
    shape: [usize; 3],
    classes: Vec<String>,
    train_labels: Vec<u16>,
    test_labels: Vec<u16>,
    normalization: Normalization,
}

/// Returns whether `cache` exists and was made from the files with this `key`, or the reason why it has to be
/// made.
pub(super) fn check(cache: &Path, key: &str) -> Result<(), String> {
    match open(cache) {
        Ok((_, description)) if description.key == key => Ok(()),
        Ok(_) => Err("files have changed since the cache was made".to_owned()),
        Err(Problem::BadFile { problem, .. }) => Err(format!("the cache is {problem}")),
        Err(_) => Err("there is no readable cache yet".to_owned()),
    }
}

/// Maps the cache into memory.
pub(super) fn load(cache: &Path, limits: Limits) -> Result<DataSet, Problem> {
    let (file, description) = open(cache)?;
    let Description { shape, classes, train_labels, test_labels, normalization, .. } = description;
    let image_bytes: usize = shape.iter().product();
    let test_start = train_labels.len() * image_bytes;
    let test_end = test_start + test_labels.len() * image_bytes;
    let split =
        |range, labels| Images { pixels: Pixels::mapped(Arc::clone(&file), range), labels, shape };
    Ok(DataSet {
        name: Dataset::ImageFolder,
        classes,
        train: spread(split(0..test_start, train_labels), limits.train),
        test: spread(split(test_start..test_end, test_labels), limits.test),
        normalization,
    })
}

/// Selects `limit` of `images`, evenly spread, so that every class keeps its share.
fn spread(images: Images, limit: Option<usize>) -> Images {
    let all = images.len();
    let Some(count) = limit.filter(|count| *count < all) else { return images };
    let image_bytes: usize = images.shape.iter().product();
    let chosen = || (0..count).map(|index| index * all / count);
    let mut pixels = Vec::with_capacity(count * image_bytes);
    for index in chosen() {
        pixels.extend_from_slice(&images.pixels[index * image_bytes..][..image_bytes]);
    }
    let labels = chosen().map(|index| images.labels[index]).collect();
    Images { pixels: pixels.into(), labels, shape: images.shape }
}

fn open(cache: &Path) -> Result<(Arc<Mmap>, Description), Problem> {
    let bad = |problem: &str| Problem::bad(cache, problem);
    let file = File::open(cache).map_err(Problem::read(cache))?;
    // SAFETY: the file is written under another name and never changed under this one: it is replaced by
    // renaming, which leaves the mapped file as it is.
    let map = unsafe { Mmap::map(&file) }.map_err(Problem::read(cache))?;
    let (body, end) = map.split_last_chunk::<END_BYTES>().ok_or_else(|| bad("truncated"))?;
    let (len, magic) = end.split_at(8);
    if magic != MAGIC {
        return Err(bad("truncated, or not a cache of decoded images"));
    }
    let len = len.iter().rev().fold(0, |len, byte| len << 8 | u64::from(*byte));
    let start = usize::try_from(len).ok().and_then(|len| body.len().checked_sub(len));
    let start = start.ok_or_else(|| bad("damaged"))?;
    let description: Description =
        serde_json::from_slice(&body[start..]).map_err(|_| bad("damaged"))?;
    let images = description.train_labels.len() + description.test_labels.len();
    if images * description.shape.iter().product::<usize>() != start {
        return Err(bad("damaged"));
    }
    Ok((Arc::new(map), description))
}

/// Removes from `root` the temporary files of builds that were killed, for images of any size. To be called
/// only while no other process builds a cache (under the lock).
pub(super) fn remove_unfinished(root: &Path) {
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.as_encoded_bytes();
        if name.starts_with(b"..images-") && name.ends_with(b".tmp") {
            // A file that cannot be removed only takes space.
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Decodes all images of `listing` into `cache`.
pub(super) fn build(
    cache: &Path,
    key: &str,
    listing: &Listing,
    shape: [usize; 3],
) -> Result<(), Problem> {
    let temporary = files::temporary_name(cache);
    let built = write(&temporary, key, listing, shape).and_then(|()| {
        fs::rename(&temporary, cache)
            .and_then(|()| files::sync_folder(cache.parent().unwrap_or(cache)))
            .map_err(Problem::write(cache))
    });
    if built.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    built
}

fn write(path: &Path, key: &str, listing: &Listing, shape: [usize; 3]) -> Result<(), Problem> {
    let failed = Problem::write(path);
    let mut file = BufWriter::new(File::create(path).map_err(&failed)?);
    let mut broken = Vec::new();
    let mut moments = Moments::new(shape[0]);
    decode_all(&listing.train, shape, &mut broken, |pixels| {
        moments.add(pixels);
        file.write_all(pixels)
    })
    .map_err(&failed)?;
    decode_all(&listing.test, shape, &mut broken, |pixels| file.write_all(pixels))
        .map_err(&failed)?;
    if let Some(problem) = all_of(broken) {
        return Err(problem);
    }
    let labels = |images: &[ImageFile]| images.iter().map(|image| image.label).collect();
    let description = Description {
        key: key.to_owned(),
        shape,
        classes: listing.classes.clone(),
        train_labels: labels(&listing.train),
        test_labels: labels(&listing.test),
        normalization: moments.normalization(),
    };
    let description = serde_json::to_vec(&description).map_err(|error| failed(error.into()))?;
    file.write_all(&description)
        .and_then(|()| file.write_all(&(description.len() as u64).to_le_bytes()))
        .and_then(|()| file.write_all(MAGIC))
        .and_then(|()| file.flush())
        .and_then(|()| file.get_ref().sync_all())
        .map_err(&failed)
}

/// Decodes `images` in parallel and passes them to `write` in order. Errors of images that cannot be decoded
/// are added to `broken`, so that all of them can be reported at once.
fn decode_all(
    images: &[ImageFile],
    shape: [usize; 3],
    broken: &mut Vec<Problem>,
    mut write: impl FnMut(&[u8]) -> std::io::Result<()>,
) -> std::io::Result<()> {
    for images in images.chunks(IMAGES_AT_A_TIME) {
        let decoded: Vec<_> =
            images.par_iter().map(|image| read_image(&image.path, shape)).collect();
        for image in decoded {
            match image {
                Ok(pixels) => write(&pixels)?,
                Err(problem) => broken.push(problem),
            }
        }
    }
    Ok(())
}

/// Combines the errors of several broken images into one.
fn all_of(broken: Vec<Problem>) -> Option<Problem> {
    let count = broken.len();
    let mut named = broken.into_iter();
    let first = named.next()?;
    if count == 1 {
        return Some(first);
    }
    let Problem::BadFile { file, mut problem } = first else { return Some(first) };
    for other in named.take(MOST_NAMED - 1) {
        problem = format!("{problem}; {other}");
    }
    if count > MOST_NAMED {
        problem = format!("{problem}; and {} more", count - MOST_NAMED);
    }
    Some(Problem::BadFile { file, problem })
}

/// Sums over pixels and their squares, in integers and therefore independent of the order.
struct Moments {
    pixels: u64,
    sums: Vec<u64>,
    squares: Vec<u64>,
}

impl Moments {
    fn new(channels: usize) -> Self {
        Self { pixels: 0, sums: vec![0; channels], squares: vec![0; channels] }
    }

    fn add(&mut self, pixels: &[u8]) {
        let channels = self.sums.len();
        for pixel in pixels.chunks_exact(channels) {
            for ((sum, square), value) in self.sums.iter_mut().zip(&mut self.squares).zip(pixel) {
                *sum += u64::from(*value);
                *square += u64::from(*value).pow(2);
            }
        }
        self.pixels += (pixels.len() / channels) as u64;
    }

    fn normalization(&self) -> Normalization {
        let mean_of = |sum: &u64| *sum as f64 / self.pixels as f64;
        let deviation = |(sum, square): (&u64, &u64)| {
            let variance = mean_of(square) - mean_of(sum).powi(2);
            // At least 1/255, so that images of a single colour are not divided by zero.
            (variance.max(0.0).sqrt() / 255.0).max(1.0 / 255.0) as f32
        };
        Normalization {
            mean: self.sums.iter().map(|sum| (mean_of(sum) / 255.0) as f32).collect(),
            std: self.sums.iter().zip(&self.squares).map(deviation).collect(),
        }
    }
}
