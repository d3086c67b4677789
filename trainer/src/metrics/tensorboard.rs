//! Event files for TensorBoard with the numbers of `metrics.jsonl`.
//!
//! An event file is a series of TFRecords, each of which holds one `Event` message in protocol buffers
//! encoding:
//! <https://github.com/tensorflow/tensorboard/blob/master/tensorboard/compat/proto/event.proto>.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use job::metrics::Record;
use serde_json::Value;
use time::OffsetDateTime;

/// Field numbers of `Event`.
const WALL_TIME: u32 = 1;
const STEP: u32 = 2;
const FILE_VERSION: u32 = 3;
const SUMMARY: u32 = 5;
const SESSION_LOG: u32 = 7;
/// Field numbers of `Summary` and of its `Value`s.
const VALUE: u32 = 1;
const TAG: u32 = 1;
const SIMPLE_VALUE: u32 = 2;
/// Field number of `SessionLog`, and its value `START`: TensorBoard discards what earlier files hold for
/// this step and later ones.
const STATUS: u32 = 1;
const START: u64 = 1;

/// Appends records as scalars named `step/loss`, `epoch/test_accuracy` and so on.
#[derive(Debug)]
pub struct EventFile {
    file: File,
}

impl EventFile {
    /// Creates a new event file in `folder` for a process that continues after optimizer step `step`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn create(folder: &Path, step: u64) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let now = OffsetDateTime::now_utc();
        // TensorBoard reads files in the order of their names.
        let name = format!("events.out.tfevents.{}", now.unix_timestamp_nanos());
        let mut events = Self { file: File::create_new(folder.join(name))? };
        let mut version = Message::event(now, 0);
        version.bytes(FILE_VERSION, b"brain.Event:2");
        events.append(&version)?;
        let mut start = Message::event(now, step + 1);
        let mut session = Message::default();
        session.varint(STATUS, START);
        start.bytes(SESSION_LOG, &session.0);
        events.append(&start)?;
        Ok(events)
    }

    /// Appends the numbers of a record as scalars at optimizer step `step`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&mut self, record: &Record, step: u64) -> io::Result<()> {
        let mut summary = Message::default();
        let Value::Object(fields) = serde_json::to_value(record)? else { return Ok(()) };
        let kind = fields.get("kind").and_then(Value::as_str).unwrap_or_default();
        for (key, number) in fields.iter().filter_map(|(key, value)| Some((key, value.as_f64()?))) {
            let mut value = Message::default();
            value.bytes(TAG, format!("{kind}/{key}").as_bytes());
            value.float(SIMPLE_VALUE, number as f32);
            summary.bytes(VALUE, &value.0);
        }
        let mut event = Message::event(OffsetDateTime::now_utc(), step);
        event.bytes(SUMMARY, &summary.0);
        self.append(&event)
    }

    fn append(&mut self, event: &Message) -> io::Result<()> {
        self.file.write_all(&tf_record(&event.0))
    }
}

/// A protocol buffers message under construction.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn event(time: OffsetDateTime, step: u64) -> Self {
        let mut event = Self::default();
        event.key(WALL_TIME, 1);
        let seconds = time.unix_timestamp_nanos() as f64 / 1e9;
        event.0.extend_from_slice(&seconds.to_le_bytes());
        event.varint(STEP, step);
        event
    }

    /// Appends the key of a field: its number and its wire type.
    fn key(&mut self, field: u32, wire_type: u32) {
        self.raw_varint(u64::from(field << 3 | wire_type));
    }

    fn varint(&mut self, field: u32, value: u64) {
        self.key(field, 0);
        self.raw_varint(value);
    }

    fn bytes(&mut self, field: u32, bytes: &[u8]) {
        self.key(field, 2);
        self.raw_varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn float(&mut self, field: u32, value: f32) {
        self.key(field, 5);
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    /// Appends a varint: seven bits per byte, the lowest first; the highest bit of a byte says that more
    /// follow.
    fn raw_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

/// Frames `data` as a TFRecord: length, checksum of the length, data, checksum of the data.
fn tf_record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let sum_of = |bytes: &[u8]| masked_crc32c(bytes).to_le_bytes();
    [&length[..], &sum_of(&length), data, &sum_of(data)].concat()
}

fn masked_crc32c(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::samples::{epoch, step};

    fn bytes(hex: &str) -> Vec<u8> {
        hex.as_bytes()
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    }

    /// The expected bytes are those of TensorBoard's own `RecordWriter` for `abc`.
    #[test]
    fn a_record_is_framed_by_its_length_and_two_checksums() {
        assert_eq!(tf_record(b"abc"), bytes("0300000000000000b099490e6162636e57f121"));
    }

    /// The expected bytes are `SerializeToString()` of TensorBoard's `Event(wall_time=1.5, step=300)` with
    /// one value in its `Summary`.
    #[test]
    fn an_event_is_what_protocol_buffers_make_of_it() {
        let time = OffsetDateTime::from_unix_timestamp_nanos(1_500_000_000).unwrap();
        let (mut event, mut summary, mut value) =
            (Message::event(time, 300), Message::default(), Message::default());
        value.bytes(TAG, b"step/loss");
        value.float(SIMPLE_VALUE, 2.3);
        summary.bytes(VALUE, &value.0);
        event.bytes(SUMMARY, &summary.0);
        let wanted = "09000000000000f83f10ac022a120a100a09737465702f6c6f73731533331340";
        assert_eq!(event.0, bytes(wanted));
    }

    #[test]
    fn every_process_has_a_file_of_its_own_that_begins_where_it_does() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("tensorboard");
        for start in [0, 20] {
            let mut events = EventFile::create(&root, start).unwrap();
            events.write(&step(start + 10, 1), start + 10).unwrap();
            events.write(&Record::Epoch(epoch(1, 0.5)), start + 10).unwrap();
        }
        let files: Vec<_> = fs::read_dir(&root).unwrap().map(|entry| entry.unwrap()).collect();
        assert_eq!(files.len(), 2);
        for file in files {
            assert!(file.file_name().to_string_lossy().starts_with("events.out.tfevents."));
            let text = fs::read(file.path()).unwrap();
            let has = |tag: &str| text.windows(tag.len()).any(|window| window == tag.as_bytes());
            assert!(["brain.Event:2", "step/loss", "epoch/test_accuracy"].map(has) == [true; 3]);
        }
    }
}
