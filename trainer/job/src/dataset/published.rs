//! Published data sets: their files, addresses, and whether they are there.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::download::{Origin, Remote};
use super::{DataSet, Limits, Problem, cifar, fashion_mnist, svhn};
use crate::config::Dataset;

/// A published data set.
#[derive(Debug)]
pub struct Published {
    /// Name of the data set, as its authors write it.
    pub(super) title: &'static str,
    /// Name of the folder below `data.root` that a download makes.
    pub(super) folder: &'static str,
    /// Files that must be there.
    pub(super) files: &'static [PublishedFile],
    /// Origin of the files.
    pub(super) origin: Origin<'static>,
    /// Ways to obtain the data set without a download, for the end of an error message.
    pub(super) by_hand: &'static str,
    /// Reads the data set from the files in a folder.
    pub(super) load: fn(&Path, Limits) -> Result<DataSet, Problem>,
}

impl PartialEq for Published {
    fn eq(&self, other: &Self) -> bool {
        self.title == other.title
    }
}

impl Eq for Published {}

/// A file of a published data set.
#[derive(Debug, Clone, Copy)]
pub(super) struct PublishedFile {
    pub name: &'static str,
    pub size: Size,
}

/// What is known about the size of a file before it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Size {
    /// Exactly this many bytes.
    Bytes(u64),
    /// Given by the file's header.
    InHeader,
    /// Given by the file's header; the file may be compressed and end in `.gz`.
    InHeaderGz,
}

const CIFAR10: Published = Published {
    title: "CIFAR-10",
    folder: "cifar-10-batches-bin",
    files: &cifar::CIFAR10_FILES,
    origin: Origin::Archive(Remote::new(
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        "c32a1d4ab5d03f1284b67883e8d87530",
    )),
    by_hand: "put the six .bin files under data.root; or set CIFAR10_DIR to their folder",
    load: cifar::load_cifar10,
};

const CIFAR100: Published = Published {
    title: "CIFAR-100",
    folder: "cifar-100-binary",
    files: &cifar::CIFAR100_FILES,
    origin: Origin::Archive(Remote::new(
        "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        "03b5dce01913d631647c71ecec9e9cb8",
    )),
    by_hand: "put train.bin, test.bin and fine_label_names.txt of the binary version under data.root",
    load: cifar::load_cifar100,
};

/// The addresses and digests are from <https://github.com/zalandoresearch/fashion-mnist>.
const FASHION_MNIST: Published = Published {
    title: "Fashion-MNIST",
    folder: "fashion-mnist",
    files: &fashion_mnist::FILES,
    origin: Origin::Files(&[
        Remote::new(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/train-images-idx3-ubyte.gz",
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        ),
        Remote::new(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/train-labels-idx1-ubyte.gz",
            "25c81989df183df01b3e8a0aad5dffbe",
        ),
        Remote::new(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/t10k-images-idx3-ubyte.gz",
            "bef4ecab320f06d8554ea6380940ec79",
        ),
        Remote::new(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/t10k-labels-idx1-ubyte.gz",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
    ]),
    by_hand: "put the four -ubyte.gz files under data.root; or apt install dataset-fashion-mnist and \
              set data.root to /usr/share/datasets",
    load: fashion_mnist::load,
};

/// The authors publish no digests; these are from torchvision's `SVHN`.
///
/// Source: <http://ufldl.stanford.edu/housenumbers/>.
const SVHN: Published = Published {
    title: "SVHN",
    folder: "svhn",
    files: &svhn::FILES,
    origin: Origin::Files(&[
        Remote::new(
            "http://ufldl.stanford.edu/housenumbers/train_32x32.mat",
            "e26dedcc434d2e4c54c9b2d4a06d8373",
        ),
        Remote::new(
            "http://ufldl.stanford.edu/housenumbers/test_32x32.mat",
            "eb5a983be6a315427106f1b164d9cef3",
        ),
    ]),
    by_hand: "put train_32x32.mat and test_32x32.mat under data.root",
    load: svhn::load,
};

/// Returns the published data set of this name; `None` if it is not a published one.
pub(super) const fn published(dataset: Dataset) -> Option<&'static Published> {
    match dataset {
        Dataset::Cifar10 => Some(&CIFAR10),
        Dataset::Cifar100 => Some(&CIFAR100),
        Dataset::FashionMnist => Some(&FASHION_MNIST),
        Dataset::Svhn => Some(&SVHN),
        Dataset::ImageFolder | Dataset::Synthetic => None,
    }
}

/// State of a data set's files in a folder.
#[derive(Debug)]
pub(super) enum Found {
    /// All files are there, each of the right size.
    Complete(PathBuf),
    /// Files are missing or of the wrong size.
    Bad(Problem),
    /// None of the files is there.
    Absent,
}

impl Published {
    /// Looks for the files in `root` and in the data set's own folder below it. Reads sizes only.
    pub(super) fn find(&self, root: &Path) -> Found {
        match self.find_in(root.to_path_buf()) {
            Found::Absent => self.find_in(root.join(self.folder)),
            found => found,
        }
    }

    /// Looks for the files in one folder.
    pub(super) fn find_in(&self, folder: PathBuf) -> Found {
        if self.files.iter().all(|file| !file.path_in(&folder).exists()) {
            return Found::Absent;
        }
        match self.files.iter().try_for_each(|file| self.check(file, &folder)) {
            Ok(()) => Found::Complete(folder),
            Err(problem) => Found::Bad(problem),
        }
    }

    fn check(&self, file: &PublishedFile, folder: &Path) -> Result<(), Problem> {
        let path = file.path_in(folder);
        file.check_size(&path).map_err(|problem| match problem {
            Problem::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                let problem = format!("missing, although other files of {} are there", self.title);
                Problem::bad(&path, problem)
            }
            other => other,
        })
    }
}

impl PublishedFile {
    /// Returns the path of the file in `folder`, whether it exists or not.
    pub(super) fn path_in(&self, folder: &Path) -> PathBuf {
        let plain = folder.join(self.name);
        match self.size {
            Size::InHeaderGz if !plain.exists() => folder.join(format!("{}.gz", self.name)),
            _ => plain,
        }
    }

    /// Checks whether the file at `path` has the right size.
    pub(super) fn check_size(&self, path: &Path) -> Result<(), Problem> {
        let found = fs::metadata(path).map_err(Problem::read(path))?.len();
        match self.size {
            Size::Bytes(wanted) if found < wanted => {
                Err(Problem::bad(path, format!("truncated: {found} bytes instead of {wanted}")))
            }
            Size::Bytes(wanted) if found > wanted => {
                Err(Problem::bad(path, format!("{found} bytes instead of {wanted}")))
            }
            _ => Ok(()),
        }
    }
}
