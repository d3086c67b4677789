//! Logging of a rank to standard error.

use std::fmt::Display;
use std::io::Write;

use comm::env::{LOG_FORMAT, World};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;

/// Writes `text` to standard error and ignores failures, where `eprintln` would panic, for example on a
/// full disk.
pub fn print_error(text: impl Display) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Starts logging. If ranks share a terminal, only rank 0 logs at level info and the others log warnings
/// and errors; under the launcher each rank has its own log file. `RUST_LOG` overrides the level.
pub fn start(world: World, has_own_file: bool) {
    let level = if has_own_file || world.rank == 0 { LevelFilter::INFO } else { LevelFilter::WARN };
    let filter = EnvFilter::builder().with_default_directive(level.into()).from_env_lossy();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(false)
        // Otherwise a closed standard error would be reported on standard error, which panics. The run must
        // go on in order to save.
        .log_internal_errors(false)
        .with_writer(std::io::stderr);
    if std::env::var(LOG_FORMAT).is_ok_and(|format| format == "json") {
        // The same format as that of the launcher.
        builder.json().flatten_event(true).with_current_span(false).init();
    } else {
        builder.with_timer(tracing_subscriber::fmt::time::UtcTime::rfc_3339()).compact().init();
    }
}
