//! Tensors in shared memory, and the process's use of memory.

use std::ffi::{c_char, c_void};
use std::ptr::null_mut;
use std::sync::Arc;

use comm::SharedMemory;
use tch::Tensor;

use crate::{CTensor, Result, check};

unsafe extern "C" {
    fn torch_ext_from_memory(
        data: *mut c_void,
        len: i64,
        owner: *mut c_void,
        release: extern "C" fn(*mut c_void),
        out: *mut *mut CTensor,
    ) -> *mut c_char;
}

type Owner = Arc<dyn Send + Sync>;

extern "C" fn release(owner: *mut c_void) {
    // SAFETY: the shim calls this once, with the pointer that tensor_in_shared_memory made.
    drop(unsafe { Box::from_raw(owner.cast::<Owner>()) });
}

/// Returns a `[len]` f32 tensor on the CPU over the first `len` elements of `memory`, which is kept alive
/// until the last view of the tensor is dropped.
///
/// # Errors
/// When libtorch refuses.
///
/// # Panics
/// When `memory` is shorter than `len` elements.
pub fn tensor_in_shared_memory(memory: SharedMemory, len: usize) -> Result<Tensor> {
    assert!(len * size_of::<f32>() <= memory.len_bytes, "{len} f32 in {} bytes", memory.len_bytes);
    let owner = Box::into_raw(Box::new(memory.owner)).cast();
    let mut tensor = null_mut();
    let data = memory.ptr.as_ptr().cast();
    // SAFETY: `data` points to `len` f32, aligned to a page, that live until `release`.
    unsafe { check(torch_ext_from_memory(data, len as i64, owner, release, &raw mut tensor)) }?;
    // SAFETY: the shim made a tensor on the heap and passed on its ownership.
    Ok(unsafe { Tensor::from_ptr(tensor.cast()) })
}

/// Returns the peak resident memory of this process in bytes, from `VmHWM` of `/proc/self/status`; 0 if it
/// cannot be read.
pub fn peak_rss_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    let kib = line.split_whitespace().next().and_then(|text| text.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// Makes the allocator keep memory that CPU tensors free, so that the next step finds it mapped. By default
/// glibc returns large blocks to the kernel, which has to zero them again: a fifth of a step's time where
/// activations are large. Without effect with other C libraries.
pub fn keep_freed_memory() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: changes a setting of the allocator, which takes its own lock.
        let set = |parameter, value| unsafe { libc::mallopt(parameter, value) } == 1;
        // Older glibc accepts at most 32 MiB for M_MMAP_THRESHOLD. Setting M_TRIM_THRESHOLD alone would make
        // things worse: it stops glibc from raising M_MMAP_THRESHOLD to the size of freed blocks.
        let is_set = set(libc::M_MMAP_THRESHOLD, i32::MAX) || set(libc::M_MMAP_THRESHOLD, 32 << 20);
        if is_set {
            set(libc::M_TRIM_THRESHOLD, i32::MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ptr::NonNull;

    #[test]
    fn peak_memory_is_at_least_what_was_touched() {
        let touched = vec![1u8; 64 << 20];
        assert!(peak_rss_bytes() >= touched.len() as u64);
    }

    #[test]
    fn shared_memory_lives_as_long_as_the_last_view() {
        let mut bytes = vec![0f32; 1024].into_boxed_slice();
        let ptr = NonNull::from(&mut *bytes).cast();
        let owner: Arc<dyn Send + Sync> = Arc::new(bytes);
        let watch = Arc::downgrade(&owner);
        let memory = SharedMemory { ptr, len_bytes: 4096, owner };
        let tensor = tensor_in_shared_memory(memory, 1000).unwrap();
        let view = tensor.narrow(0, 10, 20);
        drop(tensor);
        assert_eq!((view.numel(), watch.strong_count()), (20, 1));
        drop(view);
        assert_eq!(watch.strong_count(), 0);
    }
}
