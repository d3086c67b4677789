use std::fs;
use std::path::PathBuf;
use std::thread;

use image::{GrayImage, ImageFormat, Luma, Rgb, RgbImage, Rgba, RgbaImage};
use tempfile::TempDir;

use super::*;
use crate::config::{Dataset, Fallback};
use crate::dataset::{self, DataError, Normalization};

struct Folder(TempDir);

type Change = fn(&Folder);

impl Folder {
    /// Makes two classes, `ant` (red) and `bee` (blue), with three training images and one test image.
    fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        for (class, colour) in [("ant", [200, 0, 0]), ("bee", [0, 0, 100])] {
            for name in ["1.png", "2.PNG", "3.jpeg"] {
                folder.image(&format!("train/{class}/{name}"), 8, 8, colour);
            }
            folder.image(&format!("test/{class}/1.png"), 8, 8, colour);
        }
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn image(&self, name: &str, width: u32, height: u32, colour: [u8; 3]) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let format = ImageFormat::from_path(&path).unwrap();
        RgbImage::from_pixel(width, height, Rgb(colour)).save_with_format(path, format).unwrap();
    }

    fn data(&self) -> Data {
        Data {
            dataset: Dataset::ImageFolder,
            root: self.0.path().to_path_buf(),
            image_size: Some(8),
            ..Data::default()
        }
    }

    fn load(&self, data: &Data) -> Result<DataSet, DataError> {
        let source = dataset::prepare(data, None)?;
        dataset::load(&source, data, 0)
    }

    fn cache(&self) -> PathBuf {
        self.path(".images-8px.cache")
    }

    fn temporary_files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.ends_with(".tmp")).collect()
    }

    /// Returns the cache's inode number, which changes when the cache is rebuilt.
    fn inode(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(self.cache()).unwrap().ino()
    }
}

#[test]
fn images_come_by_class_and_name_with_their_own_mean_and_deviation() {
    let folder = Folder::new();
    fs::write(folder.path("train/ant/notes.txt"), "not an image").unwrap();
    fs::write(folder.path("train/ant/.hidden.png"), "not an image").unwrap();
    let set = folder.load(&folder.data()).unwrap();
    assert_eq!(set.classes, ["ant", "bee"]);
    assert_eq!(
        (&set.train.labels[..], &set.test.labels[..]),
        (&[0, 0, 0, 1, 1, 1][..], &[0, 1][..])
    );
    assert_eq!((set.train.shape, set.train.pixels.len()), ([3, 8, 8], 6 * 192));
    assert_eq!(set.train.pixels[..3], [200, 0, 0]);
    assert_eq!(set.test.pixels[192..195], [0, 0, 100]);
    // JPEG is lossy: pixels may be a little off.
    let Normalization { mean, std } = &set.normalization;
    for (channel, expected) in [(0, 100.0 / 255.0), (2, 50.0 / 255.0)] {
        assert!((mean[channel] - expected).abs() < 0.01, "{mean:?}");
        assert!((std[channel] - expected).abs() < 0.01, "{std:?}");
    }
    assert!(std[1] > 0.0);
    let outline = dataset::outline(&folder.data()).unwrap();
    assert_eq!(outline, Outline { images: [6, 2], shape: [3, 8, 8], classes: 2 });
}

#[test]
fn decoded_images_are_used_again_until_a_file_changes() {
    let folder = Folder::new();
    let first = folder.load(&folder.data()).unwrap();
    let made = folder.inode();
    assert_eq!(folder.load(&folder.data()).unwrap(), first);
    assert_eq!(folder.inode(), made, "nothing has changed");

    let changes: [(&str, Change); 4] = [
        ("a new file", |folder| folder.image("train/bee/4.png", 8, 8, [1, 2, 3])),
        ("a new time", |folder| {
            let file = fs::File::open(folder.path("train/bee/4.png")).unwrap();
            file.set_modified(std::time::UNIX_EPOCH).unwrap();
        }),
        ("another name", |folder| {
            fs::rename(folder.path("train/bee/4.png"), folder.path("train/bee/5.png")).unwrap();
        }),
        ("a file less", |folder| fs::remove_file(folder.path("train/bee/5.png")).unwrap()),
    ];
    let mut before = made;
    for (what, change) in changes {
        change(&folder);
        folder.load(&folder.data()).unwrap();
        assert_ne!(folder.inode(), before, "{what}");
        before = folder.inode();
    }
    assert_eq!(folder.load(&folder.data()).unwrap(), first);
}

#[test]
fn damaged_decoded_images_are_made_anew() {
    let folder = Folder::new();
    let whole = folder.load(&folder.data()).unwrap();
    let bytes = fs::read(folder.cache()).unwrap();
    for damaged in [&bytes[..bytes.len() - 1], &bytes[1..], b"", &[7; 40]] {
        fs::write(folder.cache(), damaged).unwrap();
        assert_eq!(folder.load(&folder.data()).unwrap(), whole);
    }
}

#[test]
fn of_several_callers_one_decodes() {
    let folder = Folder::new();
    let data = folder.data();
    thread::scope(|scope| {
        let callers: Vec<_> = (0..4).map(|_| scope.spawn(|| folder.load(&data).unwrap())).collect();
        let sets: Vec<_> = callers.into_iter().map(|caller| caller.join().unwrap()).collect();
        assert!(sets.iter().all(|set| *set == sets[0]));
    });
    assert_eq!(folder.temporary_files(), [""; 0]);
}

#[test]
fn what_an_interrupted_decoding_has_left_is_removed_by_the_next() {
    let folder = Folder::new();
    let left = crate::files::temporary_name(&folder.cache());
    for name in [left, folder.path("..images-224px.cache.1.tmp")] {
        fs::write(name, "half").unwrap();
    }
    fs::write(folder.path("mine.tmp"), "not of decoding").unwrap();
    folder.load(&folder.data()).unwrap();
    assert_eq!(folder.temporary_files(), ["mine.tmp"]);
}

#[test]
fn a_limit_takes_images_of_every_class() {
    let folder = Folder::new();
    let data = Data { train_images: Some(4), test_images: Some(1), ..folder.data() };
    let set = folder.load(&data).unwrap();
    assert_eq!((&set.train.labels[..], &set.test.labels[..]), (&[0, 0, 1, 1][..], &[0][..]));
    assert_eq!(set.train.pixels.len(), 4 * 192);
}

#[test]
fn broken_images_are_all_named_and_leave_nothing_behind() {
    let folder = Folder::new();
    fs::write(folder.path("train/ant/2.PNG"), "not a png").unwrap();
    let jpeg = fs::read(folder.path("train/bee/3.jpeg")).unwrap();
    fs::write(folder.path("train/bee/3.jpeg"), &jpeg[..jpeg.len() / 3]).unwrap();
    let error = folder.load(&folder.data()).unwrap_err();
    assert_eq!(error.exit_code(), crate::ExitCode::Data);
    let error = error.to_string();
    assert!(error.contains("train/ant/2.PNG: not an image that can be read"), "{error}");
    assert!(error.contains("train/bee/3.jpeg: not an image that can be read"), "{error}");
    assert!(!folder.cache().exists());
}

#[test]
fn a_jpeg_that_is_cut_off_is_not_filled_with_grey() {
    let folder = Folder::new();
    let path = folder.path("noise.jpeg");
    let noise = |x: u32, y: u32| (x * 37 + y * y * 91) as u8;
    RgbImage::from_fn(64, 64, |x, y| Rgb([noise(x, y), noise(y, x), noise(x + y, x)]))
        .save(&path)
        .unwrap();
    let whole = fs::read(&path).unwrap();
    for len in (0..whole.len()).step_by(7) {
        fs::write(&path, &whole[..len]).unwrap();
        let problem = read_image(&path, [3, 8, 8]).unwrap_err().to_string();
        assert!(problem.contains("noise.jpeg: not an image that can be read"), "{problem}");
    }
    // Cameras append data after the end of the image.
    fs::write(&path, [&whole[..], &[0xff, 0xda, 7, 7]].concat()).unwrap();
    read_image(&path, [3, 8, 8]).unwrap();
}

#[test]
fn a_device_or_a_pipe_is_not_read() {
    let problem = read_image(Path::new("/dev/null"), [3, 8, 8]).unwrap_err().to_string();
    assert!(problem.ends_with("not an image that can be read: not a regular file"), "{problem}");
}

#[test]
fn what_is_wrong_with_a_folder_is_said_with_its_name() {
    let cases: [(&str, Change); 6] = [
        ("train: no such folder", |f| fs::remove_dir_all(f.path("train")).unwrap()),
        ("test: no such folder", |f| fs::remove_dir_all(f.path("test")).unwrap()),
        ("train/cat: has no PNG or JPEG file in it", |f| {
            fs::create_dir(f.path("train/cat")).unwrap()
        }),
        ("test/cat: is a class that", |f| fs::create_dir(f.path("test/cat")).unwrap()),
        ("train/ant/9.png: is not a regular file", |f| {
            fs::create_dir(f.path("train/ant/9.png")).unwrap()
        }),
        ("test: has no PNG or JPEG file", |f| {
            fs::remove_file(f.path("test/ant/1.png")).unwrap();
            fs::remove_file(f.path("test/bee/1.png")).unwrap();
        }),
    ];
    for (expected, change) in cases {
        let folder = Folder::new();
        change(&folder);
        let error = folder.load(&folder.data()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(error.contains("data.root/train/CLASS"), "{error}");
        assert_eq!(dataset::outline(&folder.data()).unwrap_err().to_string(), error);
    }
}

#[test]
fn a_missing_folder_falls_back_where_that_is_allowed() {
    let data = Data {
        dataset: Dataset::ImageFolder,
        root: PathBuf::from("/nonexistent"),
        fallback: Fallback::Synthetic,
        ..Data::default()
    };
    let source = dataset::prepare(&data, None).unwrap();
    let Source::Synthetic { because: Some(because) } = source else { panic!("{source:?}") };
    assert!(because.contains("/nonexistent/train: no such folder"), "{because}");
    assert_eq!(dataset::outline(&data).unwrap().images, [10_000, 2_000]);
}

#[test]
fn images_whose_decoded_ones_cannot_be_kept_are_not_replaced() {
    let folder = Folder::new();
    // A folder in place of the lock file, which stops root too, unlike missing write permission.
    fs::create_dir(folder.path(".images.lock")).unwrap();
    let data = Data { fallback: Fallback::Synthetic, ..folder.data() };
    let error = folder.load(&data).unwrap_err().to_string();
    assert!(error.contains(".images.lock: cannot be written: "), "{error}");

    fs::remove_dir(folder.path(".images.lock")).unwrap();
    fs::create_dir(folder.cache()).unwrap();
    let error = folder.load(&data).unwrap_err().to_string();
    assert!(error.contains(".images-8px.cache: cannot be written: "), "{error}");
}

#[test]
fn an_image_is_scaled_to_cover_the_square_and_its_middle_is_taken() {
    let folder = Folder::new();
    // Red, green and blue thirds, side by side: the centre is green.
    let thirds = RgbImage::from_fn(96, 32, |x, _| {
        Rgb([[255, 0, 0], [0, 255, 0], [0, 0, 255]][x as usize / 32])
    });
    let path = folder.path("thirds.png");
    thirds.save(&path).unwrap();
    for side in [32, 16] {
        let pixels = read_image(&path, [3, side, side]).unwrap();
        assert_eq!(pixels.len(), 3 * side * side);
        let middle = &pixels[3 * (side * side / 2 + side / 2)..][..3];
        assert_eq!(middle, [0, 255, 0]);
    }
}

#[test]
fn colours_become_what_the_network_takes() {
    let folder = Folder::new();
    let path = folder.path("any.png");
    GrayImage::from_pixel(4, 4, Luma([9])).save(&path).unwrap();
    assert_eq!(read_image(&path, [3, 4, 4]).unwrap(), vec![9; 48]);
    RgbaImage::from_pixel(4, 4, Rgba([7, 7, 7, 0])).save(&path).unwrap();
    assert_eq!(read_image(&path, [1, 4, 4]).unwrap(), vec![7; 16]);
    assert_eq!(read_image(&path, [3, 4, 4]).unwrap(), vec![7; 48]);
}
