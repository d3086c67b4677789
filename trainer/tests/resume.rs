//! A run that was cut off goes on as if nothing had happened.
//!
//! The trainer is the real program; the test is its launcher, so it knows exactly what the trainer is
//! doing when it kills it.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use comm::control::{Phase, ToLauncher, read_frame};
use job::run_dir::{Resume, RunDir};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

const CONFIG: &str = "
metrics: {log_every: 1, tensorboard: true}
# The uninterrupted run must give the same weights, bit for bit.
performance: {convolution: matmul}
";
const FP32: &str = "
data: {dataset: synthetic, train_images: 72, test_images: 20, augment: [crop, rand_augment, mixup]}
train: {epochs: 3, batch_size_per_rank: 16, label_smoothing: 0.1, ema_decay: 0.9, ema_every: 2}
precision: fp32
";
const FP16: &str = "
data: {dataset: synthetic, train_images: 72, test_images: 20, augment: [crop, flip, cutout]}
train: {epochs: 3, batch_size_per_rank: 16}
precision: fp16
";
/// Steps per epoch: four whole batches and one of 8 images.
const STEPS_PER_EPOCH: u64 = 5;

/// Held while a child is spawned or a run directory is open: a child inherits the lock of any run directory
/// that is open at that time, and these tests run in one process.
static SPAWNING: Mutex<()> = Mutex::new(());

fn spawn(command: &mut Command) -> Child {
    let _lock = SPAWNING.lock().unwrap_or_else(PoisonError::into_inner);
    command.spawn().unwrap()
}

struct Job {
    folder: TempDir,
}

impl Job {
    fn new(training: &str) -> Self {
        Self::logging_every(1, training)
    }

    fn logging_every(steps: u64, training: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log_every = format!("log_every: {steps}");
        let text = format!("{}{training}", CONFIG.replace("log_every: 1", &log_every));
        fs::write(folder.path().join("config.yaml"), text).unwrap();
        Self { folder }
    }

    fn run_dir(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_trainer"));
        command
            .arg(self.folder.path().join("config.yaml"))
            .arg("--run-dir")
            .arg(self.run_dir())
            .args(["--device", "cpu"])
            .env("OMP_NUM_THREADS", "1")
            .env("OMP_WAIT_POLICY", "passive")
            .stderr(Stdio::null());
        command
    }

    /// Runs the trainer to its end.
    fn finish(&self) {
        let output = spawn(self.command().stderr(Stdio::piped())).wait_with_output().unwrap();
        let log = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{:?}: {log}", output.status);
    }

    /// Starts the trainer, and calls `act` with it and each of its messages, until `act` returns true.
    /// Returns how the trainer ended.
    fn watch(&self, mut act: impl FnMut(&Child, &ToLauncher) -> bool) -> std::process::ExitStatus {
        let socket = self.folder.path().join("control");
        let _ = fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).unwrap();
        // Preparing the run directory is the launcher's part.
        let config = job::config::load(&self.folder.path().join("config.yaml"), &[]).unwrap();
        {
            let _lock = SPAWNING.lock().unwrap_or_else(PoisonError::into_inner);
            RunDir::open(&self.run_dir(), &config, &Resume::Auto).unwrap();
        }
        let mut trainer = spawn(self.command().env("LOCKSTEP_CONTROL", &socket));
        let (mut stream, _) = listener.accept().unwrap();
        while let Some(message) = read_frame::<ToLauncher>(&mut stream).unwrap() {
            if act(&trainer, &message) {
                break;
            }
        }
        trainer.wait().unwrap()
    }

    fn bytes(&self, file: &str) -> Vec<u8> {
        fs::read(self.run_dir().join("checkpoints/latest").join(file)).unwrap()
    }

    /// Returns the records of `metrics.jsonl` except the summary, without what depends on the clock.
    fn records(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.run_dir().join("metrics.jsonl")).unwrap();
        let records = text.lines().map(|line| {
            let mut record: Value = serde_json::from_str(line).unwrap();
            let is_timed = |key: &str| {
                key.ends_with("_ms") || ["time", "seconds", "images_per_s"].contains(&key)
            };
            record.as_object_mut().unwrap().retain(|key, _| !is_timed(key));
            record
        });
        records.filter(|record| record["kind"] != "summary").collect()
    }

    fn checkpoints(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.run_dir().join("checkpoints")) else {
            return Vec::new();
        };
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

fn uninterrupted(training: &str) -> Job {
    let job = Job::new(training);
    job.finish();
    job
}

fn assert_same(cut: &Job, whole: &Job) {
    let manifest: Value = serde_json::from_slice(&whole.bytes("manifest.json")).unwrap();
    let tensors =
        manifest["files"].as_object().unwrap().keys().filter(|name| *name != "state.json");
    for file in tensors {
        assert!(cut.bytes(file) == whole.bytes(file), "{file} differs");
    }
    assert_eq!(cut.records(), whole.records());
    assert_eq!(cut.records().iter().filter(|record| record["kind"] == "epoch").count(), 3);
    let last = cut.records().iter().rfind(|record| record["kind"] == "step").cloned().unwrap();
    assert_eq!(last["step"], 3 * STEPS_PER_EPOCH);
}

#[test]
fn a_run_stopped_within_an_epoch_goes_on_bit_for_bit() {
    let cut = Job::new(FP32);
    let status = cut.watch(|trainer, message| {
        let stop = matches!(message, ToLauncher::Progress { epoch: 2, step: 1.., .. });
        if stop {
            send(trainer, Signal::TERM);
        }
        stop
    });
    assert_eq!(status.code(), Some(8), "stopped by a signal after saving");
    assert!(
        cut.checkpoints().iter().any(|name| name.starts_with("step-")),
        "{:?}",
        cut.checkpoints()
    );
    cut.finish();
    let whole = uninterrupted(FP32);
    assert_same(&cut, &whole);
    assert!(whole.bytes("ema.safetensors") != whole.bytes("model.safetensors"));
    assert!(whole.records().iter().any(|record| record["ema_test_loss"].is_f64()));
}

#[test]
fn a_run_in_fp16_goes_on_with_its_loss_scale() {
    let cut = Job::new(FP16);
    cut.watch(|trainer, message| {
        let stop = matches!(message, ToLauncher::Progress { epoch: 2, step: 1.., .. });
        if stop {
            send(trainer, Signal::TERM);
        }
        stop
    });
    cut.finish();
    let whole = uninterrupted(FP16);
    assert_same(&cut, &whole);
    let state = |job: &Job| serde_json::from_slice::<Value>(&job.bytes("state.json")).unwrap();
    let scaler = state(&whole)["loss_scaler"].clone();
    assert_eq!(state(&cut)["loss_scaler"], scaler);
    let first = &whole.records()[0];
    assert_eq!((&first["grad_norm"], &first["skipped_steps"]), (&Value::Null, &Value::from(1)));
    assert!(scaler["scale"].as_f64().unwrap() < 65536.0, "{scaler}");
}

#[test]
fn a_run_that_is_done_within_an_epoch_keeps_its_records_when_it_is_started_again() {
    let job = Job::new(&FP32.replace("epochs: 3", "epochs: 3, max_steps: 7"));
    job.finish();
    let records = job.records();
    let epochs = records.iter().filter(|record| record["kind"] == "epoch");
    assert_eq!(epochs.map(|record| record["epoch"].clone()).collect::<Vec<_>>(), [1, 2]);
    job.finish();
    assert_eq!(job.records(), records);
}

#[test]
fn a_run_stopped_within_an_evaluation_goes_on_bit_for_bit() {
    // The evaluation has two batches, the second of which is not evaluated.
    let training = FP32.replace("test_images: 20", "test_images: 900");
    let cut = Job::new(&training);
    let status = cut.watch(|trainer, message| {
        if matches!(message, ToLauncher::State { phase: Phase::Evaluating, epoch: 2, .. }) {
            send(trainer, Signal::TERM);
        }
        false
    });
    assert_eq!(status.code(), Some(8), "stopped");
    assert!(cut.checkpoints().contains(&"step-0000010".to_owned()), "{:?}", cut.checkpoints());
    assert!(!cut.checkpoints().contains(&"epoch-0002".to_owned()), "{:?}", cut.checkpoints());
    cut.finish();
    assert_same(&cut, &uninterrupted(&training));
}

#[test]
fn a_run_cut_off_before_its_summary_writes_it_when_it_is_started_again() {
    let job = Job::new(&FP32.replace("epochs: 3", "epochs: 1"));
    job.finish();
    let path = job.run_dir().join("metrics.jsonl");
    let whole = fs::read_to_string(&path).unwrap();
    let summaries = || fs::read_to_string(&path).unwrap().matches("\"kind\":\"summary\"").count();
    let (before, _) = whole.split_once("{\"kind\":\"summary\"").unwrap();
    fs::write(&path, before).unwrap();
    job.finish();
    assert_eq!(summaries(), 1);
    job.finish();
    assert_eq!(summaries(), 1);
    let events = fs::read_dir(job.run_dir().join("tensorboard")).unwrap();
    assert_eq!(events.count(), 3, "one file a process");
}

#[test]
fn a_run_that_has_ended_is_not_trained_again_because_its_checkpoints_were_removed() {
    let job = Job::new(&FP32.replace("epochs: 3", "epochs: 1"));
    job.finish();
    let path = job.run_dir().join("metrics.jsonl");
    let whole = format!("no record\n{}", fs::read_to_string(&path).unwrap());
    fs::write(&path, &whole).unwrap();
    fs::remove_dir_all(job.run_dir().join("checkpoints")).unwrap();
    let output = spawn(job.command().stderr(Stdio::piped())).wait_with_output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{log}");
    assert!(log.contains(&format!("has ended after {STEPS_PER_EPOCH} steps")), "{log}");
    assert_eq!(fs::read_to_string(&path).unwrap(), whole);

    // A run that was cut off before its first checkpoint begins again.
    let (before, _) = whole.split_once("{\"kind\":\"summary\"").unwrap();
    fs::write(&path, before).unwrap();
    let output = spawn(job.command().stderr(Stdio::piped())).wait_with_output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && log.contains("the records of 1 epoch are replaced"),
        "{log}"
    );
}

#[test]
fn a_run_goes_on_where_its_curves_its_events_and_old_checkpoints_are_in_the_way() {
    let job = Job::new(&FP32.replace("epochs: 3", "epochs: 2"));
    fs::create_dir_all(job.run_dir().join("curves.png")).unwrap();
    // Files where folders are expected, which cannot be removed as folders.
    fs::create_dir_all(job.run_dir().join("checkpoints")).unwrap();
    fs::write(job.run_dir().join("tensorboard"), "").unwrap();
    fs::write(job.run_dir().join("checkpoints/.saving-epoch-0009"), "").unwrap();
    job.finish();
    assert!(job.checkpoints().contains(&"epoch-0002".to_owned()), "{:?}", job.checkpoints());
}

#[test]
fn a_run_that_begins_from_a_complete_one_says_that_nothing_is_left_to_train() {
    let [first, second] = [(); 2].map(|()| Job::new(&FP32.replace("epochs: 3", "epochs: 1")));
    first.finish();
    let mut command = second.command();
    command.arg("--resume").arg(first.run_dir()).stderr(Stdio::piped());
    let output = spawn(&mut command).wait_with_output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{log}");
    assert!(log.contains("nothing is left to train: it has 1 epochs and 5 steps"), "{log}");
}

#[test]
fn a_run_that_begins_from_another_begins_there_also_after_a_stop_before_its_first_checkpoint() {
    let [first, second] = [3, 5].map(|steps| {
        let training = FP32.replace("epochs: 3", &format!("epochs: 3, max_steps: {steps}"));
        Job::new(&training)
    });
    first.finish();
    let config = job::config::load(&second.folder.path().join("config.yaml"), &[]).unwrap();
    {
        let _lock = SPAWNING.lock().unwrap_or_else(PoisonError::into_inner);
        RunDir::open(&second.run_dir(), &config, &Resume::From(first.run_dir())).unwrap();
    }
    second.finish();
    let steps: Vec<Value> = second.records().iter().map(|record| record["step"].clone()).collect();
    assert_eq!(steps[..2], [4, 5], "{steps:?}");
}

#[test]
fn best_is_put_right_when_a_run_ended_before_it_pointed_there() {
    let job = Job::new(&FP32.replace("epochs: 3", "epochs: 1"));
    job.finish();
    let best = job.run_dir().join("checkpoints/best");
    let target = fs::read_link(&best).unwrap();
    fs::remove_file(&best).unwrap();
    job.finish();
    assert_eq!(fs::read_link(&best).unwrap(), target);
}

#[test]
fn a_checkpoint_that_was_being_replaced_is_put_back() {
    let job = Job::new(&FP32.replace("epochs: 3", "epochs: 1"));
    job.finish();
    let weights = job.bytes("model.safetensors");
    let own = job.run_dir().join("checkpoints/epoch-0001");
    let replaced = own.with_extension("replaced");
    let assert_in_place = || {
        assert!(job.bytes("model.safetensors") == weights && own.exists() && !replaced.exists());
    };
    // Cut off before the new checkpoint has its name, and then after.
    fs::rename(&own, &replaced).unwrap();
    job.finish();
    assert_in_place();
    fs::create_dir(&replaced).unwrap();
    for entry in fs::read_dir(&own).unwrap() {
        let file = entry.unwrap();
        fs::copy(file.path(), replaced.join(file.file_name())).unwrap();
    }
    job.finish();
    assert_in_place();
}

#[test]
fn weights_that_a_run_began_from_need_not_be_there_when_it_goes_on() {
    const IMAGENET: &str = "model: {stem: imagenet}\n";
    let [steps, more] = [1, 2].map(|steps| format!("epochs: 3, max_steps: {steps}"));
    let theirs = Job::new(&[IMAGENET, &FP32.replace("epochs: 3", &steps)].concat());
    theirs.finish();
    let file = theirs.folder.path().join("weights.safetensors");
    let mut export = Command::new(env!("CARGO_BIN_EXE_trainer"));
    export.args(["export", "--format", "torchvision", "--output"]).arg(&file).arg(theirs.run_dir());
    assert!(spawn(export.stdout(Stdio::null())).wait().unwrap().success());

    let from = format!("model: {{stem: imagenet, from_torchvision: {}}}\n", file.display());
    let ours = Job::new(&(from + &FP32.replace("epochs: 3", &steps)));
    ours.finish();
    assert_ne!(ours.records(), theirs.records(), "it began from other weights");
    fs::remove_file(&file).unwrap();
    let config = fs::read_to_string(ours.folder.path().join("config.yaml")).unwrap();
    fs::write(ours.folder.path().join("config.yaml"), config.replace(&steps, &more)).unwrap();
    ours.finish();
    assert_eq!(ours.records().iter().filter(|record| record["kind"] == "step").count(), 2);
}

#[test]
fn a_checkpoint_that_does_not_fit_is_the_command_lines_fault() {
    let job = Job::new(FP32);
    let empty = tempfile::tempdir().unwrap();
    let output = spawn(job.command().arg("--resume").arg(empty.path()).stderr(Stdio::piped()))
        .wait_with_output()
        .unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{log}");
    assert!(log.contains("holds no checkpoint"), "{log}");
}

#[test]
fn a_run_killed_within_an_epoch_goes_on_bit_for_bit() {
    let cut = Job::logging_every(3, FP32);
    let status = cut.watch(|trainer, message| {
        let kill = matches!(message, ToLauncher::Progress { epoch: 2, step: 1.., .. });
        if kill {
            send(trainer, Signal::KILL);
        }
        kill
    });
    assert_eq!(status.code(), None, "killed");
    cut.finish();
    let whole = Job::logging_every(3, FP32);
    whole.finish();
    assert_same(&cut, &whole); // also the record of steps 4 to 6, of which 4 and 5 were in the epoch before
}

#[test]
fn a_run_killed_within_a_save_goes_on_bit_for_bit() {
    let cut = Job::new(FP32);
    let partial = |checkpoints: &Path| {
        let entries = fs::read_dir(checkpoints).into_iter().flatten().flatten();
        entries
            .map(|entry| entry.file_name().into_string().unwrap())
            .find(|n| n.starts_with(".saving"))
    };
    let folder = cut.run_dir().join("checkpoints");
    let mut caught = None;
    cut.watch(|trainer, message| {
        if !matches!(message, ToLauncher::State { phase: Phase::Saving, epoch: 3.., .. }) {
            return false;
        }
        while caught.is_none() && !folder.join("epoch-0002").exists() {
            caught = partial(&folder);
            std::hint::spin_loop();
        }
        send(trainer, Signal::KILL);
        true
    });
    assert_eq!(caught.as_deref(), Some(".saving-epoch-0002"));
    cut.finish();
    assert_same(&cut, &uninterrupted(FP32));
    assert_eq!(partial(&folder), None, "what was cut off is cleaned up");
}
