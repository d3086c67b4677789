//! Which ranks a failure is blamed on, so that the launcher can find the first failure of a chain.

use serde::{Deserialize, Serialize};

/// At most this many late ranks are named in a packed [`Blame`]; of hundreds, a few show where to look.
const MOST: usize = 32;

/// Whom a failing rank holds responsible: the machine-readable counterpart of its error message.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Blame {
    /// No other rank.
    #[default]
    Nobody,
    /// This rank, which is gone or gave up.
    Failed(usize),
    /// These ranks, which did not arrive before the deadline.
    Late(Vec<usize>),
    /// Some rank did not arrive before the deadline, and the backend cannot tell which.
    UnknownLate,
    /// A peer is gone, and the backend cannot tell which.
    UnknownGone,
    /// The ranks could not be connected; a missing peer may be the cause.
    Unconnected,
}

impl Blame {
    /// Converts `rank`'s blame into the blame that its peers report: if `rank` blames nobody else, they blame
    /// `rank`.
    pub(crate) fn reported_by(self, rank: usize) -> Self {
        match self {
            Self::Nobody | Self::Unconnected => Self::Failed(rank),
            others => others,
        }
    }

    /// Returns the ranks that are named.
    pub fn ranks(&self) -> &[usize] {
        match self {
            Self::Failed(rank) => std::slice::from_ref(rank),
            Self::Late(ranks) => ranks,
            Self::Nobody | Self::UnknownLate | Self::UnknownGone | Self::Unconnected => &[],
        }
    }
}

/// Encodes a failure in at most `capacity` bytes: a line of JSON with the [`Blame`], then the reason,
/// truncated at a character boundary if necessary.
pub(crate) fn pack(reason: &str, blame: &Blame, capacity: usize) -> Vec<u8> {
    let cut = match blame {
        Blame::Late(ranks) => Blame::Late(ranks.iter().copied().take(MOST).collect()),
        other => other.clone(),
    };
    let mut packed = serde_json::to_vec(&cut).unwrap_or_default();
    packed.push(b'\n');
    let mut len_bytes = reason.len().min(capacity.saturating_sub(packed.len()));
    while !reason.is_char_boundary(len_bytes) {
        len_bytes -= 1;
    }
    packed.extend_from_slice(&reason.as_bytes()[..len_bytes]);
    packed
}

/// Decodes what [`pack`] has encoded. A blame that cannot be parsed becomes [`Blame::Nobody`].
pub(crate) fn unpack(packed: &[u8]) -> (String, Blame) {
    let end = packed.iter().position(|&byte| byte == b'\n').unwrap_or(0);
    let blame = serde_json::from_slice(&packed[..end]).unwrap_or_default();
    (String::from_utf8_lossy(packed.get(end + 1..).unwrap_or_default()).into_owned(), blame)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_comes_out_as_it_was_and_long_reasons_are_cut() {
        for blame in [
            Blame::Nobody,
            Blame::Failed(3),
            Blame::Late(vec![1, 12]),
            Blame::UnknownLate,
            Blame::UnknownGone,
            Blame::Unconnected,
        ] {
            let packed = pack("two\nlines", &blame, 64);
            assert_eq!(unpack(&packed), ("two\nlines".to_owned(), blame));
        }
        let packed = pack(&"é".repeat(100), &Blame::Failed(3), 64);
        assert!((63..=64).contains(&packed.len()), "{}", packed.len());
        let (reason, blame) = unpack(&packed);
        assert_eq!((reason.trim_end_matches('é'), blame), ("", Blame::Failed(3)));
        let many = pack("late", &Blame::Late((0..100_000).collect()), 1024);
        let named = Blame::Late((0..MOST).collect());
        assert_eq!(unpack(&many), ("late".to_owned(), named));
    }

    #[test]
    fn what_cannot_be_unpacked_blames_nobody() {
        assert_eq!(unpack(b""), (String::new(), Blame::Nobody));
        assert_eq!(unpack(b"\xff\xfe\nwhy").1, Blame::Nobody);
    }

    #[test]
    fn who_is_told_blames_the_teller_unless_that_blames_others() {
        assert_eq!(Blame::Nobody.reported_by(2), Blame::Failed(2));
        assert_eq!(Blame::Unconnected.reported_by(2), Blame::Failed(2));
        assert_eq!(Blame::UnknownLate.reported_by(2), Blame::UnknownLate);
        assert_eq!(Blame::Late(vec![3]).reported_by(2).ranks(), [3]);
    }
}
