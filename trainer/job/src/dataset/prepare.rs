//! Deciding what to load, and getting it where it is missing.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::cifar10::{self, Found};
use super::download::{self, Remote};
use super::{DataError, Source};
use crate::config::{Data, Dataset, Fallback};

/// Makes sure that the data set is there and says what to load. Cheap when it is: sizes only.
///
/// `env_dir`: the value of [`CIFAR10_DIR`](super::CIFAR10_DIR); then nothing is downloaded and there
/// is no fallback. Otherwise CIFAR-10 is looked for under `data.root`, then downloaded where that is
/// allowed, then replaced by synthetic images where that is allowed; files that are there but bad are
/// an error, not a reason to fall back. Several processes may call it at once: one downloads, the
/// others wait for it.
///
/// # Errors
/// [`DataError`], which names the file or folder, what is wrong, and the ways to get the data.
pub fn prepare(data: &Data, env_dir: Option<&Path>) -> Result<Source, DataError> {
    prepare_from(download::OFFICIAL, data, env_dir)
}

fn prepare_from(
    remote: Remote<'_>,
    data: &Data,
    env_dir: Option<&Path>,
) -> Result<Source, DataError> {
    if data.dataset == Dataset::Synthetic {
        return Ok(Source::Synthetic { because: None });
    }
    if let Some(folder) = env_dir {
        return Ok(Source::Cifar10 { folder: in_env_dir(folder)? });
    }
    match in_root(remote, data) {
        Ok(folder) => Ok(Source::Cifar10 { folder }),
        Err(error @ DataError::BadFile { .. }) => Err(error),
        Err(error) if data.fallback == Fallback::Synthetic => {
            Ok(Source::Synthetic { because: Some(error.to_string()) })
        }
        Err(error) => Err(error),
    }
}

fn in_env_dir(folder: &Path) -> Result<PathBuf, DataError> {
    let problem = match cifar10::find(folder) {
        Found::Complete(folder) => return Ok(folder),
        Found::Bad(DataError::BadFile { file, problem }) => {
            let file = file.strip_prefix(folder).unwrap_or(&file);
            format!("where {} is {problem}", file.display())
        }
        Found::Bad(other) => return Err(other),
        Found::Absent if !folder.exists() => "which does not exist".to_string(),
        Found::Absent if !folder.is_dir() => "which is no folder".to_string(),
        Found::Absent => "where none of CIFAR-10's .bin files is".to_string(),
    };
    Err(DataError::EnvDir { folder: folder.to_path_buf(), problem })
}

fn in_root(remote: Remote<'_>, data: &Data) -> Result<PathBuf, DataError> {
    if let Some(found) = there(&data.root) {
        return found;
    }
    if !data.download {
        return Err(DataError::Missing { root: data.root.clone() });
    }
    let _lock = lock(&data.root)?;
    // Another process may have downloaded it while this one waited.
    there(&data.root).unwrap_or_else(|| download::fetch(remote, &data.root))
}

/// The folder with the files, or what is wrong with them; `None` where there is none.
fn there(root: &Path) -> Option<Result<PathBuf, DataError>> {
    match cifar10::find(root) {
        Found::Complete(folder) => Some(Ok(folder)),
        Found::Bad(error) => Some(Err(error)),
        Found::Absent => None,
    }
}

/// Makes the caller the only one who downloads into `root`, until the file is dropped.
///
/// The kernel frees the lock of a process that ends, and a download has deadlines of its own.
fn lock(root: &Path) -> Result<File, DataError> {
    let path = root.join(".download.lock");
    let wrong = |source| DataError::Write { path: path.clone(), source };
    fs::create_dir_all(root).map_err(wrong)?;
    let options = File::options().write(true).create(true).truncate(false).open(&path);
    let file = options.map_err(wrong)?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        tracing::info!("another process is downloading into {}; waiting", root.display());
        flock(&file, FlockOperation::LockExclusive).map_err(|error| wrong(error.into()))?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;
    use crate::dataset::cifar10::FOLDER;
    use crate::dataset::cifar10::tests::write_all;
    use crate::dataset::download::tests::{ARCHIVE, ARCHIVE_MD5, Reply, Server, remote};

    fn data(root: &Path, fallback: Fallback) -> Data {
        Data { root: root.to_path_buf(), download: false, fallback, ..Data::default() }
    }

    #[test]
    fn files_are_found_in_a_folder_and_below_its_parent() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join(FOLDER);
        write_all(&inner);
        let found = Source::Cifar10 { folder: inner.clone() };
        let elsewhere = data(Path::new("/nonexistent"), Fallback::None);
        for folder in [folder.path(), &inner] {
            assert_eq!(prepare(&data(folder, Fallback::Synthetic), None).unwrap(), found);
            assert_eq!(prepare(&elsewhere, Some(folder)).unwrap(), found);
        }
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
        assert!(error.contains("where none of CIFAR-10's .bin files is"), "{error}");
        fs::write(folder.path().join("data_batch_2.bin"), "x").unwrap();
        let error = prepare(&data, Some(folder.path())).unwrap_err().to_string();
        assert!(error.contains("where data_batch_1.bin is missing"), "{error}");
    }

    #[test]
    fn missing_data_is_an_error_or_falls_back_as_configured() {
        let folder = tempfile::tempdir().unwrap();
        let error = prepare(&data(folder.path(), Fallback::None), None).unwrap_err();
        assert!(error.to_string().contains("data.download is false"), "{error}");
        let source = prepare(&data(folder.path(), Fallback::Synthetic), None).unwrap();
        let Source::Synthetic { because: Some(because) } = source else { panic!("{source:?}") };
        assert!(because.contains("no CIFAR-10 under"), "{because}");
    }

    #[test]
    fn bad_files_are_an_error_even_where_a_fallback_is_allowed() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("test_batch.bin"), "x").unwrap();
        let error = prepare(&data(folder.path(), Fallback::Synthetic), None).unwrap_err();
        assert!(matches!(error, DataError::BadFile { .. }), "{error}");
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
        let from = remote(&server.url, &ARCHIVE_MD5);
        let data = Data { root: root.path().join("new"), ..Data::default() };
        let found = Source::Cifar10 { folder: data.root.join(FOLDER) };
        thread::scope(|scope| {
            let callers: Vec<_> =
                (0..3).map(|_| scope.spawn(|| prepare_from(from, &data, None))).collect();
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
        let from = remote(&server.url, "");
        let data = Data { download: true, ..data(root.path(), Fallback::Synthetic) };
        let source = prepare_from(from, &data, None).unwrap();
        let Source::Synthetic { because: Some(because) } = source else { panic!("{source:?}") };
        assert!(because.contains("the server answers 503"), "{because}");
    }
}
