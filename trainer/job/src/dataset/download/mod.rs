//! Fetching a published data set: resumable, checked, and never half there.
//!
//! Bytes go to `NAME.part`; when their MD5 is right it is renamed to `NAME`. An archive is unpacked into
//! a temporary folder, single files lie in one, and when all of them are there the folder is renamed.
//! Whatever is interrupted goes on where it was. One caller at a time: [`prepare`](super::prepare)
//! holds a lock.

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

/// Where a data set comes from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Origin<'a> {
    /// A compressed archive with all of it.
    Archive(Remote<'a>),
    /// Its files, one by one.
    Files(&'a [Remote<'a>]),
}

/// A file on a server.
#[derive(Debug, Clone, Copy)]
pub(super) struct Remote<'a> {
    /// Its address.
    pub url: &'a str,
    /// The MD5 of its bytes, in lowercase hexadecimal.
    pub md5: &'a str,
    /// How long the server may be silent.
    pub patience: Duration,
}

impl<'a> Remote<'a> {
    /// With the usual patience.
    pub(super) const fn new(url: &'a str, md5: &'a str) -> Self {
        Self { url, md5, patience: Duration::from_secs(30) }
    }

    fn name(&self) -> &str {
        self.url.rsplit('/').next().unwrap_or("download")
    }
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How often in a row a transfer may break off without a byte gained.
const FRUITLESS_TRIES: usize = 3;

/// Downloads `published` from `origin` into its folder below `root`, and says which.
pub(super) fn fetch(
    published: &Published,
    origin: Origin<'_>,
    root: &Path,
) -> Result<PathBuf, Problem> {
    let folder = root.join(published.folder);
    if fs::read_dir(&folder).is_ok_and(|mut entries| entries.next().is_some()) {
        let problem = format!(
            "is in the way of the download, and none of {}'s files is in it",
            published.title
        );
        return Err(Problem::bad(&folder, problem));
    }
    match origin {
        Origin::Archive(remote) => {
            let archive = fetch_file(remote, published.title, root)?;
            unpack::unpack(published, &archive, root)?;
            // All of it is in the folder now, and it is a third of a gigabyte.
            let _ = fs::remove_file(&archive);
        }
        Origin::Files(remotes) => {
            // It stays when a download breaks off: what is complete is not fetched again.
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

/// Downloads `remote` into `folder`, unless it is there, and says where it is.
fn fetch_file(remote: Remote<'_>, title: &str, folder: &Path) -> Result<PathBuf, Problem> {
    let file = folder.join(remote.name());
    if file.exists() {
        let found = md5_of(&file)?;
        if found != remote.md5 {
            let problem = format!("its MD5 is {found} instead of {}; remove it", remote.md5);
            return Err(Problem::bad(&file, problem));
        }
        return Ok(file);
    }
    let part = folder.join(format!("{}.part", remote.name()));
    download(remote, title, &part)?;
    fs::rename(&part, &file).map_err(Problem::write(&file))?;
    Ok(file)
}

/// Renames a folder that is complete, so that it survives a power cut.
fn put_in_place(temporary: &Path, folder: &Path) -> Result<(), Problem> {
    files::sync_folder(temporary)
        .and_then(|()| fs::rename(temporary, folder))
        .and_then(|()| files::sync_folder(folder.parent().unwrap_or(folder)))
        .map_err(Problem::write(folder))
}

/// Downloads `remote` to `part`, going on where an earlier attempt stopped.
///
/// A wrong MD5 starts it over once: the earlier attempt's bytes may have been at fault.
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
        tracing::warn!("{}: its MD5 is {found}, not {}: starting over", remote.url, remote.md5);
        started_over = true;
    }
}

/// Brings `part` to the full length, however often the connection breaks, as long as it gains.
fn transfer(remote: Remote<'_>, title: &str, part: &Path) -> Result<(), Problem> {
    let agent = agent(remote);
    let mut fruitless = 0;
    loop {
        let before = length(part)?;
        match request(&agent, remote, title, part, before)? {
            Transfer::Complete => return Ok(()),
            Transfer::Interrupted { problem } => {
                let gained = length(part)? > before;
                fruitless = if gained { 0 } else { fruitless + 1 };
                if fruitless == FRUITLESS_TRIES {
                    return Err(failed(remote, problem));
                }
                tracing::warn!("{}: {problem}: going on from there", remote.url);
            }
        }
    }
}

/// How a request ended, where it makes sense to try again.
enum Transfer {
    /// All bytes that the server has are in the file.
    Complete,
    /// Some are missing.
    Interrupted { problem: String },
}

fn agent(remote: Remote<'_>) -> Agent {
    let mut config = Agent::config_builder();
    if remote.url.starts_with("http://127.0.0.1:") {
        config = config.proxy(None); // which would look for it on its own machine
    }
    config
        .http_status_as_error(false)
        .user_agent(concat!("lockstep/", env!("CARGO_PKG_VERSION")))
        .timeout_resolve(Some(CONNECT_TIMEOUT))
        .timeout_connect(Some(CONNECT_TIMEOUT))
        .timeout_recv_response(Some(remote.patience))
        .timeout_per_read(Some(remote.patience))
        .timeout_per_write(Some(remote.patience))
        .build()
        .into()
}

/// Asks for the bytes from `start` on and appends them to `part`, or replaces it where the server
/// sends everything.
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
    let response = request.call().map_err(|error| {
        let why = match error {
            ureq::Error::Io(error) => error.to_string(),
            other => other.to_string(),
        };
        failed(remote, format!("the server cannot be reached (no network?): {why}"))
    })?;
    let start = match response.status() {
        StatusCode::OK => 0,
        StatusCode::PARTIAL_CONTENT if starts_at(&response, start) => start,
        // Nothing lies beyond `start`: the MD5 says whether that is all.
        StatusCode::RANGE_NOT_SATISFIABLE if start > 0 => return Ok(Transfer::Complete),
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

/// Whether the server sends the range that was asked for.
fn starts_at(response: &Response<Body>, start: u64) -> bool {
    let range = response.headers().get(header::CONTENT_RANGE);
    range
        .and_then(|range| range.to_str().ok())
        .is_some_and(|range| range.starts_with(&format!("bytes {start}-")))
}

/// Appends what `from` gives to `file`, which already holds `start` of `total` bytes.
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

/// 0 where there is no such file.
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
