//! Memory that a collective reads and writes.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::ops::Range;
use std::ptr::NonNull;

/// The type of a buffer's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum DType {
    /// 32-bit floating point.
    F32,
    /// 64-bit floating point.
    F64,
    /// bfloat16; summed in f32 where the backend reduces on the host (shared memory, MPI).
    Bf16,
    /// 64-bit integer.
    I64,
}

impl DType {
    /// Bytes of one element.
    pub const fn size_bytes(self) -> usize {
        match self {
            Self::Bf16 => 2,
            Self::F32 => 4,
            Self::F64 | Self::I64 => 8,
        }
    }
}

/// A Rust type that a [`DType`] stands for.
pub trait Element: Copy + Send + 'static {
    /// The corresponding [`DType`].
    const DTYPE: DType;
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;
}
impl Element for f64 {
    const DTYPE: DType = DType::F64;
}
impl Element for half::bf16 {
    const DTYPE: DType = DType::Bf16;
}
impl Element for i64 {
    const DTYPE: DType = DType::I64;
}

/// The memory in which a buffer lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// Host memory of this process.
    Host,
    /// Memory of a CUDA device.
    Cuda {
        /// The device's index in this process.
        device: usize,
        /// The `cudaStream_t` on which the buffer was written and will be read.
        stream: *mut c_void,
    },
}

/// A buffer without a lifetime, for collectives that outlive the call that starts them.
#[derive(Debug, Clone, Copy)]
pub struct RawBuffer {
    /// First element. Dangling when `len` is 0.
    pub ptr: NonNull<u8>,
    /// Length in elements, not bytes.
    pub len: usize,
    /// Type of the elements.
    pub dtype: DType,
    /// Memory in which the elements lie.
    pub memory: Memory,
}

// SAFETY: a RawBuffer is only an address; whoever dereferences it has promised that it is valid.
unsafe impl Send for RawBuffer {}

impl RawBuffer {
    /// Returns the length in bytes.
    pub fn size_bytes(&self) -> usize {
        self.len * self.dtype.size_bytes()
    }

    /// Returns the sub-buffer of the elements in `range`.
    ///
    /// # Panics
    /// When `range` does not lie in the buffer.
    pub fn part(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        let offset = range.start * self.dtype.size_bytes();
        // Never saturates: the range lies within valid memory.
        let ptr = self.ptr.map_addr(|address| address.saturating_add(offset));
        Self { ptr, len: range.len(), ..*self }
    }
}

/// A buffer that is borrowed for as long as a collective runs.
#[derive(Debug)]
pub struct BufferMut<'a> {
    raw: RawBuffer,
    borrow: PhantomData<&'a mut [u8]>,
}

impl<'a> BufferMut<'a> {
    /// Borrows a slice in host memory.
    pub fn host<T: Element>(slice: &'a mut [T]) -> Self {
        let raw = RawBuffer {
            ptr: NonNull::from(&mut *slice).cast(),
            len: slice.len(),
            dtype: T::DTYPE,
            memory: Memory::Host,
        };
        Self { raw, borrow: PhantomData }
    }

    /// Wraps a buffer in any memory.
    ///
    /// # Safety
    /// `raw` points to `raw.len` elements of `raw.dtype` in `raw.memory`, which nothing else reads or writes
    /// during `'a`. Device work on it that was queued earlier must have been queued on the stream in
    /// `raw.memory`.
    pub unsafe fn from_raw(raw: RawBuffer) -> Self {
        Self { raw, borrow: PhantomData }
    }

    /// Returns the buffer without the borrow.
    pub fn raw(&self) -> RawBuffer {
        self.raw
    }
}
