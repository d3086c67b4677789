//! One fault after another, each at a random time: whatever happens, who failed is named, nothing is left
//! behind, and the same command goes on until the run is what it would have been without.
//!
//! Takes as long as `LOCKSTEP_SOAK_SECONDS` says, a minute otherwise; `LOCKSTEP_SOAK_SEED` repeats what a
//! failure has printed, as far as timing lets it.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use fastrand::Rng;
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::{Running, Sandbox, eventually, is_running, run};

const RANKS: usize = 3;

/// Runs take turns. Over MPI nobody knows which rank hangs but for what the launcher makes of it.
const BACKENDS: [&str; 2] = ["shm", "mpi"];

const CONFIG: &str = "
data: {dataset: synthetic, train_images: 240, test_images: 48, augment: [crop, flip]}
train: {epochs: 4, batch_size_per_rank: 8, ema_decay: 0.9}
comm: {timeout_seconds: 3, backend: BACKEND}
metrics: {log_every: 1}
# Two runs of one configuration must give the same weights, bit for bit.
performance: {convolution: matmul}
";

const RUN: [&str; 5] = ["--cpu", "3", "--run-dir", "run", "c.yaml"];

/// From the start of a run, start-up included, to its end.
const RUN_SECONDS: f64 = 5.0;

/// From a fault to the end of the launcher: a deadline of ranks, and what is around it.
const END_TIME: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    /// A rank gets this signal.
    Rank(usize, Signal),
    /// The launcher does, so many times.
    Launcher(Signal, usize),
    /// The launcher does not run for a while.
    Pause,
}

impl Fault {
    fn any(random: &mut Rng) -> Self {
        let deadly = [Signal::STOP, Signal::STOP, Signal::KILL, Signal::ABORT, Signal::TERM];
        let asking = [Signal::TERM, Signal::INT, Signal::HUP, Signal::USR1, Signal::KILL];
        match random.usize(..10) {
            0..5 => Self::Rank(random.usize(..RANKS), random.choice(deadly).unwrap()),
            5..9 => Self::Launcher(random.choice(asking).unwrap(), random.usize(1..3)),
            _ => Self::Pause,
        }
    }

    /// What the launcher may end with; `None`: the run goes on.
    fn exit_codes(self) -> Option<&'static [i32]> {
        match self {
            Self::Rank(_, Signal::STOP) => Some(&[5]),
            Self::Rank(_, Signal::TERM) => Some(&[8]),
            Self::Rank(..) => Some(&[4]),
            Self::Launcher(..) => Some(&[8]),
            Self::Pause => None,
        }
    }
}

fn sandbox(backend: &str) -> Sandbox {
    let sandbox = Sandbox::with_trainer();
    sandbox.write_config(&CONFIG.replace("BACKEND", backend));
    sandbox
}

fn has_mpi() -> bool {
    let trainer = Path::new(env!("CARGO_BIN_EXE_launcher")).with_file_name("trainer");
    let output = Command::new(trainer).arg("--describe").output().unwrap();
    let description: Value = serde_json::from_slice(&output.stdout).unwrap();
    let has_mpi = description["mpirun"].is_string();
    if !has_mpi {
        println!("skipped over MPI: the trainer was built without it");
    }
    has_mpi
}

/// What there is of a run in the sandbox's directory `run`.
struct Run<'a>(&'a Sandbox);

impl Run<'_> {
    fn lines(&self, file: &str) -> Vec<Value> {
        let text = fs::read_to_string(self.0.path("run").join(file)).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// The ranks' processes of the newest attempt, by rank.
    fn pids(&self) -> Vec<i32> {
        let events = self.lines("events.jsonl");
        let spawned = events.iter().filter(|event| event["event"] == "spawned");
        let pids: Vec<i32> = spawned.map(|it| it["pid"].as_i64().unwrap() as i32).collect();
        pids.chunks_exact(RANKS).last().unwrap_or_default().to_vec()
    }

    /// Epochs without what depends on the clock.
    fn epochs(&self) -> Vec<Value> {
        let mut epochs = self.lines("metrics.jsonl");
        epochs.retain(|record| record["kind"] == "epoch");
        for record in &mut epochs {
            let record = record.as_object_mut().unwrap();
            record.retain(|key, _| {
                ["epoch", "step"].contains(&key.as_str())
                    || key.ends_with("loss")
                    || key.ends_with("accuracy")
            });
        }
        epochs
    }

    fn steps(&self) -> Vec<Value> {
        let steps = self.lines("metrics.jsonl");
        let steps = steps.iter().filter(|record| record["kind"] == "step");
        steps.map(|record| record["step"].clone()).collect()
    }

    fn tensors(&self) -> Vec<Vec<u8>> {
        let latest = self.0.path("run/checkpoints/latest");
        let files = ["model.safetensors", "optimizer.safetensors", "ema.safetensors"];
        files.map(|file| fs::read(latest.join(file)).unwrap()).to_vec()
    }
}

/// Starts the run, does `fault` after `delay`, and checks how that ends. Whether the run is done.
fn suffer(sandbox: &Sandbox, fault: Fault, delay: Duration) -> bool {
    let before = Run(sandbox).pids();
    let mut running = Running::start(sandbox.launcher(&RUN));
    let started = Instant::now();
    eventually("the start of ranks", || {
        let pids = Run(sandbox).pids();
        (pids.len() == RANKS && pids != before) || started.elapsed() > Duration::from_secs(5)
    });
    std::thread::sleep(delay);
    let pids = Run(sandbox).pids();
    match fault {
        Fault::Rank(rank, signal) => {
            // It may just have ended.
            let _ = kill_process(Pid::from_raw(pids[rank]).unwrap(), signal);
        }
        Fault::Launcher(signal, times) => {
            for _ in 0..times {
                running.signal(signal);
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        Fault::Pause => {
            running.signal(Signal::STOP);
            std::thread::sleep(Duration::from_secs(2));
            running.signal(Signal::CONT);
        }
    }
    if let Fault::Launcher(Signal::KILL, _) = fault {
        running.child.wait().unwrap();
        eventually("the end of ranks", || !pids.iter().any(|pid| is_running(*pid)));
        let lock = fs::File::open(sandbox.path("run/.lock")).unwrap();
        eventually("the release of the lock", || {
            flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok()
        });
        return false;
    }
    let struck = Instant::now();
    let ended = running.end();
    let code = ended.code.unwrap();
    let may_end_with = fault.exit_codes().unwrap_or_default();
    assert!(code == 0 || may_end_with.contains(&code), "ended with {code}:\n{}", ended.stderr);
    assert!(pids.iter().all(|pid| !is_running(*pid)), "a rank was left behind");
    if let (4 | 5, Fault::Rank(rank, _)) = (code, fault) {
        assert!(struck.elapsed() < END_TIME, "it took {:.1?}:\n{}", struck.elapsed(), ended.stderr);
        let verdict = Run(sandbox).lines("events.jsonl").pop().unwrap();
        assert_eq!(verdict["rank"], rank, "another rank is blamed:\n{}", ended.stderr);
    }
    code == 0
}

#[test]
fn a_run_that_suffers_one_fault_after_another_ends_like_one_that_does_not() {
    let backends = if has_mpi() { &BACKENDS[..] } else { &BACKENDS[..1] };
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let time = Duration::from_secs(number("LOCKSTEP_SOAK_SECONDS").unwrap_or(60));
    let seed = number("LOCKSTEP_SOAK_SEED").unwrap_or_else(|| fastrand::u64(..));
    let mut random = Rng::with_seed(seed);
    let undisturbed: Vec<_> = backends.iter().map(|backend| sandbox(backend)).collect();
    for undisturbed in &undisturbed {
        let ended = run(undisturbed.launcher(&RUN));
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    }

    let (started, mut faults, mut runs) = (Instant::now(), 0, 0);
    while started.elapsed() < time {
        let turn = runs % backends.len();
        let (sandbox, whole) = (sandbox(backends[turn]), Run(&undisturbed[turn]));
        loop {
            let (fault, delay) = (Fault::any(&mut random), random.f64() * RUN_SECONDS);
            println!(
                "{}, seed {seed}, fault {faults}: {fault:?} after {delay:.2} s",
                backends[turn]
            );
            faults += 1;
            if suffer(&sandbox, fault, Duration::from_secs_f64(delay)) {
                break;
            }
        }
        let run = Run(&sandbox);
        assert_eq!(run.epochs(), whole.epochs());
        assert_eq!(run.steps(), whole.steps());
        assert!(run.tensors() == whole.tensors(), "weights differ");
        runs += 1;
    }
    println!("{faults} faults in {runs} runs");
}
