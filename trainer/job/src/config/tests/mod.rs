mod values;

use std::path::PathBuf;

use super::*;

fn load_text(text: &str, overrides: &[&str]) -> Result<Config, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.yaml");
    std::fs::write(&path, text).unwrap();
    let overrides: Vec<String> = overrides.iter().map(ToString::to_string).collect();
    load(&path, &overrides).map_err(|error| {
        assert_eq!(error.exit_code(), crate::ExitCode::Usage);
        error.to_string().replace(&format!("{}/", folder.path().display()), "")
    })
}

fn names(config: &Config) -> Vec<&str> {
    config.data.augment.iter().map(Augment::name).collect()
}

fn problem(text: &str, overrides: &[&str]) -> String {
    load_text(text, overrides).unwrap_err()
}

#[test]
fn an_empty_file_gives_all_defaults() {
    for text in ["", "\n", "# nothing yet\n", "---\n", "data:\ntrain:\n", "{}"] {
        assert_eq!(load_text(text, &[]).unwrap(), Config::default(), "{text:?}");
    }
}

#[test]
fn the_documented_configuration_loads() {
    let text = "
model:      {name: resnet34, stem: notes}
data:       {dataset: cifar10, root: data, download: true, augment: [crop, flip]}
train:      {epochs: 20, batch_size_per_rank: 64, seed: 0, max_steps: null}
optimizer:  {name: sgd, lr: 1e-1, weight_decay: 0, momentum: 0.9, nesterov: true}
schedule:   {name: constant}
precision:  bf16
checkpoint: {every_epochs: 1, keep: 3}
";
    let config = load_text(text, &[]).unwrap();
    assert_eq!(config.model.name.as_str(), "resnet34");
    assert_eq!(names(&config), ["crop", "flip"]);
    assert_eq!(config.optimizer.lr, 0.1);
    assert_eq!(config.optimizer.betas, None);
    assert_eq!(config.train.max_steps, None);
}

#[test]
fn augmentations_have_keys_of_their_own_and_defaults() {
    let text = "data: {augment: [crop: {mode: reflect}, flip, cutmix: {}]}";
    let config = load_text(text, &["data.augment=[cutout: {size: 8}, mixup]"]).unwrap();
    let cutout = Augment::Cutout(Cutout { size: 8 });
    assert_eq!(config.data.augment, [cutout, Augment::Mixup(Mixup { alpha: 0.2 })]);
    let crop = Augment::Crop(Crop { padding: 4, mode: Padding::Reflect });
    assert_eq!(load_text(text, &[]).unwrap().data.augment[0], crop);
    let cases = [
        (
            "data: {augment: [crop: {paddin: 4}]}",
            "run.yaml:1:33: data.augment[0].crop.paddin: unknown key `paddin`, expected `padding` or \
             `mode`; did you mean `padding`?",
        ),
        (
            "data: {augment: [cutout: {size: big}]}",
            "run.yaml:1:33: data.augment[0].cutout.size: expected a whole number, 0 or more, found \
             string \"big\"",
        ),
        (
            "data:\n  augment:\n  - crop:\n    padding: 4\n",
            "run.yaml:3:9: data.augment[0]: an entry has one name, this one has `crop` and `padding`; \
             keys of `crop` are written `crop: {...}`",
        ),
        (
            "data: {augment: [3]}",
            "run.yaml:1:18: data.augment[0]: expected a name, as in `crop`, or one with its keys, as in \
             `crop: {padding: 4}`, found integer `3`",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(problem(text, &[]), expected);
    }
}

#[test]
fn overrides_win_over_the_file_and_the_last_one_wins() {
    let config = load_text(
        "train: {epochs: 3}\n",
        &[
            "train.epochs=4",
            "train.epochs=5",
            "data.root=2024",
            "data.augment=[flip]",
            "train.max_steps=7",
            "optimizer.betas=[0.5, 0.9]",
            "precision=fp32",
            "comm.bucket_cap_mib=8",
        ],
    )
    .unwrap();
    assert_eq!(config.train.epochs, 5);
    assert_eq!(config.data.root, PathBuf::from("2024"));
    assert_eq!(names(&config), ["flip"]);
    assert_eq!(config.train.max_steps, Some(7));
    assert_eq!(config.optimizer.betas, Some([0.5, 0.9]));
    assert_eq!(config.comm.bucket_cap_mib, BucketCap::Mib(8));
    let unset = load_text("train: {max_steps: 3}\n", &["train.max_steps=null"]).unwrap();
    assert_eq!(unset.train.max_steps, None);
}

#[test]
fn an_unknown_key_is_named_with_its_place_and_what_was_meant() {
    assert_eq!(
        problem("train:\n  batch_size_per_rank: 8\n  epoch: 2\n", &[]),
        "run.yaml:3:3: train.epoch: unknown key; did you mean `train.epochs`?"
    );
    assert_eq!(
        problem("epochs: 2\n", &[]),
        "run.yaml:1:1: epochs: unknown key; did you mean `train.epochs`?"
    );
    assert_eq!(
        problem("train: {zebra: 2}\n", &[]),
        "run.yaml:1:9: train.zebra: unknown key; keys of this section are epochs, \
         batch_size_per_rank, grad_accum_steps, global_batch_size, sync_batch_norm, \
         label_smoothing, ema_decay, ema_every, seed, max_steps"
    );
    assert_eq!(
        problem("", &["train.epoch=2"]),
        "--set train.epoch=2: train.epoch: unknown key; did you mean `train.epochs`?"
    );
    assert_eq!(problem("", &["lr=2"]), "--set lr=2: lr: unknown key; did you mean `optimizer.lr`?");
    assert_eq!(
        problem("", &["data.normalization.mean=[0.5]"]),
        "--set data.normalization.mean=[0.5]: data.normalization.mean: unknown key; `data.normalization` \
         is set as a whole, as in data.normalization=..."
    );
    assert!(problem("1: 2\n", &[]).contains("1: unknown key"));
}

#[test]
fn a_repeated_key_names_both_lines() {
    assert_eq!(
        problem("train:\n  epochs: 2\n  seed: 1\n  epochs: 3\n", &[]),
        "run.yaml:4:3: train.epochs: given twice, first on line 2; keep one"
    );
    assert_eq!(
        problem("data:\ntrain: {epochs: 2}\ndata:\n", &[]),
        "run.yaml:3:1: data: given twice, first on line 1; keep one"
    );
}

#[test]
fn bad_syntax_names_its_line() {
    let message = problem("train:\n  epochs: 2\n seed: 1\n", &[]);
    assert!(message.starts_with("run.yaml:3:2: not valid YAML: "), "{message}");
    assert!(
        problem("- a\n- b\n", &[]).starts_with("run.yaml:1:1: not valid YAML: expected sections")
    );
    assert!(problem("", &["train.epochs=[1"]).starts_with("--set train.epochs=[1: not valid YAML"));
}

#[test]
fn an_override_that_is_no_assignment_says_how_to_write_one() {
    assert_eq!(
        problem("", &["train.epochs"]),
        "--set train.epochs: expected key=value with a dotted key, as in train.epochs=2"
    );
    assert_eq!(
        problem("", &["train=3"]),
        "--set train=3: train: a section, not a key; set its keys one by one, as in train.epochs=..."
    );
}

#[test]
fn a_missing_file_is_named() {
    let error = load(std::path::Path::new("/nonexistent/run.yaml"), &[]).unwrap_err().to_string();
    assert!(error.starts_with("/nonexistent/run.yaml: cannot be read: "), "{error}");
}

#[test]
fn a_file_with_anchors_tags_and_lists_of_pairs_is_read_and_has_lines_all_the_same() {
    let config = load_text("train: {epochs: &n 3, seed: *n}\n", &[]).unwrap();
    assert_eq!((config.train.epochs, config.train.seed), (3, 3));
    for (text, place) in [
        ("train:\n  seed: 1\n  epochs: &e 0\n", "run.yaml:3:14: train.epochs: "),
        ("train:\n  seed: !!int 1\n  epochs: 0\n", "run.yaml:3:11: train.epochs: "),
        (
            "train: &t\n  seed: &s 1\n  max_steps: *s\n  epochs: 0\n",
            "run.yaml:4:11: train.epochs: ",
        ),
        (
            "data:\n  augment: [crop: {padding: 99}]\n",
            "run.yaml:2:12: data.augment[0].crop.padding: ",
        ),
        (
            "data:\n  augment: [crop: {padding: 2}]\ntrain:\n  epochs: 0\n",
            "run.yaml:4:11: train.epochs: ",
        ),
    ] {
        let problem = problem(text, &[]);
        assert!(problem.starts_with(place), "{text}: {problem}");
    }
}

#[test]
fn a_value_that_does_not_go_with_the_ranks_is_named_where_it_was_given() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.yaml");
    std::fs::write(&path, "comm:\n  timeout_seconds: 9\n  backend: nccl\n").unwrap();
    let here = Placement { on_gpus: false, on_several_machines: false, under_mpi: false };
    let refused_with = |overrides: &[&str]| {
        let overrides: Vec<_> = overrides.iter().map(ToString::to_string).collect();
        let config = load(&path, &overrides).unwrap();
        let invalid = config.comm.backend.transport(here).unwrap_err();
        refused(&path, &overrides, invalid).to_string()
    };
    let place = format!("{}:3:12: comm.backend: nccl is for GPUs", path.display());
    assert!(refused_with(&[]).starts_with(&place), "{}", refused_with(&[]));
    let error = refused_with(&["comm.backend=nccl"]);
    assert!(error.starts_with("--set comm.backend=nccl: comm.backend: nccl is"), "{error}");
}

#[test]
fn what_is_written_is_complete_and_loads_back_equal() {
    let overrides: [&[&str]; 9] = [
        &["optimizer.name=muon", "optimizer.aux=sgd", "optimizer.lookahead_steps=5"],
        &["optimizer.name=muon", "optimizer.frozen=[norm_weights, conv1.weight]"],
        &["optimizer.name=lars", "schedule.name=step", "schedule.step_size=3"],
        &["optimizer.name=lamb", "schedule.name=one_cycle"],
        &[],
        &["schedule.warmup_epochs=0.5"],
        &["optimizer.name=sgd", "optimizer.momentum=0.9", "optimizer.lr=0.1"],
        &["optimizer.lr=1e-9", "train.seed=18446744073709551615", "train.max_steps=3"],
        &["data.augment=[crop, flip, cutout]", "data.root=yes", "optimizer.eps=1e-7"],
    ];
    for overrides in overrides {
        let config = load_text("", overrides).unwrap();
        let text = to_yaml(&config);
        assert_eq!(load_text(&text, &[]).unwrap(), config, "{text}");
        let written: serde_yaml::Mapping = serde_yaml::from_str(&text).unwrap();
        let of_all =
            |path: &String| !path.starts_with("optimizer.") && !path.starts_with("schedule.");
        let paths = |mapping| -> Vec<String> {
            keys::leaves(mapping).into_iter().map(|(path, _)| path).filter(of_all).collect()
        };
        assert_eq!(paths(&written), paths(&keys::schema()));
    }
}

#[test]
fn only_what_shapes_training_counts_as_different() {
    let old = Config::default();
    let with = |overrides: &[&str]| load_text("", overrides).unwrap();
    let free = with(&[
        "data.root=elsewhere",
        "data.download=false",
        "eval.every_epochs=3",
        "checkpoint.keep=9",
        "metrics.log_every=1",
        "comm.timeout_seconds=9",
        "train.epochs=99",
        "train.max_steps=9",
    ]);
    assert_eq!(differences_in_training(&old, &free), []);

    let elsewhere = common_to_machines(&with(&["data.root=elsewhere", "data.download=false"]));
    assert_eq!(elsewhere, common_to_machines(&old));
    assert_ne!(common_to_machines(&with(&["comm.timeout_seconds=9"])), common_to_machines(&old));

    let shaped = with(&["train.seed=1", "optimizer.name=sgd", "data.augment=[flip]"]);
    let found = differences_in_training(&old, &shaped);
    let lines: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert_eq!(
        lines,
        [
            "data.augment: [] before, [{flip: {mode: random}}] now",
            "optimizer.betas: [0.9, 0.999] before, unset now",
            "optimizer.eps: 1e-8 before, unset now",
            "optimizer.momentum: unset before, 0.0 now",
            "optimizer.name: adamw before, sgd now",
            "optimizer.nesterov: unset before, false now",
            "train.seed: 0 before, 1 now",
        ]
    );

    let rounded = with(&["comm.wire_dtype=bf16"]);
    let found = differences_in_training(&old, &rounded);
    assert_eq!(found[0].to_string(), "comm.wire_dtype: fp32 before, bf16 now");

    let silent = with(&["comm.backend=none"]);
    let found = differences_in_training(&silent, &with(&["comm.backend=shm"]));
    assert_eq!(found[0].to_string(), "comm.backend: none before, shm now");
    assert_eq!(differences_in_training(&old, &with(&["comm.backend=shm"])), []);

    let cosine = with(&["schedule.name=cosine"]);
    let longer = with(&["schedule.name=cosine", "train.epochs=99"]);
    let found = differences_in_training(&cosine, &longer);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].path, "train.epochs");
    let power = &["optimizer.lookahead_steps=5", "optimizer.lookahead_power=3.0"];
    let longer = with(&[power[0], power[1], "train.max_steps=99"]);
    let found = differences_in_training(&with(power), &longer);
    assert_eq!((found.len(), found[0].path.as_str()), (1, "train.max_steps"));
    let stepped = &["schedule.name=multistep", "schedule.milestones=[3]"];
    let longer = with(&[stepped[0], stepped[1], "train.epochs=99"]);
    assert_eq!(differences_in_training(&with(stepped), &longer), []);
}
