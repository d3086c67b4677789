//! `trainer eval` and `trainer predict`, as a user runs them on what a run has left.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::fs;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Condvar, LazyLock, Mutex};

use comm::control::{ToLauncher, ToTrainer, read_frame, write_frame};
use comm::env::{StartedBy, World};
use image::RgbImage;
use job::dataset::{self, DataSet, Source};
use serde_json::Value;
use tempfile::TempDir;

const CONFIG: &str = "
model: {name: resnet20, stem: cifar}
data: {dataset: synthetic, train_images: 320, test_images: 77}
train: {epochs: 4, batch_size_per_rank: 16, ema_decay: 0.9, ema_every: 2}
precision: fp32
performance: {convolution: matmul}
";

/// A run that has learnt something. Tests share it and do not change it.
static RUN: LazyLock<TempDir> = LazyLock::new(|| trained(&[]));

/// Trains with the configuration and the arguments `more`. Returns the folder that contains the run.
fn trained(more: &[&str]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config.yaml");
    fs::write(&config, CONFIG).unwrap();
    let mut trainer = trainer();
    trainer.arg(config).arg("--run-dir").arg(folder.path().join("run"));
    let trained = trainer.args(["--device", "cpu"]).args(more).output().unwrap();
    assert!(trained.status.success(), "{}", String::from_utf8_lossy(&trained.stderr));
    folder
}

fn run_dir() -> PathBuf {
    RUN.path().join("run")
}

fn trainer() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trainer"));
    command.env("OMP_NUM_THREADS", "1").env("OMP_WAIT_POLICY", "passive");
    command
}

fn json(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}{}", stderr(output)))
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn eval(checkpoint: &Path, more: &[&str]) -> Output {
    trainer().arg("eval").arg(checkpoint).args(["--device", "cpu"]).args(more).output().unwrap()
}

/// Returns the records of epochs in a run's `metrics.jsonl`.
fn epochs(run: &Path) -> Vec<Value> {
    let records = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let records = records.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    records.filter(|record| record["kind"] == "epoch").collect()
}

/// Returns the record of the last epoch.
fn last_epoch(run: &Path) -> Value {
    epochs(run).pop().unwrap()
}

fn close(one: &Value, other: &Value) {
    let (one, other) = (one.as_f64().unwrap(), other.as_f64().unwrap());
    assert!((one - other).abs() < 1e-6 * one.abs(), "{one} is not {other}");
}

#[test]
fn a_checkpoint_is_as_good_as_its_run_has_recorded() {
    let recorded = last_epoch(&run_dir());
    let out = RUN.path().join("out");
    // The run directory, its newest checkpoint, and the link to that are the same.
    for checkpoint in ["", "checkpoints/latest", "checkpoints/epoch-0004"] {
        let more = ["--json", "--out", out.to_str().unwrap()];
        let measured = json(&eval(&run_dir().join(checkpoint), &more));
        assert_eq!(measured["accuracy"], recorded["test_accuracy"]);
        close(&measured["loss"], &recorded["test_loss"]);
        assert_eq!(measured["images"], 77);
    }
    assert!(recorded["test_accuracy"].as_f64().unwrap() > 0.2, "it has learnt nothing");
    let csv = fs::read_to_string(out.join("confusion.csv")).unwrap();
    assert_eq!(csv.lines().count(), 11);
    assert!(image::open(out.join("confusion.png")).unwrap().width() > 500);
    assert!(fs::read_to_string(out.join("confusion.svg")).unwrap().contains("azure-brown"));
}

#[test]
fn epochs_that_are_not_evaluated_train_as_others_do_and_the_last_is_always_evaluated() {
    let folder = trained(&["--set", "eval.every_epochs=3"]);
    let (seldom, always) = (epochs(&folder.path().join("run")), epochs(&run_dir()));
    let evaluated = [false, false, true, true];
    assert_eq!((seldom.len(), always.len()), (4, 4));
    for ((seldom, always), evaluated) in seldom.iter().zip(&always).zip(evaluated) {
        assert_eq!(seldom["train_loss"], always["train_loss"]);
        for measure in ["test_loss", "test_accuracy", "ema_test_loss", "ema_test_accuracy"] {
            let expected = if evaluated { always[measure].clone() } else { Value::Null };
            assert_eq!(seldom[measure], expected, "{measure}");
        }
    }
}

#[test]
fn averaged_weights_are_measured_and_exported_and_leave_training_alone() {
    let recorded = last_epoch(&run_dir());
    let measured = json(&eval(&run_dir(), &["--ema", "--json"]));
    assert_eq!(measured["accuracy"], recorded["ema_test_accuracy"]);
    close(&measured["loss"], &recorded["ema_test_loss"]);
    assert_ne!(recorded["ema_test_loss"], recorded["test_loss"]);
    let tensors = |path: PathBuf| -> HashMap<_, _> {
        tch::Tensor::read_safetensors(path).unwrap().into_iter().collect()
    };
    let exported = RUN.path().join("exported.safetensors");
    let mut export = trainer();
    export.arg("export").arg(run_dir()).args(["--ema", "--format", "notes", "--output"]);
    assert!(export.arg(&exported).output().unwrap().status.success());
    let latest = run_dir().join("checkpoints/latest");
    assert_eq!(tensors(exported), tensors(latest.join("ema.safetensors")));

    let without = trained(&["--set", "train.ema_decay=null", "--set", "train.ema_every=1"]);
    let their_latest = without.path().join("run/checkpoints/latest");
    let model = |checkpoint: &Path| fs::read(checkpoint.join("model.safetensors")).unwrap();
    assert!(model(&their_latest) == model(&latest), "the average has changed what is trained");
    assert!(!their_latest.join("ema.safetensors").exists());
    let refused = eval(&their_latest, &["--ema"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(stderr(&refused).contains("has no averaged weights"), "{}", stderr(&refused));
}

#[test]
fn a_run_with_test_time_augmentation_is_measured_as_it_has_recorded() {
    let folder = trained(&["--set", "eval.tta=multi_crop"]);
    let run = folder.path().join("run");
    let recorded = last_epoch(&run);
    let measured = |more: &[&str]| json(&eval(&run, &[more, &["--json"]].concat()));
    close(&measured(&[])["loss"], &recorded["test_loss"]);
    close(&measured(&["--ema"])["loss"], &recorded["ema_test_loss"]);
    let alone = measured(&["--tta", "none"])["loss"].clone();
    close(&alone, &last_epoch(&run_dir())["test_loss"]);
    let flipped = measured(&["--tta", "flip"])["loss"].clone();
    assert!(flipped != alone && flipped != recorded["test_loss"]);
    let wrong = eval(&run, &["--tta", "mirror"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(stderr(&wrong).contains("unknown value `mirror`"), "{}", stderr(&wrong));
}

#[test]
fn the_classes_of_a_report_add_up_to_the_whole() {
    let measured = json(&eval(&run_dir(), &["--json"]));
    let sum = |key: &str| -> u64 {
        let classes = measured["classes"].as_array().unwrap().iter();
        classes.map(|class| class[key].as_u64().unwrap()).sum()
    };
    assert_eq!(sum("images"), 77);
    let accuracy = measured["accuracy"].as_f64().unwrap();
    assert_eq!(sum("correct") as f64 / 77.0, accuracy);
    let text = String::from_utf8(eval(&run_dir(), &[]).stdout).unwrap();
    assert!(text.contains(&format!("accuracy    {accuracy:.4}")), "{text}");
}

#[test]
fn several_ranks_measure_what_one_does() {
    let one = json(&eval(&run_dir(), &["--json"]));
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("control");
    serve(UnixListener::bind(&socket).unwrap());
    let ranks: Vec<_> = (0..2)
        .map(|rank| {
            let world = World {
                rank,
                world_size: 2,
                local_rank: rank,
                local_world_size: 2,
                started_by: StartedBy::Launcher,
            };
            let mut command = trainer();
            command.arg("eval").arg(run_dir()).args(["--device", "cpu", "--json"]);
            command.envs(world.to_env()).env("LOCKSTEP_CONTROL", &socket);
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    let ends: Vec<_> = ranks.into_iter().map(|rank| rank.wait_with_output().unwrap()).collect();
    assert!(
        ends.iter().all(|end| end.status.success()),
        "{}{}",
        stderr(&ends[0]),
        stderr(&ends[1])
    );
    assert_eq!(ends[1].stdout, b"", "rank 0 speaks for all");
    let two = json(&ends[0]);
    assert_eq!((&one["ranks"], &two["ranks"]), (&1.into(), &2.into()));
    let three = json(&eval(&run_dir(), &["--ranks", "3", "--json", "--set", "comm.backend=mpi"]));
    assert_eq!(three["ranks"], 3);
    for many in [two, three] {
        for key in ["accuracy", "images", "classes", "confusion"] {
            assert_eq!(one[key], many[key], "{key}");
        }
        close(&one["loss"], &many["loss"]);
    }
}

/// Serves a key-value store for ranks, as the launcher does.
fn serve(listener: UnixListener) {
    let board = Arc::new((Mutex::new(HashMap::new()), Condvar::new()));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let board = Arc::clone(&board);
            std::thread::spawn(move || serve_rank(stream.unwrap(), &board));
        }
    });
}

fn serve_rank(mut stream: UnixStream, board: &(Mutex<HashMap<String, String>>, Condvar)) {
    while let Ok(Some(message)) = read_frame::<ToLauncher>(&mut stream) {
        match message {
            ToLauncher::Put { key, value } => {
                board.0.lock().unwrap().insert(key, value);
                board.1.notify_all();
            }
            ToLauncher::Get { key } => {
                let values = board.0.lock().unwrap();
                let values = board.1.wait_while(values, |values| !values.contains_key(&key));
                let value = values.unwrap()[&key].clone();
                write_frame(&mut stream, &ToTrainer::Value { key, value }).unwrap();
            }
            _ => {}
        }
    }
}

/// Returns the data set whose test images the run was evaluated on.
fn test_images() -> DataSet {
    let config = job::config::load(&run_dir().join("config.yaml"), &[]).unwrap();
    dataset::load(&Source::Synthetic { because: None }, &config.data, 0).unwrap()
}

fn write_images(folder: &Path) -> Vec<PathBuf> {
    let set = test_images();
    let images = set.test.pixels.chunks_exact(32 * 32 * 3).enumerate().map(|(index, pixels)| {
        let path = folder.join(format!("{index}.png"));
        RgbImage::from_raw(32, 32, pixels.to_vec()).unwrap().save(&path).unwrap();
        path
    });
    images.collect()
}

fn predict(images: &[PathBuf], more: &[&str]) -> Output {
    let mut command = trainer();
    command.arg("predict").arg(run_dir()).args(images).args(["--device", "cpu"]).args(more);
    command.output().unwrap()
}

#[test]
fn what_is_predicted_is_what_was_measured() {
    let folder = tempfile::tempdir().unwrap();
    let images = write_images(folder.path());
    let answer = json(&predict(&images, &["--json"]));
    let labels = test_images().test.labels;
    let mut correct = 0;
    for (image, label) in answer["images"].as_array().unwrap().iter().zip(&labels) {
        let classes = image["classes"].as_array().unwrap();
        assert_eq!(classes.len(), 5);
        let probabilities: Vec<_> =
            classes.iter().map(|class| class["probability"].as_f64().unwrap()).collect();
        assert!(probabilities.is_sorted_by(|a, b| a >= b), "{probabilities:?}");
        assert!(probabilities.iter().sum::<f64>() < 1.0 + 1e-6, "{probabilities:?}");
        correct += usize::from(classes[0]["label"] == u64::from(*label));
    }
    assert_eq!(
        correct as f64 / labels.len() as f64,
        last_epoch(&run_dir())["test_accuracy"].as_f64().unwrap()
    );
}

#[test]
fn a_broken_image_is_named_and_the_others_are_answered() {
    let folder = tempfile::tempdir().unwrap();
    let mut images = write_images(folder.path())[..2].to_vec();
    let broken = folder.path().join("broken.jpg");
    fs::write(&broken, "not an image").unwrap();
    images.insert(1, broken);
    images.push(folder.path().join("missing.png"));
    let output = predict(&images, &[]);
    assert_eq!(output.status.code(), Some(3));
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(text.lines().count(), 2 * 6, "{text}");
    assert!(stderr(&output).contains("broken.jpg: not an image that can be read"));
    assert!(stderr(&output).contains("missing.png: cannot be read"));

    let answer = json(&predict(&images, &["--json"]));
    assert!(answer["images"][1]["error"].as_str().unwrap().contains("broken.jpg"));
    assert_eq!(answer["images"][2]["classes"].as_array().unwrap().len(), 5);
}

#[test]
fn what_cannot_be_measured_is_said_with_the_right_exit_code() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing");
    let cases: [(&Path, &[&str], i32, &str); 5] = [
        (&missing, &[], 2, "missing: no such checkpoint"),
        (folder.path(), &[], 2, "holds no checkpoint that can be read"),
        (&run_dir(), &["--set", "model.name=resnet34"], 2, "does not fit this configuration"),
        (&run_dir(), &["--ranks", "2", "--set", "model.name=resnet34"], 2, "does not fit this"),
        (
            &run_dir(),
            &["--set", "data.dataset=image_folder", "--set", "data.root=/nonexistent"],
            3,
            "/nonexistent/train: no such folder",
        ),
    ];
    for (checkpoint, more, code, expected) in cases {
        let output = eval(checkpoint, more);
        assert!(stderr(&output).contains(expected), "{}", stderr(&output));
        assert_eq!(output.status.code(), Some(code), "{expected}");
    }
}
