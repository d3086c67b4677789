//! Progress of the run: a bar on a terminal, else a line every few seconds.

use std::io::{self, IsTerminal};
use std::time::Duration;

use job::thousands;

use crate::console::{Console, Style};

/// Interval between lines where no bar is shown.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// A progress report of rank 0.
#[derive(Debug, Clone, Copy)]
pub struct Update {
    /// The epoch, from 1.
    pub epoch: usize,
    /// Number of epochs in the run.
    pub epochs: usize,
    /// Steps completed in this epoch.
    pub step: usize,
    /// Number of steps in an epoch.
    pub steps: usize,
    /// Mean training loss of the epoch so far.
    pub loss: f64,
    /// Training accuracy of the epoch so far, a fraction.
    pub accuracy: f64,
    /// Images per second over all ranks.
    pub images_per_s: f64,
}

impl Update {
    fn done_steps(&self) -> u64 {
        (self.epoch.saturating_sub(1) * self.steps + self.step) as u64
    }
}

/// Shows updates, as a bar or as lines.
pub struct Progress {
    console: Console,
    total_steps: u64,
    has_bar: bool,
    eta: Eta,
    line_at: Option<Duration>,
}

impl Progress {
    /// Creates the display of a run of `total_steps` steps; shows nothing yet.
    pub fn new(console: Console, total_steps: u64) -> Self {
        let has_bar = console.style() == Style::Pretty && io::stderr().is_terminal();
        Self { console, total_steps, has_bar, eta: Eta::default(), line_at: None }
    }

    /// Shows `update`, received at `now`, and returns how long the run will still take, once that is known.
    /// `now` is the time since the attempt began.
    pub fn update(&mut self, update: &Update, now: Duration) -> Option<Duration> {
        let done = update.done_steps();
        let left = self.eta.after(done, self.total_steps, now);
        self.show(update, done, left, now);
        left
    }

    fn show(&mut self, update: &Update, done: u64, left: Option<Duration>, now: Duration) {
        if self.has_bar {
            self.console.progress(done, self.total_steps, describe_briefly(update, left));
            return;
        }
        if self.line_at.is_some_and(|at| now < at + LINE_EVERY) {
            return;
        }
        self.line_at = Some(now);
        match self.console.style() {
            Style::Quiet => {}
            Style::Pretty => self.console.line(&describe(update, left)),
            Style::Json => tracing::info!(
                epoch = update.epoch,
                epochs = update.epochs,
                step = update.step,
                steps = update.steps,
                loss = update.loss,
                accuracy = update.accuracy,
                images_per_s = update.images_per_s,
                eta_seconds = left.map(|left| left.as_secs()),
                "progress"
            ),
        }
    }

    /// Removes the progress bar.
    pub fn finish(&self) {
        self.console.end_progress();
    }
}

fn describe(update: &Update, left: Option<Duration>) -> String {
    let Update { epoch, epochs, step, steps, loss, accuracy, images_per_s } = *update;
    let left = left.map_or_else(|| "-".to_owned(), clock);
    format!(
        "epoch {epoch}/{epochs}  step {step}/{steps}  loss {loss:.4}  accuracy {:.1} %  {} images/s  \
         ETA {left}",
        accuracy * 100.0,
        thousands(images_per_s.max(0.0).round() as u64)
    )
}

/// Formats an update so that it fits beside the bar on a terminal of 80 columns.
fn describe_briefly(update: &Update, left: Option<Duration>) -> String {
    let Update { epoch, epochs, step, steps, loss, accuracy, images_per_s } = *update;
    let left = left.map_or_else(|| "-".to_owned(), clock);
    format!(
        "epoch {epoch}/{epochs} step {step}/{steps} loss {loss:.3} acc {:.1}% {} images/s ETA {left}",
        accuracy * 100.0,
        thousands(images_per_s.max(0.0).round() as u64)
    )
}

/// Formats a duration as `1:02:03`, or `2:03` below an hour.
pub fn clock(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match hours {
        0 => format!("{minutes}:{seconds:02}"),
        _ => format!("{hours}:{minutes:02}:{seconds:02}"),
    }
}

/// Estimates the time left from the mean time per step since the first update, in which evaluation and
/// checkpoints have their share.
#[derive(Debug, Default)]
struct Eta {
    first: Option<(u64, Duration)>,
}

impl Eta {
    fn after(&mut self, done: u64, total: u64, now: Duration) -> Option<Duration> {
        let (first_done, first_at) = *self.first.get_or_insert((done, now));
        let steps = done.checked_sub(first_done).filter(|steps| *steps > 0)?;
        let per_step = (now - first_at).as_secs_f64() / steps as f64;
        Duration::try_from_secs_f64(per_step * total.saturating_sub(done) as f64).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_follows_the_mean_speed() {
        let second = Duration::from_secs;
        let mut eta = Eta::default();
        assert_eq!(eta.after(100, 400, second(10)), None);
        assert_eq!(eta.after(200, 400, second(60)), Some(second(100)));
        assert_eq!(eta.after(400, 400, second(160)), Some(second(0)));
        // A restart goes back to a checkpoint.
        assert_eq!(eta.after(50, 400, second(170)), None);
    }

    #[test]
    fn an_update_is_one_line() {
        let update = Update {
            epoch: 2,
            epochs: 20,
            step: 30,
            steps: 391,
            loss: 1.23456,
            accuracy: 0.5,
            images_per_s: 12_345.6,
        };
        assert_eq!(
            describe(&update, Some(Duration::from_secs(3723))),
            "epoch 2/20  step 30/391  loss 1.2346  accuracy 50.0 %  12,346 images/s  ETA 1:02:03"
        );
        let brief = describe_briefly(&update, Some(Duration::from_secs(3723)));
        assert_eq!(
            brief,
            "epoch 2/20 step 30/391 loss 1.235 acc 50.0% 12,346 images/s ETA 1:02:03"
        );
        assert!(brief.len() + 9 <= 80, "a bar of 8 and a space come before it");
        assert_eq!(update.done_steps(), 421);
        assert_eq!(clock(Duration::from_secs(65)), "1:05");
    }
}
