//! `events.jsonl`: what the launcher did and saw, one JSON object per line.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::policy::Exit;

/// Capacity of the queue to the writer thread, in events. When it is full, no more events are recorded.
const QUEUE: usize = 4096;

/// How long dropping an [`EventLog`] waits for a file system that does not answer.
const FLUSH: Duration = Duration::from_secs(5);

/// The reason given in the warning when the queue is full, or when that wait times out.
const STALLED: &str = "its file system accepts no data";

/// Something that the launcher did or saw.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event<'a> {
    /// A rank was started.
    Spawned {
        /// The rank.
        rank: usize,
        /// Process id of the rank.
        pid: u32,
        /// Number of restarts of the job so far.
        restarts: u32,
    },
    /// A rank's process ended.
    Exited {
        /// The rank.
        rank: usize,
        /// Its exit status, if it had one.
        #[serde(skip_serializing_if = "Option::is_none")]
        status: Option<i32>,
        /// The number of the signal that killed it, if one did.
        #[serde(skip_serializing_if = "Option::is_none")]
        signal: Option<i32>,
    },
    /// The connection to a node's launcher is lost.
    NodeLost {
        /// The node, and how the loss was noticed.
        reason: &'a str,
    },
    /// All ranks were asked to save a checkpoint and exit.
    StopRequested {
        /// The reason.
        reason: &'a str,
    },
    /// All ranks were killed.
    Killed {
        /// The reason.
        reason: &'a str,
    },
    /// All ranks are started again.
    Restarted {
        /// Number of restarts of the job, this one included.
        restarts: u32,
        /// The reason.
        reason: &'a str,
    },
    /// How the job ended.
    Verdict {
        /// The launcher's exit code.
        exit_code: u8,
        /// The rank that failed, if one did.
        #[serde(skip_serializing_if = "Option::is_none")]
        rank: Option<usize>,
        /// The reason.
        reason: &'a str,
    },
}

impl Event<'_> {
    /// Returns the event for the end of a rank's process.
    pub const fn exited(rank: usize, exit: Exit) -> Self {
        match exit {
            Exit::Code(status) => Self::Exited { rank, status: Some(status), signal: None },
            Exit::Signal(signal) => Self::Exited { rank, status: None, signal: Some(signal) },
            Exit::OutOfMemory => Self::Exited { rank, status: None, signal: Some(libc::SIGKILL) },
        }
    }
}

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    #[serde(flatten)]
    event: &'a Event<'a>,
}

/// Appends events to the file on a thread of its own: a file system that does not answer must not keep the
/// launcher from supervising. Events that a full disk does not accept are kept, and written with the next
/// event. Dropping this waits until recorded events have been written, for at most [`FLUSH`].
pub struct EventLog {
    path: PathBuf,
    /// Queue to the writer thread; `None` when no more events are recorded.
    queue: Option<SyncSender<Vec<u8>>>,
    /// Disconnected once the writer thread has ended.
    written: Receiver<()>,
}

impl EventLog {
    /// Starts a writer thread that appends to the file at `path`.
    pub fn open(path: &Path) -> Self {
        let (queue, lines) = sync_channel(QUEUE);
        let (writing, written) = sync_channel(0);
        let of_writer = path.to_owned();
        let write = move || {
            write_all(of_writer, &lines);
            drop(writing);
        };
        let thread = std::thread::Builder::new().name("events".to_owned()).spawn(write);
        if let Err(error) = &thread {
            warn_of(path, &error.to_string());
        }
        Self { path: path.to_owned(), queue: thread.is_ok().then_some(queue), written }
    }

    /// Records `event` with the current time, in UTC. Does not block.
    pub fn record(&mut self, event: &Event<'_>) {
        let time = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
        let Some(queue) = &self.queue else { return };
        // Numbers and texts can always be written as JSON.
        let mut line = serde_json::to_vec(&Line { time, event }).unwrap_or_default();
        line.push(b'\n');
        match queue.try_send(line) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                warn_of(&self.path, STALLED);
                self.queue = None;
            }
            // The writer thread is gone.
            Err(TrySendError::Disconnected(_)) => self.queue = None,
        }
    }
}

impl Drop for EventLog {
    fn drop(&mut self) {
        let is_open = self.queue.take().is_some();
        if self.written.recv_timeout(FLUSH) == Err(RecvTimeoutError::Timeout) && is_open {
            warn_of(&self.path, STALLED);
        }
    }
}

fn warn_of(path: &Path, reason: &str) {
    tracing::warn!("cannot write {}: {reason}; no more events are recorded", path.display());
}

fn write_all(path: PathBuf, lines: &Receiver<Vec<u8>>) {
    let name = path.display().to_string();
    let mut appender = Appender { path, file: None, waiting: Vec::new() };
    let mut ended = appender.append(&[]);
    let mut warned = false;
    for line in lines {
        ended = appender.append(&line);
        if let Err(error) = &ended
            && !warned
        {
            tracing::warn!("cannot write {name}: {error}; events are kept in memory meanwhile");
        }
        warned = ended.is_err();
    }
    if ended.is_err()
        && let Err(error) = appender.append(&[])
    {
        tracing::warn!("cannot write {name}: {error}; the last events are lost");
    }
}

/// The file, and the bytes that could not be written to it yet.
struct Appender {
    path: PathBuf,
    file: Option<File>,
    waiting: Vec<u8>,
}

impl Appender {
    fn append(&mut self, line: &[u8]) -> io::Result<()> {
        self.waiting.extend_from_slice(line);
        let file = match &mut self.file {
            Some(file) => file,
            none => {
                let mut options = OpenOptions::new();
                let file = options.read(true).append(true).create(true).open(&self.path)?;
                none.insert(after_a_line(file)?)
            }
        };
        let ended = file.write_all(&self.waiting);
        match ended {
            Ok(()) => self.waiting.clear(),
            // Has the next call open the file again and look for a partial line at its end.
            Err(_) => self.file = None,
        }
        ended
    }
}

/// Ends a partial last line, which a power cut or a full disk may have left, so that the next event begins a
/// new line. Returns the file.
fn after_a_line(mut file: File) -> io::Result<File> {
    let mut last = [b'\n'];
    // An empty file has no last byte.
    let read = file.seek(SeekFrom::End(-1)).and_then(|_| file.read_exact(&mut last));
    if read.is_ok() && last != [b'\n'] {
        file.write_all(b"\n")?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn events_are_json_objects_with_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.jsonl");
        for restarts in 0..2 {
            let mut log = EventLog::open(&path);
            log.record(&Event::Spawned { rank: 1, pid: 77, restarts });
            log.record(&Event::exited(1, Exit::Signal(9)));
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 4);
        assert_eq!(lines[2]["event"], "spawned");
        assert_eq!(lines[2]["restarts"], 1);
        assert_eq!((&lines[3]["signal"], &lines[3]["status"]), (&9.into(), &().into()));
        std::fs::write(&path, format!("{text}{{\"time\":\"2026")).unwrap(); // a power cut
        EventLog::open(&path).record(&Event::exited(1, Exit::Signal(9)));
        let after = std::fs::read_to_string(&path).unwrap();
        let last: serde_json::Value = serde_json::from_str(after.lines().last().unwrap()).unwrap();
        assert_eq!((after.lines().count(), &last["event"]), (6, &"exited".into()));
        let time = lines[0]["time"].as_str().unwrap();
        assert!(OffsetDateTime::parse(time, &Rfc3339).is_ok(), "{time}");
    }

    #[test]
    fn what_a_full_disk_does_not_take_is_written_with_the_next_event() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.jsonl");
        let mut appender = Appender { path: path.clone(), file: None, waiting: Vec::new() };
        appender.append(b"1\n").unwrap();
        for line in [b"2\n", b"3\n"] {
            appender.file = Some(File::create("/dev/full").unwrap());
            appender.append(line).unwrap_err();
        }
        std::fs::write(&path, "1\n2").unwrap(); // half of a line
        appender.append(b"4\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "1\n2\n2\n3\n4\n");
    }

    #[test]
    fn a_file_that_takes_nothing_holds_nobody_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.jsonl");
        // A pipe that nobody empties takes 64 KiB.
        let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        let _reader = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let began = Instant::now();
        let mut log = EventLog::open(&path);
        let reason = "x".repeat(1000);
        (0..2 * QUEUE).for_each(|_| log.record(&Event::Killed { reason: &reason }));
        assert!(log.queue.is_none(), "no more are recorded");
        drop(log);
        assert!(began.elapsed() < FLUSH + Duration::from_secs(10), "{:?}", began.elapsed());
    }
}
