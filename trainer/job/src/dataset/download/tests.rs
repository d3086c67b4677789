use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, LazyLock, Mutex};
use std::thread;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::super::cifar::tests::write_all;
use super::super::published::published;
use super::*;
use crate::config::Dataset;

const TITLE: &str = "CIFAR-10";
const FOLDER: &str = "cifar-10-batches-bin";

fn cifar10() -> &'static Published {
    published(Dataset::Cifar10).unwrap()
}

/// The server's behaviour for one request.
#[derive(Clone, Copy)]
pub(in crate::dataset) enum Reply {
    /// Sends the requested range.
    Range,
    /// Sends the whole body, whatever range was requested.
    Whole,
    /// Announces the requested range and closes the connection after so many bytes of it.
    Cut(usize),
    /// Sends the requested range with its first byte changed.
    Corrupt,
    /// Sends so many bytes of the requested range, then nothing more, and stays connected.
    Silent(usize),
    /// Answers with this error status.
    Status(&'static str),
    /// Closes the connection without an answer.
    HangUp,
}

/// A server on the loopback device that answers request n with `replies[n]`, then with the last.
pub(in crate::dataset) struct Server {
    pub url: String,
    /// First byte that each request asked for.
    pub requests: Arc<Mutex<Vec<usize>>>,
}

impl Server {
    pub(in crate::dataset) fn start(body: Arc<Vec<u8>>, replies: &'static [Reply]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/some-archive.tar.gz", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        thread::spawn(move || {
            for (index, stream) in listener.incoming().enumerate() {
                let stream = stream.unwrap();
                let start = requested_start(&stream);
                seen.lock().unwrap().push(start);
                // Errors of clients that hang up early are ignored.
                let _ = answer(stream, &body, start, replies[index.min(replies.len() - 1)]);
            }
        });
        Self { url, requests }
    }

    pub(in crate::dataset) fn requests(&self) -> Vec<usize> {
        self.requests.lock().unwrap().clone()
    }
}

fn requested_start(stream: &TcpStream) -> usize {
    let lines = BufReader::new(stream).lines().map(Result::unwrap);
    let headers: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
    let range = headers.iter().find_map(|line| {
        let line = line.to_ascii_lowercase();
        line.strip_prefix("range: bytes=").map(|range| range.trim_end_matches('-').to_string())
    });
    range.map_or(0, |start| start.parse().unwrap())
}

fn answer(mut stream: TcpStream, body: &[u8], start: usize, reply: Reply) -> io::Result<()> {
    if matches!(reply, Reply::HangUp) {
        return Ok(());
    }
    if let Reply::Status(status) = reply {
        return write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
    }
    let start = if matches!(reply, Reply::Whole) { 0 } else { start };
    if start >= body.len() {
        return write!(stream, "HTTP/1.1 416 Range Not Satisfiable\r\nContent-Length: 0\r\n\r\n");
    }
    let mut rest = body[start..].to_vec();
    let status = match start {
        0 => "200 OK".to_string(),
        _ => {
            let (last, all) = (body.len() - 1, body.len());
            format!("206 Partial Content\r\nContent-Range: bytes {start}-{last}/{all}")
        }
    };
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        rest.len()
    )?;
    match reply {
        Reply::Cut(bytes) | Reply::Silent(bytes) => rest.truncate(bytes),
        Reply::Corrupt => rest[0] ^= 1,
        _ => {}
    }
    stream.write_all(&rest)?;
    if matches!(reply, Reply::Silent(_)) {
        std::mem::forget(stream);
    }
    Ok(())
}

/// Makes a remote file of such a server, with a timeout that is long enough for a busy machine.
pub(in crate::dataset) fn remote<'a>(url: &'a str, md5: &'a str) -> Remote<'a> {
    let (read_timeout, back_off) = (Duration::from_secs(60), Duration::from_millis(1));
    Remote { url, md5, read_timeout, back_off }
}

fn md5_hex(bytes: &[u8]) -> String {
    Md5::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn small() -> Arc<Vec<u8>> {
    Arc::new((0..300_000u32).map(|at| (at.wrapping_mul(at) >> 7) as u8).collect())
}

/// Downloads `body` into `part` from a server that gives `replies`.
fn try_download(
    body: &Arc<Vec<u8>>,
    part: &Path,
    replies: &'static [Reply],
) -> (Result<(), Problem>, Vec<usize>) {
    let server = Server::start(Arc::clone(body), replies);
    let result = download(remote(&server.url, &md5_hex(body)), TITLE, part);
    (result, server.requests())
}

#[test]
fn a_download_is_complete() {
    let folder = tempfile::tempdir().unwrap();
    let part = folder.path().join("a.part");
    let (result, requests) = try_download(&small(), &part, &[Reply::Range]);
    result.unwrap();
    assert_eq!(fs::read(&part).unwrap(), *small());
    assert_eq!(requests, [0]);
}

#[test]
fn a_cut_connection_is_resumed_where_it_broke() {
    let folder = tempfile::tempdir().unwrap();
    let part = folder.path().join("a.part");
    let replies = &[Reply::Cut(100_000), Reply::Cut(50_000), Reply::Range];
    let (result, requests) = try_download(&small(), &part, replies);
    result.unwrap();
    assert_eq!(fs::read(&part).unwrap(), *small());
    assert_eq!(requests, [0, 100_000, 150_000]);
}

#[test]
fn a_server_that_does_not_answer_for_a_while_is_asked_again() {
    let folder = tempfile::tempdir().unwrap();
    let part = folder.path().join("a.part");
    const BUSY: Reply = Reply::Status("503 Service Unavailable");
    let replies = &[Reply::Cut(100_000), Reply::HangUp, BUSY, Reply::Range];
    let (result, requests) = try_download(&small(), &part, replies);
    result.unwrap();
    assert_eq!(fs::read(&part).unwrap(), *small());
    assert_eq!(requests, [0, 100_000, 100_000, 100_000]);
}

#[test]
fn an_earlier_attempt_is_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let part = folder.path().join("a.part");
    for kept in [200_000, 300_000] {
        fs::write(&part, &small()[..kept]).unwrap();
        let (result, requests) = try_download(&small(), &part, &[Reply::Range]);
        result.unwrap();
        assert_eq!(fs::read(&part).unwrap(), *small());
        assert_eq!(requests, [kept]);
    }
}

#[test]
fn a_server_without_ranges_sends_everything_again() {
    let folder = tempfile::tempdir().unwrap();
    let part = folder.path().join("a.part");
    fs::write(&part, &small()[..200_000]).unwrap();
    let (result, requests) = try_download(&small(), &part, &[Reply::Whole]);
    result.unwrap();
    assert_eq!(fs::read(&part).unwrap(), *small());
    assert_eq!(requests, [200_000]);
}

#[test]
fn a_bad_earlier_attempt_is_started_over_once() {
    let folder = tempfile::tempdir().unwrap();
    let part = folder.path().join("a.part");
    for bad in [200_000, 400_000] {
        fs::write(&part, vec![7; bad]).unwrap();
        let (result, requests) = try_download(&small(), &part, &[Reply::Range]);
        result.unwrap();
        assert_eq!(fs::read(&part).unwrap(), *small());
        assert_eq!(requests, [bad, 0]);
    }
}

#[test]
fn a_wrong_md5_names_both_and_leaves_nothing_to_resume() {
    let folder = tempfile::tempdir().unwrap();
    let part = folder.path().join("a.part");
    let (result, requests) = try_download(&small(), &part, &[Reply::Corrupt]);
    let error = result.unwrap_err();
    assert!(error.to_string().contains(&md5_hex(&small())), "{error}");
    assert_eq!(requests, [0, 0]);
    assert!(!part.exists());
}

#[test]
fn a_transfer_that_gains_nothing_ends_and_says_how_far_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let part = folder.path().join("a.part");
    let (result, requests) = try_download(&small(), &part, &[Reply::Cut(1000), Reply::Cut(0)]);
    let error = result.unwrap_err().to_string();
    assert!(error.contains("broke off after 1000 of 300000 bytes"), "{error}");
    assert_eq!(requests.len(), 1 + FRUITLESS_TRIES as usize);
    assert_eq!(fs::metadata(&part).unwrap().len(), 1000, "what there is stays for the next time");
}

#[test]
fn a_silent_server_is_not_waited_for_beyond_its_time() {
    let folder = tempfile::tempdir().unwrap();
    let part = folder.path().join("a.part");
    let server = Server::start(small(), &[Reply::Silent(1000), Reply::Silent(0)]);
    let read_timeout = Duration::from_millis(200);
    let from = Remote { read_timeout, ..remote(&server.url, "") };
    let error = download(from, TITLE, &part).unwrap_err();
    let error = error.to_string();
    assert!(error.contains("broke off after 1000 of 300000 bytes: timeout"), "{error}");
}

#[test]
fn an_error_of_the_server_is_passed_on() {
    let folder = tempfile::tempdir().unwrap();
    let part = folder.path().join("a.part");
    let (result, _) = try_download(&small(), &part, &[Reply::Status("404 Not Found")]);
    let error = result.unwrap_err().to_string();
    assert!(error.contains("some-archive.tar.gz"), "{error}");
    assert!(error.contains("the server answers 404 Not Found"), "{error}");
}

#[test]
fn no_network_is_said_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/a.tar.gz", listener.local_addr().unwrap());
    drop(listener);
    let folder = tempfile::tempdir().unwrap();
    let from = remote(&url, "");
    let error = download(from, TITLE, &folder.path().join("a.part")).unwrap_err().to_string();
    assert!(error.contains("the server cannot be reached (no network?)"), "{error}");
}

/// An archive laid out like the official one, of generated files.
pub(in crate::dataset) static ARCHIVE: LazyLock<Arc<Vec<u8>>> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    write_all(folder.path());
    Arc::new(pack(folder.path()))
});

pub(in crate::dataset) static ARCHIVE_MD5: LazyLock<String> = LazyLock::new(|| md5_hex(&ARCHIVE));

fn pack(folder: &Path) -> Vec<u8> {
    let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    archive.append_dir_all(FOLDER, folder).unwrap();
    archive.into_inner().unwrap().finish().unwrap()
}

#[test]
fn an_archive_becomes_a_folder_and_nothing_else_is_left() {
    let root = tempfile::tempdir().unwrap();
    let server = Server::start(Arc::clone(&ARCHIVE), &[Reply::Cut(5000), Reply::Range]);
    let from = remote(&server.url, &ARCHIVE_MD5);
    fs::create_dir(root.path().join(format!(".{FOLDER}.tmp"))).unwrap();
    let folder = fetch(cifar10(), Origin::Archive(from), root.path()).unwrap();
    assert_eq!(folder, root.path().join(FOLDER));
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 6);
}

#[test]
fn an_archive_that_is_already_there_is_not_downloaded() {
    let root = tempfile::tempdir().unwrap();
    let archive = root.path().join("some-archive.tar.gz");
    let from = remote("http://127.0.0.1:1/some-archive.tar.gz", &ARCHIVE_MD5);
    fs::write(&archive, "no archive").unwrap();
    let error = fetch(cifar10(), Origin::Archive(from), root.path()).unwrap_err().to_string();
    assert!(error.contains("some-archive.tar.gz: its MD5 is "), "{error}");
    fs::write(&archive, ARCHIVE.as_slice()).unwrap();
    fetch(cifar10(), Origin::Archive(from), root.path()).unwrap();
}

#[test]
fn an_archive_without_the_files_is_named_and_leaves_no_folder() {
    let packed = tempfile::tempdir().unwrap();
    fs::write(packed.path().join("data_batch_1.bin"), "short").unwrap();
    let body = pack(packed.path());
    let truncated = body[..body.len() / 2].to_vec();
    for (body, expected) in
        [(body, "data_batch_1.bin in the archive is bad"), (truncated, "unpacked")]
    {
        let root = tempfile::tempdir().unwrap();
        let md5 = md5_hex(&body);
        let server = Server::start(Arc::new(body), &[Reply::Range]);
        let error =
            fetch(cifar10(), Origin::Archive(remote(&server.url, &md5)), root.path()).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert!(!root.path().join(FOLDER).exists());
        assert!(!root.path().join(format!(".{FOLDER}.tmp")).exists());
    }
}

#[test]
fn a_folder_in_the_way_is_named_and_left_alone() {
    let root = tempfile::tempdir().unwrap();
    let note = root.path().join(FOLDER).join("note.txt");
    fs::create_dir(note.parent().unwrap()).unwrap();
    fs::write(&note, "mine").unwrap();
    let server = Server::start(Arc::clone(&ARCHIVE), &[Reply::Range]);
    let error = fetch(cifar10(), Origin::Archive(remote(&server.url, &ARCHIVE_MD5)), root.path())
        .unwrap_err()
        .to_string();
    assert!(error.contains(&format!("{FOLDER}: is not empty and has none of")), "{error}");
    assert_eq!(fs::read_to_string(&note).unwrap(), "mine");
    assert_eq!(server.requests(), [0; 0]);
}

#[test]
fn single_files_go_on_where_a_download_broke_off() {
    let svhn = published(Dataset::Svhn).unwrap();
    let root = tempfile::tempdir().unwrap();
    let body = Arc::new(b"both files".to_vec());
    let md5 = md5_hex(&body);
    let server = Server::start(body, &[Reply::Range, Reply::Status("404 Not Found"), Reply::Range]);
    let [train, test] = ["train", "test"].map(|split| format!("{}/{split}_32x32.mat", server.url));
    let remotes = [remote(&train, &md5), remote(&test, &md5)];
    let error = fetch(svhn, Origin::Files(&remotes), root.path()).unwrap_err().to_string();
    assert!(error.contains("test_32x32.mat: the server answers 404"), "{error}");
    assert!(matches!(svhn.find(root.path()), Found::Absent), "half of it is not there");
    let folder = fetch(svhn, Origin::Files(&remotes), root.path()).unwrap();
    assert_eq!(server.requests().len(), 3, "what was complete is not fetched again");
    assert_eq!(folder, root.path().join("svhn"));
    assert_eq!(fs::read(folder.join("test_32x32.mat")).unwrap(), b"both files");
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
}
