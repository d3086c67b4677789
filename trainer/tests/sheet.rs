//! `trainer augment`, as a user runs it.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use image::RgbImage;
use job::dataset::{self, Source};

const CONFIG: &str = "data: {dataset: synthetic, train_images: 20}";

fn augment(folder: &Path, more: &[&str]) -> Output {
    let config = folder.join("config.yaml");
    fs::write(&config, CONFIG).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_trainer"));
    command.env("OMP_NUM_THREADS", "1").env("OMP_WAIT_POLICY", "passive");
    command.arg("augment").arg(config).arg("--out").arg(folder.join("sheet.png"));
    command.args(more).output().unwrap()
}

fn sheet(folder: &Path, more: &[&str]) -> RgbImage {
    let output = augment(folder, more);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    image::open(folder.join("sheet.png")).unwrap().to_rgb8()
}

#[test]
fn originals_are_shown_as_they_are_and_each_augmentation_in_a_row_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let plain = sheet(folder.path(), &["--images", "3"]);
    let config = job::config::load(&folder.path().join("config.yaml"), &[]).unwrap();
    let data_set = dataset::load(&Source::Synthetic { because: None }, &config.data, 0).unwrap();
    // The first image starts at x = 428, y = 120; each of its pixels is a square of 6x6.
    for (place, pixel) in data_set.train.pixels[..32 * 32 * 3].chunks(3).enumerate() {
        let (x, y) = (428 + 6 * (place as u32 % 32) + 3, 120 + 6 * (place as u32 / 32) + 3);
        assert_eq!(plain.get_pixel(x, y).0, pixel, "pixel {place}");
    }
    let row = 2 * (96 + 8);
    for (augment, rows) in [("[flip]", 3), ("[flip, cutout: {size: 8}]", 5)] {
        let set = format!("data.augment={augment}");
        let changed = sheet(folder.path(), &["--images", "3", "--set", &set]);
        assert_eq!(changed.height(), plain.height() + rows * row, "{augment}");
    }
    let epoch = |epoch| {
        let more = ["--images", "3", "--set", "data.augment=[crop]", "--epoch", epoch];
        sheet(folder.path(), &more)
    };
    let rows_of = |sheet: &RgbImage, from: u32| {
        let rows = (120 + from * row)..(120 + (from + 1) * row - 16);
        rows.flat_map(|y| (428..1000).map(move |x| (x, y)))
            .map(|(x, y)| *sheet.get_pixel(x, y))
            .collect::<Vec<_>>()
    };
    let (first, second) = (epoch("1"), epoch("2"));
    assert!(rows_of(&first, 2) == rows_of(&second, 1), "epoch 2 is epoch 2 in both");
    assert!(rows_of(&first, 1) != rows_of(&second, 1), "another epoch is another crop");
}

#[test]
fn a_wrong_configuration_is_an_error_of_usage() {
    let folder = tempfile::tempdir().unwrap();
    let output = augment(folder.path(), &["--set", "data.augment=[crop: {padding: 40}]"]);
    assert_eq!(output.status.code(), Some(2));
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(message.contains("data.augment[0].crop.padding: 40 is out of range"), "{message}");
}
