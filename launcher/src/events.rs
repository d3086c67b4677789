//! `events.jsonl`: what the launcher did, one JSON object a line.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::policy::Exit;

/// Something that the launcher did or saw.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event<'a> {
    /// A rank was started.
    Spawned {
        /// Which rank.
        rank: usize,
        /// Its process.
        pid: u32,
        /// Restarts before.
        restarts: u32,
    },
    /// A rank's process ended.
    Exited {
        /// Which rank.
        rank: usize,
        /// Its exit status, if it had one.
        #[serde(skip_serializing_if = "Option::is_none")]
        status: Option<i32>,
        /// The number of the signal that killed it, if one did.
        #[serde(skip_serializing_if = "Option::is_none")]
        signal: Option<i32>,
    },
    /// A node's launcher is gone.
    NodeLost {
        /// Which node, and what was seen of it.
        reason: &'a str,
    },
    /// All ranks were asked to save a checkpoint and exit.
    StopRequested {
        /// Why.
        reason: &'a str,
    },
    /// All ranks were killed.
    Killed {
        /// Why.
        reason: &'a str,
    },
    /// All ranks are started again.
    Restarted {
        /// Restarts with this one.
        restarts: u32,
        /// Why.
        reason: &'a str,
    },
    /// How the job ended.
    Verdict {
        /// The launcher's exit code.
        exit_code: u8,
        /// The rank that failed, if one did.
        #[serde(skip_serializing_if = "Option::is_none")]
        rank: Option<usize>,
        /// Why.
        reason: &'a str,
    },
}

impl Event<'_> {
    /// The end of a rank's process.
    pub const fn exited(rank: usize, exit: Exit) -> Self {
        match exit {
            Exit::Code(status) => Self::Exited { rank, status: Some(status), signal: None },
            Exit::Signal(signal) => Self::Exited { rank, status: None, signal: Some(signal) },
        }
    }
}

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    #[serde(flatten)]
    event: &'a Event<'a>,
}

/// The file. One that cannot be written to is warned about once.
pub struct EventLog {
    path: PathBuf,
    file: Option<File>,
}

impl EventLog {
    /// Appends to the file at `path`.
    pub fn open(path: &Path) -> Self {
        let mut log = Self { path: path.to_owned(), file: None };
        match OpenOptions::new().read(true).append(true).create(true).open(path) {
            Ok(file) => log.file = Some(after_a_line(file)),
            Err(error) => log.give_up(&error),
        }
        log
    }

    /// Appends `event` with the time.
    pub fn record(&mut self, event: &Event<'_>) {
        let time = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
        let Some(file) = &mut self.file else { return };
        let written = serde_json::to_vec(&Line { time, event })
            .map_err(std::io::Error::from)
            .and_then(|mut line| {
                line.push(b'\n');
                file.write_all(&line)
            });
        if let Err(error) = written {
            self.give_up(&error);
        }
    }

    fn give_up(&mut self, error: &std::io::Error) {
        tracing::warn!(
            "cannot write {}: {error}; no more events are recorded",
            self.path.display()
        );
        self.file = None;
    }
}

/// A power cut or a full disk may have left half a line, which the next must not be part of.
fn after_a_line(mut file: File) -> File {
    let mut last = [b'\n'];
    // An empty file has no last byte.
    let read = file.seek(SeekFrom::End(-1)).and_then(|_| file.read_exact(&mut last));
    if read.is_ok() && last != [b'\n'] {
        // What cannot be written now cannot be written later either, and is warned about then.
        let _ = file.write_all(b"\n");
    }
    file
}

#[cfg(test)]
mod tests {
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
}
