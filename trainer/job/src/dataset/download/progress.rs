//! Progress of a download: a bar on a terminal, log lines elsewhere.

use std::io::{IsTerminal, stderr};

use indicatif::{ProgressBar, ProgressStyle};

const MIB: u64 = 1 << 20;
/// Bytes between two log lines if the total is unknown.
const LINE_EVERY_BYTES: u64 = 16 * MIB;

/// The progress of one transfer.
pub(super) struct Progress {
    /// Title of the data set.
    title: String,
    total: Option<u64>,
    bar: Option<ProgressBar>,
    next_line: u64,
}

impl Progress {
    /// Starts showing a transfer of the data set `title` that resumes at byte `start`.
    pub(super) fn new(title: &str, start: u64, total: Option<u64>) -> Self {
        let bar = stderr().is_terminal().then(|| bar(title, start, total));
        Self { title: title.to_owned(), total, bar, next_line: start }
    }

    /// Returns the total number of bytes, if known.
    pub(super) const fn total(&self) -> Option<u64> {
        self.total
    }

    /// Shows that `at` bytes have been downloaded.
    pub(super) fn at(&mut self, at: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(at);
        } else if at >= self.next_line {
            tracing::info!("downloading {}: {}", self.title, line(at, self.total));
            self.next_line = next_line(at, self.total);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
    }
}

fn bar(title: &str, start: u64, total: Option<u64>) -> ProgressBar {
    let template = match total {
        Some(_) => "{prefix} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} ETA {eta}",
        None => "{prefix} {spinner} {bytes} {bytes_per_sec}",
    };
    let bar = total.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_prefix(title.to_owned());
    bar.set_position(start);
    bar.reset_eta();
    bar
}

fn line(at: u64, total: Option<u64>) -> String {
    match total {
        Some(total) => format!("{} of {} MiB ({} %)", at / MIB, total / MIB, percent(at, total)),
        None => format!("{} MiB", at / MIB),
    }
}

/// Returns the number of bytes at which the next log line after the one at `at` is due: the next tenth of the
/// total.
fn next_line(at: u64, total: Option<u64>) -> u64 {
    match total {
        Some(total) => {
            let tenth = (total / 10).max(1);
            ((at / tenth + 1) * tenth).min(total.max(at + 1))
        }
        None => at + LINE_EVERY_BYTES,
    }
}

fn percent(at: u64, total: u64) -> u64 {
    at * 100 / total.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_at_every_tenth_and_at_the_end() {
        let total = Some(1005);
        let (mut at, mut lines) = (0, Vec::new());
        while at < 1005 {
            at = next_line(at, total);
            lines.push(at);
        }
        assert_eq!(lines, [100, 200, 300, 400, 500, 600, 700, 800, 900, 1000, 1005]);
        assert_eq!(next_line(5, None), 5 + LINE_EVERY_BYTES);
    }

    #[test]
    fn a_line_says_how_much_of_how_much() {
        assert_eq!(line(17 * MIB, Some(170 * MIB)), "17 of 170 MiB (10 %)");
        assert_eq!(line(17 * MIB, None), "17 MiB");
    }
}
