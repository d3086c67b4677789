//! Networks with features that few have are trained by the real program.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::process::Command;

#[test]
fn biases_groups_dropout_and_stochastic_depth_train_whichever_way_convolutions_are_computed() {
    let networks = [
        ("vgg19", "cifar", ""),
        ("resnext50_32x4d", "notes", "zero_init_residual: true"),
        ("wrn16_8", "notes", "dropout: 0.3"),
        ("preact_resnet18", "notes", "stochastic_depth: 0.5"),
        ("resnet20", "cifar", "stochastic_depth: 0.5"),
    ];
    for (name, stem, option) in networks {
        for convolution in ["matmul", "library", "winograd"] {
            let folder = tempfile::tempdir().unwrap();
            let config = folder.path().join("config.yaml");
            let text = format!(
                "model: {{name: {name}, stem: {stem}, {option}}}\n\
                 data: {{dataset: synthetic, train_images: 16, test_images: 4}}\n\
                 train: {{max_steps: 2, batch_size_per_rank: 4}}\n\
                 performance: {{convolution: {convolution}}}\n"
            );
            fs::write(&config, text).unwrap();
            let mut trainer = Command::new(env!("CARGO_BIN_EXE_trainer"));
            trainer.arg(&config).arg("--run-dir").arg(folder.path().join("run"));
            let output = trainer.args(["--device", "cpu"]).output().unwrap();
            let log = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{name}, {convolution}: {log}");
        }
    }
}
