//! Runs a program until it ends or times out.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use time::OffsetDateTime;

use crate::error::{BenchError, Result};

/// Interval between checks of a running program: long enough not to disturb it.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Grace period between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(30);

/// Lines at the end of a failed program's output that its error shows.
const LINES_SHOWN: usize = 20;

/// Runs `command` with its output in `folder`, and returns when it was started.
///
/// The program stays in this process's group, so Ctrl-C reaches it.
///
/// # Errors
/// [`BenchError`] when the program cannot be started, fails, or takes more than `limit_seconds`; with the
/// last lines of its output.
pub fn run(command: &mut Command, folder: &Path, limit_seconds: u64) -> Result<OffsetDateTime> {
    run_until(command, folder, limit_seconds, || false)
}

/// As [`run`], but stops the program with SIGTERM as soon as `is_enough` returns true; then its exit status
/// does not matter.
///
/// # Errors
/// As [`run`].
pub fn run_until(
    command: &mut Command,
    folder: &Path,
    limit_seconds: u64,
    is_enough: impl Fn() -> bool,
) -> Result<OffsetDateTime> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = folder.join("output");
    let file = |source| BenchError::File { path: output.clone(), source };
    let writer = File::create(&output).map_err(file)?;
    command.stdin(Stdio::null()).stderr(writer.try_clone().map_err(file)?).stdout(writer);
    let started = OffsetDateTime::now_utc();
    let mut child =
        command.spawn().map_err(|source| BenchError::Start { program: program.clone(), source })?;
    let ended = wait(&mut child, Duration::from_secs(limit_seconds), &is_enough).map_err(file)?;
    if matches!(ended, Wait::Enough | Wait::TooLong) {
        stop(&mut child).map_err(file)?;
    }
    let output = || last_lines(&fs::read_to_string(&output).unwrap_or_default());
    match ended {
        Wait::Enough => Ok(started),
        Wait::Ended(status) if status.success() => Ok(started),
        Wait::Ended(status) => Err(BenchError::Ended { program, status, output: output() }),
        Wait::TooLong => {
            Err(BenchError::TimedOut { program, seconds: limit_seconds, output: output() })
        }
    }
}

/// Why a wait is over.
enum Wait {
    Ended(ExitStatus),
    Enough,
    TooLong,
}

fn wait(child: &mut Child, limit: Duration, is_enough: impl Fn() -> bool) -> std::io::Result<Wait> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Wait::Ended(status));
        }
        if is_enough() {
            return Ok(Wait::Enough);
        }
        if start.elapsed() >= limit {
            return Ok(Wait::TooLong);
        }
        sleep(LOOK_EVERY);
    }
}

/// Sends SIGTERM, and SIGKILL only after the grace period: a launcher that is killed cannot stop its ranks.
fn stop(child: &mut Child) -> std::io::Result<()> {
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        kill_process(pid, Signal::TERM)?;
    }
    if !matches!(wait(child, GRACE, || false)?, Wait::Ended(_)) {
        child.kill()?;
        child.wait()?;
    }
    Ok(())
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES_SHOWN)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit_seconds: u64) -> Result<OffsetDateTime> {
        let folder = tempfile::tempdir().unwrap();
        run(Command::new("sh").args(["-c", script]), folder.path(), limit_seconds)
    }

    #[test]
    fn a_failure_is_told_with_what_was_written() {
        let error = shell("echo one; echo two >&2; exit 3", 60).unwrap_err().to_string();
        assert_eq!(error, "sh ended with exit status: 3: one\ntwo");
    }

    #[test]
    fn a_program_that_takes_too_long_is_stopped() {
        let error = shell("echo begun; exec sleep 600", 0).unwrap_err().to_string();
        assert!(error.starts_with("sh was stopped after 0 s"), "{error}");
    }

    #[test]
    fn a_program_is_stopped_once_it_did_enough() {
        let folder = tempfile::tempdir().unwrap();
        let mark = folder.path().join("mark");
        let script =
            format!("trap 'exit 8' TERM; touch {}; while :; do sleep 0.1; done", mark.display());
        let mut command = Command::new("sh");
        run_until(command.args(["-c", &script]), folder.path(), 60, || mark.exists()).unwrap();
    }

    #[test]
    fn only_the_last_lines_are_shown() {
        let text: String = (0..100).map(|n| format!("{n}\n")).collect();
        assert!(last_lines(&text).starts_with("80\n"));
    }
}
