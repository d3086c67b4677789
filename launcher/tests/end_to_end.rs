//! The launcher with the real trainer: two ranks on the CPU, on synthetic images.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;

use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::{Ended, Running, Sandbox, eventually, is_running, run};

const CONFIG: &str = "
data: {dataset: synthetic, train_images: 200, test_images: 50, augment: [crop, flip]}
train: {epochs: 3, batch_size_per_rank: 16}
metrics: {log_every: 1}
# Two runs of one configuration must give the same weights, bit for bit.
performance: {convolution: matmul}
";
/// Steps per epoch: 200 images in global batches of 32.
const STEPS_PER_EPOCH: usize = 7;

const RUN: [&str; 5] = ["--cpu", "2", "--run-dir", "run", "c.yaml"];

fn sandbox() -> Sandbox {
    let sandbox = Sandbox::with_trainer();
    sandbox.write_config(CONFIG);
    sandbox
}

fn records(sandbox: &Sandbox) -> Vec<Value> {
    let text = fs::read_to_string(sandbox.path("run/metrics.jsonl")).unwrap_or_default();
    // The last line may be half written while the trainer runs.
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn of_kind(sandbox: &Sandbox, kind: &str) -> Vec<Value> {
    records(sandbox).into_iter().filter(|record| record["kind"] == kind).collect()
}

fn weights(sandbox: &Sandbox) -> Vec<u8> {
    fs::read(sandbox.path("run/checkpoints/latest/model.safetensors")).unwrap()
}

fn rank_pid(sandbox: &Sandbox, rank: usize) -> i32 {
    let events = sandbox.events();
    let spawned = |event: &&Value| event["event"] == "spawned" && event["rank"] == rank;
    events.iter().rev().find(spawned).unwrap()["pid"].as_i64().unwrap() as i32
}

/// Starts the run and waits until it is in its second epoch.
fn start_and_train(sandbox: &Sandbox) -> Running {
    let running = Running::start(sandbox.launcher(&RUN));
    eventually("the second epoch", || {
        of_kind(sandbox, "step").last().is_some_and(|record| record["epoch"] == 2)
    });
    running
}

fn finish(sandbox: &Sandbox) -> Ended {
    let ended = run(sandbox.launcher(&RUN));
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(of_kind(sandbox, "step").len(), 3 * STEPS_PER_EPOCH);
    assert_eq!(of_kind(sandbox, "epoch").len(), 3);
    ended
}

fn assert_like_uninterrupted(cut: &Sandbox) {
    finish(cut);
    let whole = sandbox();
    finish(&whole);
    assert!(weights(cut) == weights(&whole), "the weights differ");
    let epochs = |sandbox| {
        let results = of_kind(sandbox, "epoch").into_iter().map(|record| {
            ["train_loss", "train_accuracy", "test_loss", "test_accuracy"]
                .map(|key| record[key].clone())
        });
        results.collect::<Vec<_>>()
    };
    assert_eq!(epochs(cut), epochs(&whole));
}

#[test]
fn a_run_leaves_what_the_contract_says() {
    let sandbox = sandbox();
    finish(&sandbox);
    for file in [
        "config.yaml",
        "metrics.jsonl",
        "events.jsonl",
        "curves.svg",
        "curves.png",
        "logs/rank-0.log",
        "logs/rank-1.log",
        "checkpoints/latest/model.safetensors",
        "checkpoints/best/model.safetensors",
        "checkpoints/epoch-0003/optimizer.safetensors",
        "checkpoints/epoch-0003/state.json",
        "checkpoints/epoch-0003/manifest.json",
    ] {
        assert!(sandbox.path("run").join(file).exists(), "{file} is missing");
    }
    let summary = of_kind(&sandbox, "summary").remove(0);
    assert_eq!((&summary["world_size"], &summary["steps"]), (&2.into(), &21.into()));
    assert!(summary["images_per_s"].as_f64().unwrap() > 0.0, "{summary}");
    assert!(summary["peak_memory_bytes"].as_u64().unwrap() > 50 << 20, "{summary}");
    let losses: Vec<_> = of_kind(&sandbox, "epoch")
        .iter()
        .map(|record| record["train_loss"].as_f64().unwrap())
        .collect();
    assert!(losses[2] < losses[0], "it learns nothing: {losses:?}");
    // The run is complete, so the same command has nothing left to do.
    let again = run(sandbox.launcher(&RUN));
    assert_eq!(again.code, Some(0), "{}", again.stderr);
    assert!(again.stderr.contains("complete"), "{}", again.stderr);
}

#[test]
fn json_lines_of_ranks_and_launcher_have_their_message_at_the_same_place() {
    let sandbox = sandbox();
    let json = ["--log-format", "json", "--set", "train.max_steps=1"];
    let ended = run(sandbox.launcher(&[&json[..], &RUN].concat()));
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let parsed = ended.stderr.lines().map(|line| serde_json::from_str(line).expect(line));
    let lines: Vec<Value> = parsed.collect();
    assert!(lines.iter().all(|line| line["message"].is_string()), "{}", ended.stderr);
}

#[test]
fn a_run_stopped_by_sigterm_saves_and_the_same_command_goes_on() {
    let sandbox = sandbox();
    let running = start_and_train(&sandbox);
    running.signal(Signal::TERM);
    let ended = running.end();
    assert_eq!(ended.code, Some(8), "{}", ended.stderr);
    assert_like_uninterrupted(&sandbox);
}

#[test]
fn a_killed_rank_is_named_and_the_run_can_be_resumed() {
    let sandbox = sandbox();
    let running = start_and_train(&sandbox);
    let (survivor, victim) = (rank_pid(&sandbox, 0), rank_pid(&sandbox, 1));
    kill_process(Pid::from_raw(victim).unwrap(), Signal::KILL).unwrap();
    let ended = running.end();
    assert_eq!(ended.code, Some(4), "{}", ended.stderr);
    assert!(ended.stderr.contains("rank 1"), "{}", ended.stderr);
    assert!(ended.stderr.contains("SIGKILL"), "{}", ended.stderr);
    assert!(!is_running(survivor), "rank 0 was left behind");
    assert_like_uninterrupted(&sandbox);
}

#[test]
fn ranks_whose_launcher_is_killed_save_and_end() {
    let sandbox = sandbox();
    let mut running = start_and_train(&sandbox);
    let ranks = [rank_pid(&sandbox, 0), rank_pid(&sandbox, 1)];
    running.signal(Signal::KILL);
    running.child.wait().unwrap();
    eventually("the end of both ranks", || !ranks.iter().any(|pid| is_running(*pid)));
    // The ranks inherited the lock on the run directory, which the kernel releases after their last thread
    // has ended.
    let lock = fs::File::open(sandbox.path("run/.lock")).unwrap();
    eventually("the release of the lock", || {
        flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok()
    });
    drop(lock);
    let log = fs::read_to_string(sandbox.path("run/logs/rank-0.log")).unwrap();
    let saved = fs::read_dir(sandbox.path("run/checkpoints")).unwrap();
    let names: Vec<_> = saved.map(|entry| entry.unwrap().file_name()).collect();
    let within_epoch = |name: &std::ffi::OsString| name.to_string_lossy().starts_with("step-");
    assert!(names.iter().any(within_epoch), "{names:?}: {log}");
    assert_like_uninterrupted(&sandbox);
}

#[test]
fn a_run_resumed_on_another_number_of_ranks_sees_every_sample_once_an_epoch() {
    let sandbox = sandbox();
    let running = start_and_train(&sandbox);
    running.signal(Signal::TERM);
    assert_eq!(running.end().code, Some(8));
    let one = run(sandbox.launcher(&["--cpu", "1", "--run-dir", "run", "c.yaml"]));
    assert_eq!(one.code, Some(0), "{}", one.stderr);
    assert!(one.stderr.contains("written by 2 ranks"), "{}", one.stderr);
    let state = fs::read(sandbox.path("run/checkpoints/latest/state.json")).unwrap();
    let state: Value = serde_json::from_slice(&state).unwrap();
    assert_eq!(state["epochs_completed"], 3);
    let accuracy = of_kind(&sandbox, "epoch")[1]["train_accuracy"].as_f64().unwrap();
    let hits = accuracy * 200.0;
    assert!((hits - hits.round()).abs() < 1e-6, "{accuracy} is not a fraction of 200 images");
}

#[test]
fn a_truncated_data_file_ends_with_3_and_is_named() {
    let sandbox = sandbox();
    sandbox.write_config("data: {dataset: cifar10, download: false}\n");
    let folder = sandbox.path("cifar-10-batches-bin");
    fs::create_dir(&folder).unwrap();
    for index in 1..=5 {
        write_records(&folder.join(format!("data_batch_{index}.bin")), 10_000);
    }
    write_records(&folder.join("test_batch.bin"), 9_999);
    let mut command = sandbox.launcher(&RUN);
    command.env("CIFAR10_DIR", &folder);
    let ended = run(command);
    assert_eq!(ended.code, Some(3), "{}", ended.stderr);
    for text in ["test_batch.bin", "CIFAR10_DIR"] {
        assert!(ended.stderr.contains(text), "no {text}: {}", ended.stderr);
    }
}

fn write_records(path: &Path, count: usize) {
    fs::write(path, vec![1u8; count * 3073]).unwrap();
}

/// Mounts a run directory with room for one checkpoint of 134 MB, but not for two; `None` without root.
fn on_a_small_disk(run: &Path) -> Option<Tmpfs<'_>> {
    fs::create_dir(run).unwrap();
    let mounted = Tmpfs::mount(run, "220m");
    if mounted.is_none() {
        println!("skipped: mounting a small disk needs root");
    }
    mounted
}

const GOES_ON: &str = "No space left on device (os error 28); training goes on";
const WAITS: &str = "No space left on device (os error 28); trying again for";

#[test]
fn a_full_disk_is_waited_for_and_nothing_is_lost() {
    let sandbox = sandbox();
    let disk = sandbox.path("run");
    let Some(mounted) = on_a_small_disk(&disk) else { return };
    let of_steps = ["--set", "train.epochs=4", "--set", "metrics.log_every=1"];
    let mut running = Running::start(sandbox.launcher(&[&RUN[..], &of_steps].concat()));
    let latest = || fs::read_link(disk.join("checkpoints/latest")).unwrap_or_default();
    eventually("a checkpoint", || latest() == Path::new("epoch-0001"));
    let ballast = disk.join("ballast");
    let mut file = fs::File::create(&ballast).unwrap();
    std::io::copy(&mut std::io::repeat(0), &mut file).unwrap_err(); // to the last byte
    running.wait_for("keeping records in memory until they can be written");
    running.wait_for(GOES_ON);
    running.wait_for(WAITS);
    assert_eq!(latest(), Path::new("epoch-0001"));
    fs::remove_file(ballast).unwrap();
    mounted.grow("1g");
    let ended = running.end();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("saving works again"), "{}", ended.stderr);
    assert_eq!(latest(), Path::new("epoch-0004"));
    assert!(!disk.join("checkpoints/epoch-0002").exists());
    let steps = of_kind(&sandbox, "step");
    let steps: Vec<_> = steps.iter().map(|it| it["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, (1..=steps.len() as u64).collect::<Vec<_>>());
    let epochs = of_kind(&sandbox, "epoch");
    assert_eq!(epochs.iter().map(|it| &it["epoch"]).collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert_eq!(of_kind(&sandbox, "summary")[0]["steps"], steps.len());
    let accuracy = |epoch: usize| epochs[epoch - 1]["test_accuracy"].as_f64().unwrap();
    let best = if accuracy(4) > accuracy(1) { "epoch-0004" } else { "epoch-0001" };
    let link = fs::read_link(disk.join("checkpoints/best")).unwrap();
    assert_eq!(link, Path::new(best), "of those that there are");
}

#[test]
fn a_disk_that_stays_full_ends_the_run_at_its_end_and_it_can_be_resumed() {
    let sandbox = sandbox();
    let disk = sandbox.path("run");
    let Some(mounted) = on_a_small_disk(&disk) else { return };
    let at_once = [&RUN[..], &["--set", "checkpoint.retry_minutes=0"]].concat();
    let ended = run(sandbox.launcher(&at_once));
    assert_eq!(ended.code, Some(4), "{}", ended.stderr);
    assert!(ended.stderr.contains("No space left on device"), "{}", ended.stderr);
    assert!(sandbox.path("run/checkpoints/latest/manifest.json").exists());
    let names = fs::read_dir(disk.join("checkpoints")).unwrap().map(|it| it.unwrap().file_name());
    let names: Vec<_> = names.collect();
    assert!(!names.iter().any(|it| it.to_string_lossy().starts_with(".saving-")), "{names:?}");

    let mut running = Running::start(sandbox.launcher(&RUN));
    running.wait_for(WAITS);
    running.signal(Signal::TERM);
    assert_eq!(running.end().code, Some(4), "one that is asked to stop waits no longer");

    mounted.grow("1g");
    finish(&sandbox);
}

struct Tmpfs<'a>(&'a Path);

impl<'a> Tmpfs<'a> {
    fn mount(path: &'a Path, size: &str) -> Option<Self> {
        let options = format!("size={size}");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(path);
        mount.output().is_ok_and(|output| output.status.success()).then_some(Self(path))
    }

    fn grow(&self, size: &str) {
        let options = format!("remount,size={size}");
        assert!(
            Command::new("mount").args(["-o", &options]).arg(self.0).status().unwrap().success()
        );
    }
}

impl Drop for Tmpfs<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0).status();
    }
}

#[test]
fn a_global_batch_is_the_same_on_any_number_of_ranks_that_have_an_image_each() {
    let train = |ranks: &str| {
        let sandbox = sandbox();
        let of_ranks = ["--cpu", ranks, "--run-dir", "run", "--set", "train.epochs=1"];
        let batch = ["--set", "train.global_batch_size=24", "--set", "train.batch_size_per_rank=8"];
        let ended = run(sandbox.launcher(&[&of_ranks[..], &batch, &["c.yaml"]].concat()));
        (sandbox, ended)
    };
    for (ranks, portions, largest) in [("1", 3, 8), ("2", 2, 6), ("3", 1, 8)] {
        let (sandbox, ended) = train(ranks);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        let summary = &of_kind(&sandbox, "summary")[0];
        let keys = ["steps", "grad_accum_steps", "batch_size_per_rank"];
        // 200 images in batches of 24.
        assert_eq!(keys.map(|key| summary[key].as_u64().unwrap()), [9, portions, largest]);
    }
    let (_, ended) = train("25");
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    assert!(ended.stderr.contains("train.global_batch_size: 24 images"), "{}", ended.stderr);
}

#[test]
fn every_configuration_in_configs_takes_one_step() {
    let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs");
    let entries = [configs.clone(), configs.join("recipes")].map(|it| fs::read_dir(it).unwrap());
    let paths = entries.into_iter().flatten().map(|entry| entry.unwrap().path());
    let mut count = 0;
    for path in paths.filter(|path| path.extension().is_some_and(|it| it == "yaml")) {
        let sandbox = Sandbox::with_trainer();
        let ended = run(sandbox.launcher(&[
            "--cpu",
            "2",
            "--set",
            "data.dataset=synthetic",
            "--set",
            "data.train_images=64",
            "--set",
            "data.test_images=20",
            "--set",
            "train.global_batch_size=8",
            "--set",
            "train.max_steps=1",
            "--run-dir",
            "run",
            path.to_str().unwrap(),
        ]));
        assert_eq!(ended.code, Some(0), "{}: {}", path.display(), ended.stderr);
        assert_eq!(of_kind(&sandbox, "summary")[0]["steps"], 1, "{}", path.display());
        count += 1;
    }
    assert!(count >= 13, "only {count} configurations");
}
