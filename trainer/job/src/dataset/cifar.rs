//! CIFAR's binary files. A record is a label byte (for CIFAR-100 preceded by one for the coarse class) and
//! 3,072 pixel bytes, `[3, 32, 32]`.
//!
//! Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009; the formats are
//! described at <https://www.cs.toronto.edu/~kriz/cifar.html>.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::thread;

use super::published::{PublishedFile, Size};
use super::{DataSet, Dataset, Images, Limits, Normalization, Problem};

const SHAPE: [usize; 3] = [3, 32, 32];
const PLANE_BYTES: usize = 32 * 32;
const IMAGE_BYTES: usize = 3 * PLANE_BYTES;
/// Records per read: few enough for the cache, enough for the disk to be efficient.
const RECORDS_PER_READ: usize = 256;

const fn records(name: &'static str, bytes: usize) -> PublishedFile {
    PublishedFile { name, size: Size::Bytes(bytes as u64) }
}

pub(super) const CIFAR10_FILES: [PublishedFile; 6] = {
    const BYTES: usize = 10_000 * (1 + IMAGE_BYTES);
    [
        records("data_batch_1.bin", BYTES),
        records("data_batch_2.bin", BYTES),
        records("data_batch_3.bin", BYTES),
        records("data_batch_4.bin", BYTES),
        records("data_batch_5.bin", BYTES),
        records("test_batch.bin", BYTES),
    ]
};
const CIFAR10_CLASSES: [&str; 10] =
    ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

const CIFAR100_CLASSES: usize = 100;
pub(super) const CIFAR100_FILES: [PublishedFile; 3] = [
    records("train.bin", 50_000 * (2 + IMAGE_BYTES)),
    records("test.bin", 10_000 * (2 + IMAGE_BYTES)),
    PublishedFile { name: "fine_label_names.txt", size: Size::InHeader },
];

/// Layout of the records of a file.
#[derive(Debug, Clone, Copy)]
struct Layout {
    /// Number of bytes before the pixels; the last of them is the label.
    label_bytes: usize,
    classes: usize,
    records_per_file: usize,
}

impl Layout {
    const fn record_bytes(self) -> usize {
        self.label_bytes + IMAGE_BYTES
    }
}

/// Reads CIFAR-10 from the files in `folder`.
pub(super) fn load_cifar10(folder: &Path, limits: Limits) -> Result<DataSet, Problem> {
    let layout = Layout { label_bytes: 1, classes: 10, records_per_file: 10_000 };
    let [train @ .., test] = &CIFAR10_FILES;
    Ok(DataSet {
        name: Dataset::Cifar10,
        classes: CIFAR10_CLASSES.map(String::from).to_vec(),
        train: read_files(folder, layout, train, limits.train)?,
        test: read_files(folder, layout, std::slice::from_ref(test), limits.test)?,
        normalization: Normalization::new(&[0.4914, 0.4822, 0.4465], &[0.2470, 0.2435, 0.2616]),
    })
}

/// Reads CIFAR-100 with its fine labels from the files in `folder`.
pub(super) fn load_cifar100(folder: &Path, limits: Limits) -> Result<DataSet, Problem> {
    let layout =
        |records_per_file| Layout { label_bytes: 2, classes: CIFAR100_CLASSES, records_per_file };
    let [train, test, names] = &CIFAR100_FILES;
    Ok(DataSet {
        name: Dataset::Cifar100,
        classes: read_names(&names.path_in(folder))?,
        train: read_files(folder, layout(50_000), std::slice::from_ref(train), limits.train)?,
        test: read_files(folder, layout(10_000), std::slice::from_ref(test), limits.test)?,
        normalization: Normalization::new(&[0.5071, 0.4865, 0.4409], &[0.2673, 0.2564, 0.2762]),
    })
}

/// Reads class names, one per line.
fn read_names(file: &Path) -> Result<Vec<String>, Problem> {
    let text = fs::read_to_string(file).map_err(Problem::read(file))?;
    let names: Vec<_> =
        text.lines().map(str::trim).filter(|name| !name.is_empty()).map(String::from).collect();
    match names.len() {
        CIFAR100_CLASSES => Ok(names),
        count => Err(Problem::bad(
            file,
            format!("has {count} class names instead of {CIFAR100_CLASSES}"),
        )),
    }
}

/// Reads the first `limit` images of `files`, with one thread per file.
fn read_files(
    folder: &Path,
    layout: Layout,
    files: &[PublishedFile],
    limit: Option<usize>,
) -> Result<Images, Problem> {
    let all = layout.records_per_file * files.len();
    let count = limit.unwrap_or(all).min(all);
    let mut pixels = vec![0; count * IMAGE_BYTES];
    let mut labels = vec![0; count];
    thread::scope(|scope| {
        let readers: Vec<_> = files
            .iter()
            .zip(pixels.chunks_mut(layout.records_per_file * IMAGE_BYTES))
            .zip(labels.chunks_mut(layout.records_per_file))
            .map(|((file, pixels), labels)| {
                scope.spawn(move || read_file(folder, layout, file, pixels, labels))
            })
            .collect();
        readers.into_iter().try_for_each(|reader| match reader.join() {
            Ok(read) => read,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })?;
    Ok(Images { pixels: pixels.into(), labels, shape: SHAPE })
}

/// Fills `labels` and `pixels` with the first records of `file`.
fn read_file(
    folder: &Path,
    layout: Layout,
    file: &PublishedFile,
    pixels: &mut [u8],
    labels: &mut [u16],
) -> Result<(), Problem> {
    let path = file.path_in(folder);
    file.check_size(&path)?;
    let mut reader = File::open(&path).map_err(Problem::read(&path))?;
    let mut buffer = vec![0; RECORDS_PER_READ * layout.record_bytes()];
    let mut first = 0;
    let portions =
        pixels.chunks_mut(RECORDS_PER_READ * IMAGE_BYTES).zip(labels.chunks_mut(RECORDS_PER_READ));
    for (pixels, labels) in portions {
        let records = &mut buffer[..labels.len() * layout.record_bytes()];
        reader.read_exact(records).map_err(Problem::read(&path))?;
        let images = pixels.chunks_exact_mut(IMAGE_BYTES).zip(labels.iter_mut());
        for (index, (record, (image, label))) in
            records.chunks_exact(layout.record_bytes()).zip(images).enumerate()
        {
            let (numbers, planes) = record.split_at(layout.label_bytes);
            *label = u16::from(numbers[layout.label_bytes - 1]);
            if usize::from(*label) >= layout.classes {
                let (record, last) = (first + index, layout.classes - 1);
                let problem = format!("record {record} has label {label}; expected 0 to {last}");
                return Err(Problem::bad(&path, problem));
            }
            interleave(planes, image);
        }
        first += labels.len();
    }
    Ok(())
}

/// Converts `[3, H, W]` to `[H, W, 3]`.
fn interleave(planes: &[u8], image: &mut [u8]) {
    let (red, rest) = planes.split_at(PLANE_BYTES);
    let (green, blue) = rest.split_at(PLANE_BYTES);
    for (pixel, ((r, g), b)) in image.chunks_exact_mut(3).zip(red.iter().zip(green).zip(blue)) {
        pixel.copy_from_slice(&[*r, *g, *b]);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::published::{Found, published};
    use super::*;

    const RECORD_BYTES: usize = 1 + IMAGE_BYTES;

    /// Returns the bytes of a CIFAR-10 file in which pixels and label are determined by file and record;
    /// green is one more than red, and blue one more than green.
    pub(in crate::dataset) fn file_bytes(file: usize) -> Vec<u8> {
        let mut bytes = vec![0; 10_000 * RECORD_BYTES];
        for (index, record) in bytes.chunks_exact_mut(RECORD_BYTES).enumerate() {
            record[0] = (index % 10) as u8;
            for (channel, plane) in record[1..].chunks_exact_mut(PLANE_BYTES).enumerate() {
                plane.fill((index / 7 + file * 31 + channel) as u8);
            }
        }
        bytes
    }

    /// Makes a folder with all six files of CIFAR-10.
    pub(in crate::dataset) fn write_all(folder: &Path) {
        fs::create_dir_all(folder).unwrap();
        for (index, file) in CIFAR10_FILES.iter().enumerate() {
            fs::write(folder.join(file.name), file_bytes(index)).unwrap();
        }
    }

    /// Makes a folder with the three files of CIFAR-100: record n has coarse label n % 20, fine label n %
    /// 100, and pixels n % 251.
    fn write_cifar100(folder: &Path) {
        for (file, count) in [("train.bin", 50_000), ("test.bin", 10_000)] {
            let mut bytes = vec![0; count * (2 + IMAGE_BYTES)];
            for (index, record) in bytes.chunks_exact_mut(2 + IMAGE_BYTES).enumerate() {
                (record[0], record[1]) = ((index % 20) as u8, (index % 100) as u8);
                record[2..].fill((index % 251) as u8);
            }
            fs::write(folder.join(file), bytes).unwrap();
        }
        let names: String = (0..100).map(|class| format!("class-{class}\n")).collect();
        fs::write(folder.join("fine_label_names.txt"), names).unwrap();
    }

    fn limits(train: usize, test: usize) -> Limits {
        Limits { train: Some(train), test: Some(test) }
    }

    fn find(dataset: Dataset, folder: &Path) -> Found {
        published(dataset).unwrap().find(folder)
    }

    #[test]
    fn all_images_are_read_in_order() {
        let folder = tempfile::tempdir().unwrap();
        write_all(folder.path());
        let set = load_cifar10(folder.path(), Limits::default()).unwrap();
        assert_eq!((set.train.len(), set.test.len()), (50_000, 10_000));
        assert_eq!(set.train.pixels.len(), 50_000 * IMAGE_BYTES);
        for index in [0, 1, 255, 256, 9_999, 10_000, 34_567, 49_999] {
            let (file, record) = (index / 10_000, index % 10_000);
            assert_eq!(usize::from(set.train.labels[index]), record % 10);
            let image = &set.train.pixels[index * IMAGE_BYTES..][..IMAGE_BYTES];
            let colour = [0, 1, 2].map(|channel| (record / 7 + file * 31 + channel) as u8);
            assert!(image.chunks_exact(3).all(|pixel| pixel == colour));
        }
        assert_eq!(set.test.pixels[..3], [155, 156, 157]);
    }

    #[test]
    fn a_limit_takes_the_first_images() {
        let folder = tempfile::tempdir().unwrap();
        write_all(folder.path());
        let all = load_cifar10(folder.path(), Limits::default()).unwrap();
        let few = load_cifar10(folder.path(), limits(10_300, 7)).unwrap();
        assert_eq!((few.train.len(), few.test.len()), (10_300, 7));
        assert_eq!(few.train.pixels[..], all.train.pixels[..10_300 * IMAGE_BYTES]);
        assert_ne!(few.hash(), all.hash());
        assert_eq!(few.hash(), load_cifar10(folder.path(), limits(10_300, 7)).unwrap().hash());
    }

    #[test]
    fn cifar100_has_the_fine_labels_and_their_names() {
        let folder = tempfile::tempdir().unwrap();
        write_cifar100(folder.path());
        let Found::Complete(found) = find(Dataset::Cifar100, folder.path()) else { panic!() };
        let set = load_cifar100(&found, limits(300, 200)).unwrap();
        assert_eq!((set.classes.len(), set.classes[42].as_str()), (100, "class-42"));
        assert_eq!((set.train.len(), set.test.len()), (300, 200));
        assert_eq!((set.train.labels[299], set.test.labels[150]), (99, 50));
        assert_eq!(set.train.pixels[299 * IMAGE_BYTES..].to_vec(), vec![48; IMAGE_BYTES]);

        let file = folder.path().join("test.bin");
        let mut bytes = fs::read(&file).unwrap();
        bytes[1] = 100;
        fs::write(&file, bytes).unwrap();
        let problem = load_cifar100(&found, limits(1, 1)).unwrap_err().to_string();
        assert!(
            problem.ends_with("test.bin: record 0 has label 100; expected 0 to 99"),
            "{problem}"
        );

        let names = folder.path().join("fine_label_names.txt");
        fs::write(&names, "apple\n").unwrap();
        let problem = load_cifar100(&found, limits(1, 1)).unwrap_err().to_string();
        let expected = "fine_label_names.txt: has 1 class names instead of 100";
        assert!(problem.ends_with(expected), "{problem}");
    }

    #[test]
    fn a_truncated_file_is_named_with_both_sizes() {
        let folder = tempfile::tempdir().unwrap();
        write_all(folder.path());
        let file = folder.path().join("data_batch_3.bin");
        File::options().write(true).open(&file).unwrap().set_len(30_729_999).unwrap();
        let Found::Bad(problem) = find(Dataset::Cifar10, folder.path()) else { panic!("not seen") };
        let problem = problem.to_string();
        let expected = "data_batch_3.bin: truncated: 30729999 bytes instead of 30730000";
        assert!(problem.contains(expected), "{problem}");
        assert!(load_cifar10(folder.path(), Limits::default()).is_err());
    }

    #[test]
    fn a_label_over_9_is_named_with_its_record() {
        let folder = tempfile::tempdir().unwrap();
        write_all(folder.path());
        let file = folder.path().join("test_batch.bin");
        let mut bytes = fs::read(&file).unwrap();
        bytes[RECORD_BYTES * 300] = 10;
        fs::write(&file, bytes).unwrap();
        let problem = load_cifar10(folder.path(), Limits { train: Some(1), test: None });
        let problem = problem.unwrap_err().to_string();
        assert!(
            problem.contains("test_batch.bin: record 300 has label 10; expected 0 to 9"),
            "{problem}"
        );
    }

    #[test]
    fn a_missing_file_beside_others_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("cifar-10-batches-bin");
        write_all(&inner);
        fs::remove_file(inner.join("data_batch_5.bin")).unwrap();
        let Found::Bad(problem) = find(Dataset::Cifar10, folder.path()) else { panic!("not seen") };
        assert!(problem.to_string().contains("data_batch_5.bin: missing"), "{problem}");
    }
}
