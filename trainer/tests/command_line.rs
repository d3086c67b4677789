//! How the trainer reports an invalid command line or configuration.

#![allow(clippy::unwrap_used)]

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Output};

fn trainer(args: &[&OsStr]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trainer"));
    command.args(args).args(["--device", "cpu"]).output().unwrap()
}

#[test]
fn what_is_no_utf8_is_a_wrong_command_line_and_no_panic() {
    let strange = OsStr::from_bytes(b"train.epochs=\xff");
    for args in [[OsStr::new("x.yaml"), OsStr::new("--set"), strange].as_slice(), &[strange]] {
        let output = trainer(args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(!stderr.contains("panic"), "{stderr}");
    }
}

#[test]
fn a_value_that_is_not_for_the_cpu_is_named_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("run.yaml");
    for (text, place) in [
        ("comm:\n  backend: nccl\n", ":2:12: comm.backend: nccl is for GPUs"),
        ("performance: {cuda_graph: on}\n", ":1:27: performance.cuda_graph: on is for GPUs"),
    ] {
        std::fs::write(&config, text).unwrap();
        let output = trainer(&[config.as_os_str()]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(&format!("{}{place}", config.display())), "{stderr}");
    }
}

#[test]
fn a_full_disk_behind_standard_output_is_told_and_one_behind_standard_error_is_no_panic() {
    let full = || File::options().write(true).open("/dev/full").unwrap();
    let command = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_trainer"));
        command.args(args);
        command
    };
    let ended = command(&["models"]).stdout(full()).output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(9), "{said}");
    assert!(said.contains("cannot print the answer: No space left on device"), "{said}");

    let ended = command(&["eval", "/nowhere"]).stderr(full()).status().unwrap();
    assert_eq!(ended.code(), Some(2));
}
