//! Tests of failures, signals and restarts; [`hangs`] has those of ranks that hang, [`nodes`] those of
//! several nodes and `mpirun`.

mod hangs;
mod nodes;

use comm::control::Phase;
use comm::{Blame, CommError};
use job::ExitCode;

use super::*;

const LIMITS: Limits = Limits {
    stop: Duration::from_secs(150),
    silence: Duration::from_secs(180),
    frozen: Duration::from_secs(125),
    start: Duration::from_secs(600),
};

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn exited(rank: usize, exit: Exit, at: u64) -> (Event, Duration) {
    (Event::Exited { rank, exit, at: ms(at) }, ms(at))
}

/// A rank reports a failure of its own.
fn said(rank: usize, exit_code: u8, message: &str, at: u64) -> (Event, Duration) {
    let (message, blame) = (message.to_owned(), Blame::Nobody);
    (Event::Failed { rank, exit_code, message, blame }, ms(at))
}

/// A rank reports a failure of communication with its peers.
fn met(rank: usize, exit_code: u8, error: &CommError, at: u64) -> (Event, Duration) {
    let (message, blame) = (error.to_string(), error.blame());
    (Event::Failed { rank, exit_code, message, blame }, ms(at))
}

/// The error of `rank` after it waited in vain for `missing`; empty: for peers that it cannot name.
fn timeout(rank: usize, missing: &[usize]) -> CommError {
    CommError::Timeout {
        op: "all_reduce",
        sequence: 5,
        rank,
        missing: missing.to_vec(),
        waited: Duration::from_secs(120),
        detail: "-".to_owned(),
    }
}

/// The error of the other ranks when `by` gives up because of `error`.
fn told(by: usize, error: &CommError) -> CommError {
    CommError::Aborted { by, reason: error.to_string(), blame: error.blame() }
}

fn signal(signal: StopSignal, at: u64) -> (Event, Duration) {
    (Event::Signal(signal), ms(at))
}

fn tick(at: u64) -> (Event, Duration) {
    (Event::Tick, ms(at))
}

fn report(rank: usize, phase: Phase, at: u64) -> (Event, Duration) {
    (Event::Reported { rank, phase, epoch: 2, step: 70 }, ms(at))
}

fn replay(job: &mut Job, events: &[(Event, Duration)]) -> (Decision, String) {
    let steps = events.iter().map(|(event, at)| job.on(event, *at));
    steps.last().expect("at least one event")
}

fn finish(world_size: usize, events: &[(Event, Duration)]) -> Outcome {
    let mut job = Job::new(world_size, LIMITS, Walltime::default());
    match replay(&mut job, events) {
        (Decision::Finish(outcome), _) => outcome,
        other => panic!("not finished: {other:?}"),
    }
}

fn failure(outcome: Outcome) -> (usize, Cause, ExitCode) {
    match outcome {
        Outcome::Failed(failure) => (failure.rank, failure.cause, failure.exit_code),
        other => panic!("not a failure: {other:?}"),
    }
}

/// The error of a rank whose peer, rank 1, is gone.
const GONE: CommError = CommError::PeerGone { rank: 1, pid: 77, op: "all_reduce", sequence: 9 };

#[test]
fn ranks_that_exit_0_are_done() {
    let mut job = Job::new(2, LIMITS, Walltime::default());
    let (decision, reason) = replay(&mut job, &[exited(1, Exit::Code(0), 10)]);
    assert_eq!((decision, reason.as_str()), (Decision::Wait, "no failure"));
    let (decision, reason) = replay(&mut job, &[exited(0, Exit::Code(0), 11)]);
    assert_eq!(decision, Decision::Finish(Outcome::Done));
    assert_eq!(reason, "all ranks are done");
    assert_eq!(Outcome::Done.exit_code(), ExitCode::Done);
}

#[test]
fn a_killed_rank_is_named_and_the_others_are_killed_after_a_moment() {
    let mut job = Job::new(3, LIMITS, Walltime::default());
    let (decision, reason) = replay(&mut job, &[exited(1, Exit::Signal(9), 1000)]);
    assert_eq!(decision, Decision::Wait);
    assert!(reason.starts_with("rank 1 failed: killed by SIGKILL; the others"), "{reason}");
    assert_eq!(job.deadline(), Some(ms(1300)));
    let (decision, reason) = replay(&mut job, &[met(0, 4, &GONE, 1001), tick(1300)]);
    assert_eq!(decision, Decision::Kill);
    assert_eq!(reason, "a rank failed, so no step can complete");
    let last = [exited(0, Exit::Signal(9), 1301), exited(2, Exit::Signal(9), 1302)];
    let (decision, _) = replay(&mut job, &last);
    let Decision::Finish(outcome) = decision else { panic!("{decision:?}") };
    assert_eq!(failure(outcome), (1, Cause::Exited(Exit::Signal(9)), ExitCode::RankFailed));
    assert!(job.ranks()[2].killed && !job.ranks()[1].killed);
}

#[test]
fn a_rank_that_only_saw_its_peer_die_is_not_the_culprit_even_if_seen_first() {
    let events =
        [met(0, 4, &GONE, 1000), exited(0, Exit::Code(4), 1001), exited(1, Exit::Signal(11), 1002)];
    let expected = (1, Cause::Exited(Exit::Signal(11)), ExitCode::RankFailed);
    assert_eq!(failure(finish(2, &events)), expected);
}

#[test]
fn a_peers_code_without_a_word_gives_way_to_a_failure_of_its_own() {
    let events = [exited(0, Exit::Code(4), 1000), exited(1, Exit::Code(6), 1100)];
    let expected = (1, Cause::Exited(Exit::Code(6)), ExitCode::NotFinite);
    assert_eq!(failure(finish(2, &events)), expected);
}

#[test]
fn a_rank_that_aborted_the_others_is_the_culprit_though_they_spoke_first() {
    let reason = "cannot write the checkpoint: no space left on device".to_owned();
    let told = CommError::Aborted { by: 1, reason: reason.clone(), blame: Blame::Nobody };
    let events = [
        met(0, 4, &told, 1000),
        said(1, 4, &reason, 1002),
        exited(0, Exit::Code(4), 1003),
        exited(1, Exit::Code(4), 1004),
    ];
    let expected = (1, Cause::Exited(Exit::Code(4)), ExitCode::RankFailed);
    assert_eq!(failure(finish(2, &events)), expected);
}

#[test]
fn of_two_failures_of_their_own_the_first_in_time_wins() {
    let events = [exited(2, Exit::Code(101), 900), exited(0, Exit::Signal(6), 880)];
    let events = [&events[..], &[exited(1, Exit::Code(7), 950)]].concat();
    let expected = (0, Cause::Exited(Exit::Signal(6)), ExitCode::RankFailed);
    assert_eq!(failure(finish(3, &events)), expected);
}

#[test]
fn a_rank_that_fails_and_does_not_exit_is_killed_with_the_others() {
    let events = [
        said(0, 7, "out of memory", 500),
        tick(800),
        exited(0, Exit::Signal(9), 801),
        exited(1, Exit::Signal(9), 801),
    ];
    assert_eq!(failure(finish(2, &events)), (0, Cause::Announced, ExitCode::OutOfMemory));
}

#[test]
fn exit_codes_of_a_trainer_are_the_launchers_and_others_are_4() {
    let code_after = |exit| failure(finish(1, &[exited(0, exit, 5)])).2 as u8;
    for code in [2, 3, 4, 5, 6, 7, 9] {
        assert_eq!(code_after(Exit::Code(code)), code as u8);
    }
    for other in [Exit::Code(1), Exit::Code(101), Exit::Code(134), Exit::Signal(9)] {
        assert_eq!(code_after(other), 4);
    }
    assert_eq!(code_after(Exit::Code(127)), 9);
    assert_eq!(code_after(Exit::OutOfMemory), 7);
}

#[test]
fn what_a_rank_announced_counts_more_than_how_it_then_died() {
    let events = [said(0, 6, "loss is NaN at step 5", 10), exited(0, Exit::Signal(6), 20)];
    assert_eq!(failure(finish(1, &events)).2, ExitCode::NotFinite);
}

#[test]
fn a_signal_asks_all_ranks_to_save_and_they_exit_8() {
    for stop in
        [StopSignal::Interrupt, StopSignal::Terminate, StopSignal::User1, StopSignal::Hangup]
    {
        let mut job = Job::new(2, LIMITS, Walltime::default());
        let decision = replay(&mut job, &[signal(stop, 100)]);
        assert_eq!(decision, (Decision::AskToStop, stop.name().to_owned()));
        assert_eq!(job.stop_reason(), Some(stop.name()));
        let ends = [exited(0, Exit::Code(8), 200), exited(1, Exit::Code(8), 201)];
        let (decision, reason) = replay(&mut job, &ends);
        assert_eq!(decision, Decision::Finish(Outcome::Stopped));
        assert_eq!(reason, "all ranks stopped after saving a checkpoint");
    }
}

#[test]
fn a_run_that_was_done_just_before_it_saw_the_signal_is_done() {
    let events = [
        signal(StopSignal::Terminate, 1),
        exited(0, Exit::Code(0), 2),
        exited(1, Exit::Code(0), 3),
    ];
    assert_eq!(finish(2, &events), Outcome::Done);
}

#[test]
fn a_second_interrupt_kills_at_once() {
    let mut job = Job::new(1, LIMITS, Walltime::default());
    let twice = [signal(StopSignal::Terminate, 1), signal(StopSignal::Interrupt, 1002)];
    let (decision, reason) = replay(&mut job, &twice);
    assert_eq!(decision, Decision::Kill);
    assert_eq!(reason, "SIGINT while a checkpoint was being saved");
    let (decision, _) = replay(&mut job, &[exited(0, Exit::Signal(9), 3)]);
    assert_eq!(decision, Decision::Finish(Outcome::Interrupted));
    assert_eq!(Outcome::Interrupted.exit_code(), ExitCode::Stopped);
}

#[test]
fn an_interrupt_that_comes_by_two_ways_is_one() {
    let mut job = Job::new(1, LIMITS, Walltime::default());
    let by_two_ways = [signal(StopSignal::Terminate, 1), signal(StopSignal::Interrupt, 2)];
    assert_eq!(replay(&mut job, &by_two_ways).0, Decision::Wait);
    assert_eq!(replay(&mut job, &[signal(StopSignal::Interrupt, 3)]).0, Decision::Kill);
}

#[test]
fn signals_that_slurm_repeats_do_not_cut_a_checkpoint_short() {
    let mut job = Job::new(1, LIMITS, Walltime::default());
    let repeated = [
        signal(StopSignal::User1, 1),
        signal(StopSignal::Terminate, 2),
        signal(StopSignal::Terminate, 3),
        signal(StopSignal::Hangup, 4),
    ];
    let (decision, reason) = replay(&mut job, &repeated);
    assert_eq!((decision, reason.as_str()), (Decision::Wait, "SIGHUP while already stopping"));
}

#[test]
fn ranks_that_do_not_stop_in_time_are_killed_and_named() {
    let mut job = Job::new(2, LIMITS, Walltime::default());
    replay(&mut job, &[signal(StopSignal::Terminate, 0), exited(0, Exit::Code(8), 50)]);
    assert_eq!(job.deadline(), Some(LIMITS.stop));
    let (decision, reason) = replay(&mut job, &[tick(150_000)]);
    assert_eq!(decision, Decision::Kill);
    assert_eq!(reason, "not all ranks stopped within 150s");
    let (decision, _) = replay(&mut job, &[exited(1, Exit::Signal(9), 150_001)]);
    assert_eq!(decision, Decision::Finish(Outcome::Overdue(vec![1])));
    assert_eq!(Outcome::Overdue(vec![1]).exit_code(), ExitCode::Hang);
}

#[test]
fn what_ranks_say_when_they_are_killed_does_not_change_how_the_job_ended() {
    let gone = met(0, 4, &GONE, 2001);
    let killed = [exited(0, Exit::Code(4), 2002), exited(1, Exit::Signal(9), 2003)];
    let twice = [signal(StopSignal::Interrupt, 1), signal(StopSignal::Interrupt, 2000)];
    let events = [&twice[..], std::slice::from_ref(&gone), &killed].concat();
    assert_eq!(finish(2, &events), Outcome::Interrupted);
    let late = [signal(StopSignal::Terminate, 1), tick(150_001), gone];
    assert_eq!(finish(2, &[&late[..], &killed].concat()), Outcome::Overdue(vec![0, 1]));
}

#[test]
fn a_stop_waits_for_ranks_that_load_evaluate_or_save() {
    for phase in [Phase::LoadingData, Phase::Preparing, Phase::Evaluating, Phase::Saving] {
        let mut job = Job::new(2, LIMITS, Walltime::default());
        replay(&mut job, &[report(0, phase, 1000), report(1, Phase::Training, 1000)]);
        replay(&mut job, &[signal(StopSignal::Terminate, 2000), exited(1, Exit::Code(8), 3000)]);
        assert_eq!(job.deadline(), Some(ms(301_000)), "when it is told of");
        let (decision, reason) = replay(&mut job, &[tick(301_000)]);
        assert_eq!(decision, Decision::Warn, "{reason}");
        // The stop limit starts anew when the rank takes steps again.
        replay(&mut job, &[report(0, Phase::Training, 400_000)]);
        assert_eq!(job.deadline(), Some(ms(400_000) + LIMITS.stop));
        assert_eq!(replay(&mut job, &[tick(550_000)]).0, Decision::Kill);
    }
}

#[test]
fn a_launcher_that_was_suspended_does_not_take_a_stop_for_overdue() {
    let mut job = Job::new(1, LIMITS, Walltime::default());
    replay(&mut job, &[report(0, Phase::Training, 0), signal(StopSignal::Terminate, 1000)]);
    // Messages that were sent meanwhile are read first.
    let (decision, _) = replay(&mut job, &[report(0, Phase::Training, 900_000)]);
    assert_eq!(decision, Decision::Wait);
    let (decision, reason) = replay(&mut job, &[tick(900_000)]);
    assert_eq!((decision, reason.as_str()), (Decision::Wait, DID_NOT_RUN));
    assert_eq!(job.deadline(), Some(ms(900_000) + LIMITS.stop));
    assert_eq!(
        replay(&mut job, &[exited(0, Exit::Code(8), 901_000)]).0,
        Decision::Finish(Outcome::Stopped)
    );
}

#[test]
fn a_rank_that_was_signalled_by_itself_stops_all() {
    let mut job = Job::new(2, LIMITS, Walltime::default());
    let (decision, reason) = replay(&mut job, &[exited(1, Exit::Code(8), 50)]);
    assert_eq!(decision, Decision::AskToStop);
    assert_eq!(reason, "a request to rank 1");
}

#[test]
fn a_failure_while_stopping_is_a_failure() {
    let events = [
        signal(StopSignal::Terminate, 0),
        exited(1, Exit::Signal(9), 50),
        tick(350),
        exited(0, Exit::Signal(9), 351),
    ];
    assert_eq!(failure(finish(2, &events)).0, 1);
}

#[test]
fn a_signal_after_a_failure_kills_without_waiting() {
    let mut job = Job::new(2, LIMITS, Walltime::default());
    let events = [exited(1, Exit::Signal(9), 50), signal(StopSignal::Interrupt, 60)];
    let (decision, reason) = replay(&mut job, &events);
    assert_eq!((decision, reason.as_str()), (Decision::Kill, "SIGINT after a rank had failed"));
    assert_eq!(job.stop_reason(), Some("SIGINT"));
}

#[test]
fn a_signal_while_ranks_are_being_killed_is_remembered() {
    let mut job = Job::new(2, LIMITS, Walltime::default());
    let events = [exited(1, Exit::Signal(9), 50), tick(350), signal(StopSignal::Terminate, 400)];
    assert_eq!(replay(&mut job, &events).0, Decision::Wait);
    let (decision, _) = replay(&mut job, &[exited(0, Exit::Signal(9), 500)]);
    let Decision::Finish(outcome) = decision else { panic!("{decision:?}") };
    let decision = restart(&outcome, job.stop_reason().is_some(), 0, 3);
    assert_eq!(decision, Err("the job was asked to stop".to_owned()));
}

#[test]
fn ranks_that_cannot_be_killed_are_named_and_not_waited_for() {
    let mut job = Job::new(3, LIMITS, Walltime::default());
    let events = [exited(1, Exit::Signal(9), 50), tick(350), exited(0, Exit::Signal(9), 400)];
    assert_eq!(replay(&mut job, &events).0, Decision::Wait);
    assert_eq!(job.deadline(), Some(ms(10_350)));
    let (decision, reason) = replay(&mut job, &[tick(10_350)]);
    assert_eq!(
        reason,
        "rank 1 failed: killed by SIGKILL; these ranks were killed but have not exited: 2"
    );
    let Decision::Finish(outcome) = decision else { panic!("{decision:?}") };
    assert_eq!((outcome.exit_code(), outcome.failed_rank()), (ExitCode::RankFailed, Some(1)));
    assert_eq!(restart(&outcome, false, 0, 3), Err(reason), "rank 2 has the run directory");
    let of_a_healthy_job = Outcome::Unkillable { ranks: vec![0], after: Box::new(Outcome::Done) };
    assert_eq!(of_a_healthy_job.exit_code(), ExitCode::Hang);
}

#[test]
fn a_launcher_that_was_suspended_waits_again_for_killed_ranks() {
    let mut job = Job::new(2, LIMITS, Walltime::default());
    replay(&mut job, &[exited(1, Exit::Signal(9), 50), tick(350)]);
    let (decision, reason) = replay(&mut job, &[tick(900_000)]);
    assert_eq!((decision, reason.as_str()), (Decision::Wait, DID_NOT_RUN));
    assert_eq!(job.deadline(), Some(ms(910_000)));
    assert_eq!(
        failure(match replay(&mut job, &[exited(0, Exit::Signal(9), 900_001)]).0 {
            Decision::Finish(outcome) => outcome,
            other => panic!("{other:?}"),
        })
        .0,
        1
    );
}

#[test]
fn a_trainer_of_another_version_cannot_work_here() {
    let refused = Event::Refused { rank: 0, reason: "protocol 2, not 1".to_owned() };
    let events = [(refused, ms(5)), tick(305), exited(0, Exit::Signal(9), 306)];
    let (rank, cause, code) = failure(finish(1, &events));
    assert_eq!((rank, code), (0, ExitCode::Setup));
    assert_eq!(cause, Cause::Refused("protocol 2, not 1".to_owned()));
}

#[test]
fn how_a_job_ended_is_told_in_a_line_with_what_the_rank_that_failed_said() {
    let mut job = Job::new(2, LIMITS, Walltime::default());
    let full = "checkpoints/latest: No space left on device";
    let events = [
        said(1, 4, &format!("{full}\nframe #0: somewhere in C++"), 5),
        met(0, 4, &GONE, 6),
        exited(1, Exit::Code(4), 7),
        exited(0, Exit::Code(4), 8),
    ];
    let (Decision::Finish(outcome), _) = replay(&mut job, &events) else { panic!("not finished") };
    let line = format!("rank 1 failed: exit status 4; rank 1 said: {full}");
    assert_eq!(job.in_a_line(&outcome), line);
    assert_eq!(job.in_a_line(&Outcome::Done), "all ranks are done");
}

#[test]
fn restarts_are_for_failures_that_may_not_come_again() {
    let outcome = |code| finish(1, &[exited(0, Exit::Code(code), 5)]);
    let decide = |code, stop, used| restart(&outcome(code), stop, used, 2);
    assert_eq!(decide(101, false, 0), Ok(()));
    assert_eq!(decide(5, false, 1), Ok(()));
    assert_eq!(decide(4, false, 2), Err("2 of 2 restarts are used".to_owned()));
    assert_eq!(decide(4, true, 0), Err("the job was asked to stop".to_owned()));
    for code in [2, 3, 6, 7, 9] {
        let expected = Err(format!("a restart would end with exit code {code} again"));
        assert_eq!(decide(code, false, 0), expected);
    }
    let killed = finish(1, &[exited(0, Exit::OutOfMemory, 5)]);
    assert_eq!(killed.to_string(), "rank 0 failed: killed by the kernel: out of memory");
    assert!(restart(&killed, false, 0, 2).is_err());
    assert_eq!(restart(&Outcome::Stopped, true, 0, 2), Err("nothing failed".to_owned()));
}

#[test]
fn a_job_whose_time_runs_out_is_asked_to_stop_before() {
    let mut job = Job::new(2, LIMITS, Walltime::new(Some(ms(100_000))));
    assert_eq!(job.deadline(), Some(ms(45_000)));
    // What the end of an epoch takes is learned from rank 0, which has the most to do then.
    let of_rank_1 = [(Phase::Training, 0), (Phase::Evaluating, 1000), (Phase::Training, 3000)];
    replay(&mut job, &of_rank_1.map(|(phase, at)| report(1, phase, at)));
    assert_eq!(job.deadline(), Some(ms(45_000)));
    let (decision, reason) = replay(&mut job, &[tick(44_000), tick(46_000)]);
    assert_eq!(decision, Decision::AskToStop);
    assert_eq!(reason, "the job's time limit (54s left)");
}
