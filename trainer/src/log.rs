//! What a rank says about itself, on standard error.

use std::fmt::Display;
use std::io::Write;

use comm::env::{LOG_FORMAT, World};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;

/// Says `text` on standard error, whatever becomes of that: where it is a file on a full disk, `eprintln` panics.
pub fn complain(text: impl Display) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Starts logging. Where ranks share a terminal, only rank 0 tells what goes well; under the launcher
/// each has a file of its own. `RUST_LOG` overrides the level.
pub fn start(world: World, has_own_file: bool) {
    let level = if has_own_file || world.rank == 0 { LevelFilter::INFO } else { LevelFilter::WARN };
    let filter = EnvFilter::builder().with_default_directive(level.into()).from_env_lossy();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(false)
        // It would report a closed standard error there, and panic; the run goes on to save.
        .log_internal_errors(false)
        .with_writer(std::io::stderr);
    if std::env::var(LOG_FORMAT).is_ok_and(|format| format == "json") {
        // As the launcher's own lines.
        builder.json().flatten_event(true).with_current_span(false).init();
    } else {
        builder.with_timer(tracing_subscriber::fmt::time::UtcTime::rfc_3339()).compact().init();
    }
}
