//! Synchronized batch norm: statistics over the images of all ranks.

use std::ffi::{c_char, c_void};
use std::ptr::null_mut;
use std::sync::Arc;

use comm::{Communicator, ReduceOp};
use tch::Tensor;

use crate::collective::all_reduce;
use crate::{CTensor, NormParts, Result, check, ptr};

unsafe extern "C" {
    fn torch_ext_sync_batch_norm(
        input: *const CTensor,
        weight: *const CTensor,
        bias: *const CTensor,
        running_mean: *const CTensor,
        running_var: *const CTensor,
        momentum: f64,
        eps: f64,
        context: *mut c_void,
        sum: extern "C" fn(*mut c_void, *mut CTensor),
        release: extern "C" fn(*mut c_void),
        out: *mut *mut CTensor,
    ) -> *mut c_char;
}

type Peers = Arc<dyn Communicator>;

extern "C" fn sum(context: *mut c_void, tensor: *mut CTensor) {
    // SAFETY: libtorch calls this with the pointer that `sync_batch_norm` made, before it releases that, and
    // with a tensor that lives for the length of the call; a clone of the handle shares the tensor's storage.
    let (peers, mut tensor) =
        unsafe { (&*context.cast::<Peers>(), Tensor::clone_from_ptr(tensor.cast())) };
    // A communicator that has failed fails in every later collective: the all-reduce of the gradients returns
    // this error, with its kind, which would be lost on the way through C++.
    let _ = all_reduce(&**peers, &mut tensor, ReduceOp::Sum);
}

extern "C" fn release(context: *mut c_void) {
    // SAFETY: the shim calls this once, with the pointer that `sync_batch_norm` made.
    drop(unsafe { Box::from_raw(context.cast::<Peers>()) });
}

/// Normalises `[N, C, H, W]` with the statistics of the images of all ranks. Ranks may have different numbers
/// of images, or none; together they need at least two pixels per channel. This function and its backward are
/// collectives: every rank calls them in the same order relative to its other collectives.
///
/// A failure of the communicator is reported by its next collective, not by this function.
///
/// # Errors
/// When libtorch refuses.
///
/// Source: PyTorch's `SyncBatchNorm`.
pub fn sync_batch_norm(
    input: &Tensor,
    parts: &NormParts<'_>,
    communicator: &Arc<dyn Communicator>,
) -> Result<Tensor> {
    let context = Box::into_raw(Box::new(Arc::clone(communicator))).cast();
    let mut out = null_mut();
    // SAFETY: live tensors for the length of the call; the shim releases `context`, also when it fails.
    unsafe {
        check(torch_ext_sync_batch_norm(
            ptr(input),
            ptr(parts.weight),
            ptr(parts.bias),
            ptr(parts.running_mean),
            ptr(parts.running_var),
            parts.momentum,
            parts.eps,
            context,
            sum,
            release,
            &raw mut out,
        ))
    }?;
    // SAFETY: the shim made a tensor on the heap and passed on its ownership.
    Ok(unsafe { Tensor::from_ptr(out.cast()) })
}

#[cfg(test)]
mod tests {
    use comm::single::Single;
    use tch::{Device, Kind};

    use super::*;

    /// Returns the output, the gradients of input, weight and bias, and the running statistics.
    fn results(synchronized: bool, kind: Kind) -> Vec<Tensor> {
        let noise = |size: &[i64], phase: f64| {
            let len = size.iter().product::<i64>();
            ((Tensor::arange(len, (Kind::Double, Device::Cpu)) * 12.9898 + phase).sin() * 43.7)
                .frac()
                .to_kind(Kind::Float)
                .view(size)
        };
        let leaf = |tensor: Tensor| tensor.copy().set_requires_grad(true);
        let input = leaf((noise(&[6, 5, 3, 3], 1.0) * 2.0 + 3.0).to_kind(kind));
        let (weight, bias) = (leaf(noise(&[5], 2.0) + 1.0), leaf(noise(&[5], 3.0)));
        let (running_mean, running_var) = (noise(&[5], 4.0), noise(&[5], 5.0).abs());
        let parts = NormParts {
            weight: &weight,
            bias: &bias,
            running_mean: &running_mean,
            running_var: &running_var,
            momentum: 0.1,
            eps: 1e-5,
        };
        let alone: Arc<dyn Communicator> = Arc::new(Single::default());
        let output = if synchronized {
            sync_batch_norm(&input, &parts, &alone).unwrap()
        } else {
            let (weight, bias) = (Some(&weight), Some(&bias));
            let running = (Some(&running_mean), Some(&running_var));
            input.batch_norm(weight, bias, running.0, running.1, true, 0.1, 1e-5, true)
        };
        (&output * noise(&[6, 5, 3, 3], 6.0)).sum(Kind::Float).backward();
        let grads = [input.grad(), weight.grad(), bias.grad()];
        std::iter::once(output).chain(grads).chain([running_mean, running_var]).collect()
    }

    #[test]
    fn alone_it_is_batch_norm() {
        for (kind, tolerance) in [(Kind::Float, 1e-5), (Kind::BFloat16, 2e-2)] {
            let (found, expected) = (results(true, kind), results(false, kind));
            for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
                assert_eq!(found.kind(), expected.kind());
                let far = (found - expected).abs().max().double_value(&[]);
                let scale = expected.abs().max().double_value(&[]);
                assert!(far <= tolerance * scale, "{kind:?} {index}: off by {far} of {scale}");
            }
        }
    }
}
