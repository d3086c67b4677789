//! Lists the files of an image folder, without reading them.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::super::Problem;

/// Version of the decoder, to be raised whenever the same files decode to other pixels: caches of earlier
/// versions are then rebuilt.
const CACHE_VERSION: u32 = 3;

/// The files of an image folder.
#[derive(Debug)]
pub(super) struct Listing {
    root: PathBuf,
    /// Names of the folders in `train`, in order.
    pub classes: Vec<String>,
    /// Training images, ordered by class and file name.
    pub train: Vec<ImageFile>,
    /// Test images, ordered by class and file name.
    pub test: Vec<ImageFile>,
}

/// An image file that has not been read.
#[derive(Debug)]
pub(super) struct ImageFile {
    pub path: PathBuf,
    pub label: u16,
    bytes: u64,
    /// Modification time: seconds and nanoseconds.
    changed: (i64, i64),
}

impl Listing {
    /// Lists the files below `root`.
    pub(super) fn of(root: &Path) -> Result<Self, Problem> {
        let train_root = root.join("train");
        let classes = classes(&train_root)?;
        if classes.is_empty() {
            return Err(Problem::bad(
                &train_root,
                "has no folders; expected one folder of images per class",
            ));
        }
        if classes.len() > usize::from(u16::MAX) {
            let problem =
                format!("has {} classes; at most {} are supported", classes.len(), u16::MAX);
            return Err(Problem::bad(&train_root, problem));
        }
        let train = images(&train_root, &classes, &classes)?;
        let mut has_images = vec![false; classes.len()];
        train.iter().for_each(|image| has_images[usize::from(image.label)] = true);
        if let Some(empty) = has_images.iter().position(|has_images| !has_images) {
            let folder = train_root.join(&classes[empty]);
            return Err(Problem::bad(&folder, "has no PNG or JPEG file in it"));
        }
        let test_root = root.join("test");
        let test_classes = self::classes(&test_root)?;
        if let Some(unknown) = test_classes.iter().find(|name| !classes.contains(name)) {
            let problem = format!("is a class that {} does not have", train_root.display());
            return Err(Problem::bad(&test_root.join(unknown), problem));
        }
        let test = images(&test_root, &test_classes, &classes)?;
        if test.is_empty() {
            return Err(Problem::bad(&test_root, "has no PNG or JPEG file in its folders"));
        }
        Ok(Self { root: root.to_path_buf(), classes, train, test })
    }

    /// Returns a hash that changes when a file is added, removed or changed, and with `shape`.
    pub(super) fn key(&self, shape: [usize; 3]) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&CACHE_VERSION.to_le_bytes());
        for size in shape {
            hasher.update(&(size as u64).to_le_bytes());
        }
        for ImageFile { path, bytes, changed: (seconds, nanoseconds), .. } in
            self.train.iter().chain(&self.test)
        {
            let name = path.strip_prefix(&self.root).unwrap_or(path).as_os_str();
            hasher.update(&(name.len() as u64).to_le_bytes());
            hasher.update(name.as_encoded_bytes());
            hasher.update(&bytes.to_le_bytes());
            hasher.update(&seconds.to_le_bytes());
            hasher.update(&nanoseconds.to_le_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }
}

/// Returns the names of the folders in `folder`, in order. Symbolic links are followed.
fn classes(folder: &Path) -> Result<Vec<String>, Problem> {
    let mut names = Vec::new();
    for path in entries(folder)? {
        let name = path.file_name().unwrap_or_default();
        let name = name.to_str().ok_or_else(|| {
            Problem::bad(&path, "its name is not UTF-8, so it cannot name a class")
        })?;
        if !name.starts_with('.') && path.is_dir() {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// Returns the images in the folders `names` of `folder`, by class and file name. `classes` has the names of
/// all classes, by label.
fn images(folder: &Path, names: &[String], classes: &[String]) -> Result<Vec<ImageFile>, Problem> {
    let mut images = Vec::new();
    for name in names {
        let label = classes.binary_search(name).unwrap_or_default() as u16;
        for path in entries(&folder.join(name))?.into_iter().filter(|path| is_image(path)) {
            let found = fs::metadata(&path).map_err(Problem::read(&path))?;
            if !found.is_file() {
                return Err(Problem::bad(&path, "is not a regular file"));
            }
            let changed = (found.mtime(), found.mtime_nsec());
            images.push(ImageFile { path, label, bytes: found.len(), changed });
        }
    }
    Ok(images)
}

/// Returns whether the name has an image's extension and is not hidden.
fn is_image(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
    let name = path.file_name().unwrap_or_default();
    ["png", "jpg", "jpeg"].iter().any(|known| extension == *known)
        && !name.as_encoded_bytes().starts_with(b".")
}

/// Returns the paths in a folder, in byte order of their names.
fn entries(folder: &Path) -> Result<Vec<PathBuf>, Problem> {
    let read = |error| match std::io::Error::kind(&error) {
        std::io::ErrorKind::NotFound => Problem::NoFolder { folder: folder.to_path_buf() },
        std::io::ErrorKind::NotADirectory => Problem::bad(folder, "is not a folder"),
        _ => Problem::read(folder)(error),
    };
    let mut paths = fs::read_dir(folder)
        .map_err(read)?
        .map(|entry| entry.map(|entry| entry.path()).map_err(read))
        .collect::<Result<Vec<_>, _>>()?;
    paths.sort();
    Ok(paths)
}
