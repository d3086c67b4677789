//! Several launchers, each on a machine of its own as far as the kernel can pretend: a host name, and
//! where a test cuts the link, a network. Needs root and Open MPI's `mpirun`; skipped elsewhere.

#![allow(clippy::unwrap_used)] // all of it is test code

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use support::job::{Job, codes, end_all, is_possible, said};
use support::{Running, behind, eventually, is_running};

#[test]
fn ranks_of_three_machines_are_one_job() {
    if !is_possible() {
        return;
    }
    let job = Job::new(3);
    let mut launchers: Vec<_> = (0..2).map(|node| job.start(node)).collect();
    launchers.push(Running::start(job.launcher(2, &["--cpu", "2"])));
    let ended = end_all(launchers);
    assert_eq!(codes(&ended), [Some(0); 3], "{}", said(&ended));
    assert!(ended[0].stderr.contains("stand-in 0 of 4"), "{}", said(&ended));
    let log = fs::read_to_string(job.sandbox.path("run/logs/rank-3.log")).unwrap();
    assert!(log.contains("stand-in 3 of 4"), "{log}");
    let spawned = job.sandbox.events().iter().filter(|event| event["event"] == "spawned").count();
    assert_eq!(spawned, 4);
    eventually("the end of every process", || {
        !job.sandbox.pids().iter().any(|pid| is_running(*pid))
    });
}

#[test]
fn a_rank_that_is_killed_on_another_machine_ends_the_job_everywhere_and_is_named() {
    if !is_possible() {
        return;
    }
    let job = Job::new(2);
    let mut second = job.launcher(1, &[]);
    second.env("STAND_IN_1", "killed-with-child");
    let mut first = job.launcher(0, &[]);
    first.env("STAND_IN_0", "forever");
    let ended = end_all(vec![Running::start(first), Running::start(second)]);
    assert_eq!(codes(&ended), [Some(4); 2], "{}", said(&ended));
    for told in ["rank 1 failed: killed by SIGKILL", "on m1", "| last words of 1"] {
        assert!(ended.iter().all(|it| it.stderr.contains(told)), "{told}: {}", said(&ended));
    }
    let pids = job.sandbox.pids();
    assert_eq!(pids.len(), 3);
    eventually("the end of every process", || !pids.iter().any(|pid| is_running(*pid)));
}

#[test]
fn a_signal_to_any_launcher_saves_on_all_machines() {
    if !is_possible() {
        return;
    }
    let job = Job::new(2);
    let forever = |node: usize| {
        let mut command = job.launcher(node, &[]);
        command.env("STAND_IN_0", "forever").env("STAND_IN_1", "forever");
        Running::start(command)
    };
    let (mut first, second) = (forever(0), forever(1));
    first.wait_for("all ranks train");
    second.signal(Signal::TERM);
    first.wait_for("SIGTERM on node 1 (m1): saving a checkpoint");
    let ended = end_all(vec![first, second]);
    assert_eq!(codes(&ended), [Some(8); 2], "{}", said(&ended));
    for rank in ["saved-0", "saved-1"] {
        let reason = fs::read_to_string(job.sandbox.path("run").join(rank)).unwrap();
        assert_eq!(reason, "SIGTERM on node 1 (m1)");
    }
}

#[test]
fn a_second_interrupt_on_any_machine_ends_the_job_at_once() {
    if !is_possible() {
        return;
    }
    let job = Job::new(2);
    let deaf = |node: usize| {
        let mut command = job.launcher(node, &[]);
        command.env("STAND_IN_0", "ignore-stop").env("STAND_IN_1", "ignore-stop");
        Running::start(command)
    };
    let (mut first, mut second) = (deaf(0), deaf(1));
    first.wait_for("all ranks train");
    second.signal(Signal::INT);
    second.wait_for("asking node 0 to stop; Ctrl-C (again)");
    first.wait_for("SIGINT on node 1 (m1): saving a checkpoint");
    // Before that, it would count as an echo of the first one.
    std::thread::sleep(Duration::from_millis(1100));
    second.signal(Signal::INT);
    let ended = end_all(vec![first, second]);
    assert_eq!(codes(&ended), [Some(8); 2], "{}", said(&ended));
    let told = "SIGINT again on node 1 (m1) while a checkpoint was being saved";
    assert!(ended[0].stderr.contains(told), "{}", said(&ended));
}

#[test]
fn a_launcher_that_was_asked_to_stop_and_loses_node_0_does_not_join_again() {
    if !is_possible() {
        return;
    }
    let job = Job::new(2);
    let deaf = |node: usize| {
        let mut command = job.launcher(node, &["--max-restarts", "1"]);
        command.env("STAND_IN_0", "ignore-stop").env("STAND_IN_1", "ignore-stop");
        Running::start(command)
    };
    let (mut first, second) = (deaf(0), deaf(1));
    first.wait_for("all ranks train");
    second.signal(Signal::TERM);
    first.wait_for("SIGTERM on node 1 (m1): saving a checkpoint");
    first.signal(Signal::KILL);
    first.child.wait().unwrap();
    let ended = second.end();
    assert_eq!(ended.code, Some(8), "{}", ended.stderr);
    assert!(ended.stderr.contains("asked to stop; node 0 (127.0.0.1) is lost"), "{}", ended.stderr);
}

#[test]
fn a_signal_before_the_others_have_come_ends_with_8() {
    if !is_possible() {
        return;
    }
    let job = Job::new(2);
    let mut first = job.start(0);
    first.wait_for("to join at");
    first.signal(Signal::TERM);
    let ended = first.end();
    assert_eq!(ended.code, Some(8), "{}", ended.stderr);
    assert!(ended.stderr.contains("stopped by SIGTERM before the job began"), "{}", ended.stderr);
}

#[test]
fn a_lost_launcher_is_named_and_joins_again_for_a_restart() {
    if !is_possible() {
        return;
    }
    let job = Job::new(2);
    let start = |node: usize, stand_in: &str| {
        let mut command = job.launcher(node, &["--max-restarts", "1"]);
        command.env(format!("STAND_IN_{node}"), stand_in);
        Running::start(command)
    };
    let (mut first, second) = (start(0, "panic-once"), start(1, "forever"));
    first.wait_for("restart 1 of 1: rank 0 failed");
    first.wait_for("all ranks train");
    second.signal(Signal::KILL);
    let ended = first.end();
    assert_eq!(ended.code, Some(4), "{}", ended.stderr);
    assert!(ended.stderr.contains("node 1 (m1) is lost"), "{}", ended.stderr);

    let job = Job::new(2);
    let start = |node: usize, stand_in: &str| {
        let mut command = job.launcher(node, &["--max-restarts", "1"]);
        command.env(format!("STAND_IN_{node}"), stand_in);
        Running::start(command)
    };
    // The rank must not be done before its launcher is killed.
    let (mut first, mut second) = (start(0, "forever-once"), start(1, "forever"));
    first.wait_for("all ranks train");
    second.signal(Signal::KILL);
    second.child.wait().unwrap();
    first.wait_for("restart 1 of 1: node 1 (m1) is lost");
    // The launcher of node 1 comes back on another machine.
    let again = Running::start(job.launcher_on("elsewhere", 1, &["--max-restarts", "1"]));
    let ended = end_all(vec![first, again]);
    assert_eq!(codes(&ended), [Some(0); 2], "{}", said(&ended));
}

#[test]
fn a_signal_to_a_node_that_waits_for_a_lost_one_ends_all() {
    if !is_possible() {
        return;
    }
    let job = Job::new(3);
    let start = |node: usize| {
        let mut command = job.launcher(node, &["--max-restarts", "1"]);
        command.env(format!("STAND_IN_{node}"), "forever");
        Running::start(command)
    };
    let (mut first, second, mut third) = (start(0), start(1), start(2));
    first.wait_for("all ranks train");
    third.signal(Signal::KILL);
    third.child.wait().unwrap();
    first.wait_for("restart 1 of 1: node 2 (m2) is lost");
    second.signal(Signal::TERM);
    let ended = end_all(vec![first, second]);
    assert_eq!(codes(&ended), [Some(8); 2], "{}", said(&ended));
    let told = "stopped by SIGTERM on node 1 (m1)";
    assert!(ended.iter().all(|it| it.stderr.contains(told)), "{told}: {}", said(&ended));
}

#[test]
fn what_does_not_fit_is_said_on_both_machines() {
    if !is_possible() {
        return;
    }
    let cases: [(&[&str], i32, &str); 3] = [
        (&["--set", "train.seed=7"], 2, "train.seed is 0 on node 0 (m0), 7 on node 1 (m1)"),
        (&["--set", "data.train_images=99"], 2, "data.train_images"),
        (&["--nodes", "3"], 2, "the numbers of nodes differ: 2 on node 0 (m0), 3 on node 1 (m1)"),
    ];
    for (args, code, told) in cases {
        let job = Job::new(2);
        let second = Running::start(job.launcher(1, args));
        let ended = end_all(vec![job.start(0), second]);
        assert_eq!(codes(&ended), [Some(code); 2], "{}", said(&ended));
        assert!(ended.iter().all(|it| it.stderr.contains(told)), "{told}: {}", said(&ended));
    }
}

#[test]
fn a_node_that_cannot_take_part_ends_all_at_once_and_is_named_with_its_reason() {
    if !is_possible() {
        return;
    }
    let no_data = ["--set", "data.dataset=cifar10", "--set", "data.download=false"];
    let cases: [(&[&str], i32, &str); 2] = [
        (&["--set", "train.epochz=1"], 2, "train.epochz"),
        (&no_data, 3, "no CIFAR-10 under data"),
    ];
    for (args, code, told) in cases {
        for bad in 0..2 {
            let started = Instant::now();
            let job = Job::new(2);
            let args_of = |node| if node == bad { args } else { &[] };
            let start = |node| Running::start(job.launcher(node, args_of(node)));
            let ended = end_all(vec![start(0), start(1)]);
            assert_eq!(codes(&ended), [Some(code); 2], "{}", said(&ended));
            assert!(ended.iter().all(|it| it.stderr.contains(told)), "{told}: {}", said(&ended));
            let named = format!("node {bad} (m{bad}) cannot take part");
            assert!(ended[1 - bad].stderr.contains(&named), "{named}: {}", said(&ended));
            assert!(started.elapsed() < Duration::from_secs(25), "{:?}", started.elapsed());
        }
    }
}

#[test]
fn a_node_that_cannot_start_its_part_ends_all_and_is_named_with_its_reason() {
    if !is_possible() {
        return;
    }
    let job = Job::new(2);
    // The run directory of node 1 is a file, so no folder for logs can be made in it.
    let args = ["--max-restarts", "1", "--run-dir", "c.yaml"];
    let start = |node, args| Running::start(job.launcher(node, args));
    let ended = end_all(vec![start(0, &args[..2]), start(1, &args)]);
    assert_eq!(codes(&ended), [Some(9); 2], "{}", said(&ended));
    let told = "cannot create a folder for logs in c.yaml";
    assert!(ended.iter().all(|it| it.stderr.contains(told)), "{told}: {}", said(&ended));
    assert!(ended[0].stderr.contains("node 1 (m1) cannot take part"), "{}", said(&ended));
    let verdict = job.sandbox.events().pop().unwrap();
    assert_eq!((&verdict["event"], &verdict["exit_code"]), (&"verdict".into(), &9.into()));
}

#[test]
fn strangers_do_not_get_in_and_who_is_missing_is_named() {
    if !is_possible() {
        return;
    }
    let job = Job::new(3);
    let mut first = Running::start(job.launcher(0, &["--join-timeout", "8"]));
    let mut stranger = job.launcher(1, &[]);
    stranger.env("LOCKSTEP_TOKEN", "another token, just as long");
    let stranger = Running::start(stranger).end();
    assert_eq!(stranger.code, Some(9), "{}", stranger.stderr);
    assert!(stranger.stderr.contains("has another token"), "{}", stranger.stderr);
    first.wait_for("it may have another");

    // Connections that are silent, one that sends rubbish, and one that announces a frame of 4 GiB.
    let silent: Vec<_> =
        (0..200).filter_map(|_| TcpStream::connect(&job.rendezvous).ok()).collect();
    assert!(!silent.is_empty());
    drop(silent);
    for rubbish in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 4096]] {
        let mut stream = TcpStream::connect(&job.rendezvous).unwrap();
        let _ = stream.write_all(rubbish);
        let _ = stream.shutdown(Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert_eq!(answer, [0; 0], "a stranger was answered");
    }
    let second = job.start(1);
    let ended = end_all(vec![first, second]);
    assert_eq!(codes(&ended), [Some(5); 2], "{}", said(&ended));
    for told in ["node 2 did not join within 8s", "joined: node 0 (m0), node 1 (m1)"] {
        assert!(ended.iter().all(|it| it.stderr.contains(told)), "{told}: {}", said(&ended));
    }
}

#[test]
fn a_node_0_that_cannot_be_found_is_said_within_the_deadline() {
    if !is_possible() {
        return;
    }
    let mut job = Job::new(2);
    let started = Instant::now();
    let ended = Running::start(job.launcher(1, &["--join-timeout", "2"])).end();
    assert_eq!(ended.code, Some(5), "{}", ended.stderr);
    assert!(ended.stderr.contains("cannot join node 0 at 127.0.0.1"), "{}", ended.stderr);
    assert!(started.elapsed() < Duration::from_secs(20));

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    job.rendezvous = taken.local_addr().unwrap().to_string();
    let ended = job.start(0).end();
    assert_eq!(ended.code, Some(9), "{}", ended.stderr);
    assert!(ended.stderr.contains(&job.rendezvous), "{}", ended.stderr);

    job.rendezvous = "no-such-host.invalid:29400".to_owned();
    for node in 0..2 {
        let ended = job.start(node).end();
        assert_eq!(ended.code, Some(9), "{}", ended.stderr);
        let told = "the host name no-such-host.invalid does not resolve";
        assert!(ended.stderr.contains(told), "{}", ended.stderr);
    }
}

#[test]
fn the_first_launcher_makes_a_token_that_only_its_user_can_read() {
    if !is_possible() {
        return;
    }
    let job = Job::new(2);
    let file = job.sandbox.path("token");
    let start = |node: usize| {
        let mut command = job.launcher(node, &["--token-file", file.to_str().unwrap()]);
        command.env_remove("LOCKSTEP_TOKEN");
        Running::start(command)
    };
    let second = start(1);
    let ended = end_all(vec![start(0), second]);
    assert_eq!(codes(&ended), [Some(0); 2], "{}", said(&ended));
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let ended = start(0).end();
    assert_eq!(ended.code, Some(9), "{}", ended.stderr);
    assert!(ended.stderr.contains("chmod 600"), "{}", ended.stderr);
}

/// Two network namespaces with a bridge between them.
struct Networks(String);

impl Networks {
    fn make() -> Option<Self> {
        let networks = Self(format!("{:x}", std::process::id()));
        let tag = &networks.0;
        let mut script =
            format!("set -e\nip link add lkb{tag} type bridge\nip link set lkb{tag} up\n");
        for node in 0..2 {
            script += &format!(
                "ip netns add lk{tag}-{node}\n\
                 ip link add lkv{tag}.{node} type veth peer name eth0 netns lk{tag}-{node}\n\
                 ip link set lkv{tag}.{node} master lkb{tag} up\n\
                 ip -n lk{tag}-{node} addr add 10.98.0.{}/24 dev eth0\n\
                 ip -n lk{tag}-{node} link set eth0 up\n\
                 ip -n lk{tag}-{node} link set lo up\n",
                node + 1
            );
        }
        let made = Command::new("sh").args(["-c", &script]).output().ok()?;
        made.status.success().then_some(networks)
    }

    fn enter(&self, node: usize, command: &Command) -> Command {
        let network = format!("--net=/run/netns/lk{}-{node}", self.0);
        behind(&["nsenter", &network], command)
    }

    fn cut(&self, node: usize) {
        let link = format!("lkv{}.{node}", self.0);
        let cut = Command::new("ip").args(["link", "set", &link, "down"]).status().unwrap();
        assert!(cut.success());
    }
}

impl Drop for Networks {
    fn drop(&mut self) {
        let tag = &self.0;
        for node in 0..2 {
            let _ =
                Command::new("ip").args(["link", "delete", &format!("lkv{tag}.{node}")]).output();
            let _ =
                Command::new("ip").args(["netns", "delete", &format!("lk{tag}-{node}")]).output();
        }
        let _ = Command::new("ip").args(["link", "delete", &format!("lkb{tag}")]).output();
    }
}

#[test]
fn a_cut_link_is_noticed_at_both_ends_and_stops_the_job() {
    if !is_possible() {
        return;
    }
    let mut job = Job::new(2);
    job.rendezvous = "10.98.0.1:29400".to_owned();
    let Some(networks) = Networks::make() else {
        return println!("skipped: no network namespaces");
    };
    let start = |node: usize| {
        let mut command = job.launcher(node, &[]);
        command.env("STAND_IN_0", "forever").env("STAND_IN_1", "forever");
        Running::start(networks.enter(node, &command))
    };
    let (mut first, second) = (start(0), start(1));
    first.wait_for("all ranks train");
    networks.cut(1);
    let cut = Instant::now();
    let ended = end_all(vec![first, second]);
    assert!(cut.elapsed() < Duration::from_secs(45), "{:?}", cut.elapsed());
    assert_eq!(codes(&ended), [Some(4); 2], "{}", said(&ended));
    assert!(ended[0].stderr.contains("node 1 (m1) is lost: it sent nothing"), "{}", said(&ended));
    assert!(ended[1].stderr.contains("node 0 (10.98.0.1) is lost"), "{}", said(&ended));
    eventually("the end of every process", || {
        !job.sandbox.pids().iter().any(|pid| is_running(*pid))
    });
}
