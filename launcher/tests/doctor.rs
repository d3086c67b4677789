//! `launcher doctor` with a fault planted in each thing that it checks. The launcher and the trainer are the
//! real ones; faults are planted around them: mounts, ports, libraries, files. Some tests need a C compiler,
//! others user namespaces or root; they are skipped elsewhere.

#![allow(clippy::unwrap_used)] // all of it is test code

mod support;

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::{Ended, Running, Sandbox, behind, run};

/// A configuration without faults.
const CONFIG: &str = "data: {dataset: synthetic, train_images: 64, test_images: 16}\n\
                      model: {name: resnet18}\n";

fn sandbox() -> Sandbox {
    let sandbox = Sandbox::with_trainer();
    sandbox.write_config(CONFIG);
    sandbox
}

/// Returns `launcher doctor ARGS --run-dir run c.yaml`, on two ranks of the CPU unless `args` say otherwise.
fn doctor(sandbox: &Sandbox, args: &[&str]) -> Command {
    let is_said = args.iter().any(|arg| ["--cpu", "--gpus"].contains(arg));
    let device: &[&str] = if is_said { &[] } else { &["--cpu", "2"] };
    let mut command =
        sandbox.launcher(&[&["doctor"], device, args, &["--run-dir", "run", "c.yaml"]].concat());
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SLURM_")) {
        command.env_remove(name);
    }
    command
}

/// Returns the line about `subject`, and the remedy below it, which is empty if there is none.
fn finding(ended: &Ended, subject: &str) -> (String, String) {
    let mut lines = ended.stdout.lines();
    let about = |line: &&str| line.get(9..).is_some_and(|rest| rest.starts_with(subject));
    let line = lines.find(about);
    let line = line.unwrap_or_else(|| panic!("nothing about {subject}:\n{}", said(ended)));
    let remedy = lines.next().filter(|line| line.trim_start().starts_with("->"));
    (line.to_owned(), remedy.unwrap_or_default().to_owned())
}

fn said(ended: &Ended) -> String {
    format!("{}\n{}", ended.stdout, ended.stderr)
}

/// Asserts that `subject` is broken, with `told` in its line and a remedy, and that the exit code says that
/// no run can work.
fn is_broken(ended: &Ended, subject: &str, told: &str) {
    let (line, remedy) = finding(ended, subject);
    assert!(line.starts_with("BROKEN") && line.contains(told), "{told:?} in\n{}", said(ended));
    assert!(!remedy.is_empty(), "no remedy: {}", said(ended));
    assert_eq!(ended.code, Some(9), "{}", said(ended));
}

/// Asserts that there is a warning about `subject`, with `told` in its line and a remedy, and that the exit
/// code says that a run works.
fn is_a_warning(ended: &Ended, subject: &str, told: &str) {
    let (line, remedy) = finding(ended, subject);
    assert!(line.starts_with("warning") && line.contains(told), "{told:?} in\n{}", said(ended));
    assert!(!remedy.is_empty(), "no remedy: {}", said(ended));
    assert_eq!(ended.code, Some(0), "{}", said(ended));
}

/// Compiles `source` in `tests/faults` into a shared library called `name`; `None` if there is no compiler.
fn library(sandbox: &Sandbox, source: &str, name: &str) -> Option<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults").join(source);
    let library = sandbox.path("bin").join(name);
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(source);
    match compiler.status() {
        Ok(status) => {
            assert!(status.success());
            Some(library)
        }
        Err(error) => {
            println!("skipped: no C compiler: {error}");
            None
        }
    }
}

/// Returns `command` to be run after `script`, as root in a mount namespace of its own; `None` if that is not
/// allowed.
fn with_mounts(command: &Command, script: &str) -> Option<Command> {
    let flags = ["--mount", "--map-root-user"];
    if !Command::new("unshare").args(flags).arg("true").output().is_ok_and(|it| it.status.success())
    {
        println!("skipped: no user namespaces (unshare --map-root-user --mount)");
        return None;
    }
    let script = format!("set -e\n{script}\nexec \"$@\"");
    Some(behind(&["unshare", flags[0], flags[1], "sh", "-c", &script, "sh"], command))
}

#[test]
fn what_is_fine_is_left_out_with_quiet_and_json_has_an_object_for_each_finding() {
    let sandbox = sandbox();
    sandbox.write_config("model: {name: resnet81}\n");
    let ended = run(doctor(&sandbox, &["--quiet"]));
    assert!(ended.stdout.starts_with("BROKEN   configuration"), "{}", said(&ended));
    assert!(!ended.stdout.lines().any(|line| line.starts_with("ok ")), "{}", said(&ended));
    assert!(ended.stdout.ends_with("a run cannot work here as it is\n"), "{}", said(&ended));

    let ended = run(doctor(&sandbox, &["--log-format", "json"]));
    assert_eq!(ended.code, Some(9), "{}", said(&ended));
    let lines: Vec<serde_json::Value> =
        ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (last, findings) = lines.split_last().unwrap();
    assert_eq!(last["exit_code"], 9);
    assert!(
        findings.iter().any(|it| it["subject"] == "configuration" && it["severity"] == "broken")
    );
    assert!(findings.iter().any(|it| it["severity"] == "fine" && it["remedy"] == ""));
}

#[test]
fn a_machine_on_which_a_run_works_has_everything_and_is_measured() {
    let sandbox = sandbox();
    let ended = run(doctor(&sandbox, &[]));
    assert_eq!(ended.code, Some(0), "{}", said(&ended));
    let subjects =
        ["configuration", "trainer", "data", "cores", "memory", "disk space", "disk speed"];
    for subject in subjects {
        finding(&ended, subject);
    }
    let (line, _) = finding(&ended, "all-reduce");
    assert!(line.contains("43 MiB of gradients over 2 ranks of this machine, over shm"), "{line}");
    let mut left: Vec<_> =
        fs::read_dir(sandbox.path("")).unwrap().flatten().map(|it| it.file_name()).collect();
    left.sort();
    assert_eq!(left, ["bin", "c.yaml"], "it leaves nothing behind");
}

#[test]
fn a_configuration_that_is_bad_or_not_there() {
    let sandbox = sandbox();
    let ended = run(doctor(&sandbox, &["--set", "train.epochz=2"]));
    is_broken(&ended, "configuration", "train.epochz");
    fs::remove_file(sandbox.path("c.yaml")).unwrap();
    is_broken(&run(doctor(&sandbox, &[])), "configuration", "c.yaml");
}

#[test]
fn data_that_is_not_there() {
    let sandbox = sandbox();
    let missing = ["--set", "data.dataset=cifar10", "--set", "data.download=false"];
    is_broken(&run(doctor(&sandbox, &missing)), "data", "no CIFAR-10 under data");
    let folder = ["--set", "data.dataset=image_folder", "--set", "data.root=pets"];
    is_broken(&run(doctor(&sandbox, &folder)), "data", "pets");
}

#[test]
fn a_trainer_that_is_not_there_or_finds_no_libtorch() {
    let sandbox = sandbox();
    // Wherever the trainer's libtorch lies, the dynamic linker first finds these files, which are no
    // libraries.
    let wrong = sandbox.path("wrong");
    fs::create_dir(&wrong).unwrap();
    for library in ["libtorch_cpu.so", "libtorch.so", "libc10.so"] {
        fs::write(wrong.join(library), "no library").unwrap();
    }
    let mut command = doctor(&sandbox, &[]);
    command.env("LD_LIBRARY_PATH", &wrong);
    is_broken(&run(command), "trainer", "wrong/lib");

    fs::remove_file(sandbox.path("bin/trainer")).unwrap();
    is_broken(&run(doctor(&sandbox, &[])), "trainer", "no trainer found");
}

#[test]
fn gpus_that_are_not_there() {
    let sandbox = sandbox();
    is_broken(&run(doctor(&sandbox, &["--gpus", "4"])), "devices", "--gpus 4");
}

/// Script that makes the files of an NVIDIA driver appear to be there.
const DRIVER: &str = r#"
mount -t tmpfs tmpfs /proc/driver
mkdir /proc/driver/nvidia"#;

fn with_gpus(sandbox: &Sandbox, peers: &str) -> Option<Command> {
    let script = format!(
        r#"#!/bin/sh
case "$*" in
-L) printf 'GPU 0: H (UUID: GPU-a)
GPU 1: H (UUID: GPU-b)
' ;;
topo*) printf ' 	GPU0	GPU1
 GPU0	X	{peers}
 GPU1	{peers}	X
' ;;
*) echo '470.57.02, H' ;;
esac
"#
    );
    sandbox.write_program("bin/nvidia-smi", &script);
    let mut command = doctor(sandbox, &["--gpus", "2"]);
    let bin = sandbox.path("bin");
    command.env("PATH", format!("{}:/usr/bin:/bin", bin.display()));
    command.env("LD_LIBRARY_PATH", &bin).env_remove("CUDA_VISIBLE_DEVICES");
    with_mounts(&command, DRIVER)
}

#[test]
fn a_driver_a_libtorch_and_an_nccl_that_do_not_fit_each_other() {
    let sandbox = sandbox();
    let libraries = [("old_driver.c", "libcuda.so.1"), ("old_nccl.c", "libnccl.so.2")];
    if libraries.iter().any(|(source, name)| library(&sandbox, source, name).is_none()) {
        return;
    }
    let Some(command) = with_gpus(&sandbox, "NS") else { return };
    let ended = run(command);
    is_broken(&ended, "libtorch", "the driver supports CUDA up to 11.4, but libtorch is built for");
    is_broken(&ended, "NCCL", "may be too old");
    let (line, remedy) = finding(&ended, "GPU to GPU");
    assert!(line.contains("1 pair without access to each other's memory"), "{line}");
    assert!(remedy.contains("topo -p2p"), "{remedy}");
}

#[test]
fn a_disk_that_is_too_small() {
    let sandbox = sandbox();
    fs::create_dir(sandbox.path("run")).unwrap();
    let Some(command) = with_mounts(&doctor(&sandbox, &[]), "mount -t tmpfs -o size=8m tmpfs run")
    else {
        return;
    };
    let ended = run(command);
    is_broken(&ended, "disk space", "8 MiB free in run, checkpoints and records take");
    is_broken(&ended, "disk speed", "No space left on device");
}

#[test]
fn a_disk_that_is_slow() {
    let sandbox = sandbox();
    let Some(slow) = library(&sandbox, "slow_disk.c", "slow_disk.so") else { return };
    let mut command = doctor(&sandbox, &[]);
    command.env("LD_PRELOAD", slow);
    is_a_warning(&run(command), "disk speed", "a checkpoint takes about");
}

#[test]
fn a_shared_memory_that_is_too_small() {
    let sandbox = sandbox();
    let command = doctor(&sandbox, &["--set", "comm.backend=mpi"]);
    let Some(command) = with_mounts(&command, "mount -t tmpfs -o size=1m tmpfs /dev/shm") else {
        return;
    };
    let (line, remedy) = finding(&run(command), "shared memory");
    assert!(line.starts_with("warning") && line.contains("1 MiB free in /dev/shm"), "{line}");
    assert!(remedy.contains("--shm-size"), "{remedy}");
}

#[test]
fn an_mpirun_that_is_none() {
    let sandbox = sandbox();
    let mut command = doctor(&sandbox, &["--set", "comm.backend=mpi"]);
    command.env("LOCKSTEP_MPIRUN", "/bin/true");
    is_broken(&run(command), "mpirun", "MPI");
}

#[test]
fn memory_and_cores_that_do_not_do() {
    let sandbox = sandbox();
    let much = ["--set", "train.batch_size_per_rank=10000000", "--cpu", "200"];
    let ended = run(doctor(&sandbox, &much));
    is_broken(&ended, "memory", "the ranks need about");
    assert!(finding(&ended, "cores").0.contains("200 ranks share"), "{}", said(&ended));
}

#[test]
fn a_port_that_is_taken() {
    let sandbox = sandbox();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let rendezvous = taken.local_addr().unwrap().to_string();
    let nodes = ["--nodes", "2", "--node-rank", "0", "--rendezvous", &rendezvous];
    is_broken(&run(doctor(&sandbox, &nodes)), "port", "Address already in use");
}

#[test]
fn slurm_tasks_that_are_too_many_and_a_job_that_ends_soon() {
    let sandbox = sandbox();
    let mut command = doctor(&sandbox, &[]);
    command.envs([
        ("SLURM_JOB_ID", "7"),
        ("SLURM_STEP_ID", "0"),
        ("SLURM_STEP_NUM_NODES", "1"),
        ("SLURM_STEP_NUM_TASKS", "4"),
    ]);
    let ended = run(command);
    is_broken(&ended, "Slurm tasks", "srun started 4 launchers on 1 nodes");
    // There is no Slurm controller to ask when the job ends.
    assert!(finding(&ended, "Slurm time").1.contains("--deadline"), "{}", said(&ended));
}

/// Runs the doctors of two nodes on this machine. `fault` changes the command of the second.
fn two_nodes(sandbox: &Sandbox, args: &[&str], fault: impl FnOnce(&mut Command)) -> [Ended; 2] {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let rendezvous = format!("127.0.0.1:{port}");
    let of = |rank: &str| {
        let nodes = ["--nodes", "2", "--node-rank", rank, "--rendezvous", &rendezvous];
        let join = ["--join-timeout", "60"];
        let mut command = doctor(sandbox, &[&nodes, &join[..], args].concat());
        command.env("LOCKSTEP_TOKEN", "0123456789abcdef0123456789abcdef");
        command
    };
    let mut second = of("1");
    fault(&mut second);
    let first = Running::start(of("0"));
    let second = Running::start(second);
    [first.end(), second.end()]
}

#[test]
fn a_clock_that_is_wrong_on_another_node() {
    let sandbox = sandbox();
    let Some(wrong) = library(&sandbox, "wrong_clock.c", "wrong_clock.so") else { return };
    let [first, _] = two_nodes(&sandbox, &["--cpu", "1"], |second| {
        second.env("LD_PRELOAD", &wrong);
    });
    let (line, remedy) = finding(&first, "clocks");
    assert!(line.starts_with("warning") && line.contains("differs by -30.0 s"), "{line}");
    assert!(remedy.contains("chrony"), "{remedy}");
}

#[test]
fn what_is_broken_on_one_node_ends_the_doctors_of_all_and_is_said_by_each() {
    let sandbox = sandbox();
    let ended = two_nodes(&sandbox, &["--cpu", "1"], |second| {
        second.arg("--set").arg("train.epochz=1");
    });
    is_broken(&ended[0], "nodes", "cannot take part: configuration");
    is_broken(&ended[1], "configuration", "train.epochz");

    let ended = two_nodes(&sandbox, &["--cpu", "1"], |second| {
        second.arg("--set").arg("train.seed=7");
    });
    for one in &ended {
        is_broken(one, "nodes", "train.seed is 0 on node 0");
    }
}
