//! What the launcher does when ranks end, fail or are asked to stop.

#![allow(clippy::unwrap_used)] // all of it is test code

mod support;

use std::cell::OnceCell;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;

use rustix::fs::OFlags;
use rustix::process::{Pid, Signal, kill_process};
use support::{Running, Sandbox, behind, eventually, is_running, run};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

fn seconds_between(earlier: &serde_json::Value, later: &serde_json::Value) -> f64 {
    let time = |event: &serde_json::Value| {
        OffsetDateTime::parse(event["time"].as_str().unwrap(), &Rfc3339).unwrap()
    };
    (time(later) - time(earlier)).as_seconds_f64()
}

#[test]
fn a_terminal_that_takes_nothing_does_not_stop_supervision() {
    // More than a pipe holds, and more lines than the launcher queues for the terminal.
    let sandbox = Sandbox::with_script(
        "#!/bin/sh\n[ \"$RANK\" = 0 ] && yes a long line that nobody reads | head -n 20000\nexit 6\n",
    );
    let mut launcher = sandbox.two_ranks(["", ""]).spawn().unwrap();
    eventually("a verdict", || {
        fs::read_to_string(sandbox.path("run/events.jsonl"))
            .is_ok_and(|events| events.contains("\"verdict\""))
    });
    let mut shown = String::new();
    launcher.stderr.take().unwrap().read_to_string(&mut shown).unwrap();
    assert_eq!(launcher.wait().unwrap().code(), Some(6));
    let last = &shown[shown.len() - 2000..];
    assert!(shown.contains("as the terminal accepted no output"), "{last}");
    assert!(last.contains("exit code 6: loss or gradient not finite"), "{last}");
    let log = fs::read_to_string(sandbox.path("run/logs/rank-0.log")).unwrap();
    assert_eq!(log.lines().count(), 20_000);
}

#[test]
fn a_run_ends_with_0_and_leaves_logs_and_events() {
    let sandbox = Sandbox::with_stand_in();
    let ended = run(sandbox.two_ranks(["", ""]));
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("stand-in 0 of 2"), "{}", ended.stderr);
    assert!(!ended.stderr.contains("stand-in 1 of 2"), "{}", ended.stderr);
    assert!(ended.stderr.contains("epoch 1/1  step 1/3  loss 1.5000"), "{}", ended.stderr);
    let log = fs::read_to_string(sandbox.path("run/logs/rank-1.log")).unwrap();
    let arguments = "stand-in 1 of 2: run/config.yaml --run-dir run --resume auto --device cpu";
    assert!(log.contains(arguments), "{log}");
    let names: Vec<_> =
        sandbox.events().iter().map(|event| event["event"].as_str().unwrap().to_owned()).collect();
    assert_eq!(names, ["spawned", "spawned", "exited", "exited", "verdict"]);
}

#[test]
fn ranks_are_told_their_own_place_whatever_the_environment_says() {
    let sandbox = Sandbox::with_stand_in();
    let mut command = sandbox.two_ranks(["", ""]);
    for (name, value) in [
        ("RANK", "7"),
        ("WORLD_SIZE", "9"),
        ("LOCAL_RANK", "x"),
        ("SLURM_PROCID", "5"),
        ("SLURM_NTASKS", "6"),
        ("SLURM_STEP_ID", "0"),
        ("SLURM_STEP_NUM_NODES", "1"),
        ("SLURM_STEP_NUM_TASKS", "1"),
        ("OMPI_COMM_WORLD_RANK", "3"),
    ] {
        command.env(name, value);
    }
    let ended = run(command);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
}

#[test]
fn a_killed_rank_is_named_and_nobody_is_left_behind() {
    let sandbox = Sandbox::with_stand_in();
    let ended = run(sandbox.two_ranks(["forever", "killed-with-child"]));
    assert_eq!(ended.code, Some(4), "{}", ended.stderr);
    for told in [
        "rank 1 failed: killed by SIGKILL",
        "dmesg",
        "it was training, epoch 1, step 1",
        "| last words of 1",
        "run/logs/rank-1.log",
        "rank 0 was killed with the others",
        "exit code 4",
        "bin/launcher --run-dir run --cpu 2 c.yaml",
    ] {
        assert!(ended.stderr.contains(told), "{told:?} in\n{}", ended.stderr);
    }
    let pids = sandbox.pids();
    assert_eq!(pids.len(), 3);
    eventually("the end of every process", || !pids.iter().any(|pid| is_running(*pid)));
    let events = sandbox.events();
    let died = events.iter().find(|event| event["event"] == "exited").unwrap();
    let verdict = events.last().unwrap();
    assert_eq!((&died["rank"], &died["signal"]), (&1.into(), &9.into()));
    assert_eq!((&verdict["rank"], &verdict["exit_code"]), (&1.into(), &4.into()));
    assert!(seconds_between(died, verdict) < 2.0);
}

#[test]
fn what_a_rank_says_of_its_failure_is_told_and_its_code_is_the_launchers() {
    let sandbox = Sandbox::with_stand_in();
    let ended = run(sandbox.two_ranks(["not-finite", "forever"]));
    assert_eq!(ended.code, Some(6), "{}", ended.stderr);
    assert!(ended.stderr.contains("it said: loss is NaN at step 2"), "{}", ended.stderr);
}

#[test]
fn sigterm_saves_a_checkpoint_on_all_ranks_and_ends_with_8() {
    let sandbox = Sandbox::with_stand_in();
    let mut launcher = Running::start(sandbox.two_ranks(["forever", "forever"]));
    launcher.wait_for("all ranks train");
    launcher.signal(Signal::TERM);
    launcher.wait_for("SIGTERM: saving a checkpoint");
    // Slurm and srun repeat signals; a checkpoint that is being saved must survive that.
    launcher.signal(Signal::TERM);
    let ended = launcher.end();
    assert_eq!(ended.code, Some(8), "{}", ended.stderr);
    assert!(ended.stderr.contains("stopped by SIGTERM after saving"), "{}", ended.stderr);
    for rank in ["saved-0", "saved-1"] {
        assert_eq!(fs::read_to_string(sandbox.path("run").join(rank)).unwrap(), "SIGTERM");
    }
}

#[test]
fn ctrl_c_ends_a_launcher_whose_run_directory_does_not_answer() {
    let sandbox = Sandbox::with_stand_in();
    fs::create_dir_all(sandbox.path("run/checkpoints/epoch-0001")).unwrap();
    // A named pipe: reading it blocks until there is a writer.
    let stalled = sandbox.path("run/resumed_from");
    assert!(Command::new("mkfifo").arg(&stalled).status().unwrap().success());
    let arguments = ["--cpu", "1", "--run-dir", "run", "--resume", "gone", "c.yaml"];
    let launcher = Running::start(sandbox.launcher(&arguments));
    let mut options = File::options();
    let options = options.write(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed());
    // As long as the writer is open, the reader blocks.
    let writer = OnceCell::new();
    eventually("a look at the run directory", || {
        options.open(&stalled).is_ok_and(|pipe| writer.set(pipe).is_ok())
    });
    launcher.signal(Signal::INT);
    let ended = launcher.end();
    assert_eq!(ended.code, Some(8), "{}", ended.stderr);
    assert!(ended.stderr.contains("stopped by SIGINT before the job began"), "{}", ended.stderr);
}

#[test]
fn signals_that_slurm_sends_to_every_process_stop_the_job_as_one() {
    let sandbox = Sandbox::with_stand_in();
    let mut launcher = Running::start(sandbox.two_ranks(["forever", "forever"]));
    launcher.wait_for("all ranks train");
    for pid in sandbox.pids() {
        kill_process(Pid::from_raw(pid).unwrap(), Signal::USR1).unwrap();
    }
    launcher.signal(Signal::USR1);
    let ended = launcher.end();
    assert_eq!(ended.code, Some(8), "{}", ended.stderr);
}

#[test]
fn a_second_ctrl_c_stops_at_once() {
    let sandbox = Sandbox::with_stand_in();
    let mut launcher = Running::start(sandbox.two_ranks(["ignore-stop", "ignore-stop"]));
    launcher.wait_for("all ranks train");
    launcher.signal(Signal::INT);
    launcher.wait_for("stand-in 0 does not stop");
    launcher.signal(Signal::INT);
    let ended = launcher.end();
    assert_eq!(ended.code, Some(8), "{}", ended.stderr);
    assert!(ended.stderr.contains("stopped at once"), "{}", ended.stderr);
    assert!(!sandbox.pids().into_iter().any(is_running));
}

#[test]
fn ranks_save_and_end_by_themselves_when_the_launcher_is_killed() {
    let sandbox = Sandbox::with_stand_in();
    let mut launcher = Running::start(sandbox.two_ranks(["forever", "forever"]));
    launcher.wait_for("all ranks train");
    launcher.signal(Signal::KILL);
    launcher.child.wait().unwrap();
    let saved = ["saved-0", "saved-1"].map(|name| sandbox.path("run").join(name));
    eventually("a checkpoint of each rank", || saved.iter().all(|path| path.exists()));
    assert_eq!(fs::read_to_string(&saved[0]).unwrap(), "the launcher is gone");
    let pids = sandbox.pids();
    eventually("the end of every rank", || !pids.iter().any(|pid| is_running(*pid)));
}

#[test]
fn a_failed_job_is_started_again_as_often_as_allowed() {
    let sandbox = Sandbox::with_stand_in();
    let args = ["--cpu", "2", "--run-dir", "run", "--max-restarts", "1", "c.yaml"];
    let mut command = sandbox.launcher(&args);
    command.env("STAND_IN_0", "").env("STAND_IN_1", "panic-once");
    let ended = run(command);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(
        ended.stderr.contains("restart 1 of 1: rank 1 failed: exit status 1"),
        "{}",
        ended.stderr
    );
    let events = sandbox.events();
    assert_eq!(events.iter().filter(|event| event["event"] == "spawned").count(), 4);
    assert_eq!(events.iter().filter(|event| event["event"] == "restarted").count(), 1);
}

#[test]
fn a_trainer_that_cannot_load_its_libraries_ends_with_9_and_its_own_words() {
    let words = "trainer: error while loading shared libraries: libtorch_cpu.so: cannot open";
    let sandbox = Sandbox::with_script(&format!("#!/bin/sh\necho '{words}' >&2\nexit 127\n"));
    let ended = run(sandbox.two_ranks(["", ""]));
    assert_eq!(ended.code, Some(9), "{}", ended.stderr);
    assert!(ended.stderr.contains(&format!("| {words}")), "{}", ended.stderr);
    assert!(ended.stderr.contains("make setup"), "{}", ended.stderr);
}

#[test]
fn the_launcher_may_open_all_files_it_can_and_ranks_those_that_were_allowed() {
    let sandbox = Sandbox::with_script(
        "#!/bin/sh\nulimit -Sn\ngrep 'open files' /proc/$PPID/limits\nexit 6\n",
    );
    let launcher = sandbox.launcher(&["--cpu", "1", "--run-dir", "run", "c.yaml"]);
    let limited = behind(&["sh", "-c", "ulimit -Sn 200 && exec \"$@\"", "sh"], &launcher);
    let ended = run(limited);
    assert_eq!(ended.code, Some(6), "{}", ended.stderr);
    let log = fs::read_to_string(sandbox.path("run/logs/rank-0.log")).unwrap();
    let (of_rank, of_launcher) = log.split_once('\n').unwrap();
    assert_eq!(of_rank, "200");
    let words: Vec<_> = of_launcher.split_whitespace().collect();
    assert_eq!(words[3], words[4], "soft and hard: {of_launcher}");
}

#[test]
fn quiet_says_nothing_of_a_run_that_goes_well() {
    let sandbox = Sandbox::with_stand_in();
    let mut command = sandbox.launcher(&["--cpu", "1", "--run-dir", "run", "--quiet", "c.yaml"]);
    command.env("STAND_IN_0", "");
    let ended = run(command);
    assert_eq!((ended.code, ended.stderr.as_str(), ended.stdout.as_str()), (Some(0), "", ""));
}

#[test]
fn json_lines_are_json_whoever_wrote_them() {
    let sandbox = Sandbox::with_stand_in();
    let args = ["--cpu", "1", "--run-dir", "run", "--log-format", "json", "c.yaml"];
    let mut command = sandbox.launcher(&args);
    command.env("STAND_IN_0", "not-finite");
    let ended = run(command);
    assert_eq!(ended.code, Some(6), "{}", ended.stderr);
    let lines: Vec<serde_json::Value> =
        ended.stderr.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    assert!(lines.iter().any(|line| line["rank"] == 0 && line["exit_code"] == 6), "{lines:?}");
}
