//! From a PNG or JPEG file to bytes.

use std::fs;
use std::io::Cursor;
use std::path::Path;

use image::imageops::FilterType;
use image::{DynamicImage, ImageError, ImageFormat, ImageReader, Limits};

use super::super::Problem;
use super::jpeg::{self, Decoded};

/// Side of the largest image that is read: a small file may claim to be an enormous picture.
pub(super) const MAX_SIDE: u32 = 32_768;
/// Memory that decoding one may take.
pub(super) const MAX_DECODED_BYTES: u64 = 1 << 30;

/// Reads a PNG or JPEG file as an image of `shape` (channels, height, width): one channel is grey,
/// three are red, green and blue; what is transparent shows its colour. Where the size differs, it is
/// scaled until it covers `shape`, and its middle is taken. Returns `[H, W, C]`.
///
/// # Errors
/// [`Problem`] with the file and what is wrong with it.
pub fn read_image(path: &Path, shape: [usize; 3]) -> Result<Vec<u8>, Problem> {
    let [channels, height, width] = shape;
    let decoded = decode(path)?;
    let (height, width) = (height as u32, width as u32);
    // In the colours that are wanted: where a palette or an alpha channel is scaled matters.
    let coloured = match channels {
        1 => DynamicImage::ImageLuma8(decoded.into_luma8()),
        _ => DynamicImage::ImageRgb8(decoded.into_rgb8()),
    };
    let fits = (coloured.height(), coloured.width()) == (height, width);
    let image = match fits {
        true => coloured,
        false => coloured.resize_to_fill(width, height, FilterType::Triangle),
    };
    Ok(image.into_bytes())
}

fn decode(path: &Path) -> Result<DynamicImage, Problem> {
    let broken = |problem: &str| {
        let problem = format!("not an image that can be read: {problem}");
        Problem::bad(path, problem.trim_end())
    };
    let bytes = fs::read(path).map_err(Problem::read(path))?;
    let refused = |error: ImageError| broken(&error.to_string());
    let format = image::guess_format(&bytes).map_err(refused)?;
    if format == ImageFormat::Jpeg {
        let Decoded { image, warning } = jpeg::decode(&bytes).map_err(|error| broken(&error))?;
        if let Some(warning) = warning {
            tracing::warn!("{}: damaged, read as far as that goes: {warning}", path.display());
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
