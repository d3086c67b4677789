//! Image files are compared with Pillow's pixels, which `reference/make_images.py` regenerates, and a run on
//! them with one on the same pixels in CIFAR-10's format.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use job::dataset::{CIFAR10_DIR, read_image};
use tch::Tensor;

/// Length of a file in CIFAR-10's format: 10,000 records.
const CIFAR_FILE_BYTES: u64 = 30_730_000;
const CIFAR_NORMALIZATION: &str =
    "data.normalization={mean: [0.4914, 0.4822, 0.4465], std: [0.2470, 0.2435, 0.2616]}";

/// Returns files, `[len]` u8, and their pixels, `[H, W, 3]` u8, by name.
fn reference() -> BTreeMap<String, Tensor> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/images.safetensors");
    Tensor::read_safetensors(path).unwrap().into_iter().collect()
}

/// Returns the tensors whose names begin with `start`, by the rest of the name.
fn below<'a>(
    reference: &'a BTreeMap<String, Tensor>,
    start: &'a str,
) -> impl Iterator<Item = (&'a str, &'a Tensor)> {
    reference.iter().filter_map(move |(name, tensor)| Some((name.strip_prefix(start)?, tensor)))
}

fn bytes(tensor: &Tensor) -> Vec<u8> {
    Vec::try_from(tensor.contiguous().view(-1)).unwrap()
}

fn write(path: &Path, content: &Tensor) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes(content)).unwrap();
}

#[test]
fn every_kind_of_jpeg_has_pillows_pixels() {
    let (reference, folder) = (reference(), tempfile::tempdir().unwrap());
    let mut kinds = 0;
    for (name, file) in below(&reference, "file/any/") {
        let path = folder.path().join(name);
        write(&path, file);
        let expected = &reference[&format!("pixels/any/{name}")];
        let [height, width] = [0, 1].map(|dimension| expected.size()[dimension] as usize);
        let pixels = read_image(&path, [3, height, width]).unwrap();
        assert!(pixels == bytes(expected), "{name}");
        kinds += 1;
    }
    assert_eq!(kinds, 9);
}

#[test]
fn a_damaged_jpeg_is_an_image_or_an_error() {
    let (reference, folder) = (reference(), tempfile::tempdir().unwrap());
    let path = folder.path().join("damaged.jpeg");
    let (mut read, mut refused) = (0, 0);
    for (_, file) in below(&reference, "file/any/") {
        let whole = bytes(file);
        for place in (2..whole.len()).step_by(5) {
            let mut damaged = whole.clone();
            damaged[place] = damaged[place].wrapping_mul(31).wrapping_add(97);
            fs::write(&path, damaged).unwrap();
            match read_image(&path, [3, 27, 43]) {
                Ok(pixels) => {
                    assert_eq!(pixels.len(), 3 * 27 * 43);
                    read += 1;
                }
                Err(problem) => {
                    let problem = problem.to_string();
                    assert!(problem.contains("damaged.jpeg: not an image that can"), "{problem}");
                    refused += 1;
                }
            }
        }
    }
    assert!(read > 100 && refused > 100, "{read} read, {refused} refused");
}

/// Writes CIFAR-10's files with the images of `split` in the order of their names; the rest is zeros.
fn write_cifar(folder: &Path, reference: &BTreeMap<String, Tensor>, split: &str, files: &[&str]) {
    let start = format!("pixels/{split}/");
    let mut classes = Vec::new();
    let mut records = Vec::new();
    for (name, pixels) in below(reference, &start) {
        let class = name.split('/').next();
        if classes.last() != Some(&class) {
            classes.push(class);
        }
        records.push(classes.len() as u8 - 1);
        records.extend(bytes(&pixels.permute([2, 0, 1])));
    }
    for (place, file) in files.iter().enumerate() {
        let mut file = File::create(folder.join(file)).unwrap();
        if place == 0 {
            file.write_all(&records).unwrap();
        }
        file.set_len(CIFAR_FILE_BYTES).unwrap();
    }
}

/// Trains on `data`, and returns the losses of all steps and epochs, and the test accuracies.
fn losses(root: &Path, name: &str, data: &[String], cifar: Option<&Path>) -> Vec<String> {
    let config = root.join("config.yaml");
    let text = "model: {name: resnet20, stem: cifar}\n\
                train: {epochs: 2, batch_size_per_rank: 5}\n\
                precision: fp32\nmetrics: {log_every: 1}\nperformance: {convolution: matmul}\n";
    fs::write(&config, text).unwrap();
    let run: PathBuf = root.join(name);
    let mut trainer = Command::new(env!("CARGO_BIN_EXE_trainer"));
    trainer.env("OMP_NUM_THREADS", "1").env("OMP_WAIT_POLICY", "passive");
    match cifar {
        Some(folder) => trainer.env(CIFAR10_DIR, folder),
        None => trainer.env_remove(CIFAR10_DIR),
    };
    trainer.arg(config).arg("--run-dir").arg(&run).args(["--device", "cpu"]);
    let sets = data.iter().flat_map(|change| ["--set", change.as_str()]);
    let output = trainer.args(sets).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let records = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let records =
        records.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    records
        .flat_map(|record| {
            ["loss", "train_loss", "test_loss", "test_accuracy"]
                .map(|key| record.get(key).map(|value| format!("{key} {value}")))
        })
        .flatten()
        .collect()
}

#[test]
fn training_on_files_equals_training_on_their_pixels_in_cifar10s_format() {
    let (reference, root) = (reference(), tempfile::tempdir().unwrap());
    let folder = root.path().join("images");
    for split in ["train", "test"] {
        for (name, file) in below(&reference, &format!("file/{split}/")) {
            write(&folder.join(split).join(name), file);
        }
    }
    let cifar = root.path().join("cifar");
    fs::create_dir(&cifar).unwrap();
    let train = [1, 2, 3, 4, 5].map(|number| format!("data_batch_{number}.bin"));
    write_cifar(&cifar, &reference, "train", &train.each_ref().map(String::as_str));
    write_cifar(&cifar, &reference, "test", &["test_batch.bin"]);

    let from_files =
        ["data.dataset=image_folder".into(), format!("data.root={}", folder.display())];
    let normalized = [&from_files[..], &[CIFAR_NORMALIZATION.into()]].concat();
    let of_files = losses(root.path(), "files", &normalized, None);
    let first = ["data.train_images=20".into(), "data.test_images=10".into()];
    let of_pixels = losses(root.path(), "pixels", &first, Some(&cifar));
    assert_eq!(of_files.len(), 2 * (4 + 3), "{of_files:?}");
    assert_eq!(of_files, of_pixels);
    let by_their_own_mean = losses(root.path(), "own", &from_files, None);
    assert_ne!(by_their_own_mean, of_pixels);
}
