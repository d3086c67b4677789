//! Batch norm of a training step on a GPU, in one or two kernels for forward and as many for backward.

use std::ffi::CStr;
use std::ptr::{null, null_mut};

use tch::{Kind, Tensor};

use crate::cuda_library::CudaLibrary;
use crate::{Result, TorchError, check, ptr};

const SOURCE: &CStr =
    match CStr::from_bytes_with_nul(concat!(include_str!("batch_norm.cu"), "\0").as_bytes()) {
        Ok(source) => source,
        Err(_) => panic!("batch_norm.cu has a zero in it"),
    };

/// Parameters, running statistics and constants of a batch norm layer.
#[derive(Debug)]
pub struct NormParts<'a> {
    /// Scale (gamma), `[C]` f32.
    pub weight: &'a Tensor,
    /// Shift (beta), `[C]` f32.
    pub bias: &'a Tensor,
    /// Running mean, `[C]` f32, updated in place.
    pub running_mean: &'a Tensor,
    /// Running variance, `[C]` f32, updated in place.
    pub running_var: &'a Tensor,
    /// Weight of the current batch in the running statistics.
    pub momentum: f64,
    /// Added to the variance before the square root.
    pub eps: f64,
}

/// Compiles the kernels of [`fused_batch_norm`] for inputs of `kind` (f32, bf16 or f16) and this thread's
/// GPU, which takes a second or so. Without this call they are compiled on first use.
///
/// # Errors
/// When the kernels cannot be compiled: the GPU is older than compute capability 8.0, or NVRTC, which comes
/// with libtorch's GPU libraries, is missing.
pub fn prepare_batch_norm(kind: Kind) -> Result<()> {
    let library = CudaLibrary::get()?;
    // SAFETY: both are NUL-terminated strings.
    unsafe { check((library.batch_norm_prepare)(SOURCE.as_ptr(), element(kind)?.as_ptr())) }
}

/// Returns the name of a dtype in `batch_norm.cu`.
fn element(kind: Kind) -> Result<&'static CStr> {
    match kind {
        Kind::Float => Ok(c"float"),
        Kind::BFloat16 => Ok(c"BFloat16"),
        Kind::Half => Ok(c"Half"),
        other => Err(TorchError(format!("batch norm has no kernels for {other:?}"))),
    }
}

/// Computes `relu(norm(input) + residual)` with the batch statistics of `input` `[N, C, H, W]`, and updates
/// the running statistics. The addition is left out if `residual` is `None`, the ReLU if `has_relu` is false.
///
/// Statistics and sums are in f32, and the result is rounded once, to the dtype of the input: f32, bf16 or
/// f16. Equal inputs give equal bits, forward and backward. The kernels are compiled on first use.
///
/// Returns `None` if the kernels do not support the input: they need a GPU of compute capability 8.0 or
/// newer, channels-last memory aligned to 16 bytes, a multiple of eight channels, and at least two pixels per
/// channel.
///
/// # Errors
/// When the kernels cannot be compiled, or CUDA reports an error.
///
/// Source: Ioffe and Szegedy, Batch Normalization, ICML 2015.
pub fn fused_batch_norm(
    input: &Tensor,
    residual: Option<&Tensor>,
    has_relu: bool,
    parts: &NormParts<'_>,
) -> Result<Option<Tensor>> {
    let library = CudaLibrary::get()?;
    let mut out = null_mut();
    // SAFETY: live tensors for the length of the call, or null for a missing residual.
    unsafe {
        check((library.batch_norm)(
            SOURCE.as_ptr(),
            ptr(input),
            residual.map_or(null(), |tensor| ptr(tensor).cast_const()),
            ptr(parts.weight),
            ptr(parts.bias),
            ptr(parts.running_mean),
            ptr(parts.running_var),
            parts.momentum,
            parts.eps,
            has_relu,
            &raw mut out,
        ))
    }?;
    // SAFETY: a pointer that is not null is a tensor that the library made on the heap and whose ownership it
    // passed on.
    Ok((!out.is_null()).then(|| unsafe { Tensor::from_ptr(out.cast()) }))
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    #[test]
    fn the_kernels_compile_for_every_dtype_and_kind_of_gpu() {
        if option_env!("TORCH_EXT_CUDA_LIBRARY").is_none() {
            return println!("skipped: built without CUDA's headers");
        }
        let library = CudaLibrary::get().unwrap();
        for kind in [Kind::Float, Kind::BFloat16, Kind::Half] {
            for arch in [80, 90, 100] {
                let mut bytes = 0;
                // SAFETY: NUL-terminated strings, and a valid place for the answer.
                unsafe {
                    check((library.batch_norm_compile)(
                        SOURCE.as_ptr(),
                        element(kind).unwrap().as_ptr(),
                        arch,
                        &raw mut bytes,
                    ))
                }
                .unwrap();
                assert!(bytes > 1000, "{bytes} bytes for sm_{arch}");
            }
        }
    }

    /// From a few pixels to many: within one block, across a cluster, and in two kernels; with channel counts
    /// that fill a slice and that do not.
    const SIZES: [[i64; 4]; 7] = [
        [2, 8, 1, 1],
        [64, 512, 1, 1],
        [33, 24, 5, 5],
        [64, 64, 8, 8],
        [7, 128, 3, 5],
        [20, 24, 16, 16],
        [128, 16, 32, 32],
    ];

    /// Returns the output, the gradients of input, residual, weight and bias, and the running statistics.
    fn results(size: [i64; 4], kind: Kind, residual: bool, relu: bool, fused: bool) -> Vec<Tensor> {
        tch::manual_seed(1);
        let noise = |size: &[i64]| Tensor::randn(size, (Kind::Float, Device::Cpu));
        let channels_last = |tensor: Tensor| {
            let strides = [size[1] * size[2] * size[3], 1, size[3] * size[1], size[1]];
            let mut last = Tensor::empty_strided(size, strides, (kind, Device::Cuda(0)));
            last.copy_(&tensor);
            last.set_requires_grad(true)
        };
        let leaf = |tensor: Tensor| tensor.to(Device::Cuda(0)).set_requires_grad(true);
        let input = channels_last(noise(&size) * 0.5 + noise(&[1, size[1], 1, 1]) * 8.0);
        let shortcut = channels_last(noise(&size));
        let (weight, bias) = (leaf(noise(&[size[1]]) + 1.0), leaf(noise(&[size[1]])));
        let running_mean = noise(&[size[1]]).to(Device::Cuda(0));
        let running_var = noise(&[size[1]]).abs().to(Device::Cuda(0));
        let slope = noise(&size).to(Device::Cuda(0));
        let parts = NormParts {
            weight: &weight,
            bias: &bias,
            running_mean: &running_mean,
            running_var: &running_var,
            momentum: 0.1,
            eps: 1e-5,
        };
        let output = if fused {
            fused_batch_norm(&input, residual.then_some(&shortcut), relu, &parts).unwrap().unwrap()
        } else {
            // The reference: what libtorch computes in f32.
            let running = (Some(&running_mean), Some(&running_var));
            let wide = input.to_kind(Kind::Float);
            let (weight, bias) = (Some(&weight), Some(&bias));
            let norm = wide.batch_norm(weight, bias, running.0, running.1, true, 0.1, 1e-5, true);
            let sum = if residual { norm + shortcut.to_kind(Kind::Float) } else { norm };
            if relu { sum.relu() } else { sum }
        };
        (&output * slope).sum(Kind::Float).backward();
        let grads = [input.grad(), weight.grad(), bias.grad()];
        let shortcut = residual.then(|| shortcut.grad());
        std::iter::once(output)
            .chain(grads)
            .chain(shortcut)
            .chain([running_mean, running_var])
            .map(|tensor| tensor.to_kind(Kind::Float))
            .collect()
    }

    #[test]
    fn on_a_gpu_it_is_batch_norm_addition_and_relu() {
        if !std::path::Path::new("/dev/nvidiactl").exists() {
            return println!("skipped: there is no GPU");
        }
        crate::load_cuda().unwrap();
        for (kind, tolerance) in [(Kind::Float, 2e-5), (Kind::BFloat16, 1e-2), (Kind::Half, 2e-3)] {
            for size in SIZES {
                for (residual, relu) in [(false, false), (false, true), (true, true), (true, false)]
                {
                    let found = results(size, kind, residual, relu, true);
                    let expected = results(size, kind, residual, relu, false);
                    let again = results(size, kind, residual, relu, true);
                    assert_eq!(found.len(), expected.len());
                    for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
                        let what = format!("{kind:?} {size:?} {residual} {relu}, tensor {index}");
                        // Where the sum is within rounding of zero, the ReLU may or may not clip it.
                        let scale = expected.abs().max().double_value(&[]).max(1e-3);
                        let far = (found - expected).abs().gt(tolerance * scale);
                        let far = far.sum(Kind::Int64).int64_value(&[]);
                        let allowed = expected.numel() as i64 / 100_000;
                        assert!(far <= allowed, "{what}: {far} of {} are off", expected.numel());
                        assert!(found.equal(&again[index]), "{what}: not the same again");
                    }
                }
            }
        }
    }
}
