//! Decodes JPEG files as libjpeg-turbo does: with its accurate inverse DCT and interpolated chroma. So pixels
//! equal those of Pillow and torchvision.
//!
//! MozJPEG, a fork of libjpeg-turbo, has the same decoder. Its TurboJPEG interface catches errors, which
//! libjpeg reports by a long jump, within C.

use std::ffi::{CStr, c_char, c_int, c_uchar, c_ulong, c_void};
use std::ptr::NonNull;

use image::{DynamicImage, GrayImage, RgbImage};
// Imported for the libraries that it links.
use mozjpeg_sys as _;

use super::decode::{MAX_DECODED_BYTES, MAX_SIDE};

/// Declarations from `turbojpeg.h`.
mod sys {
    use super::{c_char, c_int, c_uchar, c_ulong, c_void};

    pub const TJPF_RGB: c_int = 0;
    pub const TJPF_GRAY: c_int = 6;
    pub const TJPF_CMYK: c_int = 11;
    pub const TJFLAG_ACCURATEDCT: c_int = 4096;
    pub const TJFLAG_LIMITSCANS: c_int = 32_768;
    pub const TJERR_WARNING: c_int = 0;

    unsafe extern "C" {
        pub fn tjInitDecompress() -> *mut c_void;
        pub fn tjDestroy(handle: *mut c_void) -> c_int;
        pub fn tjDecompress2(
            handle: *mut c_void,
            jpeg: *const c_uchar,
            jpeg_bytes: c_ulong,
            pixels: *mut c_uchar,
            width: c_int,
            pitch: c_int,
            height: c_int,
            pixel_format: c_int,
            flags: c_int,
        ) -> c_int;
        pub fn tjGetErrorCode(handle: *mut c_void) -> c_int;
        pub fn tjGetErrorStr2(handle: *mut c_void) -> *const c_char;
    }
}

/// A decoded image, with a warning if the file is damaged but could be decoded.
pub(super) struct Decoded {
    pub image: DynamicImage,
    pub warning: Option<String>,
}

/// Decodes a JPEG file to a grey or an RGB image.
///
/// # Errors
/// What is wrong with the file.
pub(super) fn decode(jpeg: &[u8]) -> Result<Decoded, String> {
    let frame = Frame::of(jpeg)?;
    let Frame { width, height, components, .. } = frame;
    if width.max(height) > MAX_SIDE {
        return Err(format!(
            "it has {width}x{height} pixels; at most {MAX_SIDE} a side are supported"
        ));
    }
    let pixel_format = match components {
        1 => sys::TJPF_GRAY,
        3 => sys::TJPF_RGB,
        4 => sys::TJPF_CMYK,
        _ => return Err(format!("it has {components} colour components instead of 1, 3 or 4")),
    };
    let bytes = u64::from(width) * u64::from(height) * u64::from(components);
    if bytes > MAX_DECODED_BYTES {
        return Err(format!(
            "its {width}x{height} pixels take more than {MAX_DECODED_BYTES} bytes when decoded"
        ));
    }
    let mut pixels = vec![0; bytes as usize];
    let warning = decompress(jpeg, &frame, pixel_format, &mut pixels)?;
    let image = match components {
        1 => GrayImage::from_raw(width, height, pixels).map(DynamicImage::ImageLuma8),
        3 => RgbImage::from_raw(width, height, pixels).map(DynamicImage::ImageRgb8),
        _ => {
            let pixels = rgb_of_cmyk(&pixels, frame.is_adobes);
            RgbImage::from_raw(width, height, pixels).map(DynamicImage::ImageRgb8)
        }
    };
    image.map(|image| Decoded { image, warning }).ok_or_else(|| "too large".to_owned())
}

/// Fills `pixels`, which has room for `frame` in `pixel_format`. Returns a warning, if there is one.
fn decompress(
    jpeg: &[u8],
    frame: &Frame,
    pixel_format: c_int,
    pixels: &mut [u8],
) -> Result<Option<String>, String> {
    let [width, height] = [frame.width, frame.height].map(|size| size as c_int);
    let pitch = width * c_int::from(frame.components);
    assert_eq!(pixels.len(), pitch as usize * height as usize);
    let flags = sys::TJFLAG_ACCURATEDCT | sys::TJFLAG_LIMITSCANS;
    let decompressor = Decompressor::new()?;
    let handle = decompressor.0.as_ptr();
    // SAFETY: `handle` is a decompressor. `jpeg` has the given length. `pixels` has `height` rows of `pitch`
    // bytes, and no more is written, whatever the file says: an image that would not fit `width` and `height`
    // is scaled down or refused.
    let status = unsafe {
        sys::tjDecompress2(
            handle,
            jpeg.as_ptr(),
            jpeg.len() as c_ulong,
            pixels.as_mut_ptr(),
            width,
            pitch,
            height,
            pixel_format,
            flags,
        )
    };
    if status == 0 {
        return Ok(None);
    }
    // SAFETY: `handle` is a decompressor; the message is NUL-terminated and copied while `handle` lives.
    let (code, message) = unsafe {
        let message = CStr::from_ptr(sys::tjGetErrorStr2(handle));
        (sys::tjGetErrorCode(handle), message.to_string_lossy().into_owned())
    };
    match code {
        sys::TJERR_WARNING => Ok(Some(message)),
        _ => Err(message),
    }
}

/// A TurboJPEG decompressor.
struct Decompressor(NonNull<c_void>);

impl Decompressor {
    fn new() -> Result<Self, String> {
        // SAFETY: the function has no requirements.
        let handle = unsafe { sys::tjInitDecompress() };
        NonNull::new(handle).map(Self).ok_or_else(|| "not enough memory to decode it".to_owned())
    }
}

impl Drop for Decompressor {
    fn drop(&mut self) {
        // SAFETY: the handle is a decompressor, destroyed here and nowhere else.
        unsafe { sys::tjDestroy(self.0.as_ptr()) };
    }
}

/// The parts of a file's headers that describe the image.
#[derive(Debug, Default)]
struct Frame {
    width: u32,
    height: u32,
    /// Bytes per pixel.
    components: u8,
    /// Whether the file has Adobe's marker: CMYK is then stored inverted.
    is_adobes: bool,
}

impl Frame {
    /// Reads the segments of a file up to its end.
    ///
    /// Source: ITU-T T.81, annex B.
    fn of(jpeg: &[u8]) -> Result<Self, String> {
        const END_OF_IMAGE: u8 = 0xd9;
        const ADOBE: u8 = 0xee;
        let cut_off = || "it is truncated".to_owned();
        let mut frame = None;
        let mut is_adobes = false;
        let mut at = 2;
        loop {
            let (marker, after) = next_marker(jpeg, at).ok_or_else(cut_off)?;
            if marker == END_OF_IMAGE {
                break;
            }
            let segment = jpeg.get(after..).and_then(segment).ok_or_else(cut_off)?;
            match marker {
                // Start of a frame; the three excluded markers are tables and a reserved one.
                0xc0..=0xcf if !matches!(marker, 0xc4 | 0xc8 | 0xcc) => {
                    let &[_, h1, h0, w1, w0, components, ..] = segment else {
                        return Err("its header is too short".to_owned());
                    };
                    let [height, width] = [[h1, h0], [w1, w0]].map(u16::from_be_bytes);
                    let (width, height) = (u32::from(width), u32::from(height));
                    frame.get_or_insert(Self { width, height, components, is_adobes: false });
                }
                ADOBE => is_adobes |= segment.starts_with(b"Adobe"),
                _ => {}
            }
            at = after + 2 + segment.len();
        }
        match frame {
            Some(frame) if frame.width > 0 && frame.height > 0 => Ok(Self { is_adobes, ..frame }),
            Some(_) => Err("its width or height is 0".to_owned()),
            None => Err("it has no image".to_owned()),
        }
    }
}

/// Returns the next marker from `at` on, except those within a scan, and the offset of what follows it.
fn next_marker(jpeg: &[u8], at: usize) -> Option<(u8, usize)> {
    let is_marker = |pair: &[u8]| pair[0] == 0xff && !matches!(pair[1], 0x00 | 0xff | 0xd0..=0xd7);
    let found = jpeg.get(at..)?.windows(2).position(is_marker)?;
    Some((jpeg[at + found + 1], at + found + 2))
}

/// Returns a segment without its length, which is at the start of `bytes`.
fn segment(bytes: &[u8]) -> Option<&[u8]> {
    let (len, rest) = bytes.split_first_chunk()?;
    rest.get(..usize::from(u16::from_be_bytes(*len)).checked_sub(2)?)
}

/// Converts CMYK to RGB as Pillow does, without a colour profile. With `inverted`, 255 stands for no ink.
fn rgb_of_cmyk(pixels: &[u8], inverted: bool) -> Vec<u8> {
    // The rounded product of two fractions of 255.
    let times = |a: u8, b: u8| {
        let product = u32::from(a) * u32::from(b) + 128;
        (((product >> 8) + product) >> 8) as u8
    };
    let mut rgb = Vec::with_capacity(pixels.len() / 4 * 3);
    for pixel in pixels.as_chunks::<4>().0 {
        let [cyan, magenta, yellow, black] = if inverted { pixel.map(|ink| !ink) } else { *pixel };
        let light = !black;
        rgb.extend([cyan, magenta, yellow].map(|ink| light.saturating_sub(times(ink, light))));
    }
    rgb
}
