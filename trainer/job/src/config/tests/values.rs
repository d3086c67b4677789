//! Values of a wrong type or out of range are named, with what would be right.

use super::super::Config;
use super::{load_text, problem};

#[test]
fn a_wrong_type_says_what_is_expected() {
    let cases = [
        (
            "train:\n  epochs: two\n",
            "run.yaml:2:11: train.epochs: expected a whole number, 0 or more, found string \"two\"",
        ),
        (
            "train: {epochs: -1}\n",
            "run.yaml:1:17: train.epochs: expected a whole number, 0 or more, found integer `-1`",
        ),
        (
            "train: {epochs: 1.5}\n",
            "run.yaml:1:17: train.epochs: expected a whole number, 0 or more, found number `1.5`",
        ),
        (
            "train: 3\n",
            "run.yaml:1:8: train: expected a section with keys epochs, batch_size_per_rank, grad_accum_steps, global_batch_size, sync_batch_norm, label_smoothing, ema_decay, ema_every, seed, max_steps",
        ),
        (
            "train: {epochs: null}\n",
            "run.yaml:1:17: train.epochs: expected a whole number, 0 or more, found nothing",
        ),
        (
            "data:\n  download: maybe\n",
            "run.yaml:2:13: data.download: expected true or false, found string \"maybe\"",
        ),
        (
            "comm: {overlap: true}\n",
            "run.yaml:1:17: comm.overlap: unknown value `true`, expected `auto`, `on`, `off`",
        ),
        (
            "precision: 16\n",
            "run.yaml:1:12: precision: unknown value `16`, expected `auto`, `fp32`, `bf16`, `fp16`",
        ),
        (
            "data: {augment: [crop: {padding: 4, mode: false}]}\n",
            "run.yaml:1:43: data.augment[0].crop.mode: unknown value `false`, expected `zero` or `reflect`",
        ),
        (
            "data: {augment: [{flip: 3}]}\n",
            "run.yaml:1:25: data.augment[0].flip: expected keys with values, as in {key: value}, found integer `3`",
        ),
        (
            "data:\n  augment:\n    - flip\n    - flap\n",
            "run.yaml:4:7: data.augment[1]: unknown value `flap`, expected `crop`, `flip`, `rand_augment`, `color_jitter`, `cutout`, `mixup`, `cutmix`; did you mean `flip`?",
        ),
        (
            "model: {name: resnet35}\n",
            "run.yaml:1:15: model.name: unknown network `resnet35`; did you mean `resnet34`? `trainer models` lists them all",
        ),
        (
            "optimizer: {betas: [0.9]}\n",
            "run.yaml:1:20: optimizer.betas: expected a list of two numbers, found 1",
        ),
        (
            "optimizer: {lr: fast}\n",
            "run.yaml:1:17: optimizer.lr: expected a number, found string \"fast\"",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(problem(text, &[]), expected);
    }
    assert_eq!(
        problem("comm: {bucket_cap_mib: large}\n", &[]),
        "run.yaml:1:24: comm.bucket_cap_mib: expected auto or a whole number of MiB, found string \"large\""
    );
    assert_eq!(
        problem("train: {epochs: 2}", &["train.epochs=two"]),
        "--set train.epochs=two: train.epochs: expected a whole number, 0 or more, found string \"two\""
    );
}

#[test]
fn only_a_section_or_an_optional_key_may_be_null() {
    assert!(
        problem("precision: null\n", &[])
            .starts_with("run.yaml:1:12: precision: unknown value `null`, expected")
    );
    assert!(problem("", &["train.seed=null"]).contains("expected a whole number"));
    assert_eq!(load_text("train:\ndata: {train_images: ~}", &[]).unwrap(), Config::default());
}

#[test]
fn a_value_out_of_range_says_the_range() {
    let cases = [
        (
            "train:\n  epochs: 0\n",
            "run.yaml:2:11: train.epochs: 0 is out of range; expected 1 to 1000000",
        ),
        (
            "train: {batch_size_per_rank: 70000}",
            "run.yaml:1:30: train.batch_size_per_rank: 70000 is out of range; expected 1 to 65536",
        ),
        (
            "train: {grad_accum_steps: 0}",
            "run.yaml:1:27: train.grad_accum_steps: 0 is out of range; expected 1 to 65536",
        ),
        (
            "train: {global_batch_size: 0}",
            "run.yaml:1:28: train.global_batch_size: 0 is out of range; expected 1 to 16777216",
        ),
        (
            "train: {max_steps: 0}",
            "run.yaml:1:20: train.max_steps: 0 is out of range; expected 1 or more",
        ),
        (
            "optimizer: {lr: 0}",
            "run.yaml:1:17: optimizer.lr: 0 is out of range; expected a number above 0, at most 100",
        ),
        (
            "optimizer: {lr: .nan}",
            "run.yaml:1:17: optimizer.lr: NaN is out of range; expected a number above 0, at most 100",
        ),
        (
            "optimizer: {weight_decay: -0.1}",
            "run.yaml:1:27: optimizer.weight_decay: -0.1 is out of range; expected a number, 0 or more",
        ),
        (
            "optimizer: {clip_grad_norm: 0}",
            "run.yaml:1:29: optimizer.clip_grad_norm: 0 is out of range; expected a number above 0, or null",
        ),
        (
            "optimizer: {betas: [0.9, 1.0]}",
            "run.yaml:1:26: optimizer.betas[1]: 1 is out of range; expected a number from 0 to below 1",
        ),
        (
            "optimizer: {momentum: 0.9}",
            "run.yaml:1:23: optimizer.momentum: adamw has no `momentum`; remove this key, or set optimizer.name to sgd or lars or muon",
        ),
        (
            "optimizer: {name: sgd, eps: 1e-8}",
            "run.yaml:1:29: optimizer.eps: sgd has no `eps`; remove this key, or set optimizer.name to adamw or lamb or muon",
        ),
        (
            "optimizer: {name: sgd, nesterov: true}",
            "run.yaml:1:34: optimizer.nesterov: needs momentum; set optimizer.momentum above 0, as in 0.9",
        ),
        (
            "optimizer: {lr_batch_size: 64}",
            "run.yaml:1:28: optimizer.lr_batch_size: has no effect without `lr_scaling: linear` or `sqrt`; set that, or remove this key",
        ),
        (
            "optimizer: {lookahead_power: 3}",
            "run.yaml:1:30: optimizer.lookahead_power: has no effect without `lookahead_steps`; set that, or remove this key",
        ),
        (
            "optimizer: {name: muon, aux: sgd, eps: 1e-8}",
            "run.yaml:1:40: optimizer.eps: has no effect without `aux: adamw`; set that, or remove this key",
        ),
        (
            "optimizer: {name: muon, ns_steps: 0}",
            "run.yaml:1:35: optimizer.ns_steps: 0 is out of range; expected 1 to 99",
        ),
        (
            "optimizer: {norm_bias_lr_factor: 0}",
            "run.yaml:1:34: optimizer.norm_bias_lr_factor: 0 is out of range; expected a number above 0",
        ),
        (
            "optimizer: {frozen: [norm_weights, conv.weight]}",
            "run.yaml:1:36: optimizer.frozen[1]: no parameter of resnet18 matches `conv.weight`; did you mean `conv1.weight`?",
        ),
        (
            "optimizer: {frozen: ['*']}",
            "run.yaml:1:21: optimizer.frozen: all parameters are frozen; nothing is left to train",
        ),
        (
            "{precision: fp16, optimizer: {name: lars}}",
            "run.yaml:1:13: precision: fp16 skips steps whose gradients overflow, which only adamw and sgd without look-ahead can do; use bf16 or fp32 with this optimizer",
        ),
        (
            "schedule: {gamma: 0.5}",
            "run.yaml:1:19: schedule.gamma: constant has no `gamma`; remove this key, or set schedule.name to step or multistep",
        ),
        (
            "schedule: {name: step}",
            "run.yaml:1:18: schedule.name: step needs `step_size`, as in 30",
        ),
        (
            "schedule: {name: multistep, milestones: [3, 3]}",
            "run.yaml:1:41: schedule.milestones: expected a list of ascending numbers, as in [60, 120, 160]",
        ),
        (
            "schedule: {name: cosine, min_lr: 0.1}",
            "run.yaml:1:34: schedule.min_lr: 0.1 is out of range; expected a number from 0 to optimizer.lr, 0.001",
        ),
        (
            "schedule: {warmup_epochs: 21}",
            "run.yaml:1:27: schedule.warmup_epochs: 21 is out of range; expected 0 to train.epochs, 20",
        ),
        (
            "schedule: {warmup_epochs: 2, warmup_steps: 3}",
            "run.yaml:1:27: schedule.warmup_epochs: given together with `warmup_steps`; keep one",
        ),
        (
            "schedule: {name: one_cycle, warmup_steps: 3}",
            "run.yaml:1:43: schedule.warmup_steps: one_cycle has its own warm-up, set by `pct_start`; remove this key",
        ),
        (
            "schedule: {name: one_cycle, pct_start: 1.5}",
            "run.yaml:1:40: schedule.pct_start: 1.5 is out of range; expected a number from 0 to 1",
        ),
        (
            "model: {stochastic_depth: 1}",
            "run.yaml:1:27: model.stochastic_depth: 1 is out of range; expected a number from 0 to below 1",
        ),
        (
            "model: {name: plain34, stochastic_depth: 0.5}",
            "run.yaml:1:42: model.stochastic_depth: plain34 has no blocks that stochastic depth can skip; remove this key",
        ),
        (
            "model: {name: wrn16_8, zero_init_residual: true}",
            "run.yaml:1:44: model.zero_init_residual: no block of wrn16_8 ends with a batch norm; remove this key",
        ),
        (
            "model: {name: resnet50, dropout: 0.5}",
            "run.yaml:1:34: model.dropout: resnet50 has no dropout; remove this key, or use a wrn or vgg network",
        ),
        (
            "model: {name: airbench94, stem: imagenet}",
            "run.yaml:1:33: model.stem: airbench94 supports only its own stem, `cifar`",
        ),
        (
            "model: {name: resnet56, from_torchvision: a.safetensors}",
            "run.yaml:1:43: model.from_torchvision: torchvision has no resnet56; `trainer models` marks the networks it has",
        ),
        (
            "data: {augment: [flip, crop, flip: {mode: alternating}]}",
            "run.yaml:1:30: data.augment[2]: flip is given twice; keep one",
        ),
        (
            "data: {augment: [crop: {padding: 32, mode: reflect}]}",
            "run.yaml:1:34: data.augment[0].crop.padding: 32 is out of range; expected 1 to 31",
        ),
        (
            "data: {augment: [mixup: {alpha: 0}]}",
            "run.yaml:1:33: data.augment[0].mixup.alpha: 0 is out of range; expected 0.001 to 1000",
        ),
        (
            "data: {train_images: 60000}",
            "run.yaml:1:22: data.train_images: 60000 is out of range; expected 1 to 50000",
        ),
        (
            "data: {test_images: 0}",
            "run.yaml:1:21: data.test_images: 0 is out of range; expected 1 to 10000",
        ),
        (
            "data: {dataset: svhn, train_images: 73258}",
            "run.yaml:1:37: data.train_images: 73258 is out of range; expected 1 to 73257",
        ),
        (
            "data: {dataset: image_folder, image_size: 4}",
            "run.yaml:1:43: data.image_size: 4 is out of range; expected 8 to 1024",
        ),
        (
            "data: {image_size: 32}",
            "run.yaml:1:20: data.image_size: is for `dataset: image_folder` only; images of other data sets have a fixed size",
        ),
        (
            "data: {normalization: {mean: [0.5], std: [0.5, 0.5, 0.5]}}",
            "run.yaml:1:30: data.normalization.mean: expected a list of 3 numbers, of red, green and blue; found 1",
        ),
        (
            "data: {dataset: fashion_mnist, normalization: {mean: [0.3], std: [0.3, 0.3, 0.3]}}",
            "run.yaml:1:66: data.normalization.std: expected a list of one number: the images are grey; found 3",
        ),
        (
            "data: {normalization: {mean: [0.5, 0.5, 125], std: [0.2, 0.2, 0.2]}}",
            "run.yaml:1:41: data.normalization.mean[2]: 125 is out of range; expected a number from 0 to 1: pixels are taken as fractions of 255",
        ),
        (
            "data: {normalization: {mean: [0.5, 0.5, 0.5], std: [0.2, 0, 0.2]}}",
            "run.yaml:1:58: data.normalization.std[1]: 0 is out of range; expected a number above 0, at most 1",
        ),
        (
            "train: {ema_every: 5}",
            "run.yaml:1:20: train.ema_every: has no effect: `train.ema_decay` is null; set that, or remove this key",
        ),
        (
            "eval: {every_epochs: 0}",
            "run.yaml:1:22: eval.every_epochs: 0 is out of range; expected 1 or more",
        ),
        (
            "checkpoint: {keep: 0}",
            "run.yaml:1:20: checkpoint.keep: 0 is out of range; expected 1 or more",
        ),
        (
            "comm: {timeout_seconds: 0}",
            "run.yaml:1:25: comm.timeout_seconds: 0 is out of range; expected 1 to 86400",
        ),
        (
            "comm: {bucket_cap_mib: 5000}",
            "run.yaml:1:24: comm.bucket_cap_mib: 5000 is out of range; expected 1 to 4096",
        ),
        (
            "metrics: {log_every: 0}",
            "run.yaml:1:22: metrics.log_every: 0 is out of range; expected 1 or more",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(problem(text, &[]), expected);
    }
    assert_eq!(
        problem("train: {epochs: 2}", &["train.epochs=0"]),
        "--set train.epochs=0: train.epochs: 0 is out of range; expected 1 to 1000000"
    );
}
