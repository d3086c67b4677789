//! The opened NCCL library, and its functions that need no communicator.

use std::fmt;
use std::sync::Arc;

use crate::error::text_of;
use crate::sys::{self, CommHandle, Functions, IN_PROGRESS, ResultCode, SUCCESS, UniqueId};
use crate::{Error, Result};

/// A version of NCCL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// The first number.
    pub major: u32,
    /// The second.
    pub minor: u32,
    /// The third.
    pub patch: u32,
}

impl Version {
    /// Decodes an `NCCL_VERSION_CODE`, whose form changed after 2.8.
    pub const fn from_code(code: u32) -> Self {
        if code < 10_000 {
            Self { major: code / 1000, minor: code / 100 % 10, patch: code % 100 }
        } else {
            Self { major: code / 10_000, minor: code / 100 % 100, patch: code % 100 }
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// The opened NCCL library. Cheap to clone.
#[derive(Clone)]
pub struct Nccl {
    pub(crate) functions: Arc<Functions>,
}

impl Nccl {
    /// Opens the NCCL that is already loaded in this process, such as libtorch's, or else the system's
    /// `libnccl.so.2`.
    ///
    /// # Errors
    /// [`Error::Open`] when there is none, [`Error::Missing`] when it is too old.
    pub fn open() -> Result<Self> {
        let library = sys::open(&["libnccl.so.2", "libnccl.so"], b"ncclGetVersion\0")?;
        // SAFETY: these names are NCCL's.
        let functions = unsafe { Functions::load(library) }?;
        Ok(Self { functions: Arc::new(functions) })
    }

    /// Returns the version of the opened library.
    ///
    /// <https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api/comms.html#ncclgetversion>
    ///
    /// # Errors
    /// [`Error::Nccl`].
    pub fn version(&self) -> Result<Version> {
        let mut code = 0;
        // SAFETY: NCCL writes one number.
        self.check("ncclGetVersion", unsafe { (self.functions.ncclGetVersion)(&raw mut code) })?;
        Ok(Version::from_code(code.unsigned_abs()))
    }

    /// Creates the id of one new communicator. Rank 0 creates it and sends it to the other ranks.
    ///
    /// <https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api/comms.html#ncclgetuniqueid>
    ///
    /// # Errors
    /// [`Error::Nccl`], for instance when no network interface is usable.
    pub fn unique_id(&self) -> Result<UniqueId> {
        let mut id = UniqueId { internal: [0; 128] };
        // SAFETY: NCCL writes one id.
        self.check("ncclGetUniqueId", unsafe { (self.functions.ncclGetUniqueId)(&raw mut id) })?;
        Ok(id)
    }

    /// Turns a result code into a result; an operation in progress is no error.
    pub(crate) fn check(&self, function: &'static str, code: ResultCode) -> Result<()> {
        self.check_for(std::ptr::null_mut(), function, code)
    }

    /// As [`Self::check`], for a call with a communicator, which may be null.
    pub(crate) fn check_for(
        &self,
        comm: CommHandle,
        function: &'static str,
        code: ResultCode,
    ) -> Result<()> {
        if code == SUCCESS || code == IN_PROGRESS {
            return Ok(());
        }
        // SAFETY: both functions return strings that NCCL keeps, or null; the communicator may be
        // null.
        let (text, detail) = unsafe {
            let text = text_of((self.functions.ncclGetErrorString)(code));
            let last = self.functions.ncclGetLastError.map(|last| text_of(last(comm)));
            (text, last.unwrap_or_default())
        };
        Err(Error::Nccl { function, code, text, detail })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_version_codes_are_read() {
        assert_eq!(Version::from_code(2708).to_string(), "2.7.8");
        assert_eq!(Version::from_code(21405).to_string(), "2.14.5");
        assert_eq!(Version::from_code(23203).to_string(), "2.32.3");
    }

    #[test]
    fn a_missing_library_is_named() {
        let result = sys::open(&["/nowhere/libnccl.so.2", "libno.so"], b"ncclOfNoLibrary\0");
        let error = result.err().unwrap().to_string();
        assert!(error.starts_with("cannot open /nowhere/libnccl.so.2 or libno.so: "), "{error}");
    }

    /// Needs the library, not a GPU.
    #[test]
    fn an_installed_library_has_every_function() {
        let nccl = match Nccl::open() {
            Ok(nccl) => nccl,
            Err(error @ Error::Open { .. }) => return println!("skipped: {error}"),
            Err(error) => panic!("{error}"),
        };
        assert!(nccl.version().unwrap() >= Version::from_code(2000));
        // SAFETY: any code may be asked for.
        let text = unsafe { text_of((nccl.functions.ncclGetErrorString)(4)) };
        assert!(text.contains("invalid argument"), "{text}");
        assert!(nccl.check("test", 4).unwrap_err().to_string().contains("invalid argument"));
        assert!(nccl.check("test", IN_PROGRESS).is_ok());
    }
}
