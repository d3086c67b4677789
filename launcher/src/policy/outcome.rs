//! How a job ended, and whose fault it was.

use std::fmt;
use std::time::Duration;

use job::ExitCode;

use super::{Exit, Job, Rank, blame};

/// Processes give signs of life more often.
const SIGN_OF_LIFE: Duration = Duration::from_secs(3);

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Trained to the end.
    Done,
    /// Stopped as asked, a checkpoint saved.
    Stopped,
    /// Killed at once as asked, nothing saved since the newest checkpoint.
    Interrupted,
    /// These ranks did not stop in time and were killed.
    Overdue(Vec<usize>),
    /// A rank failed.
    Failed(Failure),
    /// These ranks were killed and are still there.
    Unkillable {
        /// Which.
        ranks: Vec<usize>,
        /// How the job would have ended without them.
        after: Box<Outcome>,
    },
}

/// The failure that the others followed from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Whose.
    pub rank: usize,
    /// When it was noticed.
    pub at: Duration,
    /// What it was.
    pub cause: Cause,
    /// How the launcher ends because of it.
    pub exit_code: ExitCode,
}

/// What a failure was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// The process ended.
    Exited(Exit),
    /// The rank announced it and was still there when all were killed.
    Announced,
    /// It does not fit this launcher.
    Refused(String),
    /// Its node's launcher is gone: which node, and what was seen of it.
    NodeLost(String),
    /// It said nothing for so long.
    Silent(Duration),
    /// Its process gave no sign of life for so long.
    Frozen(Duration),
    /// Another rank gave up on it.
    Blamed {
        /// Which one.
        by: usize,
    },
    /// Another rank gave up on somebody, and this one said nothing.
    Mute {
        /// Which one gave up.
        heard: usize,
    },
}

impl Outcome {
    /// How the launcher ends.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Done => ExitCode::Done,
            Self::Stopped | Self::Interrupted => ExitCode::Stopped,
            Self::Overdue(_) => ExitCode::Hang,
            Self::Failed(failure) => failure.exit_code,
            Self::Unkillable { after, .. } => match after.exit_code() {
                ExitCode::Done | ExitCode::Stopped => ExitCode::Hang,
                code => code,
            },
        }
    }

    /// Whose failure the others followed from.
    pub fn failed_rank(&self) -> Option<usize> {
        match self {
            Self::Failed(failure) => Some(failure.rank),
            Self::Unkillable { after, .. } => after.failed_rank(),
            _ => None,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => f.write_str("all ranks are done"),
            Self::Stopped => f.write_str("all ranks stopped after saving a checkpoint"),
            Self::Interrupted => f.write_str("stopped at once, without a checkpoint"),
            Self::Overdue(ranks) => {
                write!(f, "asked to stop, these ranks did not: {}", numbers(ranks))
            }
            Self::Failed(failure) => failure.fmt(f),
            Self::Unkillable { ranks, after } => {
                write!(f, "{after}; killed, these ranks are still there: {}", numbers(ranks))
            }
        }
    }
}

fn numbers(ranks: &[usize]) -> String {
    let ranks: Vec<_> = ranks.iter().map(ToString::to_string).collect();
    ranks.join(", ")
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Cause::NodeLost(reason) = &self.cause {
            return f.write_str(reason);
        }
        write!(f, "rank {} ", self.rank)?;
        match &self.cause {
            Cause::NodeLost(_) => Ok(()),
            Cause::Exited(exit) => write!(f, "failed: {exit}"),
            Cause::Announced => f.write_str("failed"),
            Cause::Refused(reason) => write!(f, "does not fit this launcher: {reason}"),
            Cause::Frozen(silence) => {
                write!(f, "is frozen: it gave no sign of life for {silence:.0?}")
            }
            Cause::Silent(silence) => write!(f, "hangs: it said nothing for {silence:.0?}"),
            Cause::Blamed { by } => write!(f, "did not answer, says rank {by}"),
            Cause::Mute { heard } => {
                write!(f, "hangs, it seems: rank {heard} waited for its peers, and it said nothing")
            }
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Code(code) => write!(f, "exit status {code}"),
            Self::Signal(signal) => match signal_name(signal) {
                Some(name) => write!(f, "killed by {name}"),
                None => write!(f, "killed by signal {signal}"),
            },
        }
    }
}

fn signal_name(signal: i32) -> Option<&'static str> {
    Some(match signal {
        libc::SIGHUP => "SIGHUP",
        libc::SIGINT => "SIGINT",
        libc::SIGQUIT => "SIGQUIT",
        libc::SIGILL => "SIGILL",
        libc::SIGTRAP => "SIGTRAP",
        libc::SIGABRT => "SIGABRT",
        libc::SIGBUS => "SIGBUS",
        libc::SIGFPE => "SIGFPE",
        libc::SIGKILL => "SIGKILL",
        libc::SIGUSR1 => "SIGUSR1",
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGUSR2 => "SIGUSR2",
        libc::SIGPIPE => "SIGPIPE",
        libc::SIGALRM => "SIGALRM",
        libc::SIGTERM => "SIGTERM",
        libc::SIGXCPU => "SIGXCPU",
        libc::SIGXFSZ => "SIGXFSZ",
        libc::SIGSYS => "SIGSYS",
        _ => return None,
    })
}

/// How sure it is that a rank failed by itself; the lower, the surer.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Origin {
    /// By itself.
    Own,
    /// With a code that ranks also use when a peer failed, and without a word.
    Unclear,
    /// It says that a peer failed.
    Peer,
}

impl Job {
    /// How the job ended; to be asked when all ranks are gone.
    pub(super) fn outcome(&self) -> Outcome {
        let stopped = |rank: &Rank| matches!(rank.exited, Some((_, Exit::Code(8))));
        if let Some(failure) = self.first_failure() {
            Outcome::Failed(failure)
        } else if self.interrupted {
            Outcome::Interrupted
        } else if !self.overdue.is_empty() {
            Outcome::Overdue(self.overdue.clone())
        } else if self.ranks.iter().any(stopped) {
            Outcome::Stopped
        } else {
            Outcome::Done
        }
    }

    /// The failure that the others follow from, as far as is known.
    ///
    /// The first in time of those that a rank did not blame on another. When there is none, because
    /// the culprit has not ended (it hangs), it is the rank that the first failure blames; or where
    /// nobody can say which it is, as over NCCL, one that has said nothing: whose process gives no signs of
    /// life, or which was not heard of for longest.
    pub(super) fn first_failure(&self) -> Option<Failure> {
        let failures = self.ranks.iter().enumerate().filter_map(|(rank, state)| {
            let failure = own_failure(rank, state)?;
            Some((origin(state), failure))
        });
        let (origin, failure) = failures.min_by(|(a, first), (b, second)| {
            a.cmp(b).then(first.at.cmp(&second.at)).then(first.rank.cmp(&second.rank))
        })?;
        if origin != Origin::Peer {
            return Some(failure);
        }
        let may_hang = |rank: usize, state: &Rank| {
            own_failure(rank, state).is_none() && (state.exited.is_none() || state.killed)
        };
        let named = self.blamed_by(failure.rank).into_iter();
        let mut named =
            named.filter(|rank| self.ranks.get(*rank).is_some_and(|it| may_hang(*rank, it)));
        if let Some(rank) = named.next() {
            return Some(Failure { rank, cause: Cause::Blamed { by: failure.rank }, ..failure });
        }
        let mute = self.ranks.iter().enumerate().filter(|(rank, state)| may_hang(*rank, state));
        let newest_sign = self.ranks.iter().filter_map(|state| state.alive_at).max();
        let runs =
            |state: &Rank| state.alive_at.is_some_and(|at| Some(at + SIGN_OF_LIFE) > newest_sign);
        let oldest = mute.min_by_key(|(_, state)| (runs(state), state.heard_at()));
        Some(match (self.at_a_loss(), oldest) {
            (Some(heard), Some((rank, _))) => {
                Failure { rank, cause: Cause::Mute { heard }, exit_code: ExitCode::Hang, ..failure }
            }
            _ => failure,
        })
    }

    /// The rank, if there is one, that waited for others and cannot say for which.
    pub(super) fn at_a_loss(&self) -> Option<usize> {
        self.ranks.iter().position(|state| {
            state.said.as_ref().is_some_and(|(_, _, message)| blame::is_at_a_loss(message))
        })
    }

    fn blamed_by(&self, rank: usize) -> Vec<usize> {
        self.ranks[rank].said.as_ref().map_or_else(Vec::new, |(_, _, text)| blame::blamed(text))
    }
}

fn own_failure(rank: usize, state: &Rank) -> Option<Failure> {
    let failed = |at, cause, exit_code| Some(Failure { rank, at, cause, exit_code });
    if let Some((at, reason)) = &state.refused {
        return failed(*at, Cause::Refused(reason.clone()), ExitCode::Setup);
    }
    if let Some((at, reason)) = &state.lost {
        return failed(*at, Cause::NodeLost(reason.clone()), ExitCode::RankFailed);
    }
    if let Some((at, silence)) = state.frozen {
        return failed(at, Cause::Frozen(silence), ExitCode::Hang);
    }
    if let Some((at, silence)) = state.silent {
        return failed(at, Cause::Silent(silence), ExitCode::Hang);
    }
    let exited = state.exited.filter(|(_, exit)| !state.killed && is_failure(*exit));
    match (&state.said, exited) {
        (Some((said, code, _)), Some((at, exit))) => {
            failed((*said).min(at), Cause::Exited(exit), exit_code_of(Exit::Code((*code).into())))
        }
        (Some((at, code, _)), None) => {
            failed(*at, Cause::Announced, exit_code_of(Exit::Code((*code).into())))
        }
        (None, Some((at, exit))) => failed(at, Cause::Exited(exit), exit_code_of(exit)),
        (None, None) => None,
    }
}

/// 0 is the end of the run and 8 a stop that was asked for.
fn is_failure(exit: Exit) -> bool {
    !matches!(exit, Exit::Code(0 | 8))
}

/// A trainer's documented codes are the launcher's; 127 comes from the dynamic loader.
fn exit_code_of(exit: Exit) -> ExitCode {
    match exit {
        Exit::Code(127) => ExitCode::Setup,
        Exit::Code(code) => u8::try_from(code)
            .ok()
            .and_then(ExitCode::from_code)
            .filter(|code| !matches!(code, ExitCode::Done | ExitCode::Stopped))
            .unwrap_or(ExitCode::RankFailed),
        Exit::Signal(_) => ExitCode::RankFailed,
    }
}

fn origin(state: &Rank) -> Origin {
    let given_up = state.silent.is_some() || state.frozen.is_some() || state.lost.is_some();
    if state.refused.is_some() || given_up {
        return Origin::Own;
    }
    let peers_code = |code: i32| matches!(code, 4 | 5);
    match (&state.said, state.exited) {
        (Some((_, code, message)), _) if peers_code((*code).into()) => {
            let blames = !blame::blamed(message).is_empty() || blame::is_at_a_loss(message);
            if blames { Origin::Peer } else { Origin::Own }
        }
        (None, Some((_, Exit::Code(code)))) if peers_code(code) => Origin::Unclear,
        _ => Origin::Own,
    }
}
