//! Output of the ranks: appended to a log file each, that of the first rank also shown on the terminal, and
//! the last lines kept for the verdict.
//!
//! Each rank has a thread, so that a slow disk delays no other rank.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, PipeReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

use crate::console::Console;

/// Number of last lines of each rank's output that are kept for the verdict.
const TAIL_LINES: usize = 20;

/// A line that has reached this many bytes is passed on unfinished, so that a rank that never ends a line
/// cannot exhaust the memory.
const MAX_LINE_BYTES: usize = 8 * 1024;

/// The reader of a rank's output.
pub struct RankLog {
    path: PathBuf,
    tail: Arc<Mutex<VecDeque<String>>>,
    done: oneshot::Receiver<()>,
}

impl RankLog {
    /// Reads `output` to its end on a thread of its own: appends it to the file at `path` and, if there is a
    /// `console`, shows it there as lines of `rank`.
    ///
    /// Output that the file does not accept, as on a full disk, is missing from it: this is warned about, and
    /// noted in the file.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(
        rank: usize,
        path: PathBuf,
        output: PipeReader,
        console: Option<Console>,
    ) -> io::Result<Self> {
        let tail = Arc::<Mutex<VecDeque<String>>>::default();
        let (end, done) = oneshot::channel();
        let mut file = LogFile { path: path.clone(), file: None, has_gap: false };
        let thread_tail = Arc::clone(&tail);
        let take = move |line: String| {
            if let Some(console) = &console {
                console.rank_line(rank, &line);
            }
            let mut tail = thread_tail.lock().unwrap_or_else(PoisonError::into_inner);
            if tail.len() == TAIL_LINES {
                tail.pop_front();
            }
            tail.push_back(line);
        };
        std::thread::Builder::new().name(format!("log-{rank}")).spawn(move || {
            file.write(b""); // creates the file even if the rank writes nothing
            pump(output, &mut file, take);
            drop(end);
        })?;
        Ok(Self { path, tail, done })
    }

    /// Waits until the output has ended and has been written.
    pub async fn ended(&mut self) {
        // The sender is never used, only dropped.
        let _ = (&mut self.done).await;
    }

    /// Returns the last lines of the output, at most [`TAIL_LINES`].
    pub fn tail(&self) -> Vec<String> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Returns the path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn pump(mut output: impl Read, file: &mut LogFile, mut take: impl FnMut(String)) {
    let mut lines = Lines::default();
    let mut chunk = vec![0; 64 * 1024];
    loop {
        match output.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => {
                file.write(&chunk[..count]);
                lines.push(&chunk[..count], &mut take);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    lines.end(&mut take);
}

struct LogFile {
    path: PathBuf,
    /// `None` until it can be opened, and after a write that failed.
    file: Option<File>,
    has_gap: bool,
}

/// Written where lines are missing.
const GAP: &[u8] = b"\n[lines are missing here: this file could not be written]\n";

impl LogFile {
    fn write(&mut self, bytes: &[u8]) {
        let ended = self.append(bytes);
        if let Err(error) = &ended
            && !self.has_gap
        {
            let path = self.path.display();
            tracing::warn!("cannot write {path}: {error}; lines are lost until it can be written");
        }
        if ended.is_err() {
            self.file = None; // the next write opens it again: the descriptor may be stale
        }
        self.has_gap = ended.is_err();
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(OpenOptions::new().append(true).create(true).open(&self.path)?),
        };
        if self.has_gap {
            file.write_all(GAP)?;
        }
        file.write_all(bytes)
    }
}

/// Cuts a stream of bytes into lines.
#[derive(Default)]
struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    fn push(&mut self, bytes: &[u8], take: &mut impl FnMut(String)) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.partial.extend_from_slice(piece);
            if piece.ends_with(b"\n") || self.partial.len() >= MAX_LINE_BYTES {
                self.end(take);
            }
        }
    }

    fn end(&mut self, take: &mut impl FnMut(String)) {
        let text = String::from_utf8_lossy(&self.partial);
        let text = text.trim_end_matches(['\n', '\r']);
        // What a carriage return overwrote on a terminal is not worth showing.
        let shown = text.rsplit('\r').next().unwrap_or(text);
        if !shown.is_empty() {
            take(shown.to_owned());
        }
        self.partial.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(chunks: &[&[u8]]) -> Vec<String> {
        let mut taken = Vec::new();
        let mut lines = Lines::default();
        for chunk in chunks {
            lines.push(chunk, &mut |line| taken.push(line));
        }
        lines.end(&mut |line| taken.push(line));
        taken
    }

    #[test]
    fn lines_are_put_together_across_reads() {
        assert_eq!(lines(&[b"on", b"e\ntwo\nth", b"ree"]), ["one", "two", "three"]);
        assert_eq!(lines(&[b"10 %\r20 %\rdone\n", b"\xff\n"]), ["done", "\u{fffd}"]);
        assert_eq!(lines(&[&[b'x'; MAX_LINE_BYTES + 1]]).len(), 1);
    }

    #[test]
    fn a_line_without_end_is_cut() {
        let taken = lines(&[&[b'x'; MAX_LINE_BYTES], &[b'y'; MAX_LINE_BYTES]]);
        assert_eq!(taken.len(), 2);
    }

    #[tokio::test]
    async fn output_is_appended_and_its_end_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rank-1.log");
        for _ in 0..2 {
            let (reader, mut writer) = io::pipe().unwrap();
            let mut log = RankLog::start(1, path.clone(), reader, None).unwrap();
            for line in 0..30 {
                writeln!(writer, "line {line}").unwrap();
            }
            drop(writer);
            log.ended().await;
            let tail = log.tail();
            assert_eq!(
                (tail.len(), tail[0].as_str(), tail[19].as_str()),
                (20, "line 10", "line 29")
            );
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 60);
    }

    #[test]
    fn a_log_goes_on_when_there_is_room_again_and_says_what_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rank-0.log");
        let mut log = LogFile { path: path.clone(), file: None, has_gap: false };
        log.write(b"one\n");
        for line in [&b"two\n"[..], b"three\n"] {
            log.file = Some(File::create("/dev/full").unwrap());
            log.write(line);
        }
        log.write(b"four\n");
        log.write(b"five\n");
        let text = std::fs::read(&path).unwrap();
        assert_eq!(text, [b"one\n", GAP, b"four\nfive\n"].concat());
    }

    #[tokio::test]
    async fn a_full_disk_does_not_lose_the_end_of_the_log() {
        let (reader, mut writer) = io::pipe().unwrap();
        let mut log = RankLog::start(0, PathBuf::from("/dev/full"), reader, None).unwrap();
        writeln!(writer, "cannot write the checkpoint").unwrap();
        drop(writer);
        log.ended().await;
        assert_eq!(log.tail(), ["cannot write the checkpoint"]);
    }
}
