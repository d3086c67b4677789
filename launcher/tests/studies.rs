//! `launcher study` with the real trainer, on synthetic images.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::Path;

use figure::Picture;
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::{Ended, Running, Sandbox, eventually, run};

/// Configuration of a small network: checkpoints of the default one would take 3 GB for two studies at once.
const CONFIG: &str = "
model: {name: resnet20, stem: cifar}
data: {dataset: synthetic, train_images: 200, test_images: 50}
train: {epochs: 3, batch_size_per_rank: 16}
metrics: {log_every: 1}
";

const STUDY: &str = "
title: Which rate
source: nobody
config: c.yaml
seeds: [0, 1]
grid:
  optimizer.lr: [0.001, 0.002]
figures:
  - {name: error, x: step, y: [test_error, train_error]}
  - {name: rates, x: optimizer.lr, y: [test_accuracy], group_by: []}
";

const RUN: [&str; 6] = ["study", "--cpu", "2", "--out", "out", "s.yaml"];

fn sandbox(study: &str) -> Sandbox {
    let sandbox = Sandbox::with_trainer();
    write(&sandbox, study);
    sandbox
}

fn write(sandbox: &Sandbox, study: &str) {
    sandbox.write_config(CONFIG);
    fs::write(sandbox.path("s.yaml"), study).unwrap();
}

fn read(sandbox: &Sandbox, name: &str) -> String {
    fs::read_to_string(sandbox.path("out").join(name)).unwrap()
}

/// Returns the epochs that a run has recorded.
fn epochs(sandbox: &Sandbox, run: &str) -> Vec<u64> {
    let path = sandbox.path("out/runs").join(run).join("metrics.jsonl");
    let text = fs::read_to_string(path).unwrap_or_default();
    let records = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    records.filter(|it| it["kind"] == "epoch").map(|it| it["epoch"].as_u64().unwrap()).collect()
}

/// Returns name and state of each run, as `study.json` has them.
fn states(sandbox: &Sandbox) -> Vec<(String, String)> {
    let study: Value = serde_json::from_str(&read(sandbox, "study.json")).unwrap();
    let word = |value: &Value| value.as_str().unwrap().to_owned();
    let runs = study["runs"].as_array().unwrap().iter();
    runs.map(|run| (word(&run["name"]), word(&run["state"]))).collect()
}

fn finish(sandbox: &Sandbox) -> Ended {
    let ended = run(sandbox.launcher(&RUN));
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    ended
}

#[test]
fn every_run_is_done_once_and_tables_and_figures_are_made_of_them() {
    let sandbox = sandbox(STUDY);
    finish(&sandbox);
    let names = ["lr0.001-seed0", "lr0.002-seed0", "lr0.001-seed1", "lr0.002-seed1"];
    let done = names.map(|name| (name.to_owned(), "done".to_owned()));
    assert_eq!(states(&sandbox), done);
    for name in names {
        assert_eq!(epochs(&sandbox, name), [1, 2, 3], "{name}");
        let config = read(&sandbox, &format!("runs/{name}/config.yaml"));
        assert!(config.contains(&format!("lr: {}\n", &name[2..7])), "{config}");
    }
    let table = read(&sandbox, "study.md");
    assert!(table.contains("Source: nobody.") && table.contains("![error](error.png)"), "{table}");
    let row = table.lines().find(|line| line.starts_with("| lr0.002 |")).unwrap();
    assert!(row.contains("| 2 of 2 |") && row.contains(" ± "), "{row}");
    let figure = read(&sandbox, "error.svg");
    for text in ["Which rate", "step", "error, %", ">lr0.001<", ">lr0.002<", "stroke-dasharray"] {
        assert!(figure.contains(text), "no {text} in {figure}");
    }
    let rates = read(&sandbox, "rates.svg");
    assert!(rates.contains("optimizer.lr") && rates.contains("deviation of 2 runs"), "{rates}");
    assert!(fs::read(sandbox.path("out/error.png")).unwrap().starts_with(b"\x89PNG"));

    let logged = || names.map(|name| read(&sandbox, &format!("logs/{name}.log")));
    let (before, logs) = (read(&sandbox, "study.json"), logged());
    let again = finish(&sandbox);
    assert!(again.stderr.contains("4 runs, 4 done"), "{}", again.stderr);
    assert_eq!((read(&sandbox, "study.json"), logged()), (before, logs), "something was run again");
}

#[test]
fn runs_whose_images_cannot_be_had_are_done_after_the_steps_of_synthetic_ones() {
    let sandbox = sandbox("{title: t, config: c.yaml}");
    let config = "data: {root: nowhere, download: false, fallback: synthetic, test_images: 20}\n\
                  train: {epochs: 1, batch_size_per_rank: 1000}\n\
                  model: {name: resnet20, stem: imagenet}\n";
    sandbox.write_config(config);
    let ended = finish(&sandbox);
    assert!(ended.stderr.contains("SYNTHETIC images"), "{}", ended.stderr);
    assert!(ended.stderr.contains("run-seed0 starts: 10 steps"), "{}", ended.stderr);
    let done = [("run-seed0".to_owned(), "done".to_owned())];
    assert_eq!(states(&sandbox), done);
    let again = finish(&sandbox);
    assert!(again.stderr.contains("1 run, 1 done"), "{}", again.stderr);
    let drawn = run(sandbox.launcher(&[&RUN[..], &["--draw-only"]].concat()));
    assert_eq!(drawn.code, Some(0), "{}", drawn.stderr);
    assert_eq!(states(&sandbox), done);
}

#[test]
fn a_study_is_drawn_without_its_folder_of_images() {
    let sandbox = sandbox("{title: t, config: c.yaml}");
    sandbox.write_config(
        "data: {dataset: image_folder, root: pets, image_size: 8}\n\
         model: {name: resnet20, stem: cifar}\ntrain: {epochs: 2, batch_size_per_rank: 2}\n",
    );
    let picture = Picture::new(8.0, 8.0).to_png().unwrap();
    for split in ["train", "test"] {
        for class in ["cat", "dog"] {
            let folder = sandbox.path("pets").join(split).join(class);
            fs::create_dir_all(&folder).unwrap();
            for name in ["1.png", "2.png"] {
                fs::write(folder.join(name), &picture).unwrap();
            }
        }
    }
    finish(&sandbox);
    let table = read(&sandbox, "study.md");
    assert!(table.contains("| 1 of 1 |"), "{table}");
    fs::rename(sandbox.path("pets"), sandbox.path("away")).unwrap();
    fs::remove_file(sandbox.path("out/study.md")).unwrap();
    let drawn = run(sandbox.launcher(&[&RUN[..], &["--draw-only"]].concat()));
    assert_eq!(drawn.code, Some(0), "{}", drawn.stderr);
    assert_eq!(read(&sandbox, "study.md"), table);
    let planned = run(sandbox.launcher(&[&RUN[..], &["--dry-run"]].concat()));
    assert_eq!(planned.code, Some(3), "{}", planned.stderr);
}

#[test]
fn a_run_that_fails_is_named_and_the_others_go_on() {
    let trainer = Path::new(env!("CARGO_BIN_EXE_launcher")).with_file_name("trainer");
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in\n*runs/bad-seed0*) exit 1;;\n*runs/killed-seed0*) kill -9 $PPID;;\nesac\n\
         exec {} \"$@\"\n",
        trainer.display()
    );
    let sandbox = Sandbox::with_script(&script);
    write(
        &sandbox,
        "{title: t, config: c.yaml, runs: [{name: bad}, {name: killed}, {name: good}]}",
    );
    let ended = run(sandbox.launcher(&[&RUN[..], &["--jobs", "1"]].concat()));
    assert_eq!(ended.code, Some(4), "{}", ended.stderr);
    assert!(ended.stderr.contains("bad-seed0 failed with exit code 4: "), "{}", ended.stderr);
    assert!(ended.stderr.contains("out/logs/bad-seed0.log"), "{}", ended.stderr);
    let killed =
        "killed-seed0 failed with exit code 4: its launcher was killed: signal: 9 (SIGKILL)";
    assert!(ended.stderr.contains(killed), "{}", ended.stderr);
    let state = |name: &str, state: &str| (name.to_owned(), state.to_owned());
    let begun = |name| state(name, "begun");
    assert_eq!(
        states(&sandbox),
        [begun("bad-seed0"), begun("killed-seed0"), state("good-seed0", "done")]
    );
    let table = read(&sandbox, "study.md");
    assert!(table.contains("- bad-seed0, 0 of 3 epochs: failed with exit code 4"), "{table}");
}

/// Starts the study, one run at a time, and waits until the first run has completed its first epoch.
fn start_and_train(sandbox: &Sandbox) -> Running {
    let running = Running::start(sandbox.launcher(&[&RUN[..], &["--jobs", "1"]].concat()));
    eventually("the first epoch", || epochs(sandbox, "a-seed0") == [1]);
    running
}

fn children(pid: u32) -> Vec<Pid> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let of_thread = |thread: fs::DirEntry| fs::read_to_string(thread.path().join("children"));
    let pids: String = threads.map(|thread| of_thread(thread.unwrap()).unwrap()).collect();
    let pids = pids.split_whitespace().map(|pid| Pid::from_raw(pid.parse().unwrap()).unwrap());
    pids.collect()
}

const TWO: &str = "{title: t, config: c.yaml, runs: [{name: a}, {name: b}]}";

#[test]
fn a_study_that_is_stopped_saves_its_runs_and_the_same_command_goes_on() {
    let sandbox = sandbox(TWO);
    let running = start_and_train(&sandbox);
    // Like srun, which signals all processes that it knows of.
    for run in children(running.child.id()) {
        kill_process(run, Signal::INT).unwrap();
    }
    running.signal(Signal::INT);
    let ended = running.end();
    assert_eq!(ended.code, Some(8), "{}", ended.stderr);
    let state = |name: &str, state: &str| (name.to_owned(), state.to_owned());
    assert_eq!(states(&sandbox), [state("a-seed0", "begun"), state("b-seed0", "new")]);
    let ended = finish(&sandbox);
    assert!(ended.stderr.contains("a-seed0 resumes"), "{}", ended.stderr);
    assert!(read(&sandbox, "logs/a-seed0.log").contains("resuming from"));
    assert_eq!(epochs(&sandbox, "a-seed0"), [1, 2, 3]);
    assert_eq!(states(&sandbox), [state("a-seed0", "done"), state("b-seed0", "done")]);
}

#[test]
fn runs_of_a_study_that_is_killed_save_and_the_same_command_goes_on() {
    let sandbox = sandbox(TWO);
    let mut running = start_and_train(&sandbox);
    running.signal(Signal::KILL);
    running.child.wait().unwrap();
    let lock = fs::File::open(sandbox.path("out/.lock")).unwrap();
    eventually("the end of the run", || {
        flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok()
    });
    drop(lock);
    let log = read(&sandbox, "logs/a-seed0.log");
    assert!(log.contains("SIGTERM"), "{log}");
    finish(&sandbox);
    assert_eq!(epochs(&sandbox, "a-seed0"), [1, 2, 3]);
    assert_eq!(epochs(&sandbox, "b-seed0"), [1, 2, 3]);
}

#[test]
fn another_study_in_the_same_directory_is_refused() {
    let sandbox = sandbox(STUDY);
    let only = ["study", "--cpu", "2", "--out", "out", "--draw-only", "s.yaml"];
    assert_eq!(run(sandbox.launcher(&only)).code, Some(0));
    assert!(!sandbox.path("out/runs").exists(), "it was to run nothing");
    finish(&sandbox);
    fs::write(sandbox.path("c.yaml"), CONFIG.replace("epochs: 3", "epochs: 3, seed: 9")).unwrap();
    assert_eq!(run(sandbox.launcher(&RUN)).code, Some(0), "the study sets the seed");
    fs::write(sandbox.path("c.yaml"), format!("{CONFIG}precision: fp32\n")).unwrap();
    let ended = run(sandbox.launcher(&RUN));
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    assert!(ended.stderr.contains("precision: auto before, fp32 now"), "{}", ended.stderr);
}

#[test]
fn runs_over_other_ranks_or_of_more_steps_are_not_taken_for_those_of_the_study() {
    let study = |more: &str| format!("{{title: t, config: c.yaml{more}}}");
    let sandbox = sandbox(&study(""));
    let refused = |more: &str, differences: &str| {
        write(&sandbox, &study(more));
        for last in [&[][..], &["--draw-only"], &["--dry-run"]] {
            let ended = run(sandbox.launcher(&[&RUN[..], last].concat()));
            assert_eq!(ended.code, Some(2), "{more}: {}", ended.stderr);
            let wanted = format!(
                "out/runs/run-seed0 holds a run of another configuration: {differences}; give \
                 another --out, or move it away"
            );
            assert!(ended.stderr.contains(&wanted), "{wanted:?} is not in {}", ended.stderr);
        }
    };
    finish(&sandbox);
    let table = read(&sandbox, "study.md");
    let two_ranks = "ranks: 1 before, 2 now; steps: 39 before, 21 now";
    refused(", ranks: 2", two_ranks);
    refused(", set: {train.epochs: 1}", "steps: 39 before, 13 now");
    refused(", set: {train.max_steps: 30}", "steps: 39 before, 30 now");
    assert_eq!(read(&sandbox, "study.md"), table);

    // A run that was stopped has no summary.
    fs::remove_file(sandbox.path("out/runs/run-seed0/metrics.jsonl")).unwrap();
    refused(", ranks: 2", two_ranks);

    write(&sandbox, &study(", set: {train.epochs: 4}"));
    finish(&sandbox);
    assert_eq!(epochs(&sandbox, "run-seed0").last(), Some(&4), "a longer run goes on");
}

#[test]
fn ranks_may_change_where_the_global_batch_does_not_depend_on_them() {
    let study = "{title: t, config: c.yaml, set: {train.global_batch_size: 16}}";
    let sandbox = sandbox(study);
    finish(&sandbox);
    write(&sandbox, &study.replace("c.yaml", "c.yaml, ranks: 2"));
    let again = finish(&sandbox);
    assert!(again.stderr.contains("1 run, 1 done"), "{}", again.stderr);
}

#[test]
fn what_is_wrong_in_a_study_is_named_by_file_line_and_key() {
    let sandbox = sandbox(STUDY);
    for (from, to, named) in [
        ("seeds: [0, 1]", "seedz: [0, 1]", "s.yaml:5:1: seedz: unknown key `seedz`, expected"),
        ("{name: error", "{nam: error", "s.yaml:9:6: figures[0].nam: unknown key `nam`, expected"),
        ("title: Which rate", "", "s.yaml: title: missing"),
        ("optimizer.lr: [", "optimizer.rl: [", "s.yaml:7:"),
        ("0.002]", "-1]", "s.yaml:7:"),
        ("seeds: [0, 1]", "seeds: one", "s.yaml:5:1: seeds: expected a list"),
        ("train_error]", "train_errors]", "did you mean `train_error`?"),
        ("train_error]", "train_loss]", "two of the same kind"),
        ("x: step", "x: steps", "did you mean `step`?"),
        ("x: optimizer.lr", "x: model.name", "is not a number"),
        ("group_by: []", "group_by: [optimizer.momentum]", "no run of this study sets"),
        ("name: rates", "name: error", "two figures are called error"),
        ("c.yaml", "missing.yaml", "missing.yaml"),
    ] {
        assert!(STUDY.contains(from));
        fs::write(sandbox.path("s.yaml"), STUDY.replacen(from, to, 1)).unwrap();
        let ended = run(sandbox.launcher(&RUN));
        assert_eq!(ended.code, Some(2), "{to}: {}", ended.stderr);
        assert!(ended.stderr.contains(named), "{named:?} is not in {}", ended.stderr);
    }
    assert!(!sandbox.path("out").exists());
}

#[test]
fn every_study_of_the_repository_can_be_planned_in_both_sizes() {
    let studies = Path::new(env!("CARGO_MANIFEST_DIR")).join("../studies");
    let mut count = 0;
    for entry in fs::read_dir(studies).unwrap() {
        let path = entry.unwrap().path();
        let sandbox = Sandbox::empty();
        for size in [&["--reduced"][..], &[]] {
            let args = ["study", "--cpu", "2", "--dry-run", path.to_str().unwrap()];
            let ended = run(sandbox.launcher(&[&args[..], size].concat()));
            assert_eq!(ended.code, Some(0), "{}: {}", path.display(), ended.stderr);
            assert!(ended.stdout.contains("-seed0 "), "{}", ended.stdout);
            assert!(!sandbox.path("runs").exists(), "a dry run touches nothing");
            count += 1;
        }
    }
    assert!(count >= 8, "only {count} plans");
}
