//! Decodes PNG and JPEG files and scales the images.

use std::fs;
use std::io::Cursor;
use std::path::Path;

use image::imageops::FilterType;
use image::{DynamicImage, ImageError, ImageFormat, ImageReader, Limits};

use super::super::Problem;
use super::jpeg::{self, Decoded};

/// Longest side of an image that is read, in pixels: a small file may claim to be an enormous image.
pub(super) const MAX_SIDE: u32 = 32_768;
/// Most bytes that decoding an image may allocate.
pub(super) const MAX_DECODED_BYTES: u64 = 1 << 30;
/// Longest part of a side that is scaled, as a multiple of the part that remains visible.
const MAX_UNSEEN: u64 = 4;

/// Reads a PNG or JPEG file as an image of `shape` (channels, height, width). One channel is grey, three are
/// red, green and blue; transparency is dropped. An image of another size is scaled until it covers `shape`,
/// and its centre is cropped. Returns `[H, W, C]`.
///
/// # Errors
/// [`Problem`] with the file and the reason.
pub fn read_image(path: &Path, shape: [usize; 3]) -> Result<Vec<u8>, Problem> {
    let [channels, height, width] = shape;
    let decoded = decode(path)?;
    let (height, width) = (height as u32, width as u32);
    // Converted before it is scaled, since scaling a palette or an alpha channel gives other results.
    let coloured = match channels {
        1 => DynamicImage::ImageLuma8(decoded.into_luma8()),
        _ => DynamicImage::ImageRgb8(decoded.into_rgb8()),
    };
    let fits = (coloured.height(), coloured.width()) == (height, width);
    let image = match fits {
        true => coloured,
        false => scaled(coloured, width, height),
    };
    Ok(image.into_bytes())
}

/// Scales the centre of `image` to `width` x `height`.
fn scaled(image: DynamicImage, width: u32, height: u32) -> DynamicImage {
    let most_wide = most(image.height(), height, width);
    let most_high = most(image.width(), width, height);
    let (kept_width, kept_height) =
        (kept(image.width(), most_wide), kept(image.height(), most_high));
    let image = match (kept_width, kept_height) == (image.width(), image.height()) {
        true => image,
        // `resize_to_fill` scales the whole image before it crops: an image one pixel high would take
        // gigabytes.
        false => image.crop_imm(
            (image.width() - kept_width) / 2,
            (image.height() - kept_height) / 2,
            kept_width,
            kept_height,
        ),
    };
    image.resize_to_fill(width, height, FilterType::Triangle)
}

/// Returns the most pixels of a side to scale, where the `across` pixels of the other side become
/// `target_across` and the centre of this side becomes `target`.
fn most(across: u32, target_across: u32, target: u32) -> u64 {
    MAX_UNSEEN * (u64::from(across) * u64::from(target)).div_ceil(u64::from(target_across))
}

/// Returns the pixels of `side` to keep, about `most`, so that as many are cut off at either end.
fn kept(side: u32, most: u64) -> u32 {
    match u64::from(side).checked_sub(most) {
        Some(more) => (most + more % 2) as u32,
        None => side,
    }
}

fn decode(path: &Path) -> Result<DynamicImage, Problem> {
    let broken = |problem: &str| {
        let problem = format!("not an image that can be read: {problem}");
        Problem::bad(path, problem.trim_end())
    };
    let found = fs::metadata(path).map_err(Problem::read(path))?;
    if !found.is_file() {
        return Err(broken("not a regular file")); // a pipe may never end
    }
    let bytes = fs::read(path).map_err(Problem::read(path))?;
    let refused = |error: ImageError| broken(&error.to_string());
    let format = image::guess_format(&bytes).map_err(refused)?;
    if format == ImageFormat::Jpeg {
        let Decoded { image, warning } = jpeg::decode(&bytes).map_err(|error| broken(&error))?;
        if let Some(warning) = warning {
            tracing::warn!("{}: damaged, decoded as far as possible: {warning}", path.display());
        }
        return Ok(image);
    }
    let mut reader = ImageReader::with_format(Cursor::new(&bytes), format);
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_DECODED_BYTES);
    reader.limits(limits);
    reader.decode().map_err(refused)
}

#[cfg(test)]
mod tests {
    use image::{Rgb, RgbImage};

    use super::*;

    fn smooth(width: u32, height: u32) -> DynamicImage {
        let wave = |at: u32, period: f32| (127.0 * (1.0 + (at as f32 / period).sin())) as u8;
        let (across, along) = (width.min(height) as f32, width.max(height) as f32);
        let colour = |x, y| Rgb([wave(x, across), wave(y, across), wave(x + y, along)]);
        RgbImage::from_fn(width, height, colour).into()
    }

    /// Returns the largest difference of a pixel from the whole image scaled.
    fn off([width, height]: [u32; 2], [target_width, target_height]: [u32; 2]) -> u8 {
        let image = smooth(width, height);
        let whole = image.resize_to_fill(target_width, target_height, FilterType::Triangle);
        let ours = scaled(image, target_width, target_height);
        let of = |(a, b): (&u8, &u8)| a.abs_diff(*b);
        ours.as_bytes().iter().zip(whole.as_bytes()).map(of).max().unwrap()
    }

    #[test]
    fn what_is_cut_off_before_scaling_is_not_seen() {
        for size in [[500, 375], [375, 500], [64, 64], [3, 12], [1, 1], [129, 33]] {
            assert_eq!(off(size, [32, 32]), 0, "{size:?}");
        }
        assert_eq!(off([320, 40], [80, 20]), 0);
        for size in [[901, 100], [100, 900], [40, 999], [1001, 7]] {
            assert!(off(size, [32, 32]) <= 8, "{size:?}: {}", off(size, [32, 32]));
        }
    }

    #[test]
    fn a_line_is_scaled_in_little_memory() {
        for (width, height) in [(1, MAX_SIDE), (MAX_SIDE, 1)] {
            let line = scaled(RgbImage::new(width, height).into(), 1024, 1024);
            assert_eq!((line.width(), line.height()), (1024, 1024));
        }
        assert_eq!(kept(MAX_SIDE, most(1, 1024, 1024)), 4);
        assert_eq!(kept(MAX_SIDE - 1, most(1, 1024, 1024)), 5);
        assert_eq!(kept(4, most(1, 1024, 1024)), 4);
    }
}
