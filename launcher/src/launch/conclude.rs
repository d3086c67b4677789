//! What is said and recorded when a job has ended.

use std::path::Path;
use std::time::Duration;

use job::ExitCode;
use job::run_dir::RunDir;
use tokio::time::timeout;

use crate::background::in_background;
use crate::cli::command_to_go_on;
use crate::console::{Console, Style};
use crate::error::LaunchError;
use crate::events::{Event, EventLog};
use crate::supervise::Report;
use crate::verdict::{self, Evidence};

/// Timeout for looking into the run directory after the job has ended.
const FILES_TIMEOUT: Duration = Duration::from_secs(2);

/// Records the error of a job that has ended without a [`Report`].
pub(super) fn record_error<T>(ended: &Result<T, LaunchError>, events: &mut EventLog) {
    if let Err(error) = ended {
        let (exit_code, reason) = (error.exit_code() as u8, &error.to_string());
        events.record(&Event::Verdict { exit_code, rank: None, reason });
    }
}

/// Returns whether the run in `root` has a checkpoint; `true` where the file system does not answer.
pub(super) async fn has_checkpoint(root: &Path) -> bool {
    let run_dir = RunDir::at(root);
    let look = in_background(move || run_dir.has_checkpoint());
    timeout(FILES_TIMEOUT, look).await.map_or(true, |found| found.unwrap_or(true))
}

/// Shows and records how the job ended. Returns the exit code, and the verdict, which other nodes are sent.
pub(super) fn conclude(
    console: &Console,
    events: &mut EventLog,
    report: &Report,
    hosts: &[String],
    run_dir: &Path,
    has_checkpoint: bool,
) -> (ExitCode, String) {
    let args: Vec<_> = std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect();
    let text = verdict::render(&Evidence {
        outcome: &report.outcome,
        ranks: report.job.ranks(),
        logs: &report.logs,
        stop_reason: report.job.stop_reason(),
        hosts,
        restarts: report.restarts,
        command: &command_to_go_on(&args, &run_dir.to_string_lossy()),
        has_checkpoint,
    });
    let exit_code = report.outcome.exit_code();
    let rank = report.outcome.failed_rank();
    match console.style() {
        _ if text.is_empty() => {}
        Style::Json => tracing::error!(rank, exit_code = exit_code as u8, "{text}"),
        Style::Pretty | Style::Quiet => console.line(&format!("\n{text}")),
    }
    let reason = report.job.in_a_line(&report.outcome);
    events.record(&Event::Verdict { exit_code: exit_code as u8, rank, reason: &reason });
    (exit_code, text)
}
