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
    /// bfloat16; summed in f32 where the backend adds itself.
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
    /// Its dtype.
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

/// What memory a buffer lies in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// In this process's memory.
    Host,
    /// In the memory of a CUDA device.
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
    /// Its first element. Dangling when `len` is 0.
    pub ptr: NonNull<u8>,
    /// Elements, not bytes.
    pub len: usize,
    /// Their type.
    pub dtype: DType,
    /// What memory they lie in.
    pub memory: Memory,
}

// SAFETY: a RawBuffer is an address; whoever dereferences it has promised that it is valid.
unsafe impl Send for RawBuffer {}

impl RawBuffer {
    /// Bytes from the first element to past the last.
    pub fn size_bytes(&self) -> usize {
        self.len * self.dtype.size_bytes()
    }

    /// A part of it; `range` must lie in it.
    pub fn part(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        let offset = range.start * self.dtype.size_bytes();
        // A part of memory is nowhere null.
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
    /// A host slice, `[len]`.
    pub fn host<T: Element>(slice: &'a mut [T]) -> Self {
        let raw = RawBuffer {
            ptr: NonNull::from(&mut *slice).cast(),
            len: slice.len(),
            dtype: T::DTYPE,
            memory: Memory::Host,
        };
        Self { raw, borrow: PhantomData }
    }

    /// Any memory.
    ///
    /// # Safety
    /// `raw` points to `raw.len` elements of `raw.dtype` in `raw.memory`,
    /// which nothing else reads or writes during `'a`. On a device, work on it that was queued
    /// earlier was queued on `raw.memory`'s stream.
    pub unsafe fn from_raw(raw: RawBuffer) -> Self {
        Self { raw, borrow: PhantomData }
    }

    /// The address, without the borrow.
    pub fn raw(&self) -> RawBuffer {
        self.raw
    }
}
