//! Decides whether to start a failed job again.

use job::ExitCode;

use super::Outcome;

/// Returns `Ok` if the job is to be started again after `outcome`. `used` is the number of restarts so far,
/// of at most `max`.
///
/// A restart is for failures where it can help: a rank that crashed, was killed or hung may get further next
/// time. A bad configuration, bad data, a loss that is not finite, too little memory or a machine that does
/// not fit would end the same way.
///
/// # Errors
/// The reason why the job is not started again.
pub fn restart(outcome: &Outcome, stop_requested: bool, used: u32, max: u32) -> Result<(), String> {
    let failure = match outcome {
        Outcome::Failed(failure) => failure,
        // The ranks that are still there hold the device and the run directory.
        Outcome::Unkillable { .. } => return Err(outcome.to_string()),
        Outcome::Overdue(_) => return Err("the job was asked to stop".to_owned()),
        _ => return Err("nothing failed".to_owned()),
    };
    if !matches!(failure.exit_code, ExitCode::RankFailed | ExitCode::Hang) {
        return Err(format!(
            "a restart would end with exit code {} again",
            failure.exit_code as u8
        ));
    }
    if stop_requested {
        return Err("the job was asked to stop".to_owned());
    }
    if used >= max {
        return Err(format!("{used} of {max} restarts are used"));
    }
    Ok(())
}
