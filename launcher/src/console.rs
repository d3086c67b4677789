//! The terminal: log lines above a progress bar, one writer at a time.
//!
//! All output goes to standard error, through a queue to a writer thread: a terminal that accepts no output,
//! as after Ctrl-S or behind a stalled connection, must not keep the launcher from supervising. Of the lines
//! for which the queue has no room, the newest [`KEPT`] are kept and written later, since the last lines say
//! how the job ended; older ones are dropped and counted. Errors of writing are ignored: a terminal that is
//! gone is no reason to fail.

use std::collections::VecDeque;
use std::io::{self, IsTerminal, Write};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use job::counted;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Capacity of the queue to the writer thread, in lines and progress updates. When it is full, lines go to
/// the [`Overflow`] and progress updates are dropped.
const QUEUE: usize = 4096;

/// Maximum number of lines in the [`Overflow`]; beyond it the oldest are dropped and counted.
const KEPT: usize = 100;

/// How long [`Console::flush`], at the end of the launcher, waits for a terminal that accepts no output.
const FLUSH: Duration = Duration::from_secs(10);

/// How much is shown, and in which form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Text, with a progress bar on a terminal.
    Pretty,
    /// One JSON object a line.
    Json,
    /// Text; only warnings and errors.
    Quiet,
}

/// A handle to the terminal; clones share it.
#[derive(Clone)]
pub struct Console {
    style: Style,
    queue: SyncSender<Shown>,
    overflow: Arc<Mutex<Overflow>>,
}

/// The newest lines for which the queue had no room. While there are any, all later lines are added here as
/// well, which keeps them in order.
#[derive(Default)]
struct Overflow {
    kept: VecDeque<Vec<u8>>,
    lost: u64,
}

impl Overflow {
    fn push(&mut self, bytes: &[u8]) {
        if self.kept.len() == KEPT {
            self.kept.pop_front();
            self.lost += 1;
        }
        self.kept.push_back(bytes.to_vec());
    }
}

/// An entry of the queue to the writer thread.
enum Shown {
    Bytes(Vec<u8>),
    Progress(Progress),
    NoProgress,
    /// Answered once everything queued before it has been written.
    Flush(SyncSender<()>),
}

/// State of the progress bar.
struct Progress {
    done: u64,
    total: u64,
    message: String,
}

impl Console {
    /// Starts the writer thread. Shows no progress bar yet.
    pub fn new(style: Style) -> Self {
        let (queue, shown) = sync_channel(QUEUE);
        let overflow = Arc::<Mutex<Overflow>>::default();
        let of_writer = Arc::clone(&overflow);
        // Without a thread nothing is shown; but then the launcher could not start a job either.
        let _ = std::thread::Builder::new()
            .name("console".to_owned())
            .spawn(move || write_all(&shown, &of_writer));
        Self { style, queue, overflow }
    }

    /// Returns how much is shown, and in which form.
    pub const fn style(&self) -> Style {
        self.style
    }

    /// Directs `tracing` events to this console; `RUST_LOG` is honoured.
    pub fn init_tracing(&self) {
        let level = match self.style {
            Style::Quiet => LevelFilter::WARN,
            Style::Pretty | Style::Json => LevelFilter::INFO,
        };
        let filter = EnvFilter::builder().with_default_directive(level.into()).from_env_lossy();
        let subscriber = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_target(false)
            .log_internal_errors(false)
            .with_writer(self.clone());
        match self.style {
            Style::Json => subscriber.json().flatten_event(true).init(),
            _ => subscriber.with_ansi(io::stderr().is_terminal()).init(),
        }
    }

    /// Writes a line above the progress bar.
    pub fn line(&self, text: &str) {
        self.write_bytes(format!("{text}\n").as_bytes());
    }

    /// Shows a line of a rank's own output.
    pub fn rank_line(&self, rank: usize, text: &str) {
        match self.style {
            Style::Quiet => {}
            Style::Pretty => self.line(text),
            // The trainer was asked for JSON too, but libraries below it write what they like.
            Style::Json if text.starts_with('{') => self.line(text),
            Style::Json => tracing::info!(rank, "{text}"),
        }
    }

    /// Shows a progress bar below the lines, filled to `done` of `total`, beside `message`.
    pub fn progress(&self, done: u64, total: u64, message: String) {
        // An update for which the queue has no room is dropped: the next one comes soon.
        let _ = self.queue.try_send(Shown::Progress(Progress { done, total, message }));
    }

    /// Removes the progress bar.
    pub fn end_progress(&self) {
        let _ = self.queue.try_send(Shown::NoProgress);
    }

    /// Waits until everything queued so far has been written, for at most [`FLUSH`].
    pub fn flush(&self) {
        let deadline = Instant::now() + FLUSH;
        let (done, is_done) = sync_channel(1);
        while self.queue.try_send(Shown::Flush(done.clone())).is_err() {
            if Instant::now() >= deadline {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = is_done.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    }

    fn write_bytes(&self, bytes: &[u8]) {
        let mut overflow = lock(&self.overflow);
        let is_full =
            !overflow.kept.is_empty() || self.queue.try_send(Shown::Bytes(bytes.to_vec())).is_err();
        if is_full {
            overflow.push(bytes);
        }
    }
}

fn lock(overflow: &Mutex<Overflow>) -> MutexGuard<'_, Overflow> {
    overflow.lock().unwrap_or_else(PoisonError::into_inner)
}

fn write_all(queue: &Receiver<Shown>, overflow: &Mutex<Overflow>) {
    let mut bar: Option<ProgressBar> = None;
    loop {
        let shown = match queue.try_recv() {
            Ok(shown) => shown,
            Err(TryRecvError::Empty) => {
                write_overflow(overflow, bar.as_ref());
                match queue.recv() {
                    Ok(shown) => shown,
                    Err(_) => return,
                }
            }
            Err(TryRecvError::Disconnected) => return write_overflow(overflow, bar.as_ref()),
        };
        match shown {
            Shown::Bytes(bytes) => write(bar.as_ref(), &bytes),
            Shown::Progress(Progress { done, total, message }) => {
                let bar = bar.get_or_insert_with(|| new_bar(total));
                bar.set_position(done);
                bar.set_message(message);
            }
            Shown::NoProgress => {
                if let Some(bar) = bar.take() {
                    bar.finish_and_clear();
                }
            }
            Shown::Flush(done) => {
                write_overflow(overflow, bar.as_ref());
                let _ = done.try_send(());
            }
        }
    }
}

fn write_overflow(overflow: &Mutex<Overflow>, bar: Option<&ProgressBar>) {
    let Overflow { kept, lost } = std::mem::take(&mut *lock(overflow));
    if lost > 0 {
        let note = format!(
            "(not shown: {}, as the terminal accepted no output)\n",
            counted(lost as usize, "line")
        );
        write(bar, note.as_bytes());
    }
    for bytes in kept {
        write(bar, &bytes);
    }
}

fn write(bar: Option<&ProgressBar>, bytes: &[u8]) {
    let write = || drop(io::stderr().lock().write_all(bytes));
    match bar {
        Some(bar) => bar.suspend(write),
        None => write(),
    }
}

fn new_bar(total: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    bar.with_style(
        // Falls back to the default style if the template does not parse.
        ProgressStyle::with_template("{bar:8} {wide_msg}")
            .unwrap_or_else(|_| ProgressStyle::default_bar()),
    )
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_bytes(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Console {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}
