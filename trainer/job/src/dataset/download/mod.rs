//! Downloads a published data set: resumable, verified by MD5, and never partly in place.
//!
//! Bytes are written to `NAME.part`, which is renamed to `NAME` when its MD5 is right. An archive is unpacked
//! into a temporary folder, and single files are downloaded into one; the folder is renamed when it is
//! complete. Interrupted downloads are resumed. Only one caller may run at a time:
//! [`prepare`](super::prepare()) holds a lock.

mod progress;
mod unpack;

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use md5::{Digest, Md5};
use ureq::http::{Response, StatusCode, header};
use ureq::{Agent, Body};

use super::Problem;
use super::published::{Found, Published};
use crate::files;
use progress::Progress;

/// Origin of a data set's files.
#[derive(Debug, Clone, Copy)]
pub(super) enum Origin<'a> {
    /// A compressed archive of all files.
    Archive(Remote<'a>),
    /// The files, one by one.
    Files(&'a [Remote<'a>]),
}

/// A file on a server.
#[derive(Debug, Clone, Copy)]
pub(super) struct Remote<'a> {
    /// Address of the file.
    pub url: &'a str,
    /// The MD5 of its bytes, in lowercase hexadecimal.
    pub md5: &'a str,
    /// How long the server may be silent, before its response and within it.
    pub read_timeout: Duration,
    /// Pause before a new attempt after an interruption that followed no progress; doubled for each further
    /// one.
    pub back_off: Duration,
}

impl<'a> Remote<'a> {
    /// Makes a remote file with the default read timeout of 30 seconds and a back-off from 1 second.
    pub(super) const fn new(url: &'a str, md5: &'a str) -> Self {
        let (read_timeout, back_off) = (Duration::from_secs(30), Duration::from_secs(1));
        Self { url, md5, read_timeout, back_off }
    }

    fn name(&self) -> &str {
        self.url.rsplit('/').next().unwrap_or("download")
    }
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Number of consecutive interruptions without a byte gained after which a transfer fails.
const FRUITLESS_TRIES: u32 = 5;

/// Downloads `published` from `origin` into its folder below `root`, and returns the folder.
pub(super) fn fetch(
    published: &Published,
    origin: Origin<'_>,
    root: &Path,
) -> Result<PathBuf, Problem> {
    let folder = root.join(published.folder);
    if fs::read_dir(&folder).is_ok_and(|mut entries| entries.next().is_some()) {
        let problem = format!(
            "is not empty and has none of {}'s files, so nothing is downloaded into it; move it \
             away",
            published.title
        );
        return Err(Problem::bad(&folder, problem));
    }
    match origin {
        Origin::Archive(remote) => {
            let archive = fetch_file(remote, published.title, root)?;
            unpack::unpack(published, &archive, root)?;
            // The archive, a third of a gigabyte, is no longer needed.
            let _ = fs::remove_file(&archive);
        }
        Origin::Files(remotes) => {
            // The temporary folder is kept when a download is interrupted, so that complete files are not
            // downloaded again.
            let temporary = root.join(format!(".{}.tmp", published.folder));
            fs::create_dir_all(&temporary).map_err(Problem::write(&temporary))?;
            for remote in remotes {
                fetch_file(*remote, published.title, &temporary)?;
            }
            if let Found::Bad(problem) = published.find(&temporary) {
                return Err(problem);
            }
            put_in_place(&temporary, &folder)?;
        }
    }
    Ok(folder)
}

/// Downloads `remote` into `folder`, unless it is there already, and returns its path.
fn fetch_file(remote: Remote<'_>, title: &str, folder: &Path) -> Result<PathBuf, Problem> {
    let file = folder.join(remote.name());
    if file.exists() {
        let found = md5_of(&file)?;
        if found != remote.md5 {
            let wanted = remote.md5;
            let problem =
                format!("its MD5 is {found} instead of {wanted}; remove it to download it again");
            return Err(Problem::bad(&file, problem));
        }
        return Ok(file);
    }
    let part = folder.join(format!("{}.part", remote.name()));
    download(remote, title, &part)?;
    fs::rename(&part, &file).map_err(Problem::write(&file))?;
    Ok(file)
}

/// Renames a complete folder to its final name, durably.
fn put_in_place(temporary: &Path, folder: &Path) -> Result<(), Problem> {
    files::sync_folder(temporary)
        .and_then(|()| fs::rename(temporary, folder))
        .and_then(|()| files::sync_folder(folder.parent().unwrap_or(folder)))
        .map_err(Problem::write(folder))
}

/// Downloads `remote` to `part`, resuming an earlier attempt.
///
/// If the MD5 is wrong, starts over once: bytes of the earlier attempt may have been at fault.
fn download(remote: Remote<'_>, title: &str, part: &Path) -> Result<(), Problem> {
    let mut started_over = false;
    loop {
        transfer(remote, title, part)?;
        let found = md5_of(part)?;
        if found == remote.md5 {
            return Ok(());
        }
        fs::remove_file(part).map_err(Problem::write(part))?;
        if started_over {
            let (url, wanted) = (remote.url.to_string(), remote.md5.to_string());
            return Err(Problem::Md5 { url, found, wanted });
        }
        tracing::warn!(
            "{}: the download has MD5 {found} instead of {}; downloading it again",
            remote.url,
            remote.md5
        );
        started_over = true;
    }
}

/// Downloads the rest of `part`, resuming after each interruption; fails after [`FRUITLESS_TRIES`] in a row
/// that gained no byte.
fn transfer(remote: Remote<'_>, title: &str, part: &Path) -> Result<(), Problem> {
    let agent = agent(remote);
    let mut has_begun = false;
    let mut fruitless = 0;
    loop {
        let before = length(part)?;
        let problem = match request(&agent, remote, title, part, before)? {
            Transfer::Complete => return Ok(()),
            Transfer::Interrupted { problem } => {
                has_begun = true;
                problem
            }
            Transfer::Unavailable { problem } if has_begun => problem,
            // Most likely there is no network, which is to be reported at once.
            Transfer::Unavailable { problem } => return Err(failed(remote, problem)),
        };
        let gained = length(part)? > before;
        fruitless = if gained { 0 } else { fruitless + 1 };
        if fruitless == FRUITLESS_TRIES {
            return Err(failed(remote, problem));
        }
        tracing::warn!("{}: {problem}; resuming the download", remote.url);
        if fruitless > 0 {
            std::thread::sleep(remote.back_off * (1 << (fruitless - 1)));
        }
    }
}

/// Outcome of a request after which trying again makes sense.
enum Transfer {
    /// The file has all bytes that the server has.
    Complete,
    /// Bytes are missing.
    Interrupted { problem: String },
    /// The server cannot be reached, or cannot answer at present.
    Unavailable { problem: String },
}

fn agent(remote: Remote<'_>) -> Agent {
    let mut config = Agent::config_builder();
    if remote.url.starts_with("http://127.0.0.1:") {
        config = config.proxy(None); // the proxy would resolve that address to its own machine
    }
    config
        .http_status_as_error(false)
        .user_agent(concat!("lockstep/", env!("CARGO_PKG_VERSION")))
        .timeout_resolve(Some(CONNECT_TIMEOUT))
        .timeout_connect(Some(CONNECT_TIMEOUT))
        .timeout_recv_response(Some(remote.read_timeout))
        .timeout_per_read(Some(remote.read_timeout))
        .timeout_per_write(Some(remote.read_timeout))
        .build()
        .into()
}

/// Requests the bytes from `start` on and appends them to `part`; if the server sends the whole file,
/// replaces `part`.
fn request(
    agent: &Agent,
    remote: Remote<'_>,
    title: &str,
    part: &Path,
    start: u64,
) -> Result<Transfer, Problem> {
    let mut request = agent.get(remote.url).header(header::ACCEPT_ENCODING, "identity");
    if start > 0 {
        request = request.header(header::RANGE, format!("bytes={start}-"));
    }
    let response = match request.call() {
        Ok(response) => response,
        Err(error) => {
            let why = match error {
                ureq::Error::Io(error) => error.to_string(),
                other => other.to_string(),
            };
            let problem = format!("the server cannot be reached (no network?): {why}");
            return Ok(Transfer::Unavailable { problem });
        }
    };
    let start = match response.status() {
        StatusCode::OK => 0,
        StatusCode::PARTIAL_CONTENT if starts_at(&response, start) => start,
        // There is nothing beyond `start`: the MD5 shows whether the file is complete.
        StatusCode::RANGE_NOT_SATISFIABLE if start > 0 => return Ok(Transfer::Complete),
        status if status.is_server_error() => {
            return Ok(Transfer::Unavailable { problem: format!("the server answers {status}") });
        }
        status => return Err(failed(remote, format!("the server answers {status}"))),
    };
    let total = response.body().content_length().map(|rest| start + rest);
    let mut file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(part)
        .and_then(|file| file.set_len(start).map(|()| file))
        .map_err(Problem::write(part))?;
    io::Seek::seek(&mut file, io::SeekFrom::Start(start)).map_err(Problem::write(part))?;
    let progress = Progress::new(title, start, total);
    copy(response.into_body().into_reader(), &mut file, part, start, progress)
}

/// Returns whether the server sends the range that was requested.
fn starts_at(response: &Response<Body>, start: u64) -> bool {
    let range = response.headers().get(header::CONTENT_RANGE);
    range
        .and_then(|range| range.to_str().ok())
        .is_some_and(|range| range.starts_with(&format!("bytes {start}-")))
}

/// Appends the bytes of `from` to `file`, which already holds `start` bytes.
fn copy(
    mut from: impl Read,
    file: &mut File,
    part: &Path,
    start: u64,
    mut progress: Progress,
) -> Result<Transfer, Problem> {
    let total = progress.total();
    let mut buffer = vec![0; 1 << 17];
    let mut at = start;
    let broken_by = loop {
        match from.read(&mut buffer) {
            Ok(0) => break None,
            Ok(count) => {
                file.write_all(&buffer[..count]).map_err(Problem::write(part))?;
                at += count as u64;
                progress.at(at);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => break Some(error),
        }
    };
    file.sync_all().map_err(Problem::write(part))?;
    let of = total.map_or(String::new(), |total| format!(" of {total}"));
    Ok(match broken_by {
        Some(error) => {
            Transfer::Interrupted { problem: format!("broke off after {at}{of} bytes: {error}") }
        }
        None if total.is_some_and(|total| at < total) => {
            Transfer::Interrupted { problem: format!("broke off after {at}{of} bytes") }
        }
        None => Transfer::Complete,
    })
}

/// Returns the file's length in bytes, 0 if it does not exist.
fn length(file: &Path) -> Result<u64, Problem> {
    match fs::metadata(file) {
        Ok(found) => Ok(found.len()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(Problem::read(file)(error)),
    }
}

fn md5_of(file: &Path) -> Result<String, Problem> {
    let wrong = Problem::read(file);
    let mut reader = File::open(file).map_err(&wrong)?;
    let mut hasher = Md5::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match reader.read(&mut buffer).map_err(&wrong)? {
            0 => break,
            count => hasher.update(&buffer[..count]),
        }
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn failed(remote: Remote<'_>, problem: String) -> Problem {
    Problem::Download { url: remote.url.to_string(), problem }
}

#[cfg(test)]
pub(super) mod tests;
