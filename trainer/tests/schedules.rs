//! Learning rates are those of PyTorch's schedulers.

#![allow(clippy::unwrap_used)]

mod common;

use common::deviation::larger;
use serde_json::Value;
use trainer::schedule::{LearningRate, Position};

fn furthest(case: &Value, steps_per_epoch: usize) -> f64 {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.yaml");
    // JSON is YAML.
    std::fs::write(&path, case["config"].to_string()).unwrap();
    let config = job::config::load(&path, &[]).unwrap();
    let learning_rate = LearningRate::new(&config, 1, steps_per_epoch);
    let rates = case["rates"].as_array().unwrap().iter().enumerate();
    let differences = rates.map(|(step, expected)| {
        let position = Position { step: step as f64, epochs: step as f64 / steps_per_epoch as f64 };
        let expected = expected.as_f64().unwrap();
        (learning_rate.at(position) - expected).abs() / config.optimizer.lr
    });
    differences.fold(0.0, larger)
}

#[test]
fn rates_are_those_of_pytorch() {
    let reference: Value = serde_json::from_str(include_str!("reference/schedules.json")).unwrap();
    let steps_per_epoch = reference["steps_per_epoch"].as_u64().unwrap() as usize;
    println!("| schedule | largest deviation, as a part of `optimizer.lr` |\n|---|---|");
    for case in reference["cases"].as_array().unwrap() {
        let furthest = furthest(case, steps_per_epoch);
        println!(
            "| `{}` | {furthest:.1e} |",
            case["config"]["schedule"].to_string().replace('"', "")
        );
        assert!(furthest < 1e-12, "{case}");
    }
}
