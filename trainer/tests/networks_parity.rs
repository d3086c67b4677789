//! Every family of networks against PyTorch's own numbers, which `reference/make_networks.py` regenerates.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use comm::bootstrap::{Backend, connect};
use comm::env::World;
use common::deviation::larger;
use job::config::{Model, ModelName, Stem};
use job::network::{Network, names};
use serde::Deserialize;
use tch::{Device, Kind, Reduction, Tensor};
use trainer::flat::Flat;
use trainer::model::{Mode, Module};
use trainer::pretrained::load_torchvision;

const TOLERANCE: f64 = 1e-4;
/// Tolerance for gradients if a ReLU cuts off an activation that it did not on the CPU of the reference.
/// Images were chosen so that there no activation lies within rounding of zero, but CPUs round in different
/// orders: on some, ResNet-50's gradients are 2e-3 off. So at most one network in ten may exceed
/// [`TOLERANCE`].
const CUT_OFF_TOLERANCE: f64 = 5e-3;
const CLASSES: usize = 10;
/// Lower bound of the scale of an error, as a fraction of the largest gradient's norm: smaller gradients are
/// sums that all but cancel.
const SMALL: f64 = 1e-3;
/// Norm that rounding may give to a gradient that is zero, as a fraction of the largest gradient's norm.
const ROUNDING: f64 = 1e-5;

#[derive(Deserialize)]
struct References {
    networks: Vec<Reference>,
}

#[derive(Deserialize)]
struct Reference {
    name: ModelName,
    stem: Stem,
    side: usize,
    batch: usize,
    phase: f64,
    parameters: usize,
    eval_logits: Vec<f64>,
    train_logits: Vec<f64>,
    loss: f64,
    /// For each gradient its name, norm, and dot product with a fixed vector; both are 0 if the gradient is.
    gradients: Vec<(String, f64, f64)>,
}

/// Returns the numbers in -1..1 that `noise` in make.py returns.
fn noise(count: usize, phase: f64) -> impl Iterator<Item = f64> {
    (0..count).map(move |index| {
        let wave = (index as f64 * 12.9898 + phase * 78.233).sin().abs() * 43758.5453;
        2.0 * wave.fract() - 1.0
    })
}

/// The table of numbers in -1..1 from which make_networks.py fills tensors; each tensor starts at another
/// place.
struct Table(Vec<f64>);

impl Table {
    const LEN: usize = 1_000_003;
    const SHIFT: usize = 7919;

    fn new() -> Self {
        Self(noise(Self::LEN, 0.75).collect())
    }

    fn tiled(&self, count: usize, place: usize) -> impl Iterator<Item = f64> {
        let start = place * Self::SHIFT % Self::LEN;
        self.0.iter().copied().cycle().skip(start).take(count)
    }

    /// Returns the tensor at index `place` of the state dict, as `fill` in make_networks.py makes it.
    fn fill(&self, place: usize, name: &str, is_norm: bool, size: &[i64]) -> Tensor {
        let count = size.iter().product::<i64>() as usize;
        let values = self.tiled(count, place);
        let values: Vec<f32> = if size.len() > 1 {
            let scale = (6.0 / size[1..].iter().product::<i64>() as f64).sqrt();
            values.map(|value| (value * scale) as f32).collect()
        } else if name.ends_with("running_var") {
            values.map(|value| (1.0 + 0.1 * value) as f32).collect()
        } else if name.ends_with("weight") {
            values.map(|value| (0.5 + 0.1 * value) as f32).collect()
        } else if name.ends_with("bias") && is_norm {
            let side = |value: f64| if value > 0.0 { 1.5 } else { -1.5 };
            values.map(|value| (side(value) + 0.1 * value) as f32).collect()
        } else {
            values.map(|value| (0.1 * value) as f32).collect()
        };
        Tensor::from_slice(&values).view(size)
    }

    fn product(&self, flat: &Tensor) -> f64 {
        let probe: Vec<f64> = self.tiled(flat.numel(), 1).collect();
        flat.dot(&Tensor::from_slice(&probe)).double_value(&[])
    }
}

/// Returns the images of `images_of` in make_networks.py: [batch, 3, side, side].
fn images(batch: usize, side: usize, phase: f64) -> Tensor {
    let count = 3 * side * side;
    let mut noise = noise(batch * count, phase);
    let mut pixels: Vec<f32> = Vec::with_capacity(batch * count);
    for image in 1..=batch {
        let width = 0.4 / image as f64;
        let stripes = (0..count).map(|index| (index as f64 * width).sin());
        pixels
            .extend(stripes.zip(&mut noise).map(|(stripe, noise)| (stripe + 0.25 * noise) as f32));
    }
    Tensor::from_slice(&pixels).view([batch as i64, 3, side as i64, side as i64])
}

fn values(tensor: &Tensor) -> Vec<f64> {
    Vec::<f64>::try_from(tensor.contiguous().view(-1).to_kind(Kind::Double)).unwrap()
}

/// Returns the largest difference, relative to the largest of `theirs`.
fn error(ours: &[f64], theirs: &[f64]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    let scale = theirs.iter().fold(0f64, |scale, value| scale.max(value.abs()));
    let differences = ours.iter().zip(theirs).map(|(ours, theirs)| (ours - theirs).abs() / scale);
    differences.fold(0.0, larger)
}

fn flat_of(network: &Network) -> Flat {
    let alone = connect(Backend::Shm, World::SINGLE, None, Duration::from_secs(1)).unwrap();
    Flat::new(network.tensors(true), Device::Cpu, &*alone).unwrap()
}

fn filled(network: &Network, table: &Table) -> Flat {
    let mut flat = flat_of(network);
    let specs = network.tensors(true);
    let is_norm = |name: &str| {
        let running = name.replace("bias", "running_var");
        specs.iter().any(|spec| spec.name == running)
    };
    let tensors = specs.iter().enumerate().map(|(place, spec)| {
        let size: Vec<i64> = spec.shape.iter().map(|&size| size as i64).collect();
        let tensor = match spec.shape.as_slice() {
            [] => Tensor::from(0i64),
            _ => table.fill(place, &spec.name, is_norm(&spec.name), &size),
        };
        (spec.name.clone(), tensor)
    });
    let tensors = tensors.collect();
    flat.load_state_dict(tensors).unwrap();
    flat
}

/// Returns the name of our tensor in the module that made the reference.
fn their_name(reference: &Reference, name: &str) -> String {
    match reference.stem {
        Stem::Imagenet if reference.name.entry().in_torchvision => names::to_torchvision(name),
        _ => name.to_owned(),
    }
}

/// Compares a network with its reference, and returns the largest error of its gradients.
fn check(reference: &Reference, table: &Table) -> f64 {
    let Reference { name, stem, side, batch, .. } = reference;
    let dropout = name.entry().has_dropout().then_some(0.0);
    let model = Model { name: *name, stem: *stem, dropout, ..Model::default() };
    let network = Network::new(&model, [3, *side, *side], CLASSES);
    assert_eq!(network.parameter_count(), reference.parameters, "{name}");
    let flat = filled(&network, table);
    let module = Module::new(&network, &flat);
    let images = images(*batch, *side, reference.phase);
    let labels =
        (Tensor::arange(*batch as i64, (Kind::Int64, Device::Cpu)) * 3).remainder(CLASSES as i64);

    let eval = tch::no_grad(|| module.forward(&images, Mode::Eval));
    let logits = module.forward(&images, Mode::Train);
    let loss = logits.cross_entropy_loss(&labels, None::<&Tensor>, Reduction::Mean, -100, 0.0);
    loss.backward();

    let logits_error = larger(
        error(&values(&eval), &reference.eval_logits),
        error(&values(&logits), &reference.train_logits),
    );
    let loss_error = error(&values(&loss), &[reference.loss]);
    let gradients_error = gradients_error(reference, &flat, table);
    let line = format!(
        "| {name} | {} | {} | {} | {logits_error:.0e} | {loss_error:.0e} | {gradients_error:.0e} |",
        stem.as_str(),
        network.parameter_count(),
        reference.parameters,
    );
    assert!(logits_error < TOLERANCE, "logits: {line}");
    assert!(loss_error < TOLERANCE, "loss: {line}");
    assert!(gradients_error < CUT_OFF_TOLERANCE, "gradients: {line}");
    println!("{line}");
    gradients_error
}

/// Returns the largest error of any gradient, relative to its norm or to [`SMALL`] of the largest norm,
/// whichever is larger.
fn gradients_error(reference: &Reference, flat: &Flat, table: &Table) -> f64 {
    let mut ours: BTreeMap<_, _> = flat
        .assemble(&flat.grads, None)
        .into_iter()
        .map(|(name, gradient)| (their_name(reference, &name), gradient))
        .collect();
    let largest = reference.gradients.iter().fold(0f64, |largest, (_, norm, _)| largest.max(*norm));
    let mut worst = 0f64;
    for (name, norm, product) in &reference.gradients {
        let gradient = ours.remove(name).unwrap_or_else(|| panic!("we have no {name}"));
        let gradient = gradient.view(-1).to_kind(Kind::Double);
        let own_norm = gradient.norm().double_value(&[]);
        if *norm == 0.0 {
            assert!(own_norm < ROUNDING * largest, "{}'s {name}: {own_norm}", reference.name);
            continue;
        }
        let scale = norm.max(SMALL * largest);
        worst = larger(worst, (own_norm - norm).abs() / scale);
        worst = larger(worst, (table.product(&gradient) - product).abs() / scale);
    }
    assert!(ours.is_empty(), "PyTorch has no {:?}", ours.keys());
    worst
}

#[test]
fn every_family_has_pytorchs_logits_loss_and_gradients() {
    tch::set_num_threads(1);
    let references: References =
        serde_json::from_str(include_str!("reference/networks.json")).unwrap();
    let table = Table::new();
    println!("| network | stem | parameters | PyTorch's | logits | loss | gradients |");
    println!("|---|---|---|---|---|---|---|");
    let errors: Vec<_> = references.networks.iter().map(|it| check(it, &table)).collect();
    let cut_off = errors.iter().filter(|error| **error >= TOLERANCE).count();
    assert!(10 * cut_off <= errors.len(), "gradients of {cut_off} networks are off: {errors:?}");
}

fn write(path: &Path, flat: &Flat, classes: i64) {
    let tensors: Vec<_> = flat
        .state_dict()
        .into_iter()
        .map(|(name, tensor)| {
            let is_head = name.starts_with("linear.");
            let tensor = if is_head { tensor.narrow(0, 0, classes) } else { tensor };
            (names::to_torchvision(&name), tensor)
        })
        .collect();
    Tensor::write_safetensors(&tensors, path).unwrap();
}

#[test]
fn torchvisions_weights_load_and_a_head_of_other_classes_starts_anew() {
    let table = Table::new();
    let model = Model { stem: Stem::Imagenet, ..Model::default() };
    let network = Network::new(&model, [3, 32, 32], CLASSES);
    let theirs = filled(&network, &table);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("resnet18.safetensors");

    for (classes, same_head) in [(CLASSES as i64, true), (7, false)] {
        write(&file, &theirs, classes);
        let mut ours = flat_of(&network);
        load_torchvision(&file, &mut ours).unwrap();
        for ((name, loaded), (_, expected)) in ours.state_dict().iter().zip(theirs.state_dict()) {
            let wanted = !name.starts_with("linear.") || same_head;
            assert_eq!(*loaded == expected, wanted, "{name} with {classes} classes");
        }
    }

    let notes = Network::new(&Model::default(), [3, 32, 32], CLASSES);
    let refused = load_torchvision(&file, &mut flat_of(&notes)).unwrap_err();
    assert_eq!(refused.exit_code(), job::ExitCode::Usage);
    let text = refused.to_string();
    assert!(
        text.contains("conv1.weight has shape [64, 3, 7, 7] instead of [64, 3, 3, 3]"),
        "{text}"
    );
    let missing = load_torchvision(Path::new("/nonexistent"), &mut flat_of(&notes)).unwrap_err();
    let told = "cannot read /nonexistent: No such file or directory (os error 2)";
    assert_eq!((missing.to_string().as_str(), missing.exit_code()), (told, job::ExitCode::Usage));
}
