//! Augmentations give torchvision's pictures. Prints the largest deviation of each:
//! `cargo test --release -p trainer --test augmentation -- --nocapture`

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::deviation::larger;
use tch::{Kind, Tensor};
use trainer::data::augment::{Operation, color, rectangle};

/// Returns torchvision's results, and the images that they are made of, by name.
fn references() -> BTreeMap<String, Tensor> {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/augmentation.safetensors");
    Tensor::read_safetensors(path).unwrap().into_iter().collect()
}

/// Returns the tensors whose names begin with `kind`, with the rest of each name split at slashes.
fn of_kind<'a>(
    references: &'a BTreeMap<String, Tensor>,
    kind: &'a str,
) -> impl Iterator<Item = (Vec<String>, &'a Tensor)> {
    references.iter().filter_map(move |(name, tensor)| {
        let rest = name.strip_prefix(kind)?;
        Some((rest.split('/').map(str::to_owned).collect(), tensor))
    })
}

/// The largest deviation from torchvision's bytes, by operation.
#[derive(Default)]
struct Deviations(BTreeMap<String, f64>);

impl Deviations {
    fn compare(&mut self, what: &str, found: &Tensor, expected: &Tensor) {
        assert_eq!(found.size(), expected.size(), "{what}");
        let off = (found - expected.to_kind(Kind::Float)).abs().max().double_value(&[]);
        let largest = self.0.entry(what.to_owned()).or_default();
        *largest = larger(*largest, off);
    }

    fn check(&self, count: usize) {
        assert_eq!(self.0.len(), count, "{:?}", self.0);
        for (what, largest) in &self.0 {
            println!("{what}: largest deviation {largest}");
        }
        assert!(self.0.values().all(|largest| *largest == 0.0), "{:?}", self.0);
    }
}

#[test]
fn operations_of_rand_augment_give_torchvisions_bytes() {
    let references = references();
    let images = references["images"].to_kind(Kind::Float);
    let mut deviations = Deviations::default();
    for (parts, expected) in of_kind(&references, "rand_augment/") {
        let [name, magnitude, sign] = &parts[..] else { panic!("{parts:?}") };
        let operation = Operation::ALL.iter().find(|operation| format!("{operation:?}") == *name);
        let signs = vec![sign.parse::<f64>().unwrap(); images.size()[0] as usize];
        let found = operation.unwrap().apply(&images, magnitude.parse().unwrap(), &signs);
        deviations.compare(name, &found, expected);
    }
    deviations.check(Operation::ALL.len());
}

#[test]
fn changes_of_color_jitter_give_torchvisions_bytes() {
    let references = references();
    let images = references["images"].to_kind(Kind::Float);
    let mut deviations = Deviations::default();
    for (parts, expected) in of_kind(&references, "color_jitter/") {
        let [name, amount] = &parts[..] else { panic!("{parts:?}") };
        let change = match name.as_str() {
            "brightness" => color::brightness,
            "contrast" => color::contrast,
            "saturation" => color::saturation,
            _ => color::hue,
        };
        let amounts = vec![amount.parse().unwrap(); images.size()[0] as usize];
        deviations.compare(name, &change(&images, &amounts), expected);
    }
    deviations.check(4);
}

#[test]
fn rectangles_of_cutmix_are_torchvisions() {
    let references = references();
    let [height, width] = [references["images"].size()[2], references["images"].size()[3]];
    let mut count = 0;
    for (parts, expected) in of_kind(&references, "cutmix/") {
        let [part, row, column] = [0, 1, 2].map(|place| parts[place].parse::<f64>().unwrap());
        let [rows, columns] = rectangle(part, [row as i64, column as i64], [height, width]);
        let found = [rows.start, rows.end, columns.start, columns.end];
        assert_eq!(Tensor::from_slice(&found), *expected, "{parts:?}");
        count += 1;
    }
    assert_eq!(count, 9);
}
