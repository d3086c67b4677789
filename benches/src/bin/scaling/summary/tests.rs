use super::*;
use crate::document::to_markdown;
use crate::energy::Energy;
use crate::load::Load;
use crate::record::tests::{report, run};

fn render(report: &Report) -> String {
    to_markdown(&document(report))
}

#[test]
fn rates_ratios_and_efficiencies_are_shown() {
    let (_, mut report) = report(&["--peers", "tuned"]);
    for (round, rate) in [(1, 100.0), (2, 110.0), (3, 90.0)] {
        report.records.push(run(round, 1, "Lockstep", rate));
        report.records.push(run(round, 2, "Lockstep", 1.9 * rate));
        report.records.push(run(round, 2, "Lockstep, isolated", 2.0 * rate));
        report.records.push(run(round, 2, "PyTorch DDP, tuned", rate));
    }
    let text = render(&report);
    for line in [
        "| 1 | 64 | Lockstep | 100 | 90..110 | 3 | 100.0 % | - | 100.0 | 1.25 | 512 |",
        "| 2 | 64 | Lockstep | 190 | 171..209 | 3 | 95.0 % | 95.0 % | 100.0 | 1.25 | 512 |",
        "| 2 | 64 | PyTorch DDP, tuned | 100 | 90..110 | 3 | - | - | 100.0 | 1.25 | 512 |",
        "| 1 | Lockstep | - |",
        "| 2 | Lockstep | 1.90 (1.90; 1.90..1.90) |",
        "weak-scaling-batch-64-per-rank-scaling.png",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    assert!(!text.contains("QUIET") && !text.contains("energy"));
}

#[test]
fn a_split_is_shown_where_runs_have_one() {
    let (_, mut report) = report(&[]);
    report.records.push(run(1, 2, "Lockstep", 100.0));
    assert!(!render(&report).contains("exposed communication"));
    let mut with_split = run(2, 2, "Lockstep", 100.0);
    let Outcome::Measured(measured) = &mut with_split.outcome else { unreachable!() };
    measured.split = Some(Split { forward_ms: 30.0, backward_ms: 60.0, ..Split::default() });
    measured.timed = (10.0, 20.0);
    measured.energy = Some(Energy { joules: 500.0, counter: "RAPL".to_owned() });
    report.records.push(with_split);
    let text = render(&report);
    let row = "| 2 | Lockstep | 0.00 | 30.00 | 60.00 | 0.00 | 0.00 | 0.00 | 0.00 | 90.00 |";
    assert!(text.contains(row), "{text}");
    // 500 J for 100 images/s over 10 s.
    assert!(text.contains("| 512 | 0.500 |"), "{text}");
}

#[test]
fn a_disturbed_run_is_mentioned_but_not_counted() {
    let (_, mut report) = report(&["--no-peers"]);
    let mut disturbed = run(1, 1, "Lockstep", 10.0);
    disturbed.disturbed = true;
    disturbed.load = Some(Load { others: 0.5, steal: 0.0 });
    report.records.extend([disturbed, run(1, 1, "Lockstep", 100.0)]);
    let text = render(&report);
    assert!(text.contains("| Lockstep | 100 | 100..100 | 1 |"), "{text}");
    assert!(
        text.contains("disturbed, repeated and left out: 1.") && !text.contains("QUIET"),
        "{text}"
    );
}

#[test]
fn without_peers_there_are_no_ratios() {
    let (_, mut report) = report(&["--peers", "tuned"]);
    report.records.push(run(1, 1, "Lockstep", 100.0));
    assert!(!render(&report).contains("each peer"));
}

#[test]
fn a_busy_machine_and_failures_are_told() {
    let (_, mut report) = report(&[]);
    let mut busy = run(1, 1, "Lockstep", 100.0);
    busy.load = Some(Load { others: 0.5, steal: 0.0 });
    let mut failed = run(1, 2, "PyTorch DDP, plain", 0.0);
    failed.outcome = Outcome::Failed("no such thing\nat all".to_owned());
    report.records.extend([busy, failed]);
    let text = render(&report);
    assert!(
        text.contains("during 1 of 2 runs other processes, or the host, used more than 3 %"),
        "{text}"
    );
    assert!(text.contains("PyTorch DDP, plain failed at 2 ranks: no such thing\n"), "{text}");
}

#[test]
fn results_that_are_kept_can_be_read() {
    let mut read = 0;
    for folder in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/results")).unwrap() {
        let Ok(text) = std::fs::read_to_string(folder.unwrap().path().join("results.json")) else {
            continue;
        };
        let report: Report = serde_json::from_str(&text).unwrap();
        assert!(render(&report).contains("| Lockstep |"));
        read += 1;
    }
    assert!(read > 0);
}
