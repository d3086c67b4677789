//! Fashion-MNIST: IDX files, gzip-compressed or not.
//!
//! An IDX file is a magic number (two zero bytes, the type of an element, the number of dimensions),
//! each dimension as a big-endian u32, and the elements.
//!
//! Source: Xiao, Rasul and Vollgraf, Fashion-MNIST, arXiv 1708.07747; the format is described at
//! <http://yann.lecun.com/exdb/mnist/>.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use flate2::read::MultiGzDecoder;

use super::published::{PublishedFile, Size};
use super::{DataSet, Dataset, Images, Limits, Normalization, Problem};

const SIDE: usize = 28;
const CLASSES: [&str; 10] = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
];

pub(super) const FILES: [PublishedFile; 4] = {
    const fn file(name: &'static str) -> PublishedFile {
        PublishedFile { name, size: Size::InHeaderGz }
    }
    [
        file("train-images-idx3-ubyte"),
        file("train-labels-idx1-ubyte"),
        file("t10k-images-idx3-ubyte"),
        file("t10k-labels-idx1-ubyte"),
    ]
};

/// Reads the data set from the files in `folder`.
pub(super) fn load(folder: &Path, limits: Limits) -> Result<DataSet, Problem> {
    let [train_images, train_labels, test_images, test_labels] =
        FILES.map(|file| file.path_in(folder));
    Ok(DataSet {
        name: Dataset::FashionMnist,
        classes: CLASSES.map(String::from).to_vec(),
        train: read_split(&train_images, &train_labels, limits.train)?,
        test: read_split(&test_images, &test_labels, limits.test)?,
        normalization: Normalization::new(&[0.2860], &[0.3530]),
    })
}

fn read_split(images: &Path, labels: &Path, limit: Option<usize>) -> Result<Images, Problem> {
    let (dimensions, mut pixels) = read_idx(images, 3)?;
    let [count, height, width] = dimensions[..] else { unreachable!("three were asked for") };
    if [height, width] != [SIDE; 2] {
        let problem = format!("its images are {height}x{width} instead of {SIDE}x{SIDE}");
        return Err(Problem::bad(images, problem));
    }
    let (label_count, mut numbers) = read_idx(labels, 1)?;
    if label_count[0] != count {
        let name = images.file_name().unwrap_or_default().to_string_lossy();
        let problem = format!("has {} labels for the {count} images of {name}", label_count[0]);
        return Err(Problem::bad(labels, problem));
    }
    if let Some(index) = numbers.iter().position(|label| usize::from(*label) >= CLASSES.len()) {
        let problem = format!("label {index} is {}; expected 0 to 9", numbers[index]);
        return Err(Problem::bad(labels, problem));
    }
    let count = limit.unwrap_or(count).min(count);
    pixels.truncate(count * SIDE * SIDE);
    numbers.truncate(count);
    let labels = numbers.into_iter().map(u16::from).collect();
    Ok(Images { pixels: pixels.into(), labels, shape: [1, SIDE, SIDE] })
}

/// Reads an IDX file of bytes, and returns its dimensions and elements.
fn read_idx(path: &Path, dimensions: u8) -> Result<(Vec<usize>, Vec<u8>), Problem> {
    let file = BufReader::new(File::open(path).map_err(Problem::read(path))?);
    let is_compressed = path.extension().is_some_and(|extension| extension == "gz");
    let mut reader: Box<dyn Read> =
        if is_compressed { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => Problem::bad(path, "truncated"),
        io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => {
            Problem::bad(path, format!("not a valid gzip file: {error}"))
        }
        _ => Problem::read(path)(error),
    };
    let mut word = || {
        let mut bytes = [0; 4];
        reader.read_exact(&mut bytes).map_err(failed).map(|()| u32::from_be_bytes(bytes))
    };
    let (magic, wanted) = (word()?, 0x0800 + u32::from(dimensions));
    if magic != wanted {
        let problem = format!("its magic number is {magic:#010x} instead of {wanted:#010x}");
        return Err(Problem::bad(path, problem));
    }
    let sizes: Vec<usize> =
        (0..dimensions).map(|_| word().map(|size| size as usize)).collect::<Result<_, _>>()?;
    let Some(len) = sizes.iter().try_fold(1usize, |len, size| len.checked_mul(*size)) else {
        return Err(Problem::bad(path, format!("its dimensions {sizes:?} are too large")));
    };
    let mut elements = Vec::new();
    // One byte more than expected, to notice a file that is too long.
    reader.take(len as u64 + 1).read_to_end(&mut elements).map_err(failed)?;
    match elements.len() {
        found if found < len => {
            Err(Problem::bad(path, format!("truncated: {found} elements instead of {len}")))
        }
        found if found > len => Err(Problem::bad(
            path,
            format!("longer than the {len} elements that its header declares"),
        )),
        _ => Ok((sizes, elements)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;
    use crate::config::Data;
    use crate::dataset::{self, prepare};

    fn idx(dimensions: &[u32], elements: &[u8]) -> Vec<u8> {
        let magic = 0x0800 + dimensions.len() as u32;
        let header = [&[magic], dimensions].concat();
        header.iter().flat_map(|word| word.to_be_bytes()).chain(elements.iter().copied()).collect()
    }

    fn gz(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    /// Writes images of which number n has all pixels n and label n % 10: 12 training images, and 5 test
    /// images whose files are not compressed.
    fn write_all(folder: &Path) {
        let images = |count: u32| {
            let pixels: Vec<u8> = (0..count).flat_map(|n| [n as u8; SIDE * SIDE]).collect();
            idx(&[count, 28, 28], &pixels)
        };
        let labels =
            |count: u32| idx(&[count], &(0..count).map(|n| (n % 10) as u8).collect::<Vec<_>>());
        fs::write(folder.join("train-images-idx3-ubyte.gz"), gz(&images(12))).unwrap();
        fs::write(folder.join("train-labels-idx1-ubyte.gz"), gz(&labels(12))).unwrap();
        fs::write(folder.join("t10k-images-idx3-ubyte"), images(5)).unwrap();
        fs::write(folder.join("t10k-labels-idx1-ubyte"), labels(5)).unwrap();
    }

    fn read(root: &Path) -> Result<DataSet, dataset::DataError> {
        let data = Data {
            dataset: Dataset::FashionMnist,
            root: root.to_path_buf(),
            download: false,
            train_images: Some(11),
            ..Data::default()
        };
        let source = prepare(&data, None)?;
        dataset::load(&source, &data, 0)
    }

    #[test]
    fn images_and_labels_are_read_compressed_or_not() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("fashion-mnist");
        fs::create_dir(&folder).unwrap();
        write_all(&folder);
        let set = read(root.path()).unwrap();
        assert_eq!((set.train.shape, set.train.len(), set.test.len()), ([1, 28, 28], 11, 5));
        assert_eq!(set.train.labels[..], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0]);
        assert_eq!(set.train.pixels[10 * SIDE * SIDE..].to_vec(), vec![10; SIDE * SIDE]);
        assert_eq!(set.test.pixels[4 * SIDE * SIDE..].to_vec(), vec![4; SIDE * SIDE]);
        assert_eq!(set.classes[9], "Ankle boot");
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said_with_its_name() {
        let images = |bytes: &[u8]| ("train-images-idx3-ubyte.gz", gz(bytes));
        let good = gz(&idx(&[1, 28, 28], &[0; 784]));
        let cases = [
            (images(&idx(&[12], &[0; 12])), "magic number is 0x00000801 instead of 0x00000803"),
            (images(&idx(&[12, 28, 28], &[0; 784])), "truncated: 784 elements instead of 9408"),
            (images(&idx(&[1, 28, 28], &[0; 785])), "longer than the 784 elements"),
            (images(&[0, 0]), "truncated"),
            (images(&idx(&[1, 32, 32], &[0; 1024])), "its images are 32x32 instead of 28x28"),
            (images(&idx(&[u32::MAX; 3], &[])), "are too large"),
            (("train-images-idx3-ubyte.gz", b"<html></html>".to_vec()), "not a valid gzip file"),
            (("train-images-idx3-ubyte.gz", good[..good.len() / 2].to_vec()), "truncated"),
            (
                ("train-labels-idx1-ubyte.gz", gz(&idx(&[11], &[0; 11]))),
                "has 11 labels for the 12 images of train-images-idx3-ubyte.gz",
            ),
            (
                (
                    "train-labels-idx1-ubyte.gz",
                    gz(&idx(&[12], &[0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0, 0])),
                ),
                "label 3 is 10; expected 0 to 9",
            ),
        ];
        for ((name, bytes), expected) in cases {
            let root = tempfile::tempdir().unwrap();
            write_all(root.path());
            fs::write(root.path().join(name), bytes).unwrap();
            let error = read(root.path()).unwrap_err();
            assert_eq!(error.exit_code(), crate::ExitCode::Data);
            let error = error.to_string();
            assert!(error.contains(name) && error.contains(expected), "{error}");
            assert!(error.contains("ways to get Fashion-MNIST"), "{error}");
        }
    }

    #[test]
    fn a_file_that_is_missing_beside_others_is_named() {
        let root = tempfile::tempdir().unwrap();
        write_all(root.path());
        fs::remove_file(root.path().join("t10k-labels-idx1-ubyte")).unwrap();
        let error = read(root.path()).unwrap_err().to_string();
        assert!(
            error.contains("t10k-labels-idx1-ubyte.gz: missing, although other files of"),
            "{error}"
        );
    }

    #[test]
    fn the_real_set_has_the_mean_and_deviation_that_are_used() {
        let folder = Path::new("/usr/share/datasets/fashion-mnist");
        if !folder.exists() {
            eprintln!("skipped: dataset-fashion-mnist is not installed");
            return;
        }
        let set = load(folder, Limits::default()).unwrap();
        assert_eq!((set.train.len(), set.test.len()), (60_000, 10_000));
        for label in 0..10 {
            assert_eq!(set.train.labels.iter().filter(|l| **l == label).count(), 6000);
        }
        let values = || set.train.pixels.iter().map(|pixel| f64::from(*pixel) / 255.0);
        let count = set.train.pixels.len() as f64;
        let mean = values().sum::<f64>() / count;
        let std = (values().map(|v| (v - mean).powi(2)).sum::<f64>() / count).sqrt();
        assert!((mean - f64::from(set.normalization.mean[0])).abs() < 5e-5, "{mean}");
        assert!((std - f64::from(set.normalization.std[0])).abs() < 5e-5, "{std}");
    }
}
