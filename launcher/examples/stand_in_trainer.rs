//! A trainer that trains nothing, for tests of supervision: it speaks the real protocol over the real socket
//! and does what `STAND_IN_<rank>` says.
//!
//! It writes `pid-<rank>` into the run directory, and `saved-<rank>` instead of a checkpoint.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use comm::Blame;
use comm::bootstrap::Store;
use comm::control::{ControlClient, Phase, StopFlag, ToLauncher};
use comm::env::{CONTROL_SOCKET, World};

const TIMEOUT: Duration = Duration::from_secs(20);

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

struct StandIn {
    world: World,
    run_dir: PathBuf,
    client: ControlClient,
    stop: StopFlag,
}

fn main() -> Result<ExitCode> {
    let args: Vec<_> = std::env::args().collect();
    if args[1] == "--describe" {
        println!(r#"{{"version": "0", "mpirun": "mpirun"}}"#);
        return Ok(ExitCode::SUCCESS);
    }
    let run_dir =
        args.iter().position(|arg| arg == "--run-dir").map(|at| PathBuf::from(&args[at + 1]));
    let run_dir = run_dir.ok_or("no --run-dir")?;
    let world = World::from_env()?;
    let socket = std::env::var(CONTROL_SOCKET)?;
    let stop = StopFlag::default();
    let client = ControlClient::connect(Path::new(&socket), world.rank, stop.clone())?;
    let stand_in = StandIn { world, run_dir, client, stop };
    stand_in.run(&args)
}

impl StandIn {
    fn run(&self, args: &[String]) -> Result<ExitCode> {
        let rank = self.world.rank;
        self.mark("pid", &std::process::id().to_string())?;
        println!("stand-in {rank} of {}: {}", self.world.world_size, args[1..].join(" "));
        self.meet_the_others()?;
        self.state(Phase::Training, 1)?;
        // From here on only rank 0 needs the launcher.
        self.client.put(&format!("trains-{rank}"), "yes")?;
        if rank == 0 {
            self.wait_for_all("trains")?;
            eprintln!("all ranks train");
        }
        match std::env::var(format!("STAND_IN_{rank}")).unwrap_or_default().as_str() {
            "" => self.train(3),
            "forever" => self.train(u64::MAX),
            "forever-once" if self.mark_once("began")? => self.train(u64::MAX),
            "forever-once" => self.train(3),
            "ignore-stop" => self.ignore_stop(),
            "killed-with-child" => self.die_with_child(),
            "not-finite" => self.fail(6, "loss is NaN at step 2"),
            "panic-once" if self.mark_once("panicked")? => Err("a bug".into()),
            "panic-once" => self.train(3),
            other => Err(format!("STAND_IN_{rank}={other} is unknown").into()),
        }
    }

    /// Waits for all ranks through the launcher's store, so that no rank acts before all are there.
    fn meet_the_others(&self) -> Result<()> {
        self.client.put(&format!("here-{}", self.world.rank), "yes")?;
        self.wait_for_all("here")
    }

    fn wait_for_all(&self, place: &str) -> Result<()> {
        for rank in 0..self.world.world_size {
            self.client.get(&format!("{place}-{rank}"), TIMEOUT)?;
        }
        Ok(())
    }

    fn train(&self, steps: u64) -> Result<ExitCode> {
        for step in 1..=steps {
            if let Some(reason) = self.stop.reason() {
                self.mark("saved", &reason)?;
                return Ok(ExitCode::from(8));
            }
            // An error means that the launcher is gone; the stop flag is then set.
            let _ = self.state(Phase::Training, step);
            if self.world.rank == 0 {
                let _ = self.progress(step as usize, steps.min(100_000) as usize);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.mark("saved", "done")?;
        Ok(ExitCode::SUCCESS)
    }

    fn ignore_stop(&self) -> Result<ExitCode> {
        while self.stop.reason().is_none() {
            std::thread::sleep(Duration::from_millis(5));
        }
        eprintln!("stand-in {} does not stop", self.world.rank);
        std::thread::sleep(3 * TIMEOUT);
        Ok(ExitCode::SUCCESS)
    }

    fn die_with_child(&self) -> Result<ExitCode> {
        let child = Command::new("sleep").arg("60").spawn()?;
        self.mark("child", &child.id().to_string())?;
        eprintln!("last words of {}", self.world.rank);
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL)?;
        Err("survived SIGKILL".into())
    }

    fn fail(&self, exit_code: u8, message: &str) -> Result<ExitCode> {
        let (message, blame) = (message.to_owned(), Blame::Nobody);
        self.client.send(&ToLauncher::Failed { exit_code, message, blame })?;
        Ok(ExitCode::from(exit_code))
    }

    fn state(&self, phase: Phase, step: u64) -> Result<()> {
        Ok(self.client.send(&ToLauncher::State { phase, epoch: 1, step })?)
    }

    fn progress(&self, step: usize, steps: usize) -> Result<()> {
        Ok(self.client.send(&ToLauncher::Progress {
            epoch: 1,
            epochs: 1,
            step,
            steps,
            loss: 1.5,
            accuracy: 0.25,
            images_per_s: 1234.0,
        })?)
    }

    fn mark(&self, name: &str, text: &str) -> Result<()> {
        let name = format!("{name}-{}", self.world.rank);
        let temporary = self.run_dir.join(format!(".{name}"));
        std::fs::write(&temporary, text)?;
        Ok(std::fs::rename(temporary, self.run_dir.join(name))?)
    }

    /// Leaves a mark, and returns whether it was not there before.
    fn mark_once(&self, name: &str) -> Result<bool> {
        let first = !self.run_dir.join(format!("{name}-{}", self.world.rank)).exists();
        self.mark(name, "")?;
        Ok(first)
    }
}
