//! Decides what to load, and downloads or decodes it if necessary.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::download::{self, Origin};
use super::published::{Found, Published, published};
use super::{DataError, Problem, Source, image_folder, synthetic};
use crate::config::{Data, Dataset, Facts, Fallback};

/// Makes sure that the data set is available and returns what to load. Cheap if it is: only the sizes of
/// files are read, and for an image folder also their modification times.
///
/// A published data set is looked for under `data.root`, then downloaded if `data.download` allows it. The
/// images of an image folder are decoded if that has not been done. A data set that is not available is
/// replaced by synthetic images if `data.fallback` allows it; files that exist but are bad, or cannot be read
/// or written, are an error, not a reason to fall back. `cifar10_dir` is the value of
/// [`CIFAR10_DIR`](super::CIFAR10_DIR); if given, CIFAR-10 is looked for there only. Several processes may
/// call this at once: one downloads or decodes, the others wait for it.
///
/// # Errors
/// [`DataError`], which names the file or folder, the problem, and the ways to obtain the data.
pub fn prepare(data: &Data, cifar10_dir: Option<&Path>) -> Result<Source, DataError> {
    let found = match (data.dataset, published(data.dataset)) {
        (_, Some(published)) => prepare_published(published, published.origin, data, cifar10_dir),
        (Dataset::ImageFolder, None) => image_folder::prepare(data),
        _ => Ok(Source::Synthetic { because: None }),
    };
    or_fallback(found, data)
}

fn or_fallback(found: Result<Source, Problem>, data: &Data) -> Result<Source, DataError> {
    found.or_else(|problem| {
        let cannot_be_had = matches!(
            problem,
            Problem::Missing { .. }
                | Problem::NoFolder { .. }
                | Problem::Download { .. }
                | Problem::Md5 { .. }
        );
        let error = DataError::new(problem, data.dataset);
        match data.fallback {
            Fallback::Synthetic if cannot_be_had => {
                Ok(Source::Synthetic { because: Some(error.to_string()) })
            }
            _ => Err(error),
        }
    })
}

fn prepare_published(
    published: &'static Published,
    origin: Origin<'_>,
    data: &Data,
    cifar10_dir: Option<&Path>,
) -> Result<Source, Problem> {
    let folder = match cifar10_dir.filter(|_| data.dataset == Dataset::Cifar10) {
        Some(folder) => in_env_dir(published, folder)?,
        None => in_root(published, origin, data)?,
    };
    Ok(Source::Published { published, folder })
}

fn in_env_dir(cifar10: &Published, folder: &Path) -> Result<PathBuf, Problem> {
    let problem = match find_in_or_below(cifar10, folder)? {
        Found::Complete(folder) => return Ok(folder),
        Found::Bad(Problem::BadFile { file, problem }) => {
            let file = file.strip_prefix(folder).unwrap_or(&file);
            format!("where {} is {problem}", file.display())
        }
        Found::Bad(other) => return Err(other),
        Found::Absent if !folder.exists() => "which does not exist".to_string(),
        Found::Absent if !folder.is_dir() => "which is not a folder".to_string(),
        Found::Absent => "which has none of CIFAR-10's .bin files".to_string(),
    };
    Err(Problem::EnvDir { folder: folder.to_path_buf(), problem })
}

fn in_root(published: &Published, origin: Origin<'_>, data: &Data) -> Result<PathBuf, Problem> {
    if let Some(found) = there(published, &data.root) {
        return found;
    }
    if !data.download {
        return Err(Problem::Missing { title: published.title, root: data.root.clone() });
    }
    let _lock = lock(&data.root, ".download.lock")?;
    // Another process may have downloaded it while this one waited for the lock.
    there(published, &data.root).unwrap_or_else(|| download::fetch(published, origin, &data.root))
}

/// Looks in `folder`, and in the only folder within it, of any name, that has files of the data set.
fn find_in_or_below(cifar10: &Published, folder: &Path) -> Result<Found, Problem> {
    let own = cifar10.find(folder);
    if !matches!(own, Found::Absent) || !folder.is_dir() {
        return Ok(own);
    }
    let read = || fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect();
    let below: io::Result<Vec<PathBuf>> = read();
    let mut below = below.map_err(Problem::read(folder))?;
    below.retain(|path| !matches!(cifar10.find_in(path.clone()), Found::Absent));
    below.sort();
    match below.as_slice() {
        [] => Ok(Found::Absent),
        [one] => Ok(cifar10.find_in(one.clone())),
        [one, other, ..] => {
            let [one, other] =
                [one, other].map(|path| path.file_name().unwrap_or_default().display());
            let problem = format!("where both {one} and {other} have CIFAR-10's .bin files");
            Err(Problem::EnvDir { folder: folder.to_path_buf(), problem })
        }
    }
}

/// Returns the folder with the files, or what is wrong with them; `None` if there are none.
fn there(published: &Published, root: &Path) -> Option<Result<PathBuf, Problem>> {
    match published.find(root) {
        Found::Complete(folder) => Some(Ok(folder)),
        Found::Bad(problem) => Some(Err(problem)),
        Found::Absent => None,
    }
}

/// Takes the exclusive lock `name` in `folder`, which is held until the returned file is dropped. Waits for
/// another holder.
///
/// The wait ends: the kernel releases the lock of a process that ends, and downloads have timeouts.
pub(super) fn lock(folder: &Path, name: &str) -> Result<File, Problem> {
    let path = folder.join(name);
    let wrong = Problem::write(&path);
    fs::create_dir_all(folder).map_err(&wrong)?;
    let options = File::options().write(true).create(true).truncate(false).open(&path);
    let file = options.map_err(&wrong)?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        tracing::info!(
            "waiting for another process that is preparing the data set in {}",
            folder.display()
        );
        flock(&file, FlockOperation::LockExclusive).map_err(|error| wrong(error.into()))?;
    }
    Ok(file)
}

/// The facts about a data set that are known before it is read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outline {
    /// Number of training and of test images, according to the configuration. A data set that turns out not
    /// to be available may still be replaced by synthetic images.
    pub images: [usize; 2],
    /// Shape of an image: C, H, W.
    pub shape: [usize; 3],
    /// Number of classes.
    pub classes: usize,
}

/// Returns the outline of the data set that `data` configures. Counts the files of an image folder, and reads
/// nothing else.
///
/// # Errors
/// [`DataError`] if an image folder is missing or invalid, and there is no fallback.
pub fn outline(data: &Data) -> Result<Outline, DataError> {
    let limits = [data.train_images, data.test_images];
    let limited =
        |all: [usize; 2]| [0, 1].map(|split| limits[split].unwrap_or(all[split]).min(all[split]));
    let synthetic = || Outline {
        images: [0, 1].map(|split| limits[split].unwrap_or(synthetic::IMAGES[split])),
        shape: synthetic::SHAPE,
        classes: synthetic::CLASSES,
    };
    if let Some(Facts { images, shape, classes }) = data.dataset.facts() {
        return Ok(Outline { images: limited(images), shape, classes });
    }
    if data.dataset == Dataset::Synthetic {
        return Ok(synthetic());
    }
    match image_folder::outline(data) {
        Ok(outline) => Ok(Outline { images: limited(outline.images), ..outline }),
        Err(Problem::NoFolder { .. }) if data.fallback == Fallback::Synthetic => Ok(synthetic()),
        Err(problem) => Err(DataError::new(problem, data.dataset)),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;
    use crate::dataset::cifar::tests::write_all;
    use crate::dataset::download::tests::{ARCHIVE, ARCHIVE_MD5, Reply, Server, remote};

    const FOLDER: &str = "cifar-10-batches-bin";

    fn cifar10() -> &'static Published {
        published(Dataset::Cifar10).unwrap()
    }

    fn data(root: &Path, fallback: Fallback) -> Data {
        Data { root: root.to_path_buf(), download: false, fallback, ..Data::default() }
    }

    #[test]
    fn files_are_found_in_a_folder_and_below_its_parent() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join(FOLDER);
        write_all(&inner);
        let found = Source::Published { published: cifar10(), folder: inner.clone() };
        let elsewhere = data(Path::new("/nonexistent"), Fallback::None);
        for folder in [folder.path(), &inner] {
            assert_eq!(prepare(&data(folder, Fallback::Synthetic), None).unwrap(), found);
            assert_eq!(prepare(&elsewhere, Some(folder)).unwrap(), found);
        }
    }

    #[test]
    fn the_variable_may_name_the_parent_of_a_folder_of_any_name() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("binary version");
        write_all(&inner);
        fs::create_dir(folder.path().join("other")).unwrap();
        fs::write(folder.path().join("notes.txt"), "x").unwrap();
        let elsewhere = data(Path::new("/nonexistent"), Fallback::None);
        let found = Source::Published { published: cifar10(), folder: inner.clone() };
        assert_eq!(prepare(&elsewhere, Some(folder.path())).unwrap(), found);

        write_all(&folder.path().join("a copy"));
        let error = prepare(&elsewhere, Some(folder.path())).unwrap_err().to_string();
        assert!(error.contains("where both a copy and binary version have"), "{error}");

        fs::remove_dir_all(folder.path().join("a copy")).unwrap();
        fs::write(inner.join("test_batch.bin"), "x").unwrap();
        let error = prepare(&elsewhere, Some(folder.path())).unwrap_err().to_string();
        assert!(error.contains("where binary version/test_batch.bin is truncated"), "{error}");
    }

    #[test]
    fn a_bad_env_dir_is_an_error_even_where_a_fallback_is_allowed() {
        let folder = tempfile::tempdir().unwrap();
        let data = data(folder.path(), Fallback::Synthetic);
        let missing = folder.path().join("missing");
        let error = prepare(&data, Some(&missing)).unwrap_err();
        assert_eq!(error.exit_code(), crate::ExitCode::Data);
        let error = error.to_string();
        assert!(error.contains("CIFAR10_DIR is /"), "{error}");
        assert!(error.contains("missing, which does not exist;"), "{error}");
        let error = prepare(&data, Some(folder.path())).unwrap_err().to_string();
        assert!(error.contains("which has none of CIFAR-10's .bin files"), "{error}");
        fs::write(folder.path().join("data_batch_2.bin"), "x").unwrap();
        let error = prepare(&data, Some(folder.path())).unwrap_err().to_string();
        assert!(error.contains("where data_batch_1.bin is missing"), "{error}");
    }

    #[test]
    fn missing_data_is_an_error_or_falls_back_as_configured() {
        let folder = tempfile::tempdir().unwrap();
        let error = prepare(&data(folder.path(), Fallback::None), None).unwrap_err();
        assert!(error.to_string().contains("data.download is false"), "{error}");
        assert!(error.to_string().contains("set data.download to true; or put"), "{error}");
        let source = prepare(&data(folder.path(), Fallback::Synthetic), None).unwrap();
        let Source::Synthetic { because: Some(because) } = source else { panic!("{source:?}") };
        assert!(because.contains("no CIFAR-10 under"), "{because}");
    }

    #[test]
    fn bad_files_are_an_error_even_where_a_fallback_is_allowed() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("test_batch.bin"), "x").unwrap();
        let error = prepare(&data(folder.path(), Fallback::Synthetic), None).unwrap_err();
        assert!(matches!(error.problem, Problem::BadFile { .. }), "{error}");
    }

    #[test]
    fn the_variable_is_for_cifar10_only() {
        let folder = tempfile::tempdir().unwrap();
        write_all(folder.path());
        let data =
            Data { dataset: Dataset::Cifar100, ..data(Path::new("/nonexistent"), Fallback::None) };
        let error = prepare(&data, Some(folder.path())).unwrap_err().to_string();
        assert!(error.starts_with("no CIFAR-100 under /nonexistent, and data.download"), "{error}");
        assert!(error.contains("ways to get CIFAR-100"), "{error}");
    }

    #[test]
    fn an_outline_is_what_is_loaded() {
        let of = |dataset, train_images| {
            outline(&Data { dataset, train_images, ..Data::default() }).unwrap()
        };
        let fashion = of(Dataset::FashionMnist, Some(100));
        assert_eq!(fashion, Outline { images: [100, 10_000], shape: [1, 28, 28], classes: 10 });
        let cifar100 = of(Dataset::Cifar100, None);
        assert_eq!(
            cifar100,
            Outline { images: [50_000, 10_000], shape: [3, 32, 32], classes: 100 }
        );
        assert_eq!(of(Dataset::Synthetic, Some(50_000)).images, [50_000, 2_000]);
    }

    #[test]
    fn synthetic_images_need_no_files() {
        let data = Data { dataset: Dataset::Synthetic, ..Data::default() };
        assert_eq!(prepare(&data, None).unwrap(), Source::Synthetic { because: None });
    }

    #[test]
    fn of_several_callers_one_downloads() {
        let root = tempfile::tempdir().unwrap();
        let server = Server::start(Arc::clone(&ARCHIVE), &[Reply::Range]);
        let from = Origin::Archive(remote(&server.url, &ARCHIVE_MD5));
        let data = Data { root: root.path().join("new"), ..Data::default() };
        let found = Source::Published { published: cifar10(), folder: data.root.join(FOLDER) };
        thread::scope(|scope| {
            let callers: Vec<_> = (0..3)
                .map(|_| scope.spawn(|| prepare_published(cifar10(), from, &data, None)))
                .collect();
            for caller in callers {
                assert_eq!(caller.join().unwrap().unwrap(), found);
            }
        });
        assert_eq!(server.requests(), [0]);
    }

    #[test]
    fn a_failed_download_falls_back_where_that_is_allowed() {
        let root = tempfile::tempdir().unwrap();
        let server = Server::start(Arc::default(), &[Reply::Status("503 Service Unavailable")]);
        let from = Origin::Archive(remote(&server.url, ""));
        let data = Data { download: true, ..data(root.path(), Fallback::Synthetic) };
        let found = prepare_published(cifar10(), from, &data, None);
        let source = or_fallback(found, &data).unwrap();
        let Source::Synthetic { because: Some(because) } = source else { panic!("{source:?}") };
        assert!(because.contains("the server answers 503"), "{because}");
        let ways = "; ways to get CIFAR-10: put the six .bin files under data.root; or";
        assert!(because.contains(ways), "it advises what has failed: {because}");
    }
}
