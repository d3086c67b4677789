//! CIFAR-10's binary files: a record is one label byte and 3,072 pixel bytes, `[3, 32, 32]`.
//!
//! Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009; the format is
//! described at <https://www.cs.toronto.edu/~kriz/cifar.html>.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::thread;

use super::{DataError, DataSet, Images};

const SHAPE: [usize; 3] = [3, 32, 32];
const IMAGE_BYTES: usize = 3 * 32 * 32;
const RECORD_BYTES: usize = 1 + IMAGE_BYTES;
const RECORDS_PER_FILE: usize = 10_000;
const FILE_BYTES: u64 = (RECORD_BYTES * RECORDS_PER_FILE) as u64;
/// Records read at a time: few enough for the cache, enough for the disk.
const RECORDS_PER_READ: usize = 256;

const TRAIN_FILES: [&str; 5] = [
    "data_batch_1.bin",
    "data_batch_2.bin",
    "data_batch_3.bin",
    "data_batch_4.bin",
    "data_batch_5.bin",
];
const TEST_FILE: &str = "test_batch.bin";
const CLASSES: [&str; 10] =
    ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

/// The folder that the official archive unpacks into.
pub(super) const FOLDER: &str = "cifar-10-batches-bin";

/// What a folder holds of CIFAR-10.
#[derive(Debug)]
pub(super) enum Found {
    /// All files, each of the right size.
    Complete(PathBuf),
    /// Some of it, but not all or not right.
    Bad(DataError),
    /// None of the files.
    Absent,
}

/// Looks in `root` and in the archive's folder below it. Reads sizes only.
pub(super) fn find(root: &Path) -> Found {
    let files = || TRAIN_FILES.iter().chain([&TEST_FILE]);
    for folder in [root.to_path_buf(), root.join(FOLDER)] {
        if files().all(|name| !folder.join(name).exists()) {
            continue;
        }
        return match files().try_for_each(|name| check_size(&folder.join(name))) {
            Ok(()) => Found::Complete(folder),
            Err(error) => Found::Bad(error),
        };
    }
    Found::Absent
}

fn check_size(file: &Path) -> Result<(), DataError> {
    let bad = |problem| DataError::BadFile { file: file.to_path_buf(), problem };
    match fs::metadata(file) {
        Ok(found) if found.len() == FILE_BYTES => Ok(()),
        Ok(found) if found.len() < FILE_BYTES => {
            Err(bad(format!("truncated: {} bytes instead of {FILE_BYTES}", found.len())))
        }
        Ok(found) => Err(bad(format!("{} bytes instead of {FILE_BYTES}", found.len()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(bad("missing, though others of CIFAR-10's files are beside it".to_string()))
        }
        Err(source) => Err(DataError::Read { file: file.to_path_buf(), source }),
    }
}

/// Reads the first `train` and `test` images from the files in `folder`; `None`: all.
pub(super) fn load(
    folder: &Path,
    train: Option<usize>,
    test: Option<usize>,
) -> Result<DataSet, DataError> {
    let all = RECORDS_PER_FILE * TRAIN_FILES.len();
    Ok(DataSet {
        name: "cifar10",
        classes: CLASSES.map(String::from).to_vec(),
        train: read_files(folder, &TRAIN_FILES, train.unwrap_or(all).min(all))?,
        test: read_files(folder, &[TEST_FILE], test.unwrap_or(all).min(RECORDS_PER_FILE))?,
        mean: [0.4914, 0.4822, 0.4465],
        std: [0.2470, 0.2435, 0.2616],
    })
}

/// The first `count` images of `names`, one thread a file.
fn read_files(folder: &Path, names: &[&str], count: usize) -> Result<Images, DataError> {
    let mut pixels = vec![0; count * IMAGE_BYTES];
    let mut labels = vec![0; count];
    thread::scope(|scope| {
        let readers: Vec<_> = names
            .iter()
            .zip(pixels.chunks_mut(RECORDS_PER_FILE * IMAGE_BYTES))
            .zip(labels.chunks_mut(RECORDS_PER_FILE))
            .map(|((name, pixels), labels)| {
                let file = folder.join(name);
                scope.spawn(move || read_file(&file, pixels, labels))
            })
            .collect();
        readers.into_iter().try_for_each(|reader| match reader.join() {
            Ok(read) => read,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })?;
    Ok(Images { pixels, labels, shape: SHAPE })
}

/// Fills `labels` and `pixels` from the first records of `file`.
fn read_file(file: &Path, pixels: &mut [u8], labels: &mut [u8]) -> Result<(), DataError> {
    check_size(file)?;
    let wrong = |source| DataError::Read { file: file.to_path_buf(), source };
    let mut reader = File::open(file).map_err(wrong)?;
    let mut buffer = vec![0; RECORDS_PER_READ * RECORD_BYTES];
    let mut first = 0;
    let portions =
        pixels.chunks_mut(RECORDS_PER_READ * IMAGE_BYTES).zip(labels.chunks_mut(RECORDS_PER_READ));
    for (pixels, labels) in portions {
        let records = &mut buffer[..labels.len() * RECORD_BYTES];
        reader.read_exact(records).map_err(wrong)?;
        let images = pixels.chunks_exact_mut(IMAGE_BYTES).zip(labels.iter_mut());
        for (index, (record, (image, label))) in
            records.chunks_exact(RECORD_BYTES).zip(images).enumerate()
        {
            *label = record[0];
            if usize::from(*label) >= CLASSES.len() {
                let problem = format!("record {} has label {label}, over 9", first + index);
                return Err(DataError::BadFile { file: file.to_path_buf(), problem });
            }
            image.copy_from_slice(&record[1..]);
        }
        first += labels.len();
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Bytes of a file in which pixel and label follow from file and record.
    pub(in crate::dataset) fn file_bytes(file: usize) -> Vec<u8> {
        let mut bytes = vec![0; FILE_BYTES as usize];
        for (index, record) in bytes.chunks_exact_mut(RECORD_BYTES).enumerate() {
            record[0] = (index % 10) as u8;
            record[1..].fill((index / 7 + file * 31) as u8);
        }
        bytes
    }

    /// A folder with all six files.
    pub(in crate::dataset) fn write_all(folder: &Path) {
        fs::create_dir_all(folder).unwrap();
        for (index, name) in TRAIN_FILES.iter().chain([&TEST_FILE]).enumerate() {
            fs::write(folder.join(name), file_bytes(index)).unwrap();
        }
    }

    #[test]
    fn all_images_are_read_in_order() {
        let folder = tempfile::tempdir().unwrap();
        write_all(folder.path());
        let set = load(folder.path(), None, None).unwrap();
        assert_eq!((set.train.len(), set.test.len()), (50_000, 10_000));
        assert_eq!(set.train.pixels.len(), 50_000 * IMAGE_BYTES);
        for index in [0, 1, 255, 256, 9_999, 10_000, 34_567, 49_999] {
            let (file, record) = (index / RECORDS_PER_FILE, index % RECORDS_PER_FILE);
            assert_eq!(set.train.labels[index], (record % 10) as u8);
            let image = &set.train.pixels[index * IMAGE_BYTES..][..IMAGE_BYTES];
            assert!(image.iter().all(|pixel| *pixel == (record / 7 + file * 31) as u8));
        }
        assert_eq!(set.test.pixels[0], 155);
    }

    #[test]
    fn a_limit_takes_the_first_images() {
        let folder = tempfile::tempdir().unwrap();
        write_all(folder.path());
        let all = load(folder.path(), None, None).unwrap();
        let few = load(folder.path(), Some(10_300), Some(7)).unwrap();
        assert_eq!((few.train.len(), few.test.len()), (10_300, 7));
        assert_eq!(few.train.pixels, all.train.pixels[..10_300 * IMAGE_BYTES]);
        assert_ne!(few.hash(), all.hash());
        assert_eq!(few.hash(), load(folder.path(), Some(10_300), Some(7)).unwrap().hash());
    }

    #[test]
    fn a_truncated_file_is_named_with_both_sizes() {
        let folder = tempfile::tempdir().unwrap();
        write_all(folder.path());
        let file = folder.path().join("data_batch_3.bin");
        File::options().write(true).open(&file).unwrap().set_len(30_729_999).unwrap();
        let Found::Bad(error) = find(folder.path()) else { panic!("not seen") };
        let error = error.to_string();
        assert!(
            error.contains("data_batch_3.bin: truncated: 30729999 bytes instead of 30730000"),
            "{error}"
        );
        for way in ["data.download", "data.root", "CIFAR10_DIR"] {
            assert!(error.contains(way), "{error}");
        }
        assert!(load(folder.path(), None, None).is_err());
    }

    #[test]
    fn a_label_over_9_is_named_with_its_record() {
        let folder = tempfile::tempdir().unwrap();
        write_all(folder.path());
        let file = folder.path().join("test_batch.bin");
        let mut bytes = fs::read(&file).unwrap();
        bytes[RECORD_BYTES * 300] = 10;
        fs::write(&file, bytes).unwrap();
        let error = load(folder.path(), Some(1), None).unwrap_err();
        assert_eq!(error.exit_code(), crate::ExitCode::Data);
        let error = error.to_string();
        assert!(error.contains("test_batch.bin: record 300 has label 10, over 9"), "{error}");
    }

    #[test]
    fn a_missing_file_beside_others_is_named() {
        let folder = tempfile::tempdir().unwrap();
        write_all(&folder.path().join(FOLDER));
        fs::remove_file(folder.path().join(FOLDER).join("data_batch_5.bin")).unwrap();
        let Found::Bad(error) = find(folder.path()) else { panic!("not seen") };
        assert!(error.to_string().contains("data_batch_5.bin: missing"), "{error}");
    }
}
