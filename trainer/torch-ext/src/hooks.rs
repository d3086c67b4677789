//! Gradient hooks, and moving gradients from autograd into the flat buffers.

use std::ffi::{c_char, c_void};

use tch::Tensor;

use crate::{CTensor, Result, check, pointers, ptr};

unsafe extern "C" {
    fn torch_ext_gather_grads(
        count: usize,
        leaves: *const *const CTensor,
        places: *const *const CTensor,
    ) -> *mut c_char;
    fn torch_ext_on_gradient(
        parameter: *mut CTensor,
        context: *mut c_void,
        call: extern "C" fn(*mut c_void),
        release: extern "C" fn(*mut c_void),
    ) -> *mut c_char;
}

type Hook = Box<dyn Fn() + Send + Sync>;

extern "C" fn call(context: *mut c_void) {
    // SAFETY: libtorch calls this with the pointer that `on_gradient` made, before it releases that. A hook
    // may be called by several threads, hence the Sync bound.
    let hook = unsafe { &*context.cast::<Hook>() };
    hook();
}

extern "C" fn release(context: *mut c_void) {
    // SAFETY: libtorch calls this once, with the pointer that `on_gradient` made.
    drop(unsafe { Box::from_raw(context.cast::<Hook>()) });
}

/// Registers `hook` to be called whenever backward has accumulated into the gradient of `parameter`, a leaf,
/// on the thread that did so; on a GPU that is not the thread that called backward. Replaces an earlier hook,
/// and lives as long as the parameter. A panic in the hook aborts the process.
///
/// # Errors
/// When the tensor is not a leaf that requires a gradient.
pub fn on_gradient(parameter: &Tensor, hook: impl Fn() + Send + Sync + 'static) -> Result<()> {
    let hook: Hook = Box::new(hook);
    let context = Box::into_raw(Box::new(hook)).cast();
    // SAFETY: a live tensor; the shim calls `release` on `context` when the hook is destroyed, also on
    // failure.
    unsafe { check(torch_ext_on_gradient(ptr(parameter), context, call, release)) }
}

/// Moves the gradient of each of `leaves` to the tensor at the same position of `places`, which has the same
/// shape, and clears the leaf's gradient. A gradient that lies in its place already is not copied; the place
/// of a leaf without a gradient is zeroed.
///
/// # Errors
/// When shapes differ.
///
/// # Panics
/// When the two lists differ in length.
pub fn gather_grads(leaves: &[Tensor], places: &[Tensor]) -> Result<()> {
    assert_eq!(leaves.len(), places.len());
    let [leaves, places] = [leaves, places].map(pointers);
    // SAFETY: both lists have as many tensors, live for the length of the call.
    unsafe { check(torch_ext_gather_grads(leaves.len(), leaves.as_ptr(), places.as_ptr())) }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tch::{Device, Kind};

    use super::*;
    use crate::set_grad;

    #[test]
    fn a_hook_is_called_once_a_backward_when_the_gradient_is_there() {
        let parameter = Tensor::ones([3], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let grad = Tensor::zeros([3], (Kind::Float, Device::Cpu));
        set_grad(&parameter, &grad).unwrap();
        let calls = Arc::new(AtomicUsize::new(0));
        let (counted, seen) = (Arc::clone(&calls), std::sync::Mutex::new(grad.shallow_clone()));
        on_gradient(&parameter, move || {
            let sum = seen.lock().unwrap().sum(Kind::Float).double_value(&[]);
            counted.fetch_add(sum as usize, Ordering::Relaxed);
        })
        .unwrap();
        (&parameter * 2.0).sum(Kind::Float).backward();
        assert_eq!(calls.load(Ordering::Relaxed), 6);
        drop(parameter);
        assert_eq!(Arc::strong_count(&calls), 1, "the hook lives on");
    }

    #[test]
    fn a_tensor_without_gradient_is_refused() {
        let constant = Tensor::ones([3], (Kind::Float, Device::Cpu));
        let error = on_gradient(&constant, || {}).unwrap_err().to_string();
        assert!(error.contains("leaf"), "{error}");
    }
}
