//! A rank's connection to its launcher, and requests to stop.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use comm::bootstrap::Store;
use comm::control::{ControlClient, Phase, StopFlag, ToLauncher};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGXFSZ};
use signal_hook::iterator::Signals;

use crate::{Result, TrainError};

/// Shortest interval between two reports of an unchanged phase.
const STATE_INTERVAL: Duration = Duration::from_secs(1);
/// Shortest interval between two progress messages of rank 0.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// The connection to the launcher, if there is one, and the stop flag. A launcher that is gone is not an
/// error here: it sets the stop flag, and the run ends at the next step boundary.
pub struct Link {
    client: Option<ControlClient>,
    stop: StopFlag,
    last: Mutex<Last>,
}

#[derive(Default)]
struct Last {
    failed: bool,
    state: Option<(Phase, Instant)>,
    progress: Option<Instant>,
}

impl Link {
    /// Connects to the launcher's socket, if one is given, and starts to handle signals: the first one sets
    /// the stop flag, the second one exits.
    ///
    /// # Errors
    /// When nobody listens at the socket, or signals cannot be handled.
    pub fn connect(socket: Option<&Path>, rank: usize) -> Result<Self> {
        let stop = StopFlag::default();
        let client =
            socket.map(|path| ControlClient::connect(path, rank, stop.clone())).transpose()?;
        stop_on_signals(stop.clone())?;
        Ok(Self { client, stop, last: Mutex::default() })
    }

    /// Returns the launcher's key-value store, by which ranks find each other; `None` without a launcher.
    pub fn store(&self) -> Option<&dyn Store> {
        self.client.as_ref().map(|client| client as &dyn Store)
    }

    /// Returns whether this rank was started by a launcher.
    pub fn has_launcher(&self) -> bool {
        self.client.is_some()
    }

    /// Returns why this rank was asked to stop, or `None` if it was not.
    pub fn stop_reason(&self) -> Option<String> {
        self.stop.reason()
    }

    /// Reports to the launcher what this rank is doing. Sends only when the phase changes or more than a
    /// second has passed, and never waits. `epoch` counts from 1.
    pub fn state(&self, phase: Phase, epoch: usize, step: u64) {
        let mut last = self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let is_due =
            last.state.is_none_or(|(before, at)| before != phase || at.elapsed() > STATE_INTERVAL);
        if is_due {
            last.state = Some((phase, Instant::now()));
            self.try_send(&ToLauncher::State { phase, epoch, step });
        }
    }

    /// Returns whether [`Self::progress`] should be called again. `false` without a launcher.
    pub fn progress_is_due(&self) -> bool {
        let last = self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.client.is_some() && last.progress.is_none_or(|at| at.elapsed() > PROGRESS_INTERVAL)
    }

    /// Sends a [`ToLauncher::Progress`], unless that would have to wait.
    pub fn progress(&self, message: &ToLauncher) {
        let mut last = self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        last.progress = Some(Instant::now());
        self.try_send(message);
    }

    /// Reports the error that is about to end this rank. Later calls do nothing.
    pub fn failed(&self, error: &TrainError) {
        let mut last = self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(client) = self.client.as_ref().filter(|_| !last.failed) {
            last.failed = true;
            let (exit_code, message) = (error.exit_code() as u8, error.to_string());
            let failed = ToLauncher::Failed { exit_code, message, blame: error.blame() };
            // If the launcher is gone, nobody is left to be told.
            let _ = client.send(&failed);
        }
    }

    fn try_send(&self, message: &ToLauncher) {
        if let Some(client) = &self.client {
            // If the launcher is gone, the client has set the stop flag.
            let _ = client.try_send(message);
        }
    }
}

fn stop_on_signals(stop: StopFlag) -> Result<()> {
    let failed =
        |error: std::io::Error| TrainError::Setup(format!("cannot handle signals: {error}"));
    // Caught, so that beyond `ulimit -f` a write fails, as on a full disk, and does not end the process.
    let beyond_limit = Arc::default();
    signal_hook::flag::register(SIGXFSZ, beyond_limit).map_err(failed)?;
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGUSR1]).map_err(failed)?;
    let listen = move || {
        for signal in &mut signals {
            let name = signal_hook::low_level::signal_name(signal).unwrap_or("a signal");
            if stop.reason().is_some() {
                // The second signal ends the process at once, without saving. Other threads are still
                // computing, so exit without running destructors or exit handlers.
                signal_hook::low_level::exit(128 + signal);
            }
            stop.request(name);
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(listen).map_err(failed)?;
    Ok(())
}
