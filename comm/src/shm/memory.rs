//! Anonymous memory that processes of one machine and one user share.
//!
//! It is a memfd that peers open through `/proc`, not a file in `/dev/shm`: it has no name, so nothing
//! stays behind however the job ends, and containers limit `/dev/shm` to 64 MiB.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;

/// The process and file descriptor by which another process opens a memfd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Locator {
    pub(super) pid: u32,
    pub(super) fd: i32,
}

/// A shared mapping, unmapped when dropped.
#[derive(Debug)]
pub(super) struct Mapping {
    start: NonNull<u8>,
    len_bytes: usize,
}

// SAFETY: a mapping is an address range that is valid in every thread of the process.
unsafe impl Send for Mapping {}
// SAFETY: as above; users of the memory synchronise their accesses.
unsafe impl Sync for Mapping {}

impl Mapping {
    pub(super) fn start(&self) -> NonNull<u8> {
        self.start
    }

    pub(super) fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    fn new(file: &File, len_bytes: usize) -> io::Result<Self> {
        // SAFETY: a new mapping at an address that the kernel chooses overlaps no other.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len_bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        match NonNull::new(address.cast::<u8>()) {
            Some(start) if address != libc::MAP_FAILED => Ok(Self { start, len_bytes }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Asks for huge pages; without support for them in shared memory, the kernel keeps using small ones.
    pub(super) fn advise_huge_pages(&self) {
        // SAFETY: the range is this mapping's own, and the advice changes nothing in it.
        unsafe {
            libc::madvise(self.start.as_ptr().cast(), self.len_bytes, libc::MADV_HUGEPAGE);
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `new`, and nothing refers to it once its owner is dropped.
        unsafe {
            libc::munmap(self.start.as_ptr().cast(), self.len_bytes);
        }
    }
}

/// Creates zeroed shared memory. The file must stay open until every peer has called [`open`].
pub(super) fn create(len_bytes: usize) -> io::Result<(File, Locator, Mapping)> {
    check_available(len_bytes)?;
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: the name is a C string, and a new descriptor comes back or -1.
    let fd = unsafe { libc::memfd_create(c"lockstep".as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new, so nothing else owns it.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    file.set_len(len_bytes as u64)?;
    // Truncating the file under a mapping would kill its readers with SIGBUS.
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: plain call on a descriptor that `file` owns.
    if unsafe { libc::fcntl(fd, libc::F_ADD_SEALS, seals) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let mapping = Mapping::new(&file, len_bytes)?;
    Ok((file, Locator { pid: std::process::id(), fd }, mapping))
}

/// Maps the memory that a peer has created.
pub(super) fn open(locator: Locator, len_bytes: usize) -> io::Result<Mapping> {
    let path = format!("/proc/{}/fd/{}", locator.pid, locator.fd);
    let context = |error: io::Error| io::Error::new(error.kind(), format!("{path}: {error}"));
    let file = OpenOptions::new().read(true).write(true).open(&path).map_err(context)?;
    let found = file.metadata().map_err(context)?.len();
    if found != len_bytes as u64 {
        let text = format!("{path} has {found} bytes instead of {len_bytes}");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Mapping::new(&file, len_bytes)
}

/// Returns a random nonce.
pub(super) fn random() -> io::Result<u64> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u64::from_ne_bytes(bytes))
}

/// Fails when less memory is available: the kernel would grant any length, and kill the process on access.
fn check_available(len_bytes: usize) -> io::Result<()> {
    let available = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    });
    match available {
        Some(kib) if (len_bytes as u64).div_ceil(1024) > kib => Err(io::Error::new(
            io::ErrorKind::OutOfMemory,
            format!(
                "{} MiB of shared memory are needed, but only {} MiB of memory are available",
                len_bytes >> 20,
                kib >> 10
            ),
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_mapping_writes_the_other_reads() {
        let (_file, locator, first) = create(8192).unwrap();
        let second = open(locator, 8192).unwrap();
        assert_ne!(first.start(), second.start());
        // SAFETY: both mappings are 8192 bytes long and live here; one thread accesses them.
        unsafe {
            assert_eq!(second.start().add(8191).read(), 0);
            first.start().add(8191).write(7);
            assert_eq!(second.start().add(8191).read(), 7);
        }
    }

    #[test]
    fn more_than_the_machine_has_is_refused_in_words() {
        let error = create(1 << 50).unwrap_err().to_string();
        assert!(error.contains("1073741824 MiB of shared memory are needed"), "{error}");
    }

    #[test]
    fn another_length_is_refused() {
        let (_file, locator, _mapping) = create(8192).unwrap();
        let error = open(locator, 4096).unwrap_err().to_string();
        assert!(error.contains("8192 bytes instead of 4096"), "{error}");
    }
}
