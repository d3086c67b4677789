//! The Street View House Numbers, cropped to one digit: one MAT-file per split, with the images as `X`,
//! 32x32x3xN, and the digits as `y`, where 10 stands for zero.
//!
//! Source: Netzer et al., Reading Digits in Natural Images with Unsupervised Feature Learning, 2011;
//! <http://ufldl.stanford.edu/housenumbers/>.

use std::fs;
use std::path::Path;

use super::matlab::{self, Array};
use super::published::{PublishedFile, Size};
use super::{DataSet, Dataset, Images, Limits, Normalization, Problem};

const SIDE: usize = 32;
const PLANE_BYTES: usize = SIDE * SIDE;
const IMAGE_BYTES: usize = 3 * PLANE_BYTES;

pub(super) const FILES: [PublishedFile; 2] = [
    PublishedFile { name: "train_32x32.mat", size: Size::InHeader },
    PublishedFile { name: "test_32x32.mat", size: Size::InHeader },
];

/// Reads the data set from the files in `folder`.
pub(super) fn load(folder: &Path, limits: Limits) -> Result<DataSet, Problem> {
    let [train, test] = FILES.map(|file| file.path_in(folder));
    Ok(DataSet {
        name: Dataset::Svhn,
        classes: (0..10).map(|digit| digit.to_string()).collect(),
        train: read_split(&train, limits.train)?,
        test: read_split(&test, limits.test)?,
        normalization: Normalization::new(&[0.4377, 0.4438, 0.4728], &[0.1980, 0.2010, 0.1970]),
    })
}

fn read_split(path: &Path, limit: Option<usize>) -> Result<Images, Problem> {
    let bad = |problem| Problem::bad(path, problem);
    let file = fs::read(path).map_err(Problem::read(path))?;
    let arrays = matlab::read(&file).map_err(bad)?;
    let array = |name: &str| {
        let found = arrays.iter().find(|array| array.name == name);
        found.ok_or_else(|| bad(format!("has no uint8 array named {name}")))
    };
    let Array { dimensions, bytes: columns, .. } = array("X")?;
    let [SIDE, SIDE, 3, count] = dimensions[..] else {
        return Err(bad(format!("its array X is {dimensions:?} instead of 32x32x3xN")));
    };
    let digits = &array("y")?.bytes;
    if digits.len() != count {
        return Err(bad(format!("has {} labels for {count} images", digits.len())));
    }
    let limit = limit.unwrap_or(count).min(count);
    let label = |(index, digit): (usize, &u8)| match digit {
        1..=9 => Ok(u16::from(*digit)),
        10 => Ok(0),
        _ => Err(bad(format!("label {index} is {digit}; expected 1 to 10"))),
    };
    let labels = digits[..limit].iter().enumerate().map(label).collect::<Result<_, _>>()?;
    let mut pixels = vec![0; limit * IMAGE_BYTES];
    for (image, columns) in
        pixels.chunks_exact_mut(IMAGE_BYTES).zip(columns.chunks_exact(IMAGE_BYTES))
    {
        for (place, pixel) in image.chunks_exact_mut(3).enumerate() {
            // MATLAB's first index, the row, varies fastest.
            let source = place % SIDE * SIDE + place / SIDE;
            for (channel, value) in pixel.iter_mut().enumerate() {
                *value = columns[channel * PLANE_BYTES + source];
            }
        }
    }
    Ok(Images { pixels: pixels.into(), labels, shape: [3, SIDE, SIDE] })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Data;
    use crate::dataset::{self, prepare};

    /// Returns `X` of `count` images in which the pixel at row r, column c and channel k of image n is
    /// `r + 2 * c + 70 * k + n`.
    fn images(count: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        for n in 0..count as usize {
            for channel in 0..3 {
                for column in 0..SIDE {
                    bytes.extend((0..SIDE).map(|row| (row + 2 * column + 70 * channel + n) as u8));
                }
            }
        }
        bytes
    }

    fn split(count: u32, digits: &[u8]) -> Vec<u8> {
        let labels = [digits.len() as u32, 1];
        matlab::tests::write(&[("X", &[32, 32, 3, count], &images(count)), ("y", &labels, digits)])
    }

    fn read(root: &Path) -> Result<DataSet, dataset::DataError> {
        let data = Data {
            dataset: Dataset::Svhn,
            root: root.to_path_buf(),
            download: false,
            test_images: Some(2),
            ..Data::default()
        };
        let source = prepare(&data, None)?;
        dataset::load(&source, &data, 0)
    }

    #[test]
    fn columns_become_rows_and_ten_becomes_zero() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("train_32x32.mat"), split(4, &[1, 9, 10, 3])).unwrap();
        fs::write(root.path().join("test_32x32.mat"), split(3, &[10, 2, 3])).unwrap();
        let set = read(root.path()).unwrap();
        assert_eq!((set.train.labels, set.test.labels), (vec![1, 9, 0, 3], vec![0, 2]));
        for (n, image) in set.train.pixels.chunks_exact(IMAGE_BYTES).enumerate() {
            for (place, pixel) in image.chunks_exact(3).enumerate() {
                let red = place / SIDE + 2 * (place % SIDE) + n;
                assert_eq!(pixel, [red, red + 70, red + 140].map(|value| value as u8));
            }
        }
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said_with_its_name() {
        let good = split(2, &[1, 2]);
        let square = matlab::tests::write(&[("X", &[2, 2], &[0; 4]), ("y", &[1, 1], &[1])]);
        let cases = [
            (b"<html>404</html>".to_vec(), "truncated within its header"),
            (good[..good.len() - 9].to_vec(), "truncated"),
            (split(2, &[1, 11]), "label 1 is 11; expected 1 to 10"),
            (split(2, &[1, 0]), "label 1 is 0; expected 1 to 10"),
            (split(2, &[1]), "has 1 labels for 2 images"),
            (square, "its array X is [2, 2] instead of 32x32x3xN"),
            (matlab::tests::write(&[]), "has no uint8 array named X"),
        ];
        for (bytes, expected) in cases {
            let root = tempfile::tempdir().unwrap();
            fs::write(root.path().join("train_32x32.mat"), &good).unwrap();
            fs::write(root.path().join("test_32x32.mat"), bytes).unwrap();
            let error = read(root.path()).unwrap_err().to_string();
            assert!(error.contains("test_32x32.mat") && error.contains(expected), "{error}");
            assert!(error.contains("ways to get SVHN"), "{error}");
        }
    }
}
