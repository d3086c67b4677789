//! Signals that ask the launcher to stop.

use std::fs;
use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::LaunchError;
use crate::policy::StopSignal;

/// Handlers of the signals that ask the launcher to stop.
pub struct Signals {
    caught: Vec<(StopSignal, Signal)>,
}

impl Signals {
    /// Installs the handlers, except for signals that were ignored when the launcher was started: `nohup`
    /// ignores SIGHUP, a shell SIGINT for background jobs.
    ///
    /// # Errors
    /// When a handler cannot be installed.
    pub fn catch() -> Result<Self, LaunchError> {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let all = [
            (StopSignal::Interrupt, SignalKind::interrupt()),
            (StopSignal::Terminate, SignalKind::terminate()),
            (StopSignal::User1, SignalKind::user_defined1()),
            (StopSignal::Hangup, SignalKind::hangup()),
        ];
        let caught = all
            .into_iter()
            .filter(|(_, kind)| !is_ignored(&status, kind.as_raw_value()))
            .map(|(stop, kind)| Ok((stop, signal(kind)?)))
            .collect::<io::Result<_>>();
        // Beyond `ulimit -f` a write then fails, as on a full disk, and does not end this process.
        if !is_ignored(&status, libc::SIGXFSZ) {
            let file_size = signal(SignalKind::from_raw(libc::SIGXFSZ));
            drop(file_size.map_err(LaunchError::system("catch SIGXFSZ"))?); // the handler stays
        }
        Ok(Self { caught: caught.map_err(LaunchError::system("catch signals"))? })
    }

    /// Waits for the next signal and returns it. Cancel safe.
    pub async fn next(&mut self) -> StopSignal {
        std::future::poll_fn(|context| {
            for (stop, signal) in &mut self.caught {
                if signal.poll_recv(context).is_ready() {
                    return std::task::Poll::Ready(*stop);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }

    /// Runs `work`, unless a signal comes before it is done.
    ///
    /// # Errors
    /// [`LaunchError::StoppedEarly`], else those of `work`.
    pub async fn unless_stopped<T>(
        &mut self,
        work: impl Future<Output = Result<T, LaunchError>>,
    ) -> Result<T, LaunchError> {
        tokio::select! {
            biased;
            signal = self.next() => Err(LaunchError::StoppedEarly(signal.name())),
            done = work => done,
        }
    }

    /// Returns a signal that has come already, if there is one.
    pub async fn try_next(&mut self) -> Option<StopSignal> {
        tokio::select! {
            biased;
            signal = self.next() => Some(signal),
            () = std::future::ready(()) => None,
        }
    }
}

/// Returns whether `status`, the content of `/proc/self/status`, says that `signal` is ignored.
fn is_ignored(status: &str, signal: i32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    mask >> (signal - 1) & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read_from_the_mask() {
        let status = "SigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\n";
        assert!(is_ignored(status, 1));
        assert!(!is_ignored(status, 2));
        assert!(is_ignored(status, 13));
        assert!(!is_ignored("", 1));
    }
}
