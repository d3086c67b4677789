//! From a PNG or JPEG file to bytes.

use std::fs;
use std::io::Cursor;
use std::path::Path;

use image::imageops::FilterType;
use image::{DynamicImage, ImageError, ImageFormat, ImageReader, Limits};

use super::super::Problem;

/// Side of the largest image that is read: a small file may claim to be an enormous picture.
const MAX_SIDE: u32 = 32_768;
/// Memory that decoding one may take.
const MAX_DECODED_BYTES: u64 = 1 << 30;

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
    let broken = |error: ImageError| {
        let problem = format!("not an image that can be read: {error}");
        Problem::bad(path, problem.trim_end())
    };
    let bytes = fs::read(path).map_err(Problem::read(path))?;
    let mut reader = ImageReader::new(Cursor::new(&bytes));
    let format = image::guess_format(&bytes).map_err(broken)?;
    // The decoder fills with grey what is missing.
    if format == ImageFormat::Jpeg && !jpeg_has_an_end(&bytes) {
        return Err(Problem::bad(path, "not an image that can be read: it is cut off"));
    }
    reader.set_format(format);
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_DECODED_BYTES);
    reader.limits(limits);
    reader.decode().map_err(broken)
}

/// Whether the segments of a JPEG file lead to its end marker.
///
/// Source: ITU-T T.81, annex B.
fn jpeg_has_an_end(bytes: &[u8]) -> bool {
    const START_OF_SCAN: u8 = 0xda;
    const END_OF_IMAGE: u8 = 0xd9;
    let is_marker = |pair: &[u8]| pair[0] == 0xff && !matches!(pair[1], 0x00 | 0xff);
    // Within a scan, restarts are markers without a segment.
    let is_restart = |marker: u8| matches!(marker, 0xd0..=0xd7);
    let mut at = 2;
    loop {
        let Some(rest) = bytes.get(at..) else { return false };
        let found = rest.windows(2).position(|pair| is_marker(pair) && !is_restart(pair[1]));
        let Some(found) = found else { return false };
        at += found + 2;
        match bytes[at - 1] {
            END_OF_IMAGE => return true,
            START_OF_SCAN => {}
            _ => match bytes.get(at..at + 2) {
                Some(&[high, low]) => at += usize::from(u16::from_be_bytes([high, low])),
                _ => return false,
            },
        }
    }
}
