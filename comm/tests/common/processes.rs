//! Ranks as processes: a test starts itself again, once per rank.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use comm::bootstrap::Store;
use comm::control::{ControlClient, StopFlag, ToLauncher, ToTrainer, read_frame, write_frame};
use comm::env::{CONTROL_SOCKET, StartedBy, World};
use comm::shm::Shm;

use super::MemoryStore;

/// Timeout for a store that always answers.
const STORE_TIMEOUT: Duration = Duration::from_secs(60);

/// Returns this process's rank if a test has started it as one.
pub fn as_rank() -> Option<World> {
    let world = World::from_env().unwrap();
    (world.started_by == StartedBy::Launcher).then_some(world)
}

/// Connects a rank that [`Ranks::start`] has started.
pub fn connect(world: World, timeout: Duration) -> Shm {
    let socket = std::env::var(CONTROL_SOCKET).unwrap();
    let store = ControlClient::connect(socket.as_ref(), world.rank, StopFlag::default()).unwrap();
    comm::shm::connect(world.rank, 0..world.world_size, &store, "shm", timeout).unwrap()
}

/// Tells the test that this rank has come to a point, on a line of its own.
pub fn report(what: &str) {
    // The test harness has printed "test NAME ... " without ending the line.
    println!("\n{what}");
}

/// Waits for the test's [`Process::release`].
pub fn wait_for_release() {
    let mut rest = Vec::new();
    std::io::stdin().read_to_end(&mut rest).unwrap();
}

/// The process of one rank.
pub struct Process {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

/// All ranks of a test. Those that still run when it ends are killed.
pub struct Ranks {
    pub processes: Vec<Process>,
    _socket: tempfile::TempDir,
}

impl Ranks {
    /// Starts `test` again as `world_size` ranks.
    pub fn start(test: &str, world_size: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("control");
        let listener = UnixListener::bind(&socket).unwrap();
        std::thread::spawn(move || serve(&listener));
        let start = |rank| {
            let world = World {
                rank,
                world_size,
                local_rank: rank,
                local_world_size: world_size,
                started_by: StartedBy::Launcher,
            };
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", test, "--nocapture", "--test-threads=1"])
                .envs(world.to_env())
                .env(CONTROL_SOCKET, &socket)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let stdout = BufReader::new(child.stdout.take().unwrap());
            Process { child, stdout }
        };
        Self { processes: (0..world_size).map(start).collect(), _socket: dir }
    }

    /// Asserts that all ranks exit successfully.
    pub fn all_pass(&mut self) {
        for (rank, process) in self.processes.iter_mut().enumerate() {
            process.passes(rank);
        }
    }
}

impl Process {
    /// Waits until the rank reports `what`, by itself or at the end of a line.
    pub fn reports(&mut self, what: &str) {
        let mut line = String::new();
        while !line.trim().ends_with(what) {
            line.clear();
            assert_ne!(self.stdout.read_line(&mut line).unwrap(), 0, "no {what} came");
        }
    }

    pub fn release(&mut self) {
        drop(self.child.stdin.take());
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends SIGKILL, and does not reap: the process stays a zombie, as under a busy launcher.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
    }

    pub fn passes(&mut self, rank: usize) {
        let mut output = String::new();
        self.stdout.read_to_string(&mut output).unwrap();
        let status = self.child.wait().unwrap();
        assert!(status.success(), "rank {rank}: {status}\n{output}");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The part of a launcher that a store needs.
fn serve(listener: &UnixListener) {
    let store = Arc::new(MemoryStore::default());
    for stream in listener.incoming() {
        let (stream, store) = (stream.unwrap(), Arc::clone(&store));
        std::thread::spawn(move || answer(stream, &store));
    }
}

fn answer(mut stream: UnixStream, store: &MemoryStore) {
    while let Ok(Some(message)) = read_frame::<ToLauncher>(&mut stream) {
        match message {
            ToLauncher::Put { key, value } => store.put(&key, &value).unwrap(),
            ToLauncher::Get { key } => {
                let value = store.get(&key, STORE_TIMEOUT).unwrap().unwrap();
                // The rank may have been killed meanwhile.
                let _ = write_frame(&mut stream, &ToTrainer::Value { key, value });
            }
            _ => {}
        }
    }
}
