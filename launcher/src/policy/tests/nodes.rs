//! Tests with several nodes, and with `mpirun`.

use super::*;

#[test]
fn a_lost_node_is_named_and_its_ranks_are_not_waited_for() {
    let mut job = Job::new(3, LIMITS, Walltime::default());
    let reason = "node 1 (n1) is lost: it sent nothing for 15s".to_owned();
    let lost = (Event::NodeLost { ranks: 1..3, reason: reason.clone() }, ms(1000));
    let (decision, why) = replay(&mut job, &[lost]);
    assert_eq!(decision, Decision::Wait);
    assert!(why.starts_with(&reason), "{why}");
    let waited = met(0, 5, &timeout(0, &[]), 1100);
    let (decision, _) = replay(&mut job, &[waited, tick(1300)]);
    assert_eq!(decision, Decision::Kill);
    let (decision, _) = replay(&mut job, &[exited(0, Exit::Signal(9), 1301)]);
    let Decision::Finish(outcome) = decision else { panic!("{decision:?}") };
    assert_eq!(outcome.to_string(), reason);
    assert_eq!(failure(outcome), (1, Cause::NodeLost(reason), ExitCode::RankFailed));
}

#[test]
fn an_mpirun_that_was_killed_is_named_and_not_the_rank_that_then_fails() {
    let killed = |at| {
        let reason = "mpirun ended with signal: 9 (SIGKILL)".to_owned();
        (Event::MpirunKilled { reason, at: ms(at) }, ms(1200))
    };
    let failed = [said(1, 9, "MPI lost its server", 1000), exited(1, Exit::Code(9), 1001)];
    let end = [tick(1500), exited(0, Exit::Signal(9), 1501)];
    let outcome_after = |at| finish(2, &[&failed[..1], &[killed(at)], &failed[1..], &end].concat());
    let outcome = outcome_after(900);
    assert_eq!(outcome.to_string(), "mpirun ended with signal: 9 (SIGKILL); then rank 1 failed");
    assert_eq!((outcome.failed_rank(), outcome.exit_code()), (None, ExitCode::RankFailed));
    // When `mpirun` ends after a rank has failed, its end follows from that failure.
    assert_eq!(outcome_after(1100).failed_rank(), Some(1));
}

#[test]
fn a_rank_that_outlives_mpirun_may_fail_for_another_reason() {
    let reason = "mpirun ended with signal: 9 (SIGKILL)".to_owned();
    let killed = (Event::MpirunKilled { reason, at: ms(900) }, ms(900));
    let outcome = |code: u8, at| {
        let exit = exited(1, Exit::Code(code.into()), at + 1);
        let end = [tick(at + 500), exited(0, Exit::Signal(9), at + 501)];
        finish(2, &[&[killed.clone(), said(1, code, "why", at), exit], &end[..]].concat())
    };
    let named = |code, at| (outcome(code, at).failed_rank(), outcome(code, at).exit_code());
    assert_eq!(named(6, 1000), (Some(1), ExitCode::NotFinite));
    assert_eq!(named(4, 60_000), (Some(1), ExitCode::RankFailed));
    assert_eq!(named(4, 1000), (None, ExitCode::RankFailed));
}

#[test]
fn a_signal_on_another_node_stops_the_job_once_and_impatience_there_ends_it() {
    let mut job = Job::new(1, LIMITS, Walltime::default());
    let asked = || (Event::StopAsked { reason: "SIGINT on node 1 (n1)".to_owned() }, ms(10));
    assert_eq!(replay(&mut job, &[asked()]).0, Decision::AskToStop);
    assert_eq!(replay(&mut job, &[asked()]).0, Decision::Wait);
    assert_eq!(job.stop_reason(), Some("SIGINT on node 1 (n1)"));
    let again = Event::StopNow { reason: "SIGINT again on node 1 (n1)".to_owned() };
    let (decision, reason) = replay(&mut job, &[(again, ms(1500))]);
    assert_eq!(decision, Decision::Kill);
    assert_eq!(reason, "SIGINT again on node 1 (n1) while a checkpoint was being saved");
    let (decision, _) = replay(&mut job, &[exited(0, Exit::Signal(9), 1501)]);
    assert_eq!(decision, Decision::Finish(Outcome::Interrupted));
}
