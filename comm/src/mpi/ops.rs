//! MPI's datatypes and reduction operations.

use std::ffi::{c_int, c_void};

use mpi::ffi;

use super::request::{At, checked};
use crate::{DType, ReduceOp, Result};

/// Returns the MPI datatype that moves elements of `dtype`; bf16, which MPI lacks, moves as `uint16_t`.
pub(super) fn moved_type(dtype: DType) -> ffi::MPI_Datatype {
    // SAFETY: constants of the library.
    unsafe {
        match dtype {
            DType::F32 => ffi::RSMPI_FLOAT,
            DType::F64 => ffi::RSMPI_DOUBLE,
            DType::Bf16 => ffi::RSMPI_UINT16_T,
            DType::I64 => ffi::RSMPI_INT64_T,
        }
    }
}

/// Maximum and minimum operations that propagate NaN, which MPI's own need not do.
pub(super) struct Extremes {
    max_f32: ffi::MPI_Op,
    min_f32: ffi::MPI_Op,
    max_f64: ffi::MPI_Op,
    min_f64: ffi::MPI_Op,
}

// SAFETY: handles that are only read after their creation.
unsafe impl Send for Extremes {}
// SAFETY: as above.
unsafe impl Sync for Extremes {}

type Function = unsafe extern "C" fn(*mut c_void, *mut c_void, *mut c_int, *mut ffi::MPI_Datatype);

impl Extremes {
    /// Creates the operations, which `MPI_Finalize` frees.
    pub(super) fn new(at: At) -> Result<Self> {
        let create = |function: Function| {
            // SAFETY: overwritten by the call below.
            let mut op = unsafe { ffi::RSMPI_MAX };
            // SAFETY: the function has the signature that MPI asks for; 1 means commutative.
            checked(at, unsafe { ffi::MPI_Op_create(Some(function), 1, &raw mut op) })?;
            Ok(op)
        };
        Ok(Self {
            max_f32: create(max_f32)?,
            min_f32: create(min_f32)?,
            max_f64: create(max_f64)?,
            min_f64: create(min_f64)?,
        })
    }

    /// Returns the operation for elements of `dtype`, which is not bf16. For a mean it is the sum.
    pub(super) fn op(&self, op: ReduceOp, dtype: DType) -> ffi::MPI_Op {
        // SAFETY: constants of the library.
        let (sum, max, min) = unsafe { (ffi::RSMPI_SUM, ffi::RSMPI_MAX, ffi::RSMPI_MIN) };
        match (op, dtype) {
            (ReduceOp::Sum | ReduceOp::Mean, _) => sum,
            (ReduceOp::Max, DType::I64) => max,
            (ReduceOp::Min, DType::I64) => min,
            (ReduceOp::Max, DType::F64) => self.max_f64,
            (ReduceOp::Min, DType::F64) => self.min_f64,
            (ReduceOp::Max, _) => self.max_f32,
            (ReduceOp::Min, _) => self.min_f32,
        }
    }
}

macro_rules! extreme {
    ($name:ident, $type:ty, $better:tt) => {
        unsafe extern "C" fn $name(
            input: *mut c_void,
            joined: *mut c_void,
            len: *mut c_int,
            _: *mut ffi::MPI_Datatype,
        ) {
            // SAFETY: MPI hands over two vectors of `*len` elements that do not overlap.
            let (input, joined) = unsafe {
                let len = usize::try_from(*len).unwrap_or(0);
                (
                    std::slice::from_raw_parts(input.cast::<$type>(), len),
                    std::slice::from_raw_parts_mut(joined.cast::<$type>(), len),
                )
            };
            for (b, &a) in joined.iter_mut().zip(input) {
                *b = if a $better *b || a.is_nan() { a } else { *b };
            }
        }
    };
}

extreme!(max_f32, f32, >);
extreme!(min_f32, f32, <);
extreme!(max_f64, f64, >);
extreme!(min_f64, f64, <);
