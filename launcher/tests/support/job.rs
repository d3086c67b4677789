//! Launchers of one job, each on a machine of its own as far as the kernel can pretend.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;

use super::{Ended, Running, Sandbox, behind};

pub const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// Value of `--join-timeout`, in seconds. Tests are over in far less.
pub const JOIN_TIMEOUT: &str = "60";

/// Returns the `mpirun` that `make setup` installs, or the system's.
pub fn mpirun() -> PathBuf {
    let own = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.deps/venv/bin/mpirun"));
    if own.exists() { own } else { "mpirun".into() }
}

pub fn is_possible() -> bool {
    let possible = rustix::process::getuid().is_root()
        && Command::new("unshare").args(["--uts", "true"]).status().is_ok_and(|it| it.success())
        && Command::new(mpirun()).arg("--version").output().is_ok_and(|it| it.status.success());
    if !possible {
        println!("skipped: needs root, unshare and mpirun");
    }
    possible
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A job on machines `m0`, `m1`, ...
pub struct Job {
    pub sandbox: Sandbox,
    pub nodes: usize,
    pub rendezvous: String,
}

impl Job {
    /// Creates a job of stand-in trainers.
    pub fn new(nodes: usize) -> Self {
        Self::of(Sandbox::with_stand_in(), nodes)
    }

    pub fn of(sandbox: Sandbox, nodes: usize) -> Self {
        let rendezvous = format!("127.0.0.1:{}", free_port());
        Self { sandbox, nodes, rendezvous }
    }

    /// Returns the launcher of machine `node`, with one rank unless `args` say otherwise.
    pub fn launcher(&self, node: usize, args: &[&str]) -> Command {
        self.launcher_on(&format!("m{node}"), node, args)
    }

    /// Like [`Self::launcher`], on a machine called `host`.
    pub fn launcher_on(&self, host: &str, node: usize, args: &[&str]) -> Command {
        let (nodes, node_rank) = (self.nodes.to_string(), node.to_string());
        let usual = [
            ("--cpu", "1"),
            ("--run-dir", "run"),
            ("--join-timeout", JOIN_TIMEOUT),
            ("--nodes", &nodes),
            ("--node-rank", &node_rank),
            ("--rendezvous", &self.rendezvous),
        ];
        let unsaid = usual.iter().filter(|(name, _)| !args.contains(name));
        let unsaid: Vec<&str> = unsaid.flat_map(|(name, value)| [*name, *value]).collect();
        let launcher = self.sandbox.launcher(&[&unsaid[..], args, &["c.yaml"]].concat());
        let mut command = on_machine(host, &launcher);
        command.env("LOCKSTEP_TOKEN", TOKEN);
        command
    }

    pub fn start(&self, node: usize) -> Running {
        Running::start(self.launcher(node, &[]))
    }
}

/// Returns `command` with the host name `host` in a namespace of its own, and with `LOCKSTEP_MPIRUN`; all
/// else stays as it was.
pub fn on_machine(host: &str, command: &Command) -> Command {
    let script = r#"hostname "$0" && exec "$@""#;
    let mut there = behind(&["unshare", "--uts", "sh", "-c", script, host], command);
    there.env("LOCKSTEP_MPIRUN", mpirun());
    there
}

pub fn end_all(launchers: Vec<Running>) -> Vec<Ended> {
    launchers.into_iter().map(Running::end).collect()
}

pub fn codes(ended: &[Ended]) -> Vec<Option<i32>> {
    ended.iter().map(|it| it.code).collect()
}

pub fn said(ended: &[Ended]) -> String {
    ended.iter().map(|it| format!("---\n{}", it.stderr)).collect()
}
