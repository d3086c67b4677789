//! Writing `metrics.jsonl`, to which whole lines are appended, also after a resume.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use job::files::write_atomically;
use job::metrics::{Record, Timed, complete_lines, read, read_bytes};
use time::OffsetDateTime;

use super::MetricsError;

/// Appends records to `metrics.jsonl`. A line is written with one call, so that a reader sees all of it or
/// nothing. Records that the disk refuses are kept in memory, and written before the next one.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    /// `None` after an error; the next write opens the file again, since a file descriptor may have become
    /// invalid when its file system was gone.
    file: Option<File>,
    /// Device and inode of the file that was opened last.
    opened: (u64, u64),
    /// Length in bytes of the whole lines that are known to be synced to disk.
    synced: u64,
    /// The lines behind these, which are not known to be synced.
    recent: Vec<u8>,
    /// Number of bytes of `recent` that have been written to the file.
    written: usize,
}

impl Writer {
    /// Opens the file at `path` to continue after optimizer step `step` and epoch `epochs_completed`,
    /// 0 and 0 at the start of a run.
    ///
    /// Drops the records of later steps and epochs, which will be written again, and an incomplete last line
    /// whose writer was killed. Keeps summaries.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn resume(path: &Path, step: u64, epochs_completed: usize) -> Result<Self, MetricsError> {
        let wrong = |source| MetricsError::Write { path: path.to_path_buf(), source };
        let before = read_bytes(path)?;
        let kept = truncate_after(&before, step, epochs_completed);
        let mut writer = Self {
            path: path.to_path_buf(),
            file: None,
            opened: (0, 0),
            synced: kept.len() as u64,
            recent: Vec::new(),
            written: 0,
        };
        // If lines are dropped only at the end, opening truncates the file, which needs no disk space for a
        // copy.
        if !before.starts_with(&kept) {
            write_atomically(path, &kept).map_err(wrong)?;
        }
        writer.file = Some(writer.open().map_err(wrong)?);
        Ok(writer)
    }

    /// Appends a record. Records of epochs and summaries are synced to disk when this returns.
    ///
    /// # Errors
    /// When the record cannot be written; nothing of it is in the file then, and it is kept in memory.
    pub fn write(&mut self, record: &Record) -> Result<(), MetricsError> {
        self.append(record).map_err(|source| self.wrong(source))
    }

    /// Writes the records that are kept in memory, and syncs all records to disk.
    ///
    /// # Errors
    /// When they cannot be written; they remain in memory.
    pub fn flush(&mut self) -> Result<(), MetricsError> {
        self.put(true).map_err(|source| self.wrong(source))
    }

    fn wrong(&self, source: io::Error) -> MetricsError {
        MetricsError::Write { path: self.path.clone(), source }
    }

    /// Returns whether the file has a summary of a run of `steps` optimizer steps.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn has_summary(&self, steps: u64) -> Result<bool, MetricsError> {
        let is_it =
            |record: &Record| matches!(record, Record::Summary(summary) if summary.steps == steps);
        Ok(read(&self.path)?.iter().any(is_it))
    }

    fn append(&mut self, record: &Record) -> io::Result<()> {
        let time = OffsetDateTime::now_utc().truncate_to_millisecond();
        self.recent.extend(serde_json::to_vec(&Timed { record, time })?);
        self.recent.push(b'\n');
        self.put(!matches!(record, Record::Step(_)))
    }

    /// Writes the recent records, and with `sync` syncs them to disk.
    fn put(&mut self, sync: bool) -> io::Result<()> {
        let ended = self.try_to_put(sync);
        if ended.is_err() {
            if let Some(file) = self.file.take() {
                let _ = file.set_len(self.synced); // removes a line that was written in part
            }
            self.written = 0;
        }
        ended
    }

    fn try_to_put(&mut self, sync: bool) -> io::Result<()> {
        let file = match self.file.take() {
            Some(file) if self.is_in_place()? => file,
            Some(_) => {
                tracing::warn!(
                    "{} was removed or moved during the run: its records go on in a new file",
                    self.path.display()
                );
                self.synced = u64::MAX; // nothing is cut off a file that is there by now
                self.written = 0;
                self.open_again()?
            }
            None => self.open_again()?,
        };
        let file = self.file.insert(file);
        file.write_all(&self.recent[self.written..])?;
        self.written = self.recent.len();
        if sync {
            file.sync_data()?;
            self.synced += self.written as u64;
            self.recent.clear();
            self.written = 0;
        }
        Ok(())
    }

    /// Returns whether the file at the path is the one that was opened.
    fn is_in_place(&self) -> io::Result<bool> {
        match fs::metadata(&self.path) {
            Ok(found) => Ok((found.dev(), found.ino()) == self.opened),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Opens the file as [`Self::open`] does, also if its folder was removed.
    fn open_again(&mut self) -> io::Result<File> {
        fs::create_dir_all(self.path.parent().unwrap_or(Path::new(".")))?;
        self.open()
    }

    /// Opens the file and truncates it to the lines that are known to be synced.
    fn open(&mut self) -> io::Result<File> {
        let file = File::options().append(true).create(true).open(&self.path)?;
        let found = file.metadata()?;
        self.opened = (found.dev(), found.ino());
        self.synced = self.synced.min(found.len());
        file.set_len(self.synced)?;
        Ok(file)
    }
}

/// Returns the complete lines of `text` that a run keeps when it continues after `step` and
/// `epochs_completed`: all but those that it will write again, and lines that are not records.
fn truncate_after(text: &[u8], step: u64, epochs_completed: usize) -> Vec<u8> {
    let is_kept = |line: &&[u8]| match serde_json::from_slice(line) {
        Ok(Record::Step(record)) => record.step <= step,
        Ok(Record::Epoch(record)) => record.epoch <= epochs_completed,
        Ok(Record::Summary(_)) => true,
        Err(error) => {
            tracing::warn!("dropping a line of metrics.jsonl that is not a record: {error}");
            false
        }
    };
    complete_lines(text).filter(is_kept).flatten().copied().collect()
}

#[cfg(test)]
mod tests {
    use time::format_description::well_known::Rfc3339;

    use super::*;
    use crate::metrics::samples::{epoch, step, summary};

    fn written(records: &[Record]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut writer = Writer::resume(&path, 0, 0).unwrap();
        for record in records {
            writer.write(record).unwrap();
        }
        (folder, path)
    }

    #[test]
    fn what_is_written_is_read_back_with_the_kind_first_and_the_time_last() {
        let records = [step(10, 1), Record::Epoch(epoch(1, 0.5)), summary()];
        let (_folder, path) = written(&records);
        assert_eq!(read(&path).unwrap(), records);
        for line in fs::read_to_string(&path).unwrap().lines() {
            assert!(line.starts_with(r#"{"kind":""#), "{line}");
            let time = line.rsplit_once(r#","time":""#).unwrap().1.trim_end_matches("\"}");
            OffsetDateTime::parse(time, &Rfc3339).unwrap();
        }
    }

    #[test]
    fn a_resume_appends_to_what_was_before_it() {
        let (_folder, path) = written(&[step(10, 1), Record::Epoch(epoch(1, 0.5))]);
        let before = fs::read(&path).unwrap();
        Writer::resume(&path, 10, 1).unwrap().write(&step(20, 2)).unwrap();
        assert!(fs::read(&path).unwrap().starts_with(&before));
        assert_eq!(read(&path).unwrap()[2..], [step(20, 2)]);
    }

    #[test]
    fn what_will_be_written_again_is_dropped_and_summaries_stay() {
        let (_folder, path) = written(&[
            step(10, 1),
            Record::Epoch(epoch(1, 0.5)),
            step(20, 2),
            summary(),
            step(30, 2),
            Record::Epoch(epoch(2, 0.6)),
        ]);
        Writer::resume(&path, 20, 1).unwrap();
        let kept = [step(10, 1), Record::Epoch(epoch(1, 0.5)), step(20, 2), summary()];
        assert_eq!(read(&path).unwrap(), kept);
        Writer::resume(&path, 0, 0).unwrap();
        assert_eq!(read(&path).unwrap(), [summary()]);
    }

    #[test]
    fn half_a_line_is_cut_off_before_more_is_appended() {
        let (_folder, path) = written(&[step(10, 1)]);
        let mut bytes = fs::read(&path).unwrap();
        bytes.extend_from_slice(br#"{"kind":"step","st"#);
        fs::write(&path, bytes).unwrap();
        Writer::resume(&path, 10, 0).unwrap().write(&step(20, 1)).unwrap();
        assert_eq!(read(&path).unwrap(), [step(10, 1), step(20, 1)]);
    }

    #[test]
    fn what_a_full_disk_does_not_take_is_written_once_there_is_room() {
        let (_folder, path) = written(&[step(10, 1)]);
        let mut writer = Writer::resume(&path, 10, 0).unwrap();
        let full = || Some(File::create("/dev/full").unwrap());
        writer.file = full();
        let error = writer.write(&step(20, 2)).unwrap_err().to_string();
        assert!(error.ends_with("metrics.jsonl: No space left on device (os error 28)"), "{error}");
        writer.file = full();
        writer.write(&Record::Epoch(epoch(1, 0.5))).unwrap_err();
        writer.file = full();
        writer.flush().unwrap_err();
        assert_eq!(read(&path).unwrap(), [step(10, 1)]);
        writer.flush().unwrap();
        writer.write(&step(30, 2)).unwrap();
        let all = [step(10, 1), step(20, 2), Record::Epoch(epoch(1, 0.5)), step(30, 2)];
        assert_eq!(read(&path).unwrap(), all);
    }

    #[test]
    fn half_of_what_was_written_since_the_last_sync_is_written_again_whole() {
        let (_folder, path) = written(&[Record::Epoch(epoch(1, 0.5))]);
        let mut writer = Writer::resume(&path, 10, 1).unwrap();
        writer.write(&step(20, 2)).unwrap();
        writer.write(&step(30, 2)).unwrap();
        // As on a disk that becomes full within a line, or that loses data that was not synced.
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() - 10]).unwrap();
        writer.file = Some(File::create("/dev/full").unwrap());
        writer.write(&step(40, 2)).unwrap_err();
        writer.flush().unwrap();
        let all = [Record::Epoch(epoch(1, 0.5)), step(20, 2), step(30, 2), step(40, 2)];
        assert_eq!(read(&path).unwrap(), all);
    }

    #[test]
    fn a_file_that_was_removed_goes_on_as_a_new_one() {
        let (folder, path) = written(&[Record::Epoch(epoch(1, 0.5))]);
        let mut writer = Writer::resume(&path, 10, 1).unwrap();
        writer.write(&step(20, 2)).unwrap();
        fs::remove_dir_all(folder.path()).unwrap();
        writer.write(&Record::Epoch(epoch(2, 0.6))).unwrap();
        assert_eq!(read(&path).unwrap(), [step(20, 2), Record::Epoch(epoch(2, 0.6))]);
        fs::rename(&path, folder.path().join("moved.jsonl")).unwrap();
        let others = "{\"a line\": \"of another process\"}\n";
        fs::write(&path, others).unwrap();
        writer.write(&step(30, 3)).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let ours = text.strip_prefix(others).unwrap();
        assert_eq!(serde_json::from_str::<Record>(ours).unwrap(), step(30, 3));
    }

    #[test]
    fn a_folder_that_is_gone_is_named() {
        let path = Path::new("/nonexistent/metrics.jsonl");
        let error = Writer::resume(path, 0, 0).unwrap_err().to_string();
        assert!(error.starts_with("cannot write /nonexistent/metrics.jsonl: "), "{error}");
    }
}
