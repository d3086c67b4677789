//! Connections of strangers, who do not have the token, to the port of a job: they cost hardly any resources,
//! keep no node out, and are not let in. Needs what `nodes.rs` needs, and a trainer that was built with MPI.

#![allow(clippy::unwrap_used)] // all of it is test code

mod support;

use std::collections::VecDeque;
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use support::job::{Job, codes, end_all, is_possible, said};
use support::{Running, Sandbox, eventually};

/// Number of silent connections that are open at the same time.
const SILENT: usize = 2000;

/// Length of node 0's nonce and proof, which are all that a stranger can get out of it, once per connection.
const GREETING_BYTES: usize = 64;

/// How much the resident memory of node 0's launcher may grow.
const GROWTH_KIB: usize = 8 << 10;

/// File descriptors that connections may take before authentication, with some to spare.
const STRANGERS_FDS: usize = 80;

/// All attacks at once, until this is dropped.
struct Attack {
    stop: Arc<AtomicBool>,
    opened: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<()>>,
}

impl Attack {
    fn start(rendezvous: &str, recorded: &[u8]) -> Self {
        let (stop, opened) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let mut threads = Vec::new();
        {
            let (rendezvous, stop, opened) = (rendezvous.to_owned(), stop.clone(), opened.clone());
            threads.push(thread::spawn(move || be_silent(&rendezvous, &stop, &opened)));
        }
        let (rendezvous, stop_too, recorded) =
            (rendezvous.to_owned(), stop.clone(), recorded.to_vec());
        threads.push(thread::spawn(move || {
            while !stop_too.load(Ordering::Relaxed) {
                be_rude(&rendezvous, &recorded);
                thread::sleep(Duration::from_millis(20));
            }
        }));
        Self { stop, opened, threads }
    }
}

impl Drop for Attack {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic of the thread is an assertion that failed.
            assert!(thread.join().is_ok() || thread::panicking());
        }
    }
}

/// Holds [`SILENT`] connections that send nothing, and replaces the oldest by a new one again and again.
fn be_silent(rendezvous: &str, stop: &AtomicBool, opened: &AtomicUsize) {
    let mut crowd = VecDeque::new();
    while !stop.load(Ordering::Relaxed) {
        match connect(rendezvous) {
            Some(stream) => {
                crowd.push_back(stream);
                opened.fetch_add(1, Ordering::Relaxed);
            }
            // The port is closed while no node is missing.
            None => thread::sleep(Duration::from_millis(10)),
        }
        if crowd.len() >= SILENT {
            crowd.pop_front();
            thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Connects to `rendezvous`; `None` while nobody listens there. On one machine a connection may then reach
/// itself, if its own port happens to be that of `rendezvous`.
fn connect(rendezvous: &str) -> Option<TcpStream> {
    let stream = TcpStream::connect(rendezvous).ok()?;
    (stream.local_addr().ok()? != stream.peer_addr().ok()?).then_some(stream)
}

/// Sends wrong, incomplete and replayed messages, and asserts that the only answer is that to a valid
/// beginning.
fn be_rude(rendezvous: &str, recorded: &[u8]) {
    let replayed = &recorded[..recorded.len().min(4096)];
    let half = &recorded[..20];
    let begun = &recorded[..48];
    let then_huge = [begun, &[0xff; 1 << 16]].concat();
    for (words, most) in [
        (&b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"[..], 0),
        (&[0xff; 1 << 16], 0),
        (half, 0),
        (begun, GREETING_BYTES),
        (&then_huge, GREETING_BYTES),
        (replayed, GREETING_BYTES),
    ] {
        let Some(mut stream) = connect(rendezvous) else { continue };
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        // What comes before the answer would be refused as that.
        let (first, rest) = words.split_at(words.len().min(begun.len()));
        let _ = stream.write_all(first);
        let _ = stream.read_exact(&mut vec![0; most]);
        let _ = stream.write_all(rest);
        let _ = stream.shutdown(Shutdown::Write);
        let mut more = Vec::new();
        let _ = stream.read_to_end(&mut more);
        assert!(more.is_empty(), "{} bytes more for {} of a stranger", more.len(), words.len());
    }
}

/// Returns all bytes that a launcher sends to that of node 0 in a job that works, recorded by relaying them.
fn record() -> Vec<u8> {
    let job = Job::new(2);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let between = listener.local_addr().unwrap().to_string();
    let (heard, node_0) = (Arc::new(Mutex::new(Vec::new())), job.rendezvous.clone());
    let first = job.start(0);
    let listens = || TcpStream::connect(&node_0).is_ok();
    eventually("node 0 listens", listens);
    let second = Running::start(job.launcher(1, &["--rendezvous", &between]));
    let (mut member, _) = listener.accept().unwrap();
    let mut host = TcpStream::connect(&node_0).unwrap();
    let back = {
        let (mut host, mut member) = (host.try_clone().unwrap(), member.try_clone().unwrap());
        thread::spawn(move || {
            let _ = std::io::copy(&mut host, &mut member);
            let _ = member.shutdown(Shutdown::Write);
        })
    };
    let mut block = [0; 4096];
    while let Ok(count @ 1..) = member.read(&mut block) {
        heard.lock().unwrap().extend_from_slice(&block[..count]);
        let _ = host.write_all(&block[..count]);
    }
    let _ = host.shutdown(Shutdown::Write);
    back.join().unwrap();
    let ended = end_all(vec![first, second]);
    assert_eq!(codes(&ended), [Some(0); 2], "{}", said(&ended));
    let heard = heard.lock().unwrap().clone();
    assert!(heard.starts_with(b"lockstep join "), "{:?}", &heard[..16]);
    heard
}

fn resident_kib(pid: u32) -> usize {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.split_whitespace().next().map_or(0, |kib| kib.parse().unwrap())
}

fn open_files(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

fn allow_many_files() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
}

/// Creates a job of the real trainer over MPI, on synthetic images; `None` if the trainer was built without
/// MPI.
fn training() -> Option<Job> {
    let sandbox = Sandbox::with_trainer();
    let described = Command::new(sandbox.path("bin/trainer")).arg("--describe").output().unwrap();
    if String::from_utf8_lossy(&described.stdout).contains(r#""mpirun":null"#) {
        println!("skipped: the trainer was built without MPI");
        return None;
    }
    sandbox.write_config(
        "data: {dataset: synthetic, train_images: 32, test_images: 8}\n\
         model: {name: resnet20}\ntrain: {epochs: 3, batch_size_per_rank: 8}\n\
         performance: {convolution: library}\n",
    );
    Some(Job::of(sandbox, 2))
}

#[test]
fn training_goes_on_among_2000_silent_strangers_rubbish_and_replays() {
    if !is_possible() {
        return;
    }
    let Some(job) = training() else { return };
    allow_many_files();
    let recorded = record();
    let mut first = job.start(0);
    first.wait_for("waiting for 1 other node to join at");
    let pid = first.child.id();
    let (resident_before, files_before) = (resident_kib(pid), open_files(pid));

    let attack = Attack::start(&job.rendezvous, &recorded);
    eventually("the crowd", || attack.opened.load(Ordering::Relaxed) >= SILENT);
    assert!(open_files(pid) <= files_before + STRANGERS_FDS, "{} files", open_files(pid));
    let second = job.start(1);
    first.wait_for("node 1 (m1) has joined");
    first.wait_for("epoch 1/3");
    let (resident, files) = (resident_kib(pid), open_files(pid));
    assert!(
        resident < resident_before + GROWTH_KIB,
        "{resident_before} KiB before, {resident} KiB after"
    );
    // Descriptors for the pipes, sockets and logs of its ranks, and none for strangers.
    assert!(files < files_before + 30, "{files_before} files before, {files} after");
    let ended = end_all(vec![first, second]);
    drop(attack);
    assert_eq!(codes(&ended), [Some(0); 2], "{}", said(&ended));
    let refusals = ended[0].stderr.lines().filter(|line| line.contains("was refused")).count();
    assert!(refusals <= 5, "{refusals} lines about strangers");
    println!(
        "{resident_before} KiB and {files_before} files before; {resident} KiB, {files} files"
    );
}

#[test]
fn a_launcher_without_file_descriptors_to_spare_lets_others_in() {
    if !is_possible() {
        return;
    }
    allow_many_files();
    let job = Job::new(2);
    let limited = support::behind(&["prlimit", "--nofile=64"], &job.launcher(0, &[]));
    let mut first = Running::start(limited);
    first.wait_for("to join at");
    let crowd: Vec<_> = (0..200).filter_map(|_| TcpStream::connect(&job.rendezvous).ok()).collect();
    first.wait_for("cannot accept a connection");
    let second = job.start(1);
    first.wait_for("node 1 (m1) has joined");
    drop(crowd);
    let ended = end_all(vec![first, second]);
    assert_eq!(codes(&ended), [Some(0); 2], "{}", said(&ended));
}
