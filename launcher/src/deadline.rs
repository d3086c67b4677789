//! `--deadline`: a time, or how long from now.

use std::str::FromStr;
use std::time::{Duration, SystemTime};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// When the job is ended from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deadline {
    /// At this time.
    At(SystemTime),
    /// This long from now.
    In(Duration),
}

impl Deadline {
    /// Returns the time from `now` until the deadline; zero if it has passed.
    pub fn from(self, now: SystemTime) -> Duration {
        match self {
            Self::At(time) => time.duration_since(now).unwrap_or_default(),
            Self::In(duration) => duration,
        }
    }
}

impl FromStr for Deadline {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(time) = OffsetDateTime::parse(text, &Rfc3339) {
            return Ok(Self::At(time.into()));
        }
        let wanted =
            || "expected a time, such as 2026-01-31T18:00:00Z, or a span, such as 1h30m".to_owned();
        let (mut seconds, mut number) = (0u64, String::new());
        for c in text.chars() {
            let unit = match c {
                '0'..='9' => {
                    number.push(c);
                    continue;
                }
                'h' => 3600,
                'm' => 60,
                's' => 1,
                _ => return Err(wanted()),
            };
            let count: u64 = number.parse().map_err(|_| wanted())?;
            seconds = count
                .checked_mul(unit)
                .and_then(|more| seconds.checked_add(more))
                .ok_or_else(wanted)?;
            number.clear();
        }
        if seconds == 0 || !number.is_empty() {
            return Err(wanted());
        }
        Ok(Self::In(Duration::from_secs(seconds)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_spans_are_read() {
        assert_eq!("1h30m".parse(), Ok(Deadline::In(Duration::from_secs(5400))));
        assert_eq!("90s".parse(), Ok(Deadline::In(Duration::from_secs(90))));
        let at: Deadline = "1970-01-02T00:00:00Z".parse().unwrap();
        let day = Duration::from_secs(24 * 3600);
        assert_eq!(at, Deadline::At(SystemTime::UNIX_EPOCH + day));
        assert_eq!(at.from(SystemTime::UNIX_EPOCH), day);
        assert_eq!(at.from(SystemTime::UNIX_EPOCH + 2 * day), Duration::ZERO);
        for wrong in ["", "90", "h", "1d", "0s", "tomorrow", "99999999999999999999h"] {
            assert!(wrong.parse::<Deadline>().is_err(), "{wrong}");
        }
    }
}
