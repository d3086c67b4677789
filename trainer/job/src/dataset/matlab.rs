//! Reads byte arrays from MATLAB's level 5 MAT-files, which `save -v6` and `-v7` write.
//!
//! A file is a header of 128 bytes, followed by elements: a type, a length, and that many bytes. A matrix is
//! an element that consists of elements; it may be compressed. Anything but byte arrays is skipped.
//!
//! Source: MAT-File Format, The MathWorks, R2023b, chapter 1.

use std::io::{self, Read};

use flate2::bufread::ZlibDecoder;

const HEADER_BYTES: usize = 128;

mod element {
    pub const INT8: u32 = 1;
    pub const UINT8: u32 = 2;
    pub const INT32: u32 = 5;
    pub const UINT32: u32 = 6;
    pub const MATRIX: u32 = 14;
    pub const COMPRESSED: u32 = 15;
}

/// MATLAB's classes of numbers: double to uint64. Their values may be stored as bytes if they fit.
const NUMBERS: std::ops::RangeInclusive<u8> = 6..=15;

/// An array of bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Array {
    pub name: String,
    /// As MATLAB's `size`; the first dimension varies fastest.
    pub dimensions: Vec<usize>,
    pub bytes: Vec<u8>,
}

/// Returns the byte arrays of a file, in order.
///
/// # Errors
/// What is wrong with the file.
pub(super) fn read(mut file: &[u8]) -> Result<Vec<Array>, String> {
    let header = take(&mut file, HEADER_BYTES).ok_or("truncated within its header")?;
    if header.starts_with(b"MATLAB 7.3") {
        return Err("a MATLAB 7.3 file, which is HDF5; save it with -v7".to_string());
    }
    match &header[124..] {
        [0x00, 0x01, b'I', b'M'] => {}
        [0x01, 0x00, b'M', b'I'] => {
            return Err("a big-endian MAT-file, which is not supported".to_string());
        }
        _ => return Err("not a MAT-file of level 5".to_string()),
    }
    let mut arrays = Vec::new();
    while !file.is_empty() {
        let (kind, data) = next(&mut file)?;
        match kind {
            element::MATRIX => arrays.extend(matrix(data)?),
            element::COMPRESSED => arrays.extend(compressed(data)?),
            _ => {}
        }
    }
    Ok(arrays)
}

fn compressed(data: &[u8]) -> Result<Option<Array>, String> {
    let failed = |error: io::Error| format!("a variable cannot be decompressed: {error}");
    let mut decoder = ZlibDecoder::new(data);
    let mut tag = [0; 8];
    decoder.read_exact(&mut tag).map_err(failed)?;
    let (kind, len) = (word(&tag[..4]), word(&tag[4..]));
    let mut data = Vec::new();
    decoder.take(u64::from(len)).read_to_end(&mut data).map_err(failed)?;
    if data.len() < len as usize {
        return Err(format!("a variable is truncated: {} of {len} bytes", data.len()));
    }
    if kind == element::MATRIX { matrix(&data) } else { Ok(None) }
}

fn matrix(mut data: &[u8]) -> Result<Option<Array>, String> {
    let flags = next_of(&mut data, element::UINT32)?;
    let dimensions = next_of(&mut data, element::INT32)?;
    let name = String::from_utf8_lossy(next_of(&mut data, element::INT8)?).into_owned();
    if !flags.first().is_some_and(|class| NUMBERS.contains(class)) {
        return Ok(None);
    }
    let (kind, bytes) = next(&mut data)?;
    if kind != element::UINT8 {
        return Ok(None);
    }
    let dimensions: Vec<usize> =
        dimensions.chunks_exact(4).map(|size| word(size) as usize).collect();
    let len = dimensions.iter().try_fold(1usize, |len, size| len.checked_mul(*size));
    if len != Some(bytes.len()) {
        return Err(format!(
            "array {name} has {} elements, but dimensions {dimensions:?}",
            bytes.len()
        ));
    }
    Ok(Some(Array { name, dimensions, bytes: bytes.to_vec() }))
}

fn next_of<'a>(data: &mut &'a [u8], wanted: u32) -> Result<&'a [u8], String> {
    match next(data)? {
        (kind, bytes) if kind == wanted => Ok(bytes),
        (kind, _) => Err(format!("an element is of type {kind} instead of {wanted}")),
    }
}

/// Reads the next element, and returns its type and bytes.
fn next<'a>(data: &mut &'a [u8]) -> Result<(u32, &'a [u8]), String> {
    let truncated = || "truncated".to_string();
    let tag = take(data, 8).ok_or_else(truncated)?;
    let kind = word(&tag[..4]);
    // Up to four bytes may be in the tag itself: the upper half of its type is then their number.
    let packed = (kind >> 16) as usize;
    if packed > 0 {
        let bytes = tag.get(4..4 + packed).ok_or_else(truncated)?;
        return Ok((kind & 0xffff, bytes));
    }
    let bytes = take(data, word(&tag[4..]) as usize).ok_or_else(truncated)?;
    if kind != element::COMPRESSED {
        let padding = bytes.len().next_multiple_of(8) - bytes.len();
        let _ = take(data, padding.min(data.len()));
    }
    Ok((kind, bytes))
}

fn take<'a>(data: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, rest) = data.split_at_checked(count)?;
    *data = rest;
    Some(taken)
}

/// Reads four bytes as a little-endian number.
fn word(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte))
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::ZlibEncoder;

    use super::*;

    fn element(kind: u32, bytes: &[u8]) -> Vec<u8> {
        let mut element = [kind.to_le_bytes(), (bytes.len() as u32).to_le_bytes()].concat();
        element.extend(bytes);
        element.resize(element.len().next_multiple_of(8), 0);
        element
    }

    /// Encodes a short element within the tag, as MATLAB does.
    fn packed(kind: u32, bytes: &[u8]) -> Vec<u8> {
        let mut element = (kind | (bytes.len() as u32) << 16).to_le_bytes().to_vec();
        element.extend(bytes);
        element.resize(8, 0);
        element
    }

    const UINT8_CLASS: u8 = 9;

    fn variable(name: &str, dimensions: &[u32], stored: u32, bytes: &[u8]) -> Vec<u8> {
        let dimensions: Vec<u8> = dimensions.iter().flat_map(|size| size.to_le_bytes()).collect();
        let parts = [
            element(element::UINT32, &[UINT8_CLASS, 0, 0, 0, 0, 0, 0, 0]),
            element(element::INT32, &dimensions),
            packed(element::INT8, name.as_bytes()),
            element(stored, bytes),
        ];
        element(element::MATRIX, &parts.concat())
    }

    fn compress(element: &[u8]) -> Vec<u8> {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(element).unwrap();
        let data = encoder.finish().unwrap();
        let tag = [element::COMPRESSED.to_le_bytes(), (data.len() as u32).to_le_bytes()];
        [tag.as_flattened(), &data].concat()
    }

    fn file(variables: &[Vec<u8>]) -> Vec<u8> {
        let mut file = b"MATLAB 5.0 MAT-file".to_vec();
        file.resize(124, b' ');
        file.extend([0x00, 0x01, b'I', b'M']);
        file.extend(variables.concat());
        file
    }

    /// Writes a file with compressed byte arrays.
    pub(in crate::dataset) fn write(arrays: &[(&str, &[u32], &[u8])]) -> Vec<u8> {
        let variable = |(name, dimensions, bytes): &(&str, &[u32], &[u8])| {
            compress(&variable(name, dimensions, element::UINT8, bytes))
        };
        file(&arrays.iter().map(variable).collect::<Vec<_>>())
    }

    #[test]
    fn arrays_are_read_compressed_or_not_and_others_passed_over() {
        const DOUBLE: u32 = 9;
        let plain = variable("a", &[2, 3], element::UINT8, &[1, 2, 3, 4, 5, 6]);
        let other = variable("d", &[1, 1], DOUBLE, &1.5f64.to_le_bytes());
        let arrays = read(&file(&[other, compress(&plain), plain])).unwrap();
        let array =
            Array { name: "a".to_string(), dimensions: vec![2, 3], bytes: vec![1, 2, 3, 4, 5, 6] };
        assert_eq!(arrays[0], array);
        assert_eq!(arrays[1], array);
        assert_eq!(arrays.len(), 2);
    }

    #[test]
    fn no_prefix_of_a_file_is_taken_for_the_whole() {
        let variable = variable("a", &[2, 3], element::UINT8, &[1, 2, 3, 4, 5, 6]);
        for whole in [file(std::slice::from_ref(&variable)), file(&[compress(&variable)])] {
            for len in (0..whole.len()).filter(|len| *len != HEADER_BYTES) {
                assert!(read(&whole[..len]).is_err(), "{len} of {} bytes", whole.len());
            }
        }
    }

    #[test]
    fn other_files_are_told_apart() {
        let mut hdf5 = file(&[]);
        hdf5[..10].copy_from_slice(b"MATLAB 7.3");
        assert!(read(&hdf5).unwrap_err().contains("HDF5"));
        assert!(read(&[7; 500]).unwrap_err().contains("not a MAT-file of level 5"));
    }
}
