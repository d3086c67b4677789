//! Which rank a rank's error message holds responsible.
//!
//! A peer's failure reaches the launcher as text only. The texts are those of [`comm::CommError`];
//! a test holds the two together.

/// The ranks that `message` names as its cause; empty when it names none. A rank that aborted the job because
/// of others is not one of them.
pub fn blamed(message: &str) -> Vec<usize> {
    if let Some((rank, reason)) = aborted(message) {
        let others = blamed(reason);
        return if others.is_empty() { vec![rank] } else { others };
    }
    gone(message).map(|rank| vec![rank]).or_else(|| waited_for(message)).unwrap_or_default()
}

/// Whether it waited for ranks that it cannot name.
pub fn is_at_a_loss(message: &str) -> bool {
    message.split_once(" waited ").is_some_and(|(_, after)| after.contains(" for its peers;"))
}

/// Whether a rank that it cannot name is gone. That says nothing of ranks that are silent: they may not have
/// noticed yet.
pub fn has_lost_a_peer(message: &str) -> bool {
    message.contains(" lost a peer that it cannot name;")
}

/// `rank 1 aborted the job: ...`
fn aborted(message: &str) -> Option<(usize, &str)> {
    let (before, reason) = message.split_once(" aborted the job: ")?;
    Some((before.rsplit_once("rank ")?.1.parse().ok()?, reason))
}

/// `rank 1 (process 77) is gone; ...`
fn gone(message: &str) -> Option<usize> {
    let (before, _) = message.split_once(") is gone")?;
    let (before, _) = before.rsplit_once(" (process ")?;
    before.rsplit_once("rank ")?.1.parse().ok()
}

/// `... rank 0 waited 2.0s for ranks 1, 3; ...`
fn waited_for(message: &str) -> Option<Vec<usize>> {
    let (_, after) = message.split_once(" waited ")?;
    let (_, after) = after.split_once(" for rank")?;
    let list = after.trim_start_matches('s').split(';').next()?;
    list.split(',').map(|rank| rank.trim().parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use comm::CommError;

    use super::*;

    fn timeout(missing: Vec<usize>) -> CommError {
        CommError::Timeout {
            op: "all_reduce",
            sequence: 5,
            rank: 0,
            missing,
            waited: Duration::from_secs(2),
            detail: "rank 1 last joined all_reduce #4".to_owned(),
        }
    }

    #[test]
    fn errors_of_the_communicator_name_their_culprit() {
        let gone = CommError::PeerGone { rank: 3, pid: 77, op: "all_reduce", sequence: 9 };
        assert_eq!(blamed(&gone.to_string()), [3]);
        let aborted = CommError::Aborted { by: 2, reason: "rank 9 is unhappy".to_owned() };
        assert_eq!(blamed(&aborted.to_string()), [2]);
        let told = CommError::Aborted { by: 2, reason: timeout(vec![3]).to_string() };
        assert_eq!(blamed(&told.to_string()), [3]);
        assert_eq!(blamed(&timeout(vec![1]).to_string()), [1]);
        assert_eq!(blamed(&timeout(vec![1, 12]).to_string()), [1, 12]);
        assert_eq!(blamed(&format!("cannot average gradients: {gone}")), [3]);
    }

    #[test]
    fn other_errors_name_nobody() {
        let unknown = timeout(vec![]).to_string();
        assert_eq!((blamed(&unknown), is_at_a_loss(&unknown)), (Vec::new(), true));
        assert!(!is_at_a_loss(&timeout(vec![1]).to_string()));
        let reason = "background operation: remote process exited".to_owned();
        let lost =
            CommError::PeerLost { op: "all_reduce", sequence: 5, rank: 0, reason }.to_string();
        assert_eq!((blamed(&lost), has_lost_a_peer(&lost)), (Vec::new(), true));
        assert!(!is_at_a_loss(&lost) && !has_lost_a_peer(&unknown));
        assert_eq!(blamed("cannot write checkpoint: no space left on device"), [0; 0]);
        assert_eq!(blamed(""), [0; 0]);
    }
}
