//! The terminal: log lines above a progress bar, one writer at a time.
//!
//! All goes to standard error. A terminal that is gone is no reason to fail, so errors of writing to
//! it are dropped.

use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use indicatif::ProgressBar;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;

/// How much is shown, and in which form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// For people.
    Pretty,
    /// One JSON object a line.
    Json,
    /// For people, warnings and worse.
    Quiet,
}

/// A handle to the terminal; clones share it.
#[derive(Clone)]
pub struct Console {
    style: Style,
    bar: Arc<Mutex<Option<ProgressBar>>>,
}

impl Console {
    /// With no bar yet.
    pub fn new(style: Style) -> Self {
        Self { style, bar: Arc::default() }
    }

    /// How much is shown, and in which form.
    pub const fn style(&self) -> Style {
        self.style
    }

    /// Makes this console the place where `tracing` events go; `RUST_LOG` is honoured.
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

    /// Writes a line above the bar.
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

    /// Shows `bar` below what is written from now on, or nothing.
    pub fn set_bar(&self, bar: Option<ProgressBar>) {
        if let Some(old) = std::mem::replace(&mut *self.bar(), bar) {
            old.finish_and_clear();
        }
    }

    fn bar(&self) -> MutexGuard<'_, Option<ProgressBar>> {
        self.bar.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_bytes(&self, bytes: &[u8]) {
        let write = || drop(io::stderr().lock().write_all(bytes));
        match &*self.bar() {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }
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
