use clap::Parser;
use serde_json::{Value, json};

use super::*;
use crate::cli::Args;
use crate::load::Load;
use crate::record::Record;

const NAME: &str = "job, weak scaling, batch 64 a rank";

fn plan_and_report(extra: &[&str]) -> (Plan, Report) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("job.yaml");
    std::fs::write(&path, "").unwrap();
    let required = ["scaling", "--cpu", "1,2", "--out", "o", "--configs", path.to_str().unwrap()];
    let args = Args::parse_from([&required, extra].concat());
    let versions = json!({"torch": "2.0", "python": "3.0"});
    (Plan::new(&args).unwrap(), Report::new(&args, Some(&versions)))
}

fn run(round: usize, ranks: usize, contestant: &str, images_per_s: f64) -> Record {
    let measured = Measured {
        images_per_s,
        step_ms_p50: 100.0,
        step_ms_p95: 110.0,
        seconds_to_training: 1.25,
        peak_memory_bytes: 512 << 20,
        raw: Value::Null,
    };
    Record {
        round,
        case: NAME.to_owned(),
        ranks,
        batch_per_rank: 64,
        contestant: contestant.to_owned(),
        started: String::new(),
        load: Load { others: 0.0, steal: 0.0 },
        disturbed: false,
        outcome: Outcome::Measured(measured),
    }
}

#[test]
fn rates_ratios_and_efficiency_are_shown() {
    let (plan, mut report) = plan_and_report(&["--peers", "tuned"]);
    for (round, rate) in [(1, 100.0), (2, 110.0), (3, 90.0)] {
        report.records.push(run(round, 1, "Lockstep", rate));
        report.records.push(run(round, 2, "Lockstep", 1.9 * rate));
        report.records.push(run(round, 2, "PyTorch DDP, tuned", rate));
    }
    let text = render(&plan, &report);
    for line in [
        "| 1 | 64 | Lockstep | 100 | 90..110 | 3 | 100.0 % | 100.0 | 1.25 | 512 |",
        "| 2 | 64 | Lockstep | 190 | 171..209 | 3 | 95.0 % | 100.0 | 1.25 | 512 |",
        "| 2 | 64 | PyTorch DDP, tuned | 100 | 90..110 | 3 | - | 100.0 | 1.25 | 512 |",
        "| 1 | Lockstep | - |",
        "| 2 | Lockstep | 1.90 (1.90; 1.90..1.90) |",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    assert!(!text.contains("quiet"));
}

#[test]
fn a_disturbed_run_is_mentioned_but_not_counted() {
    let (plan, mut report) = plan_and_report(&["--no-peers"]);
    let mut disturbed = run(1, 1, "Lockstep", 10.0);
    disturbed.disturbed = true;
    disturbed.load.others = 0.5;
    report.records.extend([disturbed, run(1, 1, "Lockstep", 100.0)]);
    let text = render(&plan, &report);
    assert!(text.contains("| Lockstep | 100 | 100..100 | 1 |"), "{text}");
    assert!(text.contains("1 runs that others disturbed") && !text.contains("quiet"), "{text}");
}

#[test]
fn without_peers_there_are_no_ratios() {
    let (plan, mut report) = plan_and_report(&["--peers", "tuned"]);
    report.records.push(run(1, 1, "Lockstep", 100.0));
    assert!(!render(&plan, &report).contains("each peer"));
}

#[test]
fn a_busy_machine_and_failures_are_told() {
    let (plan, mut report) = plan_and_report(&[]);
    let mut busy = run(1, 1, "Lockstep", 100.0);
    busy.load.others = 0.5;
    let mut failed = run(1, 2, "PyTorch DDP, plain", 0.0);
    failed.outcome = Outcome::Failed("no such thing\nat all".to_owned());
    report.records.extend([busy, failed]);
    let text = render(&plan, &report);
    assert!(text.contains("during 1 of 2 runs others, or the host, used more than 3 %"), "{text}");
    assert!(text.contains("PyTorch DDP, plain failed at 2 ranks: no such thing\n"), "{text}");
}
