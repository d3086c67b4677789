//! A rank's connection to its launcher, and what asks it to stop.

use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use comm::bootstrap::Store;
use comm::control::{ControlClient, Phase, StopFlag, ToLauncher};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

use crate::{Result, TrainError};

/// How often a rank says that it is alive.
const STATE_INTERVAL: Duration = Duration::from_secs(1);
/// How often rank 0 says how far it is.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// Talks to the launcher where there is one. That the launcher is gone is no error here: it sets
/// the stop flag, and the run ends at the next step boundary.
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
    /// Connects to the launcher's socket, if one is named, and listens for signals.
    ///
    /// # Errors
    /// When nobody listens at the socket.
    pub fn connect(socket: Option<&Path>, rank: usize) -> Result<Self> {
        let stop = StopFlag::default();
        let client =
            socket.map(|path| ControlClient::connect(path, rank, stop.clone())).transpose()?;
        stop_on_signals(stop.clone())?;
        Ok(Self { client, stop, last: Mutex::default() })
    }

    /// Where ranks leave values for each other.
    pub fn store(&self) -> Option<&dyn Store> {
        self.client.as_ref().map(|client| client as &dyn Store)
    }

    /// Whether a launcher is there.
    pub fn has_launcher(&self) -> bool {
        self.client.is_some()
    }

    /// Why this rank was asked to stop, if it was.
    pub fn stop_reason(&self) -> Option<String> {
        self.stop.reason()
    }

    /// Says what the rank is doing: when that changes, and about once a second.
    pub fn state(&self, phase: Phase, epoch: usize, step: u64) {
        let mut last = self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let is_due =
            last.state.is_none_or(|(before, at)| before != phase || at.elapsed() > STATE_INTERVAL);
        if is_due {
            last.state = Some((phase, Instant::now()));
            self.send_now_or_never(&ToLauncher::State { phase, epoch, step });
        }
    }

    /// Whether it is time for [`Self::progress`] again.
    pub fn progress_is_due(&self) -> bool {
        let last = self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.client.is_some() && last.progress.is_none_or(|at| at.elapsed() > PROGRESS_INTERVAL)
    }

    /// Sends a [`ToLauncher::Progress`].
    pub fn progress(&self, message: &ToLauncher) {
        let mut last = self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        last.progress = Some(Instant::now());
        self.send_now_or_never(message);
    }

    /// Says why the rank is about to end, once.
    pub fn failed(&self, error: &TrainError) {
        let mut last = self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(client) = self.client.as_ref().filter(|_| !last.failed) {
            last.failed = true;
            let (exit_code, message) = (error.exit_code() as u8, error.to_string());
            let failed = ToLauncher::Failed { exit_code, message, blame: error.blame() };
            // Without a launcher there is nobody to tell.
            let _ = client.send(&failed);
        }
    }

    fn send_now_or_never(&self, message: &ToLauncher) {
        if let Some(client) = &self.client {
            // A launcher that is gone has set the stop flag.
            let _ = client.send_now_or_never(message);
        }
    }
}

fn stop_on_signals(stop: StopFlag) -> Result<()> {
    let failed =
        |error: std::io::Error| TrainError::Setup(format!("cannot handle signals: {error}"));
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGUSR1]).map_err(failed)?;
    let listen = move || {
        for signal in &mut signals {
            let name = signal_hook::low_level::signal_name(signal).unwrap_or("a signal");
            if stop.reason().is_some() {
                // The second one: whoever sends it does not want to wait. Other threads still compute,
                // so nothing is torn down under them.
                signal_hook::low_level::exit(128 + signal);
            }
            stop.request(name);
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(listen).map_err(failed)?;
    Ok(())
}
