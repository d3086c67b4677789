//! The verdict, a text at the end of a job: what failed, where, and how to go on. Pure.

use std::fmt::Write;
use std::time::Duration;

use job::ExitCode;

use crate::local::LogTail;
use crate::policy::{Announcement, Cause, Ended, Exit, Failure, Outcome, Rank, Silence};

/// What a verdict is based on.
#[derive(Debug)]
pub struct Evidence<'a> {
    /// How the job ended.
    pub outcome: &'a Outcome,
    /// What is known of each rank.
    pub ranks: &'a [Rank],
    /// The log of each rank and its last lines.
    pub logs: &'a [LogTail],
    /// Why the ranks were asked to stop, if they were.
    pub stop_reason: Option<&'a str>,
    /// The name of each rank's node; empty when there is one node.
    pub hosts: &'a [String],
    /// Number of restarts of the job.
    pub restarts: u32,
    /// The command line that resumes the run.
    pub command: &'a str,
    /// Whether the run has a checkpoint, as far as is known.
    pub has_checkpoint: bool,
}

/// Returns the verdict, several lines for a person; empty when there is nothing to say.
pub fn render(evidence: &Evidence<'_>) -> String {
    of(evidence, evidence.outcome)
}

fn of(evidence: &Evidence<'_>, outcome: &Outcome) -> String {
    let asked = evidence.stop_reason.unwrap_or("a request");
    let to_go_on = format!("to go on: {}", evidence.command);
    match outcome {
        Outcome::Done => String::new(),
        Outcome::Stopped => format!("stopped by {asked} after saving a checkpoint\n{to_go_on}"),
        Outcome::Interrupted => {
            let lost = match evidence.has_checkpoint {
                true => ": steps since the newest checkpoint are lost",
                false => "",
            };
            format!("stopped at once by a second Ctrl-C{lost}\n{}", go_on(evidence))
        }
        Outcome::Overdue(ranks) => overdue(evidence, ranks, asked),
        Outcome::Failed(failure) => failed(evidence, failure),
        Outcome::Unkillable { ranks, after } => {
            let mut text = of(evidence, after);
            for rank in ranks {
                let doing = evidence.ranks[*rank].doing();
                push(
                    &mut text,
                    &format!(
                        "rank {rank} ({doing}) was killed but has not exited: it waits for a \
                         device or a file system that does not respond; see \
                         `ps -o pid,stat,wchan:30,cmd -C trainer`"
                    ),
                );
            }
            text
        }
    }
}

fn overdue(evidence: &Evidence<'_>, ranks: &[usize], asked: &str) -> String {
    let mut text = format!(
        "killed: asked to stop ({asked}), not all ranks saved a checkpoint and stopped in time"
    );
    for rank in ranks {
        push(
            &mut text,
            &format!("  rank {rank} was {}", last_report(&evidence.ranks[*rank], None)),
        );
        push(&mut text, &format!("    its log: {}", evidence.logs[*rank].0.display()));
    }
    push(&mut text, &go_on(evidence));
    text
}

fn failed(evidence: &Evidence<'_>, failure: &Failure) -> String {
    let rank = &evidence.ranks[failure.rank];
    let mut text = failure.to_string();
    if let Some(hint) = hint(&failure.cause) {
        push(&mut text, &format!("  {hint}"));
    }
    let place = evidence.hosts.get(failure.rank);
    let place = place.map_or_else(String::new, |host| format!(" on {host}"));
    push(&mut text, &format!("  it was {}{place}", last_report(rank, Some(failure.at))));
    if let Some(Announcement { message, .. }) = &rank.said {
        push(&mut text, &format!("  it said: {message}"));
    }
    let (path, tail) = &evidence.logs[failure.rank];
    if tail.is_empty() {
        push(&mut text, &format!("  it wrote nothing to its log, {}", path.display()));
    } else {
        push(&mut text, &format!("  the end of its log, {}:", path.display()));
        tail.iter().for_each(|line| push(&mut text, &format!("    | {line}")));
    }
    for (other, state) in evidence.ranks.iter().enumerate().filter(|(r, _)| *r != failure.rank) {
        push(&mut text, &format!("  rank {other} {}", fate(state, failure.at)));
    }
    if evidence.restarts > 0 {
        push(&mut text, &format!("  restarts before this failure: {}", evidence.restarts));
    }
    let code = failure.exit_code;
    push(&mut text, &format!("exit code {}: {}", code as u8, code.meaning()));
    match code {
        ExitCode::RankFailed | ExitCode::Hang => push(&mut text, &go_on(evidence)),
        // A restart would fail in the same way until somebody has removed the cause.
        ExitCode::Data | ExitCode::OutOfMemory => {
            push(&mut text, &format!("once that is fixed, {}", go_on(evidence)));
        }
        _ => {}
    }
    text
}

fn go_on(evidence: &Evidence<'_>) -> String {
    let command = evidence.command;
    if evidence.has_checkpoint {
        format!("to go on from the newest checkpoint: {command}")
    } else {
        format!("to start again (there is no checkpoint yet): {command}")
    }
}

fn push(text: &mut String, line: &str) {
    // Writing to a string does not fail.
    let _ = write!(text, "\n{line}");
}

/// Describes a rank's last report: `training, epoch 2, step 70 (last report 0.4 s before)`. The last part is
/// there if `before`, the time of the failure, is given.
fn last_report(rank: &Rank, before: Option<Duration>) -> String {
    let Some(report) = rank.report else {
        return rank.doing().to_owned();
    };
    let doing = rank.doing();
    let ago = before.map_or_else(String::new, |at| {
        format!(" (last report {:.1} s before)", at.saturating_sub(report.at).as_secs_f64())
    });
    format!("{doing}, epoch {}, step {}{ago}", report.epoch, report.step)
}

fn fate(rank: &Rank, failed_at: Duration) -> String {
    let ended = match rank.exited {
        _ if rank.lost.is_some() => "was on the lost node".to_owned(),
        _ if rank.killed => "was killed with the others".to_owned(),
        Some(Ended { at, exit }) => match at.checked_sub(failed_at) {
            Some(later) => format!("followed {:.1} s later: {exit}", later.as_secs_f64()),
            None => format!("had ended {:.1} s before: {exit}", (failed_at - at).as_secs_f64()),
        },
        None => "still runs".to_owned(),
    };
    match &rank.said {
        Some(Announcement { message, .. }) => format!("{ended}; it said: {message}"),
        None => ended,
    }
}

fn hint(cause: &Cause) -> Option<&'static str> {
    match cause {
        Cause::Exited(Exit::OutOfMemory) => Some(
            "raise the memory limit of the container or Slurm job, or use fewer ranks; \
             `launcher doctor` shows how much they need",
        ),
        Cause::Exited(Exit::Signal(libc::SIGKILL)) => Some(
            "the kernel does this when memory runs out: see `dmesg`, and the memory limit of the \
             container or Slurm job",
        ),
        Cause::Exited(Exit::Signal(libc::SIGBUS)) => {
            Some("memory behind a mapping could not be allocated: often /dev/shm is full")
        }
        Cause::Exited(Exit::Signal(libc::SIGILL)) => {
            Some("a library uses instructions that this CPU does not have")
        }
        Cause::NodeLost(_) => Some(
            "check that machine and its launcher's output; with --max-restarts, a launcher that is \
             started there again rejoins the job",
        ),
        Cause::Silent(Silence::Quiet(_)) => Some(
            "if a healthy step takes that long, raise comm.timeout_seconds: the limit is 60 s \
             above it",
        ),
        Cause::Silent(Silence::Frozen(_)) => {
            Some("possible causes: a debugger, SIGSTOP, or a machine that is short of memory")
        }
        Cause::Mute { .. } => Some("if the rank was only slow, raise comm.timeout_seconds"),
        Cause::Exited(Exit::Code(127)) => {
            Some("a shared library could not be loaded: `make setup` installs libtorch")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use comm::Blame;
    use comm::control::Phase;

    use super::*;
    use crate::policy::Report;

    const SECOND: Duration = Duration::from_secs(1);

    fn ended(at: Duration, exit: Exit) -> Ended {
        Ended { at, exit }
    }

    fn logs(tail: &[&str]) -> Vec<LogTail> {
        let tail: Vec<_> = tail.iter().map(|line| (*line).to_owned()).collect();
        (0..2)
            .map(|rank| (PathBuf::from(format!("r/logs/rank-{rank}.log")), tail.clone()))
            .collect()
    }

    fn evidence<'a>(outcome: &'a Outcome, ranks: &'a [Rank], logs: &'a [LogTail]) -> Evidence<'a> {
        let command = "launcher --run-dir r c.yaml";
        Evidence {
            outcome,
            ranks,
            logs,
            stop_reason: Some("SIGTERM"),
            restarts: 1,
            hosts: &[],
            command,
            has_checkpoint: true,
        }
    }

    #[test]
    fn a_killed_rank_is_described_with_all_that_is_known() {
        let report = Report { at: 9 * SECOND, phase: Phase::Training, epoch: 2, step: 70 };
        let killed = Exit::Signal(libc::SIGKILL);
        let outcome = Outcome::Failed(Failure {
            rank: 1,
            at: 10 * SECOND,
            cause: Cause::Exited(killed),
            exit_code: ExitCode::RankFailed,
        });
        let message = "rank 1 (process 7) is gone; all_reduce #9 cannot complete".to_owned();
        let (at, blame) = (10 * SECOND, Blame::Failed(1));
        let ranks = [
            Rank {
                said: Some(Announcement { at, exit_code: 4, message, blame }),
                exited: Some(ended(10 * SECOND + SECOND / 10, Exit::Code(4))),
                ..Rank::default()
            },
            Rank {
                report: Some(report),
                exited: Some(ended(10 * SECOND, killed)),
                ..Rank::default()
            },
        ];
        let logs = logs(&["step 70 loss 1.2"]);
        let text = render(&evidence(&outcome, &ranks, &logs));
        assert_eq!(
            text,
            "rank 1 failed: killed by SIGKILL\n  \
             the kernel does this when memory runs out: see `dmesg`, and the memory limit of the \
             container or Slurm job\n  \
             it was training, epoch 2, step 70 (last report 1.0 s before)\n  \
             the end of its log, r/logs/rank-1.log:\n    \
             | step 70 loss 1.2\n  \
             rank 0 followed 0.1 s later: exit status 4; it said: rank 1 (process 7) is gone; \
             all_reduce #9 cannot complete\n  \
             restarts before this failure: 1\n\
             exit code 4: a rank failed\n\
             to go on from the newest checkpoint: launcher --run-dir r c.yaml"
        );
    }

    #[test]
    fn a_stop_says_why_and_how_to_go_on() {
        let logs = logs(&[]);
        let ranks = [Rank::default(), Rank::default()];
        let text = render(&evidence(&Outcome::Stopped, &ranks, &logs));
        let expected = "stopped by SIGTERM after saving a checkpoint\n\
                        to go on: launcher --run-dir r c.yaml";
        assert_eq!(text, expected);
        assert_eq!(render(&evidence(&Outcome::Done, &ranks, &logs)), "");
        let overdue = Outcome::Overdue(vec![1]);
        let text = render(&evidence(&overdue, &ranks, &logs));
        assert!(text.contains("rank 1 was starting up"), "{text}");
        let outcome = Outcome::Unkillable { ranks: vec![0], after: Box::new(overdue) };
        let text = render(&evidence(&outcome, &ranks, &logs));
        assert!(text.starts_with("killed: asked to stop ("), "{text}");
        assert!(text.contains("rank 0 (starting up) was killed but has not exited"), "{text}");
    }

    #[test]
    fn nothing_to_go_on_with_is_not_offered() {
        let outcome = Outcome::Failed(Failure {
            rank: 0,
            at: SECOND,
            cause: Cause::Exited(Exit::Code(127)),
            exit_code: ExitCode::Setup,
        });
        let ranks = [Rank::default(), Rank { killed: true, ..Rank::default() }];
        let logs = logs(&[]);
        let text = render(&evidence(&outcome, &ranks, &logs));
        assert!(text.contains("make setup"), "{text}");
        assert!(text.contains("rank 1 was killed with the others"), "{text}");
        assert!(text.ends_with("exit code 9: set-up cannot work here"), "{text}");
    }

    #[test]
    fn a_command_is_offered_where_it_can_help() {
        const FROM_CHECKPOINT: &str = "to go on from the newest checkpoint: launcher";
        const FROM_START: &str = "to start again (there is no checkpoint yet): launcher";
        let ranks = [Rank::default(), Rank::default()];
        let logs = logs(&[]);
        let text = |exit_code, has_checkpoint| {
            let cause = Cause::Announced;
            let outcome = Outcome::Failed(Failure { rank: 0, at: SECOND, cause, exit_code });
            render(&Evidence { has_checkpoint, ..evidence(&outcome, &ranks, &logs) })
        };
        for code in [ExitCode::RankFailed, ExitCode::Hang] {
            assert!(text(code, true).contains(&format!("\n{FROM_CHECKPOINT}")), "{code:?}");
            assert!(text(code, false).contains(&format!("\n{FROM_START}")), "{code:?}");
        }
        for code in [ExitCode::Data, ExitCode::OutOfMemory] {
            let told = format!("\nonce that is fixed, {FROM_CHECKPOINT}");
            assert!(text(code, true).contains(&told), "{code:?}");
        }
        for code in [ExitCode::Usage, ExitCode::NotFinite, ExitCode::Setup] {
            let last = format!("exit code {}: {}", code as u8, code.meaning());
            assert!(text(code, true).ends_with(&last), "{code:?}");
        }
    }
}
