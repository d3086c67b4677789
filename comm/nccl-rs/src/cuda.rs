//! The few functions of the CUDA runtime that collectives need: devices, streams, events, staging memory.
//!
//! Opened at run time, like NCCL. Streams and events belong to the driver, so those created through another
//! copy of the runtime in this process can be passed in.

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::marker::PhantomData;
use std::sync::Arc;

use libloading::os::unix::Library;

use crate::error::text_of;
use crate::sys::table;
use crate::{Error, Result};

/// `cudaError_t`.
pub type ErrorCode = c_int;

const SUCCESS: ErrorCode = 0;
const NOT_READY: ErrorCode = 600;
const STREAM_NON_BLOCKING: c_uint = 1;
const EVENT_DISABLE_TIMING: c_uint = 2;
const MEMCPY_DEFAULT: c_int = 4;

table! {
    /// The CUDA runtime's functions.
    Functions of "the CUDA runtime";
    /// <https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__DEVICE.html>
    fn cudaGetDeviceCount(*mut c_int) -> ErrorCode;
    /// <https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__DEVICE.html>
    fn cudaGetDevice(*mut c_int) -> ErrorCode;
    /// <https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__DEVICE.html>
    fn cudaSetDevice(c_int) -> ErrorCode;
    /// <https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__ERROR.html>
    fn cudaGetErrorString(ErrorCode) -> *const c_char;
    /// The same page. Clears the calling thread's last error.
    fn cudaGetLastError() -> ErrorCode;
    /// <https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__STREAM.html>
    fn cudaStreamCreateWithFlags(*mut *mut c_void, c_uint) -> ErrorCode;
    /// <https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__STREAM.html>
    fn cudaStreamDestroy(*mut c_void) -> ErrorCode;
    /// <https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__STREAM.html>
    fn cudaStreamWaitEvent(*mut c_void, *mut c_void, c_uint) -> ErrorCode;
    /// <https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__STREAM.html>
    fn cudaStreamIsCapturing(*mut c_void, *mut c_int) -> ErrorCode;
    /// <https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__EVENT.html>
    fn cudaEventCreateWithFlags(*mut *mut c_void, c_uint) -> ErrorCode;
    /// <https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__EVENT.html>
    fn cudaEventRecord(*mut c_void, *mut c_void) -> ErrorCode;
    /// <https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__EVENT.html>
    fn cudaEventQuery(*mut c_void) -> ErrorCode;
    /// <https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__EVENT.html>
    fn cudaEventDestroy(*mut c_void) -> ErrorCode;
    /// <https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__MEMORY.html>
    fn cudaMalloc(*mut *mut c_void, usize) -> ErrorCode;
    /// <https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__MEMORY.html>
    fn cudaFree(*mut c_void) -> ErrorCode;
    /// <https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__MEMORY.html>
    fn cudaMallocHost(*mut *mut c_void, usize) -> ErrorCode;
    /// <https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__MEMORY.html>
    fn cudaFreeHost(*mut c_void) -> ErrorCode;
    /// <https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__MEMORY.html>
    fn cudaMemcpyAsync(*mut c_void, *const c_void, usize, c_int, *mut c_void) -> ErrorCode;
    optional
}

/// The opened CUDA runtime. Cheap to clone.
#[derive(Clone)]
pub struct Cuda {
    functions: Arc<Functions>,
}

impl Cuda {
    /// Opens the runtime that is already loaded in this process, such as libtorch's, or else the system's.
    ///
    /// # Errors
    /// [`Error::Open`] when there is none.
    pub fn open() -> Result<Self> {
        let names = ["libcudart.so.13", "libcudart.so.12", "libcudart.so"];
        let library: Library = crate::sys::open(&names, b"cudaGetDeviceCount\0")?;
        // SAFETY: these names are the CUDA runtime's.
        let functions = unsafe { Functions::load(library) }?;
        Ok(Self { functions: Arc::new(functions) })
    }

    /// Returns the number of devices that are visible to this process.
    ///
    /// # Errors
    /// [`Error::Cuda`], also when there is no driver.
    pub fn device_count(&self) -> Result<usize> {
        let mut count = 0;
        // SAFETY: CUDA writes one number.
        let code = unsafe { (self.functions.cudaGetDeviceCount)(&raw mut count) };
        self.check("cudaGetDeviceCount", code)?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    /// Makes `device` the current device of this thread, for good. For a thread that has used no other
    /// device: restoring the previous one, as [`Self::use_device`] does, would create a context on it.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn set_device(&self, device: usize) -> Result<()> {
        let device = c_int::try_from(device).unwrap_or(-1);
        // SAFETY: plain call; CUDA refuses what is out of range.
        self.check("cudaSetDevice", unsafe { (self.functions.cudaSetDevice)(device) })
    }

    /// Makes `device` the current device of this thread until the guard is dropped.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn use_device(&self, device: usize) -> Result<DeviceGuard> {
        let mut previous = 0;
        // SAFETY: CUDA writes one number.
        let code = unsafe { (self.functions.cudaGetDevice)(&raw mut previous) };
        self.check("cudaGetDevice", code)?;
        self.set_device(device)?;
        Ok(DeviceGuard { cuda: self.clone(), previous, not_send: PhantomData })
    }

    /// Creates a stream on the current device that does not synchronise with the default stream.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn stream(&self) -> Result<Stream> {
        let create = self.functions.cudaStreamCreateWithFlags;
        // SAFETY: CUDA writes the handle.
        let handle = self.new_handle("cudaStreamCreateWithFlags", |handle| unsafe {
            create(handle, STREAM_NON_BLOCKING)
        })?;
        Ok(Stream { cuda: self.clone(), handle })
    }

    /// Creates an event on the current device and records it on `stream`.
    ///
    /// # Safety
    /// `stream` is a stream of the current device.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub unsafe fn record(&self, stream: *mut c_void) -> Result<Event> {
        let create = self.functions.cudaEventCreateWithFlags;
        // SAFETY: CUDA writes the handle.
        let handle = self.new_handle("cudaEventCreateWithFlags", |handle| unsafe {
            create(handle, EVENT_DISABLE_TIMING)
        })?;
        let event = Event { cuda: self.clone(), handle };
        // SAFETY: the event is new; the stream is the caller's promise.
        let code = unsafe { (self.functions.cudaEventRecord)(event.handle, stream) };
        self.check("cudaEventRecord", code)?;
        Ok(event)
    }

    /// Allocates `len_bytes` of the current device's memory.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn device_memory(&self, len_bytes: usize) -> Result<Memory> {
        let allocate = self.functions.cudaMalloc;
        // SAFETY: CUDA writes the address.
        let start =
            self.new_handle("cudaMalloc", |start| unsafe { allocate(start, len_bytes.max(1)) })?;
        Ok(Memory { cuda: self.clone(), start, on_device: true })
    }

    /// Allocates `len_bytes` of page-locked host memory, which can be copied to and from devices
    /// asynchronously.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn pinned_memory(&self, len_bytes: usize) -> Result<Memory> {
        let allocate = self.functions.cudaMallocHost;
        // SAFETY: CUDA writes the address.
        let start = self
            .new_handle("cudaMallocHost", |start| unsafe { allocate(start, len_bytes.max(1)) })?;
        Ok(Memory { cuda: self.clone(), start, on_device: false })
    }

    /// Queues a copy on `stream`.
    ///
    /// # Safety
    /// Both addresses must be valid for `len_bytes` until the stream has completed the copy; one is pinned
    /// host memory and the other memory of the stream's device; and nothing else writes to either meanwhile.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub unsafe fn copy(
        &self,
        to: *mut c_void,
        from: *const c_void,
        len_bytes: usize,
        stream: &Stream,
    ) -> Result<()> {
        let copy = self.functions.cudaMemcpyAsync;
        // SAFETY: the caller's promise.
        self.check("cudaMemcpyAsync", unsafe {
            copy(to, from, len_bytes, MEMCPY_DEFAULT, stream.handle)
        })
    }

    /// Makes work that is queued on `stream` from now on wait for `event`.
    ///
    /// # Safety
    /// `stream` is a stream.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub unsafe fn wait_on_stream(&self, stream: *mut c_void, event: &Event) -> Result<()> {
        // SAFETY: the event is valid; the stream is the caller's promise.
        let code = unsafe { (self.functions.cudaStreamWaitEvent)(stream, event.handle, 0) };
        self.check("cudaStreamWaitEvent", code)
    }

    /// Returns whether work queued on `stream` is captured instead of executed.
    ///
    /// # Safety
    /// `stream` is a stream.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub unsafe fn is_capturing(&self, stream: *mut c_void) -> Result<bool> {
        let mut status = 0;
        // SAFETY: CUDA writes one number; the stream is the caller's promise.
        let code = unsafe { (self.functions.cudaStreamIsCapturing)(stream, &raw mut status) };
        self.check("cudaStreamIsCapturing", code)?;
        Ok(status != 0)
    }

    fn new_handle(
        &self,
        function: &'static str,
        create: impl FnOnce(*mut *mut c_void) -> ErrorCode,
    ) -> Result<*mut c_void> {
        let mut handle = std::ptr::null_mut();
        self.check(function, create(&raw mut handle))?;
        Ok(handle)
    }

    fn check(&self, function: &'static str, code: ErrorCode) -> Result<()> {
        if code == SUCCESS {
            return Ok(());
        }
        // The error is returned from here, so clear it: code that later asks CUDA for the thread's last
        // error, as libtorch does after its kernels, must not take it for its own.
        // SAFETY: plain call.
        unsafe { (self.functions.cudaGetLastError)() };
        // SAFETY: CUDA owns the string.
        let text = unsafe { text_of((self.functions.cudaGetErrorString)(code)) };
        Err(Error::Cuda { function, code, text })
    }
}

/// Restores the thread's previous device when dropped.
pub struct DeviceGuard {
    cuda: Cuda,
    previous: c_int,
    /// The guard must be dropped on the thread that created it.
    not_send: PhantomData<*const ()>,
}

impl Drop for DeviceGuard {
    fn drop(&mut self) {
        // SAFETY: plain call with a device that CUDA itself has returned.
        unsafe { (self.cuda.functions.cudaSetDevice)(self.previous) };
    }
}

/// A stream, destroyed when dropped; work that is queued on it still completes.
pub struct Stream {
    cuda: Cuda,
    handle: *mut c_void,
}

// SAFETY: CUDA's streams may be used from any thread.
unsafe impl Send for Stream {}
// SAFETY: as above, also concurrently.
unsafe impl Sync for Stream {}

impl Stream {
    /// The `cudaStream_t`.
    pub fn handle(&self) -> *mut c_void {
        self.handle
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: the stream is this object's own.
        unsafe { (self.cuda.functions.cudaStreamDestroy)(self.handle) };
    }
}

/// A recorded event, destroyed when dropped.
pub struct Event {
    cuda: Cuda,
    handle: *mut c_void,
}

// SAFETY: CUDA's events may be used from any thread.
unsafe impl Send for Event {}
// SAFETY: as above, also concurrently.
unsafe impl Sync for Event {}

impl Event {
    /// Returns whether the stream has completed all work queued before the event.
    ///
    /// # Errors
    /// [`Error::Cuda`], also for a failure of earlier work on the device.
    pub fn is_reached(&self) -> Result<bool> {
        // SAFETY: the event is valid.
        match unsafe { (self.cuda.functions.cudaEventQuery)(self.handle) } {
            NOT_READY => Ok(false),
            code => self.cuda.check("cudaEventQuery", code).map(|()| true),
        }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: the event is this object's own; CUDA frees it once the stream has reached it.
        unsafe { (self.cuda.functions.cudaEventDestroy)(self.handle) };
    }
}

/// Device or pinned host memory, freed when dropped, after the device's work.
pub struct Memory {
    cuda: Cuda,
    start: *mut c_void,
    on_device: bool,
}

// SAFETY: only an address; users of the memory synchronise their accesses.
unsafe impl Send for Memory {}

impl Memory {
    /// The first byte.
    pub fn start(&self) -> *mut c_void {
        self.start
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let functions = &self.cuda.functions;
        let free = if self.on_device { functions.cudaFree } else { functions.cudaFreeHost };
        // SAFETY: the memory is this object's own and came from the matching function.
        unsafe { free(self.start) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Needs the library, not a GPU.
    #[test]
    fn an_installed_runtime_has_every_function() {
        let cuda = match Cuda::open() {
            Ok(cuda) => cuda,
            Err(error @ Error::Open { .. }) => return println!("skipped: {error}"),
            Err(error) => panic!("{error}"),
        };
        // Without a GPU this is an error, with CUDA's description of it.
        if let Err(error) = cuda.device_count() {
            let Error::Cuda { function: "cudaGetDeviceCount", code, text } = &error else {
                panic!("{error}")
            };
            assert!(*code != 0 && !text.is_empty(), "{error}");
        }
    }
}
