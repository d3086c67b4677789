//! Energy used by the processors or the GPUs, where they have counters for it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::Duration;

use nvml_wrapper::Nvml;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::plan::Device;

/// Interval between readings; the counters advance about a thousand times a second.
const READ_EVERY: Duration = Duration::from_millis(100);

/// Shortest measurable time: a GPU's counter is updated by the driver only now and then.
const LEAST_SECONDS: f64 = 1.0;

/// Folder in which Linux exposes the processors' energy counters.
const POWERCAP: &str = "/sys/class/powercap";

/// Energy used while steps were timed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Energy {
    /// Joules used by all counted devices; for processors, including what other processes used.
    pub joules: f64,
    /// Name of the counters.
    pub counter: String,
}

/// Samples the counters in a thread while something runs.
pub struct Meter {
    counter: &'static str,
    stop: Arc<AtomicBool>,
    reader: JoinHandle<Samples>,
}

impl Meter {
    /// Starts sampling; returns `None` where there are no counters, or they cannot be read.
    pub fn start(device: Device, ranks: usize) -> Option<Self> {
        let (counter, mut source): (_, Box<dyn FnMut() -> Option<f64> + Send>) = match device {
            Device::Cpu => {
                let mut zones = Zones::open(Path::new(POWERCAP))?;
                ("RAPL, all packages", Box::new(move || zones.joules()))
            }
            Device::Gpu => {
                let nvml = Nvml::init().ok()?;
                let visible = std::env::var("CUDA_VISIBLE_DEVICES").ok();
                let gpus = gpu_numbers(visible.as_deref(), ranks)?;
                ("NVML, the GPUs of the ranks", Box::new(move || gpu_joules(&nvml, &gpus)))
            }
        };
        source()?;
        let stop = Arc::new(AtomicBool::new(false));
        let is_over = Arc::clone(&stop);
        let reader = spawn(move || {
            let mut samples = Samples::default();
            while !is_over.load(Ordering::Relaxed) {
                if let Some(joules) = source() {
                    samples.0.push((seconds(OffsetDateTime::now_utc()), joules));
                }
                sleep(READ_EVERY);
            }
            samples
        });
        Some(Self { counter, stop, reader })
    }

    /// Stops sampling, and returns the energy used between two times in seconds since 1970, or `None` if they
    /// are less than a second apart or not covered by samples.
    pub fn stop(self, from: f64, to: f64) -> Option<Energy> {
        self.stop.store(true, Ordering::Relaxed);
        let samples = self.reader.join().ok()?;
        Some(Energy { joules: samples.between(from, to)?, counter: self.counter.to_owned() })
    }
}

/// Converts a time to seconds since 1970.
pub fn seconds(time: OffsetDateTime) -> f64 {
    time.unix_timestamp_nanos() as f64 / 1e9
}

/// Samples: seconds since 1970, and joules since an arbitrary start.
#[derive(Debug, Default)]
struct Samples(Vec<(f64, f64)>);

impl Samples {
    /// Returns the joules between two times, or `None` if they are too close or not covered by samples.
    fn between(&self, from: f64, to: f64) -> Option<f64> {
        if to - from < LEAST_SECONDS {
            return None;
        }
        Some(self.at(to)? - self.at(from)?)
    }

    fn at(&self, time: f64) -> Option<f64> {
        let pair = self.0.windows(2).find(|pair| (pair[0].0..=pair[1].0).contains(&time))?;
        let [(start, low), (end, high)] = [pair[0], pair[1]];
        Some(low + (high - low) * (time - start) / (end - start))
    }
}

/// Returns NVML's indices of the first `gpus` GPUs that CUDA sees, from the value of `CUDA_VISIBLE_DEVICES`,
/// which NVML ignores. `None` where the variable does not give indices.
fn gpu_numbers(visible: Option<&str>, gpus: usize) -> Option<Vec<u32>> {
    match visible {
        None => (0..gpus).map(|gpu| u32::try_from(gpu).ok()).collect(),
        Some(list) => {
            let numbers = list.split(',').take(gpus).map(|gpu| gpu.trim().parse().ok());
            numbers.collect::<Option<Vec<_>>>().filter(|numbers| numbers.len() == gpus)
        }
    }
}

fn gpu_joules(nvml: &Nvml, gpus: &[u32]) -> Option<f64> {
    let millijoules = |gpu: &u32| nvml.device_by_index(*gpu).ok()?.total_energy_consumption().ok();
    let each: Option<Vec<u64>> = gpus.iter().map(millijoules).collect();
    Some(each?.iter().sum::<u64>() as f64 / 1e3)
}

/// RAPL counters of the processors' packages.
struct Zones(Vec<Zone>);

struct Zone {
    file: PathBuf,
    /// Value at which the counter wraps around, in microjoules.
    range: u64,
    last: u64,
    /// Microjoules of all completed wrap-arounds.
    turns: u64,
}

impl Zones {
    /// Opens the counters of all packages; `None` where there are none.
    ///
    /// Source: Linux, Documentation/power/powercap/powercap.rst.
    fn open(powercap: &Path) -> Option<Self> {
        let is_package = |name: &str| {
            name.strip_prefix("intel-rapl:").is_some_and(|number| !number.contains(':'))
        };
        let zones: Vec<Zone> = fs::read_dir(powercap)
            .ok()?
            .flatten()
            .filter(|entry| entry.file_name().to_str().is_some_and(is_package))
            .filter_map(|entry| {
                let file = entry.path().join("energy_uj");
                let range = read(&entry.path().join("max_energy_range_uj"))?;
                Some(Zone { last: read(&file)?, file, range, turns: 0 })
            })
            .collect();
        (!zones.is_empty()).then_some(Self(zones))
    }

    fn joules(&mut self) -> Option<f64> {
        let mut sum = 0;
        for zone in &mut self.0 {
            let now = read(&zone.file)?;
            if now < zone.last {
                zone.turns += zone.range;
            }
            zone.last = now;
            sum += zone.turns + now;
        }
        Some(sum as f64 / 1e6)
    }
}

fn read(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nvml_is_asked_for_the_gpus_that_cuda_sees() {
        assert_eq!(gpu_numbers(None, 2), Some(vec![0, 1]));
        assert_eq!(gpu_numbers(Some("3, 1,0"), 2), Some(vec![3, 1]));
        assert_eq!(gpu_numbers(Some("GPU-5a6b"), 1), None);
        assert_eq!(gpu_numbers(Some("3"), 2), None);
    }

    #[test]
    fn a_counter_that_starts_again_loses_nothing() {
        let folder = tempfile::tempdir().unwrap();
        for (zone, at) in [("intel-rapl:0", "900000"), ("intel-rapl:1", "0")] {
            let path = folder.path().join(zone);
            fs::create_dir(&path).unwrap();
            fs::write(path.join("max_energy_range_uj"), "1000000\n").unwrap();
            fs::write(path.join("energy_uj"), at).unwrap();
        }
        // A subzone, which its package's counter includes already.
        fs::create_dir(folder.path().join("intel-rapl:0:0")).unwrap();
        let mut zones = Zones::open(folder.path()).unwrap();
        assert_eq!(zones.joules(), Some(0.9));
        fs::write(folder.path().join("intel-rapl:0/energy_uj"), "100000").unwrap();
        assert_eq!(zones.joules(), Some(1.1));
    }

    #[test]
    fn where_nothing_is_counted_nothing_is_said() {
        assert!(Zones::open(Path::new("/nowhere")).is_none());
        assert!(Zones::open(tempfile::tempdir().unwrap().path()).is_none());
    }

    #[test]
    fn energy_between_readings_is_interpolated() {
        let samples = Samples(vec![(10.0, 0.0), (20.0, 100.0), (30.0, 300.0)]);
        assert_eq!(samples.between(15.0, 25.0), Some(150.0));
        assert_eq!(samples.between(5.0, 25.0), None);
        assert_eq!(samples.between(15.0, 15.9), None, "too short to say anything");
    }
}
