//! The part of NCCL's C interface that is used, in a table that is filled at run time.
//!
//! Types and values are those of `nccl.h` of NCCL 2.14; later versions only add to them.

use std::ffi::{c_char, c_int, c_void};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

use crate::error::chain;
use crate::{Error, Result};

/// `ncclComm_t`.
///
/// <https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api/types.html#ncclcomm-t>
pub type CommHandle = *mut c_void;

/// `ncclResult_t`.
///
/// <https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api/types.html#ncclresult-t>
pub type ResultCode = c_int;

/// `ncclSuccess`.
pub const SUCCESS: ResultCode = 0;
/// `ncclSystemError`: a system call failed, on a socket for example.
pub const SYSTEM_ERROR: ResultCode = 2;
/// `ncclRemoteError`: a peer's process or the network to it is gone.
pub const REMOTE_ERROR: ResultCode = 6;
/// `ncclInProgress`: an operation of a non-blocking communicator has not completed yet.
pub const IN_PROGRESS: ResultCode = 7;

/// `ncclUniqueId`.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct UniqueId {
    /// Opaque; every rank needs the same.
    pub internal: [u8; 128],
}

/// `ncclDataType_t`.
///
/// <https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api/types.html#nccldatatype-t>
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub enum DataType {
    /// `ncclInt64`.
    Int64 = 4,
    /// `ncclFloat32`.
    Float32 = 7,
    /// `ncclFloat64`.
    Float64 = 8,
    /// `ncclBfloat16`.
    Bfloat16 = 9,
}

/// `ncclRedOp_t`.
///
/// <https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api/types.html#ncclredop-t>
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub enum RedOp {
    /// `ncclSum`.
    Sum = 0,
    /// `ncclMax`.
    Max = 2,
    /// `ncclMin`.
    Min = 3,
    /// `ncclAvg`.
    Avg = 4,
}

/// `ncclConfig_t` as of 2.14. Later versions recognise it by `version`, and use defaults for the members that
/// they have added.
///
/// <https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api/types.html#ncclconfig-t>
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Config {
    size: usize,
    magic: u32,
    version: u32,
    /// Whether calls block until they are done (0 or 1); `UNDEFINED` for NCCL's default.
    pub blocking: c_int,
    /// Occupies the place of the next member in later versions.
    padding: c_int,
}

impl Config {
    /// `NCCL_CONFIG_UNDEF_INT`.
    pub const UNDEFINED: c_int = c_int::MIN;

    /// `NCCL_CONFIG_INITIALIZER` of 2.14.
    pub const INITIALIZER: Self = Self {
        size: size_of::<Self>(),
        magic: 0xcafe_beef,
        version: 21400,
        blocking: Self::UNDEFINED,
        padding: Self::UNDEFINED,
    };
}

/// Returns a handle of this process if it has the symbol `loaded_if` already; otherwise opens the first of
/// `names` that can be opened, with its symbols visible to all libraries.
pub(crate) fn open(names: &[&str], loaded_if: &[u8]) -> Result<Library> {
    let this = Library::this();
    // SAFETY: the symbol is only looked for.
    if unsafe { this.get::<*const c_void>(loaded_if) }.is_ok() {
        return Ok(this);
    }
    let mut reasons = Vec::new();
    for &name in names {
        // SAFETY: opening NCCL or the CUDA runtime runs their initialisers, which have no preconditions.
        match unsafe { Library::open(Some(name), RTLD_NOW | RTLD_GLOBAL) } {
            Ok(library) => return Ok(library),
            Err(error) => reasons.push(chain(&error)),
        }
    }
    reasons.dedup();
    Err(Error::Open { library: names.join(" or "), reason: reasons.join("; ") })
}

/// Declares a struct of C functions and its loader. Functions after `optional` may be absent from the
/// library.
macro_rules! table {
    (
        $(#[$meta:meta])* $table:ident of $library:literal;
        $($(#[$doc:meta])* fn $name:ident($($argument:ty),*) -> $result:ty;)*
        optional
        $($(#[$optional_doc:meta])* fn $optional:ident($($optional_argument:ty),*) -> $optional_result:ty;)*
    ) => {
        $(#[$meta])*
        #[allow(non_snake_case)]
        pub struct $table {
            $($(#[$doc])* pub $name: unsafe extern "C" fn($($argument),*) -> $result,)*
            $($(#[$optional_doc])*
            pub $optional: Option<unsafe extern "C" fn($($optional_argument),*) -> $optional_result>,)*
            _library: Library,
        }

        impl $table {
            /// Looks up all functions.
            ///
            /// # Safety
            /// `library` is the library that this table describes.
            ///
            /// # Errors
            /// [`Error::Missing`] with the first required function that is not there.
            pub unsafe fn load(library: Library) -> Result<Self> {
                Ok(Self {
                    // SAFETY: the symbol of this name in this library has this type.
                    $($name: unsafe { library.get(concat!(stringify!($name), "\0").as_bytes()) }
                        .map(|symbol| *symbol)
                        .map_err(|_| Error::Missing { library: $library, function: stringify!($name) })?,)*
                    // SAFETY: as above.
                    $($optional: unsafe { library.get(concat!(stringify!($optional), "\0").as_bytes()) }
                        .ok()
                        .map(|symbol| *symbol),)*
                    _library: library,
                })
            }
        }
    };
}
pub(crate) use table;

table! {
    /// NCCL's functions.
    Functions of "NCCL";
    /// <https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api/comms.html#ncclgetversion>
    fn ncclGetVersion(*mut c_int) -> ResultCode;
    /// <https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api/comms.html#ncclgetuniqueid>
    fn ncclGetUniqueId(*mut UniqueId) -> ResultCode;
    /// <https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api/comms.html#ncclcomminitrank>
    fn ncclCommInitRank(*mut CommHandle, c_int, UniqueId, c_int) -> ResultCode;
    /// <https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api/comms.html#ncclcommdestroy>
    fn ncclCommDestroy(CommHandle) -> ResultCode;
    /// <https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api/comms.html#ncclcommabort>
    fn ncclCommAbort(CommHandle) -> ResultCode;
    /// <https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api/comms.html#ncclcommgetasyncerror>
    fn ncclCommGetAsyncError(CommHandle, *mut ResultCode) -> ResultCode;
    /// <https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api/comms.html#ncclgeterrorstring>
    fn ncclGetErrorString(ResultCode) -> *const c_char;
    /// <https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api/colls.html#ncclallreduce>
    fn ncclAllReduce(*const c_void, *mut c_void, usize, DataType, RedOp, CommHandle, *mut c_void) -> ResultCode;
    /// <https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api/colls.html#ncclbroadcast>
    fn ncclBroadcast(*const c_void, *mut c_void, usize, DataType, c_int, CommHandle, *mut c_void) -> ResultCode;
    /// <https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api/colls.html#ncclreduce>
    fn ncclReduce(*const c_void, *mut c_void, usize, DataType, RedOp, c_int, CommHandle, *mut c_void) -> ResultCode;
    /// <https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api/colls.html#ncclreducescatter>
    fn ncclReduceScatter(*const c_void, *mut c_void, usize, DataType, RedOp, CommHandle, *mut c_void) -> ResultCode;
    /// <https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api/colls.html#ncclallgather>
    fn ncclAllGather(*const c_void, *mut c_void, usize, DataType, CommHandle, *mut c_void) -> ResultCode;
    /// <https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api/group.html#ncclgroupstart>
    fn ncclGroupStart() -> ResultCode;
    /// <https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api/group.html#ncclgroupend>
    fn ncclGroupEnd() -> ResultCode;
    optional
    /// Since 2.14.
    /// <https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api/comms.html#ncclcomminitrankconfig>
    fn ncclCommInitRankConfig(*mut CommHandle, c_int, UniqueId, c_int, *mut Config) -> ResultCode;
    /// Since 2.14. <https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api/comms.html#ncclcommfinalize>
    fn ncclCommFinalize(CommHandle) -> ResultCode;
    /// Since 2.13. <https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api/comms.html#ncclgetlasterror>
    fn ncclGetLastError(CommHandle) -> *const c_char;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_config_has_the_layout_of_the_header() {
        assert_eq!(size_of::<Config>(), 24);
        assert_eq!(std::mem::offset_of!(Config, blocking), 16);
        assert_eq!(size_of::<UniqueId>(), 128);
    }
}
