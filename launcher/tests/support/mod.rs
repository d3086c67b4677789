//! A launcher in a directory of its own, with a trainer beside it.

#![allow(dead_code)] // each test binary uses a part
#![allow(clippy::unwrap_used)] // all of it is test code

pub mod job;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// How long a test waits for the next line of output, or for a condition, before it fails: only a hang takes
/// so long.
const DEADLINE: Duration = Duration::from_secs(300);

/// A directory with `bin/launcher`, perhaps `bin/trainer`, and `c.yaml`.
pub struct Sandbox {
    folder: TempDir,
}

/// A launcher that has ended.
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Sandbox {
    /// Creates a sandbox without a trainer.
    pub fn empty() -> Self {
        // On the same file system as the programs, which are hard-linked.
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        fs::create_dir(folder.path().join("bin")).unwrap();
        let sandbox = Self { folder };
        sandbox.link(Path::new(env!("CARGO_BIN_EXE_launcher")), "bin/launcher");
        sandbox.write_config("data: {dataset: synthetic}\ntrain: {epochs: 1}\n");
        sandbox
    }

    /// Creates a sandbox with the stand-in trainer.
    pub fn with_stand_in() -> Self {
        let built = Path::new(env!("CARGO_BIN_EXE_launcher"))
            .with_file_name("examples")
            .join("stand_in_trainer");
        assert!(built.exists(), "{}: `cargo test -p launcher` builds it", built.display());
        let sandbox = Self::empty();
        sandbox.link(&built, "bin/trainer");
        sandbox
    }

    /// Creates a sandbox with the real trainer.
    pub fn with_trainer() -> Self {
        let built = Path::new(env!("CARGO_BIN_EXE_launcher")).with_file_name("trainer");
        assert!(built.exists(), "{}: `cargo build -p trainer` makes it", built.display());
        let sandbox = Self::empty();
        sandbox.link(&built, "bin/trainer");
        sandbox
    }

    /// Creates a sandbox with a shell script as its trainer.
    pub fn with_script(script: &str) -> Self {
        let sandbox = Self::empty();
        sandbox.write_program("bin/trainer", script);
        sandbox
    }

    /// Writes an executable shell script.
    pub fn write_program(&self, name: &str, script: &str) {
        // Written by another process, for the reason that `link` gives.
        let write = r#"printf %s "$1" >"$0" && chmod 755 "$0""#;
        let mut shell = Command::new("sh");
        shell.args(["-c", write]).arg(self.path(name)).arg(script);
        assert!(shell.status().unwrap().success());
    }

    /// Hard-links a program. A copy would not do: a process that another test starts meanwhile would inherit
    /// the descriptor that is open for writing, and a file that is open for writing cannot be executed.
    fn link(&self, program: &Path, name: &str) {
        fs::hard_link(program, self.path(name)).unwrap();
    }

    pub fn write_config(&self, yaml: &str) {
        fs::write(self.path("c.yaml"), yaml).unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Returns `launcher ARGS` in this directory, which sees no GPU and ignores no signal: a shell starts
    /// background processes with SIGINT ignored, and the launcher would respect that.
    pub fn launcher(&self, args: &[&str]) -> Command {
        let mut command = Command::new("env");
        command
            .arg("--default-signal")
            .arg(self.path("bin/launcher"))
            .args(args)
            .current_dir(self.folder.path())
            .env("PATH", "/usr/bin:/bin")
            .env("CUDA_VISIBLE_DEVICES", "")
            .env_remove("CIFAR10_DIR")
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Returns `launcher --cpu 2 --run-dir run c.yaml`, with what each stand-in is to do.
    pub fn two_ranks(&self, stand_ins: [&str; 2]) -> Command {
        let mut command = self.launcher(&["--cpu", "2", "--run-dir", "run", "c.yaml"]);
        command.env("STAND_IN_0", stand_ins[0]).env("STAND_IN_1", stand_ins[1]);
        command
    }

    /// Returns the process ids that stand-ins have left in the run directory: their own, and those of
    /// children.
    pub fn pids(&self) -> Vec<i32> {
        let entries = fs::read_dir(self.path("run")).unwrap().map(|entry| entry.unwrap().path());
        let named = entries.filter(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            name.starts_with("pid-") || name.starts_with("child-")
        });
        named.map(|path| fs::read_to_string(path).unwrap().parse().unwrap()).collect()
    }

    pub fn events(&self) -> Vec<serde_json::Value> {
        let text = fs::read_to_string(self.path("run/events.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// Returns `command` with `before` in front of its arguments; folder and environment stay as they were.
pub fn behind(before: &[&str], command: &Command) -> Command {
    let mut outer = Command::new(before[0]);
    outer.args(&before[1..]).arg(command.get_program()).args(command.get_args());
    outer.current_dir(command.get_current_dir().unwrap());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => outer.env(name, value),
            None => outer.env_remove(name),
        };
    }
    outer.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    outer
}

/// Runs `command` to its end.
pub fn run(command: Command) -> Ended {
    Running::start(command).end()
}

/// A launcher whose standard error is read line by line. It is killed when this is dropped.
pub struct Running {
    pub child: Child,
    lines: Receiver<String>,
    seen: String,
}

impl Running {
    pub fn start(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Self { child, lines, seen: String::new() }
    }

    /// Reads standard error until a line contains `text`.
    pub fn wait_for(&mut self, text: &str) {
        while let Ok(line) = self.lines.recv_timeout(DEADLINE) {
            self.seen += &format!("{line}\n");
            if line.contains(text) {
                return;
            }
        }
        panic!("no line has {text:?}:\n{}", self.seen);
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Reads standard error to its end, and waits for the process.
    pub fn end(mut self) -> Ended {
        loop {
            match self.lines.recv_timeout(DEADLINE) {
                Ok(line) => self.seen += &format!("{line}\n"),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("it does not end:\n{}", self.seen),
            }
        }
        let mut stdout = String::new();
        self.child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
        let code = self.child.wait().unwrap().code();
        Ended { code, stdout, stderr: std::mem::take(&mut self.seen) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns whether a process exists and has not ended.
pub fn is_running(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    !matches!(state, None | Some('Z' | 'X'))
}

/// Polls until `done` returns true, for conditions that no message announces.
pub fn eventually(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < DEADLINE, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}
