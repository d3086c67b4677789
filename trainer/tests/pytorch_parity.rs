//! The networks against PyTorch's own numbers, which `reference/make.py` regenerates.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use comm::bootstrap::{Backend, connect};
use comm::env::World;
use common::deviation::larger;
use job::config::{Model, Tta};
use job::network::Network;
use serde::Deserialize;
use tch::{Device, Kind, Reduction, Tensor};
use trainer::checkpoint::{self, State};
use trainer::flat::Flat;
use trainer::model::{Mode, Module};
use trainer::optim::Optimizer;
use trainer::tta;

const TOLERANCE: f64 = 1e-4;

#[derive(Deserialize)]
struct Reference {
    name: String,
    stem: String,
    batch: usize,
    state_dict: Vec<(String, Vec<usize>, String)>,
    eval_logits: Vec<f64>,
    train_logits: Vec<f64>,
    loss: f64,
    gradients: BTreeMap<String, Description>,
    running: BTreeMap<String, Description>,
}

/// Description of a tensor in the reference: norm, dot product with noise, and first elements.
#[derive(Deserialize)]
struct Description {
    norm: f64,
    product: f64,
    first: Vec<f64>,
}

/// Returns the numbers in -1..1 that `noise` in make.py returns.
fn noise(count: usize, phase: f64) -> Tensor {
    let values: Vec<f64> = (0..count)
        .map(|index| {
            let wave = (index as f64 * 12.9898 + phase * 78.233).sin().abs() * 43758.5453;
            2.0 * wave.fract() - 1.0
        })
        .collect();
    Tensor::from_slice(&values)
}

fn fill(flat: &mut Flat) {
    let filled = flat.state_dict().into_iter().enumerate().map(|(number, (name, tensor))| {
        if tensor.kind() == Kind::Int64 {
            return (name, tensor);
        }
        let size = tensor.size();
        let values = noise(tensor.numel(), number as f64 + 1.0);
        let values = if size.len() > 1 {
            values * (6.0 / size[1..].iter().product::<i64>() as f64).sqrt()
        } else if name.ends_with("running_var") || name.ends_with("weight") {
            values * 0.1 + 1.0
        } else {
            values * 0.1
        };
        (name, values.view(size.as_slice()).to_kind(Kind::Float))
    });
    let filled = filled.collect();
    flat.load_state_dict(filled).unwrap();
}

fn close(what: &str, ours: &[f64], theirs: &[f64]) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    // Errors are relative to the largest element: single elements may be near zero by cancellation.
    let scale = theirs.iter().fold(0f64, |scale, value| scale.max(value.abs()));
    for (ours, theirs) in ours.iter().zip(theirs) {
        assert!((ours - theirs).abs() <= TOLERANCE * scale, "{what}: {ours} is not {theirs}");
    }
}

fn compare(what: &str, ours: &Tensor, theirs: &Description) {
    let flat = ours.contiguous().view(-1).to_kind(Kind::Double);
    let norm = flat.norm().double_value(&[]);
    close(&format!("norm of {what}"), &[norm], &[theirs.norm]);
    let probe = noise(flat.numel(), 0.25);
    let product = flat.dot(&probe).double_value(&[]);
    // A product with noise is of the order of the norm, and can be far smaller by cancellation.
    let error = (product - theirs.product).abs();
    assert!(
        error <= TOLERANCE * theirs.norm,
        "{what}: product {product} is not {}",
        theirs.product
    );
    let first = Vec::<f64>::try_from(flat.narrow(0, 0, theirs.first.len() as i64)).unwrap();
    for (ours, theirs_first) in first.iter().zip(&theirs.first) {
        let error = (ours - theirs_first).abs();
        assert!(error <= TOLERANCE * theirs.norm, "{what}: {ours} is not {theirs_first}");
    }
}

fn values(tensor: &Tensor) -> Vec<f64> {
    Vec::<f64>::try_from(tensor.contiguous().view(-1).to_kind(Kind::Double)).unwrap()
}

fn check(reference: &Reference) {
    println!("{} with stem {}", reference.name, reference.stem);
    let model: Model =
        serde_json::from_value(serde_json::json!({"name": reference.name, "stem": reference.stem}))
            .unwrap();
    let network = Network::new(&model, [3, 32, 32], 10);
    let alone = connect(Backend::Shm, World::SINGLE, None, Duration::from_secs(1));
    let mut flat = Flat::new(network.tensors(true), Device::Cpu, &*alone.unwrap()).unwrap();
    fill(&mut flat);
    let network = Module::new(&network, &flat);
    let batch = reference.batch as i64;
    let images = noise(reference.batch * 3 * 32 * 32, 2.5).view([batch, 3, 32, 32]);
    let images = images.to_kind(Kind::Float);
    let labels = (Tensor::arange(batch, (Kind::Int64, Device::Cpu)) * 3).remainder(10);

    let names: Vec<_> = flat
        .state_dict()
        .into_iter()
        .map(|(name, tensor)| {
            let kind = if tensor.kind() == Kind::Int64 { "torch.int64" } else { "torch.float32" };
            (name, tensor.size().iter().map(|&size| size as usize).collect(), kind.to_owned())
        })
        .collect();
    assert_eq!(names, reference.state_dict, "keys, shapes and dtypes of the state dict");

    let eval = tch::no_grad(|| network.forward(&images, Mode::Eval));
    close("logits in eval mode", &values(&eval), &reference.eval_logits);
    let logits = network.forward(&images, Mode::Train);
    close("logits in train mode", &values(&logits), &reference.train_logits);
    let loss = logits.cross_entropy_loss(&labels, None::<&Tensor>, Reduction::Mean, -100, 0.0);
    close("loss", &values(&loss), &[reference.loss]);
    loss.backward();
    let gradients: BTreeMap<_, _> = flat.assemble(&flat.grads, None).into_iter().collect();
    assert_eq!(gradients.len(), reference.gradients.len());
    for (name, gradient) in &gradients {
        compare(&format!("gradient of {name}"), gradient, &reference.gradients[name]);
    }
    for (name, tensor) in flat.state_dict() {
        if let Some(theirs) = reference.running.get(&name) {
            compare(&name, &tensor, theirs);
        }
    }
}

#[test]
fn logits_averaged_over_views_are_those_of_airbench_in_pytorch() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/reference/tta.json");
    let reference: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let network = Network::new(&Model::default(), [3, 32, 32], 10);
    let alone = connect(Backend::Shm, World::SINGLE, None, Duration::from_secs(1));
    let mut flat = Flat::new(network.tensors(true), Device::Cpu, &*alone.unwrap()).unwrap();
    fill(&mut flat);
    let model = Module::new(&network, &flat);
    let images = noise(8 * 3 * 32 * 32, 2.5).view([8, 3, 32, 32]).to_kind(Kind::Float);
    for (tta, name) in [(Tta::None, "none"), (Tta::Flip, "flip"), (Tta::MultiCrop, "multi_crop")] {
        let expected: Vec<f64> = serde_json::from_value(reference[name].clone()).unwrap();
        let found = values(&tch::no_grad(|| tta::logits(&model, &images, tta)));
        let off = found.iter().zip(&expected).map(|(one, other)| (one - other).abs());
        println!("{name}: largest deviation {:e}", off.fold(0.0, larger));
        close(name, &found, &expected);
    }
}

#[test]
fn logits_loss_and_every_gradient_are_those_of_pytorch() {
    tch::set_num_threads(1);
    let references: Vec<Reference> =
        serde_json::from_str(include_str!("reference/resnet.json")).unwrap();
    assert_eq!(references.len(), 3);
    for reference in &references {
        check(reference);
    }
}

/// Returns the Python named by `PYTHON`, or the one that `make setup` installs.
fn python() -> std::path::PathBuf {
    let own = concat!(env!("CARGO_MANIFEST_DIR"), "/../.deps/venv/bin/python");
    std::env::var_os("PYTHON").map_or_else(|| own.into(), Into::into)
}

#[test]
fn a_checkpoint_loads_into_the_pytorch_module_strictly() {
    let python = python();
    let imports = Command::new(&python).args(["-c", "import torch, numpy"]).output();
    if !imports.is_ok_and(|output| output.status.success()) {
        println!("skipped: {} cannot import torch and numpy; set PYTHON", python.display());
        return;
    }
    let network = Network::new(&Model::default(), [3, 32, 32], 10);
    let alone = connect(Backend::Shm, World::SINGLE, None, Duration::from_secs(1)).unwrap();
    let mut flat = Flat::new(network.tensors(true), Device::Cpu, &*alone).unwrap();
    fill(&mut flat);
    let optimizer = Optimizer::new(&job::config::Optimizer::default(), &flat);
    let folder = tempfile::tempdir().unwrap();
    let state = State::start(1, String::new());
    let saved = checkpoint::save(folder.path(), &flat, &optimizer, None, &state).unwrap();

    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/reference/load.py");
    let mut load = Command::new(python);
    load.arg(script).arg(saved.join("model.safetensors")).args(["resnet18", "notes"]);
    let output = load.env("PYTHONDONTWRITEBYTECODE", "1").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let theirs: Vec<f64> = serde_json::from_slice(&output.stdout).unwrap();
    let images = noise(2 * 3 * 32 * 32, 2.5).view([2, 3, 32, 32]).to_kind(Kind::Float);
    let logits = tch::no_grad(|| Module::new(&network, &flat).forward(&images, Mode::Eval));
    close("logits of the loaded checkpoint", &values(&logits), &theirs);
}
