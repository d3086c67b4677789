//! How the launcher responds to command lines before any rank is started.

mod support;

use std::fs;

use support::{Sandbox, run};

#[test]
fn gpus_that_are_not_there_end_with_9_and_name_cpu() {
    let sandbox = Sandbox::with_stand_in();
    for args in [&["--gpus", "4", "c.yaml"][..], &["c.yaml"]] {
        let ended = run(sandbox.launcher(args));
        assert_eq!(ended.code, Some(9), "{}", ended.stderr);
        assert!(ended.stderr.contains("no GPU is visible"), "{}", ended.stderr);
        assert!(ended.stderr.contains("--cpu"), "{}", ended.stderr);
    }
    assert!(!sandbox.path("runs").exists());
}

#[test]
fn a_bad_command_line_ends_with_2() {
    let sandbox = Sandbox::with_stand_in();
    for args in [
        &["--cpu", "0", "c.yaml"][..],
        &["--cpu", "2", "--gpus", "2", "c.yaml"],
        &["--cpu", "2"],
        &["--cpu", "2", "--no-such-flag", "c.yaml"],
        &["--cpu", "2", "missing.yaml"],
    ] {
        let ended = run(sandbox.launcher(args));
        assert_eq!(ended.code, Some(2), "{args:?}: {}", ended.stderr);
    }
}

#[test]
fn an_unknown_key_ends_with_2_and_is_named_in_a_file_and_an_override() {
    let sandbox = Sandbox::with_stand_in();
    let ended = run(sandbox.launcher(&["--cpu", "2", "--set", "train.epochz=2", "c.yaml"]));
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    assert!(ended.stderr.contains("train.epochz"), "{}", ended.stderr);
    sandbox.write_config("train:\n  epochz: 2\n");
    let ended = run(sandbox.launcher(&["--cpu", "2", "c.yaml"]));
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    assert!(ended.stderr.contains("c.yaml:2"), "{}", ended.stderr);
    assert!(!sandbox.path("runs").exists());
}

#[test]
fn a_value_that_does_not_go_with_the_ranks_ends_with_2_and_is_named_where_it_is_given() {
    let sandbox = Sandbox::with_stand_in();
    for (text, place) in [
        ("comm:\n  backend: nccl\n", "c.yaml:2:12: comm.backend: nccl is for GPUs"),
        ("performance:\n  cuda_graph: on\n", "c.yaml:2:15: performance.cuda_graph: on is for GPUs"),
        (
            "train:\n  global_batch_size: 1\n",
            "c.yaml:2:22: train.global_batch_size: 1 image cannot",
        ),
    ] {
        sandbox.write_config(text);
        let ended = run(sandbox.launcher(&["--cpu", "2", "c.yaml"]));
        assert_eq!(ended.code, Some(2), "{}", ended.stderr);
        assert!(ended.stderr.contains(place), "{}", ended.stderr);
    }
}

#[test]
fn half_a_description_of_several_machines_ends_with_2_and_says_what_is_missing() {
    let sandbox = Sandbox::with_stand_in();
    for (args, missing) in
        [(&["--nodes", "2"][..], "--node-rank"), (&["--rendezvous", "a:29500"], "--nodes")]
    {
        let ended = run(sandbox.launcher(&[args, &["--cpu", "1", "c.yaml"]].concat()));
        assert_eq!(ended.code, Some(2), "{}", ended.stderr);
        let text = &ended.stderr;
        let is_named = ["require", "requires"].map(|verb| format!("{verb} {missing}"));
        assert!(is_named.iter().any(|named| text.contains(named)), "{text}");
    }
}

#[test]
fn missing_data_ends_with_3_and_leaves_no_run_directory() {
    let sandbox = Sandbox::with_stand_in();
    sandbox.write_config("data: {dataset: cifar10}\n");
    let mut command = sandbox.launcher(&["--cpu", "1", "--run-dir", "run", "c.yaml"]);
    command.env("CIFAR10_DIR", sandbox.path("nothing-here"));
    let ended = run(command);
    assert_eq!(ended.code, Some(3), "{}", ended.stderr);
    assert!(ended.stderr.contains("nothing-here"), "{}", ended.stderr);
    assert!(!sandbox.path("run").exists());
}

#[test]
fn no_trainer_ends_with_9_and_names_both_places() {
    let sandbox = Sandbox::empty();
    let ended = run(sandbox.launcher(&["--cpu", "1", "c.yaml"]));
    assert_eq!(ended.code, Some(9), "{}", ended.stderr);
    assert!(ended.stderr.contains("bin/trainer nor `trainer`"), "{}", ended.stderr);
    assert!(!sandbox.path("runs").exists());
}

#[test]
fn another_configuration_in_the_run_directory_ends_with_2() {
    let sandbox = Sandbox::with_stand_in();
    let args = ["--cpu", "1", "--run-dir", "run", "c.yaml"];
    assert_eq!(run(sandbox.launcher(&args)).code, Some(0));
    fs::write(sandbox.path("run/metrics.jsonl"), "{}\n").unwrap(); // the stand-in writes none
    let ended = run(sandbox.launcher(&[&args[..], &["--set", "train.seed=5"]].concat()));
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    assert!(ended.stderr.contains("train.seed"), "{}", ended.stderr);
}

#[test]
fn a_dry_run_prints_the_plan_and_touches_nothing() {
    let sandbox = Sandbox::empty();
    sandbox.write_config("model: {name: resnet34}\n");
    let ended = run(sandbox.launcher(&["--cpu", "2", "--dry-run", "c.yaml"]));
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    for shown in [
        "2 on the CPU, over shm",
        "64 per rank, 128 over all ranks",
        "50000 to train, 10000 to test",
        "21,282,122",
        "0     cpu",
        "1     cpu",
        "CIFAR-10, to be downloaded into data",
        "runs/c-",
    ] {
        assert!(ended.stdout.contains(shown), "{shown:?} in\n{}", ended.stdout);
    }
    let mut left: Vec<_> =
        fs::read_dir(sandbox.path("")).unwrap().flatten().map(|e| e.file_name()).collect();
    left.sort();
    assert_eq!(left, ["bin", "c.yaml"]);
}
