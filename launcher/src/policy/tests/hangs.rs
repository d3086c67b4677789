//! Tests of which rank is found to hang.

use super::*;

#[test]
fn a_rank_that_hangs_is_named_by_the_one_that_waited_for_it() {
    let events = [
        met(0, 5, &timeout(0, &[1]), 1000),
        exited(0, Exit::Code(5), 1001),
        tick(1300),
        exited(1, Exit::Signal(9), 1301),
    ];
    let expected = (1, Cause::Blamed { by: 0 }, ExitCode::Hang);
    assert_eq!(failure(finish(2, &events)), expected);
}

#[test]
fn where_nobody_knows_who_hangs_it_is_the_rank_that_says_nothing() {
    let waited = |rank, at| met(rank, 5, &timeout(rank, &[]), at);
    let mut job = Job::new(4, LIMITS, Walltime::default());
    replay(&mut job, &[3, 2, 1, 0].map(|rank| report(rank, Phase::Training, 1000)));
    replay(&mut job, &[waited(0, 121_000), exited(0, Exit::Code(5), 121_001)]);
    assert_eq!(job.deadline(), Some(ms(124_000)), "the deadlines of others pass a little later");
    // Rank 1 learns of the timeout from rank 0, as over MPI; rank 3 was suspended.
    let told = met(1, 4, &told(0, &timeout(0, &[])), 121_100);
    let events = [told, waited(2, 122_000), exited(2, Exit::Code(5), 122_001)];
    replay(&mut job, &events);
    assert_eq!(replay(&mut job, &[tick(124_000)]).0, Decision::Kill);
    let ends = [exited(1, Exit::Code(4), 124_001), exited(3, Exit::Signal(9), 124_002)];
    let (Decision::Finish(outcome), reason) = replay(&mut job, &ends) else { panic!() };
    assert_eq!(failure(outcome), (3, Cause::Mute { heard: 0 }, ExitCode::Hang));
    assert!(reason.starts_with("rank 3 seems to hang: rank 0 waited"), "{reason}");
}

#[test]
fn one_that_was_told_of_a_wait_does_not_take_the_teller_for_the_one_that_hangs() {
    let mut job = Job::new(3, LIMITS, Walltime::default());
    replay(&mut job, &[0, 1, 2].map(|rank| report(rank, Phase::Training, 1000)));
    // Rank 2 is frozen; rank 0's own report was lost.
    replay(&mut job, &[alive(2, 2000), alive(0, 121_000), alive(1, 121_000)]);
    replay(&mut job, &[met(1, 4, &told(0, &timeout(0, &[])), 121_100)]);
    assert_eq!(job.deadline(), Some(ms(124_100)), "it names nobody");
    assert_eq!(replay(&mut job, &[tick(124_100)]).0, Decision::Kill);
    let ends = [0, 1, 2].map(|rank| exited(rank, Exit::Signal(9), 124_101));
    let (Decision::Finish(outcome), _) = replay(&mut job, &ends) else { panic!("not finished") };
    assert_eq!(failure(outcome), (2, Cause::Mute { heard: 1 }, ExitCode::Hang));
}

#[test]
fn when_all_ranks_wait_for_somebody_the_first_is_named() {
    let events = [
        met(0, 5, &timeout(0, &[]), 1000),
        met(1, 5, &timeout(1, &[]), 1001),
        exited(1, Exit::Code(5), 1002),
        exited(0, Exit::Code(5), 1003),
    ];
    let expected = (0, Cause::Exited(Exit::Code(5)), ExitCode::Hang);
    assert_eq!(failure(finish(2, &events)), expected);
}

fn lost_a_peer() -> CommError {
    let reason = "remote process exited".to_owned();
    CommError::PeerLost { op: "all_reduce", sequence: 5, rank: 0, reason }
}

#[test]
fn a_rank_that_lost_a_peer_over_nccl_is_not_the_one_that_failed() {
    let events = [
        met(0, 4, &lost_a_peer(), 1000),
        exited(0, Exit::Code(4), 1001),
        // Rank 1 is on another machine, whose launcher reports its end later.
        exited(1, Exit::Signal(9), 2500),
    ];
    let killed = (1, Cause::Exited(Exit::Signal(9)), ExitCode::RankFailed);
    assert_eq!(failure(finish(2, &events)), killed);
    // A rank that has not noticed the loss yet does not hang.
    let events =
        [events[0].clone(), events[1].clone(), tick(4000), exited(1, Exit::Signal(9), 4001)];
    let first = (0, Cause::Exited(Exit::Code(4)), ExitCode::RankFailed);
    assert_eq!(failure(finish(2, &events)), first);
}

#[test]
fn once_the_rank_that_failed_is_known_the_others_are_not_waited_for() {
    let mut job = Job::new(2, LIMITS, Walltime::default());
    replay(&mut job, &[met(0, 4, &lost_a_peer(), 1000)]);
    assert_eq!(job.deadline(), Some(ms(4000)));
    replay(&mut job, &[exited(1, Exit::Signal(9), 1005)]);
    assert_eq!(job.deadline(), Some(ms(1305)));
}

#[test]
fn when_all_ranks_blame_each_other_the_first_is_named() {
    let events = [
        met(0, 5, &timeout(0, &[1]), 1000),
        met(1, 5, &timeout(1, &[0]), 1001),
        exited(1, Exit::Code(5), 1002),
        exited(0, Exit::Code(5), 1003),
    ];
    let expected = (0, Cause::Exited(Exit::Code(5)), ExitCode::Hang);
    assert_eq!(failure(finish(2, &events)), expected);
}

#[test]
fn a_rank_that_falls_silent_in_training_hangs() {
    let mut job = Job::new(2, LIMITS, Walltime::default());
    let reports = [report(0, Phase::Training, 1000), report(1, Phase::Training, 60_000)];
    replay(&mut job, &reports);
    assert_eq!(job.deadline(), Some(ms(181_000)));
    assert_eq!(replay(&mut job, &[tick(180_999)]).0, Decision::Wait);
    // Its messages may not have been read yet.
    assert_eq!(replay(&mut job, &[tick(181_000)]).0, Decision::Wait);
    assert_eq!(job.deadline(), Some(ms(183_000)));
    let (decision, reason) = replay(&mut job, &[tick(183_000)]);
    assert_eq!(decision, Decision::Kill);
    assert_eq!(reason, "a rank reported nothing for 180s");
    let ends = [exited(0, Exit::Signal(9), 183_001), exited(1, Exit::Signal(9), 183_001)];
    let (decision, _) = replay(&mut job, &ends);
    let Decision::Finish(outcome) = decision else { panic!("{decision:?}") };
    let cause = Cause::Silent(Silence::Quiet(ms(182_000)));
    assert_eq!(failure(outcome), (0, cause, ExitCode::Hang));
}

#[test]
fn a_rank_that_speaks_after_all_goes_on() {
    let mut job = Job::new(1, LIMITS, Walltime::default());
    replay(&mut job, &[report(0, Phase::Training, 1000), tick(181_000)]);
    replay(&mut job, &[report(0, Phase::Training, 181_500)]);
    assert_eq!(replay(&mut job, &[tick(183_000)]).0, Decision::Wait);
    assert_eq!(job.deadline(), Some(ms(361_500)));
}

fn alive(rank: usize, at: u64) -> (Event, Duration) {
    (Event::Heartbeat { rank }, ms(at))
}

/// Lets time pass until the launcher gives up on ranks at `at`, in milliseconds, and then ends all ranks.
/// Returns the failure.
fn give_up(job: &mut Job, at: u64) -> (usize, Cause, ExitCode) {
    assert_eq!(job.deadline(), Some(ms(at - 2000)));
    let (decision, reason) = replay(job, &[tick(at - 2000), tick(at)]);
    assert_eq!(decision, Decision::Kill, "{reason}");
    let ends: Vec<_> =
        (0..job.ranks().len()).map(|rank| exited(rank, Exit::Signal(9), at)).collect();
    let (Decision::Finish(outcome), _) = replay(job, &ends) else { panic!("not finished") };
    failure(outcome)
}

#[test]
fn a_rank_whose_process_does_not_run_is_frozen_whatever_it_did() {
    for phase in [Phase::Connecting, Phase::LoadingData, Phase::Training, Phase::Saving] {
        let mut job = Job::new(2, LIMITS, Walltime::default());
        replay(&mut job, &[report(0, phase, 1000), report(1, phase, 1000)]);
        replay(&mut job, &[alive(0, 1900), alive(1, 2000), alive(0, 126_000)]);
        let cause = Cause::Silent(Silence::Frozen(ms(127_000)));
        assert_eq!(give_up(&mut job, 129_000), (1, cause, ExitCode::Hang));
    }
}

#[test]
fn a_rank_that_freezes_while_it_saves_its_last_checkpoint_is_named() {
    let mut job = Job::new(2, LIMITS, Walltime::default());
    replay(&mut job, &[report(0, Phase::Saving, 1000), report(1, Phase::Saving, 1000)]);
    replay(&mut job, &[signal(StopSignal::Terminate, 1500), alive(0, 2000), alive(1, 2000)]);
    replay(&mut job, &[exited(1, Exit::Code(8), 3000)]);
    let cause = Cause::Silent(Silence::Frozen(ms(127_000)));
    assert_eq!(give_up(&mut job, 129_000), (0, cause, ExitCode::Hang));
}

#[test]
fn a_rank_that_is_looked_for_and_was_never_heard_of_is_named() {
    let mut job = Job::new(3, LIMITS, Walltime::default());
    replay(&mut job, &[0, 1].map(|rank| report(rank, Phase::Connecting, 2000)));
    replay(&mut job, &[alive(0, 126_000), alive(1, 126_000)]);
    let cause = Cause::Silent(Silence::Quiet(ms(129_000)));
    assert_eq!(give_up(&mut job, 129_000), (2, cause, ExitCode::Hang));
}

#[test]
fn ranks_that_all_run_and_do_not_find_each_other_end_and_none_is_named() {
    let mut job = Job::new(2, LIMITS, Walltime::default());
    replay(&mut job, &[0, 1].map(|rank| report(rank, Phase::Connecting, 2000)));
    replay(&mut job, &[alive(0, 181_000), alive(1, 181_000)]);
    let (_, cause, code) = give_up(&mut job, 184_000);
    assert_eq!((cause, code), (Cause::Silent(Silence::Apart(ms(182_000))), ExitCode::Hang));
    let outcome = Outcome::Failed(job.first_failure().unwrap());
    assert_eq!(outcome.failed_rank(), None);
    let text = "rank 0 and all others run, but have not connected to each other for 182s";
    assert_eq!(outcome.to_string(), text);
}

#[test]
fn of_ranks_that_say_nothing_the_one_whose_process_does_not_run_is_named() {
    let mut job = Job::new(3, LIMITS, Walltime::default());
    replay(&mut job, &[report(2, Phase::Training, 1000), report(1, Phase::Training, 1500)]);
    replay(&mut job, &[alive(1, 2000), alive(2, 100_000), alive(0, 100_000)]);
    replay(&mut job, &[met(0, 5, &timeout(0, &[]), 100_001), tick(103_001)]);
    let ends = [0, 1, 2].map(|rank| exited(rank, Exit::Signal(9), 103_002));
    let (Decision::Finish(outcome), _) = replay(&mut job, &ends) else { panic!() };
    assert_eq!(failure(outcome), (1, Cause::Mute { heard: 0 }, ExitCode::Hang));
}

#[test]
fn a_rank_that_was_told_who_hangs_may_speak_before_the_one_that_told_it() {
    let waited = timeout(3, &[2]);
    let events = |witness_speaks| {
        let mut events = vec![met(0, 4, &told(3, &waited), 1000), exited(0, Exit::Code(4), 1001)];
        if witness_speaks {
            events.push(met(3, 5, &waited, 1100));
        }
        events.push(tick(1301));
        events.extend([1, 2, 3].map(|rank| exited(rank, Exit::Signal(9), 1302)));
        events
    };
    let outcome = failure(finish(4, &events(true)));
    assert_eq!(outcome, (2, Cause::Blamed { by: 3 }, ExitCode::Hang));
    let outcome = failure(finish(4, &events(false)));
    assert_eq!(outcome, (2, Cause::Blamed { by: 0 }, ExitCode::Hang));
}

#[test]
fn a_rank_that_cannot_connect_gives_way_to_one_that_died() {
    let reason = "cannot open rank 0's shared memory".to_owned();
    let cannot = CommError::Connect { backend: "shm", reason };
    let cannot = [met(1, 9, &cannot, 1000), exited(1, Exit::Code(9), 1001)];
    let died = [&cannot[..], &[exited(0, Exit::Signal(6), 1002)]].concat();
    let expected = (0, Cause::Exited(Exit::Signal(6)), ExitCode::RankFailed);
    assert_eq!(failure(finish(2, &died)), expected);
    let killed = [&cannot[..], &[tick(1300), exited(0, Exit::Signal(9), 1301)]].concat();
    let expected = (1, Cause::Exited(Exit::Code(9)), ExitCode::Setup);
    assert_eq!(failure(finish(2, &killed)), expected);
}

#[test]
fn a_rank_that_takes_no_steps_may_be_silent_and_is_told_of() {
    for phase in [Phase::LoadingData, Phase::Preparing, Phase::Evaluating, Phase::Saving] {
        let mut job = Job::new(1, LIMITS, Walltime::default());
        replay(&mut job, &[report(0, phase, 1000)]);
        assert_eq!(job.deadline(), Some(ms(301_000)));
        assert_eq!(replay(&mut job, &[tick(300_999)]).0, Decision::Wait);
        let (decision, reason) = replay(&mut job, &[tick(301_000)]);
        assert_eq!(decision, Decision::Warn);
        let doing = job.ranks()[0].doing();
        let expected = format!("rank 0 ({doing}) reported nothing for 300 s; still waiting");
        assert_eq!(reason, expected);
        assert_eq!(job.deadline(), Some(ms(601_000)));
    }
}

#[test]
fn ranks_that_never_said_a_word_are_told_of() {
    let mut job = Job::new(3, LIMITS, Walltime::default());
    replay(&mut job, &[report(1, Phase::Connecting, 200_000)]);
    let (decision, reason) = replay(&mut job, &[tick(300_000)]);
    assert_eq!(decision, Decision::Warn);
    let expected =
        [0, 2].map(|rank| format!("rank {rank} (starting up) reported nothing for 300 s"));
    assert_eq!(reason, format!("{}; still waiting", expected.join("; ")));
}

#[test]
fn ranks_that_do_not_begin_hang() {
    let mut job = Job::new(2, LIMITS, Walltime::default());
    replay(&mut job, &[tick(300_000)]);
    assert_eq!(job.deadline(), Some(ms(600_000)));
    replay(&mut job, &[alive(0, 599_000), alive(1, 599_000)]);
    // Extra time for messages that have not been read yet.
    assert_eq!(replay(&mut job, &[tick(600_000)]).0, Decision::Wait);
    let (decision, reason) = replay(&mut job, &[tick(602_000)]);
    assert_eq!((decision, reason.as_str()), (Decision::Kill, "a rank did not start within 600s"));
    let last = [exited(0, Exit::Signal(9), 602_001), exited(1, Exit::Signal(9), 602_002)];
    let (decision, _) = replay(&mut job, &last);
    let Decision::Finish(outcome) = decision else { panic!("{decision:?}") };
    let silence = Silence::Quiet(ms(602_000));
    assert_eq!(failure(outcome), (0, Cause::Silent(silence), ExitCode::Hang));
}

#[test]
fn a_launcher_that_was_suspended_does_not_take_its_ranks_for_silent() {
    let mut job = Job::new(1, LIMITS, Walltime::default());
    replay(&mut job, &[report(0, Phase::Training, 1000)]);
    let (decision, reason) = replay(&mut job, &[tick(3_600_000)]);
    assert_eq!(decision, Decision::Wait);
    assert_eq!(reason, DID_NOT_RUN);
    assert_eq!(job.deadline(), Some(ms(3_780_000)));
}
