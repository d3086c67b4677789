//! Finds the failure that the other failures followed from.

use std::time::Duration;

use comm::Blame;
use comm::control::HEARTBEAT_INTERVAL;
use job::ExitCode;

use super::{Announcement, Cause, Ended, Exit, Failure, GivenUp, Job, Observation, Rank};

/// How much older than the newest sign of life of any rank that of a running process can be.
const SIGN_OF_LIFE: Duration = Duration::from_secs(3 * HEARTBEAT_INTERVAL.as_secs());

/// Time after `mpirun` was killed within which the failure of a rank is attributed to that.
const AFTER_MPIRUN: Duration = Duration::from_secs(10);

/// How certain it is that a rank failed by itself; the lower, the more certain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Origin {
    /// The rank failed by itself.
    Own,
    /// The rank ended without a message, with a code that ranks also use when a peer failed; or it could not
    /// connect, perhaps because a peer was missing.
    Unclear,
    /// The rank reported that a peer failed.
    Peer,
}

impl Job {
    /// Returns the failure that the others follow from, as far as is known.
    ///
    /// It is the first in time of those that a rank did not blame on another. If there is none, because the
    /// culprit has not ended (it hangs), it is that of the rank that another waited for; or, if no rank can
    /// say which that is, as over NCCL, that of a rank that has reported nothing.
    pub(super) fn first_failure(&self) -> Option<Failure> {
        let first = self.first_of_ranks()?;
        let Some(Observation { at, reason }) = &self.mpirun_killed else { return Some(first) };
        // Ranks may outlive `mpirun`, and then fail for another reason.
        let follows = (*at..*at + AFTER_MPIRUN).contains(&first.at)
            && !matches!(
                first.exit_code,
                ExitCode::Data | ExitCode::NotFinite | ExitCode::OutOfMemory
            );
        if !follows {
            return Some(first);
        }
        let cause = Cause::MpirunKilled(reason.clone());
        Some(Failure { cause, exit_code: ExitCode::RankFailed, ..first })
    }

    fn first_of_ranks(&self) -> Option<Failure> {
        let failures = self.ranks.iter().enumerate().filter_map(|(rank, state)| {
            let failure = own_failure(rank, state)?;
            Some((origin(state), failure))
        });
        let mut failures: Vec<_> = failures.collect();
        failures.sort_by(|(a, first), (b, second)| {
            a.cmp(b).then(first.at.cmp(&second.at)).then(first.rank.cmp(&second.rank))
        });
        let (origin, first) = failures.first()?.clone();
        if origin != Origin::Peer {
            return Some(first);
        }
        // Ranks whose own deadline passed know better than those that were told of it by a peer.
        failures.sort_by_key(|(_, failure)| failure.exit_code != ExitCode::Hang);
        let witnesses = failures.iter().map(|(_, failure)| failure);
        let hanging = witnesses.clone().find_map(|witness| self.named_by(witness));
        Some(hanging.or_else(|| self.mute(witnesses)).unwrap_or(first))
    }

    /// Returns the failure of a rank that `witness` blames and that may hang.
    fn named_by(&self, witness: &Failure) -> Option<Failure> {
        let Announcement { blame, .. } = self.ranks[witness.rank].said.as_ref()?;
        let mut named = blame.ranks().iter().copied();
        let rank = named.find(|rank| self.ranks.get(*rank).is_some_and(may_hang))?;
        let waited = matches!(blame, Blame::Late(_));
        let exit_code = if waited { ExitCode::Hang } else { witness.exit_code };
        let cause = Cause::Blamed { by: witness.rank };
        Some(Failure { rank, cause, exit_code, ..witness.clone() })
    }

    /// If one of `witnesses` waited and cannot say for which rank, returns the failure of a rank that has
    /// reported none: preferably one whose process gives no signs of life, otherwise the one whose last
    /// report is the oldest.
    fn mute<'a>(&self, mut witnesses: impl Iterator<Item = &'a Failure>) -> Option<Failure> {
        // The report that a peer is gone says nothing about silent ranks: they may not have noticed yet.
        let is_at_a_loss = |said: &Announcement| said.blame == Blame::UnknownLate;
        let witness = witnesses
            .find(|witness| self.ranks[witness.rank].said.as_ref().is_some_and(is_at_a_loss))?;
        let newest_sign = self.ranks.iter().filter_map(|state| state.alive_at).max();
        let runs =
            |state: &Rank| state.alive_at.is_some_and(|at| Some(at + SIGN_OF_LIFE) > newest_sign);
        let mute = self.ranks.iter().enumerate().filter(|(_, state)| may_hang(state));
        let (rank, _) = mute.min_by_key(|(_, state)| (runs(state), state.heard_at()))?;
        let cause = Cause::Mute { heard: witness.rank };
        Some(Failure { rank, cause, exit_code: ExitCode::Hang, ..witness.clone() })
    }

    /// Returns whether a rank has failed by itself.
    pub(super) fn somebody_failed_by_itself(&self) -> bool {
        let by_itself = |(rank, state): (usize, &Rank)| {
            origin(state) == Origin::Own && own_failure(rank, state).is_some()
        };
        self.ranks.iter().enumerate().any(by_itself)
    }

    /// Returns whether a rank waited for a peer or lost one, and cannot say which.
    pub(super) fn somebody_is_at_a_loss(&self) -> bool {
        let names_nobody =
            |said: &Announcement| matches!(said.blame, Blame::UnknownLate | Blame::UnknownGone);
        self.ranks.iter().any(|state| state.said.as_ref().is_some_and(names_nobody))
    }
}

/// Returns whether the rank may hang: it has reported no failure, and its process has not ended by itself.
fn may_hang(state: &Rank) -> bool {
    let spoke = state.said.is_some() || state.refused.is_some();
    !spoke && state.lost.is_none() && (state.exited.is_none() || state.killed)
}

fn own_failure(rank: usize, state: &Rank) -> Option<Failure> {
    let failed = |at, cause, exit_code| Some(Failure { rank, at, cause, exit_code });
    if let Some(Observation { at, reason }) = &state.refused {
        return failed(*at, Cause::Refused(reason.clone()), ExitCode::Setup);
    }
    if let Some(Observation { at, reason }) = &state.lost {
        return failed(*at, Cause::NodeLost(reason.clone()), ExitCode::RankFailed);
    }
    if let Some(GivenUp { at, silence }) = state.given_up {
        return failed(at, Cause::Silent(silence), ExitCode::Hang);
    }
    let exited = state.exited.filter(|ended| !state.killed && !ended.exit.is_good());
    match (&state.said, exited) {
        (Some(said), Some(Ended { at, exit })) => {
            let announced = Exit::Code(said.exit_code.into());
            failed(said.at.min(at), Cause::Exited(exit), exit_code_of(announced))
        }
        (Some(said), None) => {
            failed(said.at, Cause::Announced, exit_code_of(Exit::Code(said.exit_code.into())))
        }
        (None, Some(Ended { at, exit })) => failed(at, Cause::Exited(exit), exit_code_of(exit)),
        (None, None) => None,
    }
}

/// Returns the launcher's exit code for the end of a trainer: documented codes stay as they are; 127 comes
/// from the dynamic loader.
fn exit_code_of(exit: Exit) -> ExitCode {
    match exit {
        Exit::Code(127) => ExitCode::Setup,
        Exit::Code(code) => u8::try_from(code)
            .ok()
            .and_then(ExitCode::from_code)
            .filter(|code| !matches!(code, ExitCode::Done | ExitCode::Stopped))
            .unwrap_or(ExitCode::RankFailed),
        Exit::Signal(_) => ExitCode::RankFailed,
        Exit::OutOfMemory => ExitCode::OutOfMemory,
    }
}

fn origin(state: &Rank) -> Origin {
    if state.refused.is_some() || state.given_up.is_some() || state.lost.is_some() {
        return Origin::Own;
    }
    let peers_code = |code: i32| {
        let code = u8::try_from(code).ok().and_then(ExitCode::from_code);
        matches!(code, Some(ExitCode::RankFailed | ExitCode::Hang))
    };
    match (&state.said, state.exited) {
        (Some(Announcement { exit_code, blame, .. }), _) if peers_code((*exit_code).into()) => {
            if *blame == Blame::Nobody {
                Origin::Own
            } else {
                Origin::Peer
            }
        }
        (Some(said), _) if said.blame == Blame::Unconnected => Origin::Unclear,
        (None, Some(Ended { exit: Exit::Code(code), .. })) if peers_code(code) => Origin::Unclear,
        _ => Origin::Own,
    }
}
