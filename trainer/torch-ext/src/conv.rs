//! 2-D convolution. On the CPU each pass (forward, gradient of the input, gradient of the weight) is computed
//! by whichever method is fastest.
//!
//! On the CPU libtorch's own convolutions are slow on small maps, above all the gradient of the weight. The
//! same sums as one matrix product over unfolded input (im2col) are up to 40 times faster; on large maps
//! unfolding costs more than it saves. A 3x3 kernel in fp32 takes up to four times fewer multiplications by
//! Winograd's minimal filtering. So methods are chosen by shape and by pass.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::c_char;
use std::fmt;
use std::rc::Rc;

use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

use crate::cuda_library::CudaLibrary;
use crate::{CTensor, Result, TorchError, check, ptr};

unsafe extern "C" {
    fn torch_ext_conv2d(
        input: *const CTensor,
        weight: *const CTensor,
        grad_view: *const CTensor,
        stride: i64,
        padding: i64,
        methods: *const ConvMethod,
        out: *mut *mut CTensor,
    ) -> *mut c_char;
    fn torch_ext_time_conv2d(
        input_size: *const i64,
        weight_size: *const i64,
        stride: i64,
        padding: i64,
        is_bf16: bool,
        seconds: *mut f64,
    ) -> *mut c_char;
}

/// The shape of a convolution without bias, dilation or groups, for any number of images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ConvShape {
    /// Channels, height and width of an image.
    pub input: [i64; 3],
    /// Size of the weight, `[C', C, K, L]`: output channels, input channels, kernel height and width.
    pub weight: [i64; 4],
    /// Stride in both directions.
    pub stride: i64,
    /// Zero padding on all four sides.
    pub padding: i64,
}

/// A method of computing one pass of a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum ConvMethod {
    /// libtorch's convolution.
    #[default]
    Library,
    /// A matrix product over unfolded input.
    Matmul,
    /// Winograd's minimal filtering: in fp32, with 3x3 kernels of stride 1, channels in multiples of eight,
    /// and on x86-64 with AVX2 or newer. Elsewhere [`Library`](Self::Library) is used instead.
    Winograd,
}

/// The methods of the three passes: forward, gradient of the input, gradient of the weight.
pub type ConvMethods = [ConvMethod; 3];

/// Seconds that one pass takes by each of [`ConvMethod::ALL`]; infinite for a method that does not support
/// it.
pub type MethodSeconds = [f64; ConvMethod::ALL.len()];

impl ConvMethod {
    /// Every method, in the order of [`MethodSeconds`].
    pub const ALL: [Self; 3] = [Self::Library, Self::Matmul, Self::Winograd];

    /// Returns the method that takes the least time.
    pub fn fastest(seconds: MethodSeconds) -> Self {
        let timed = Self::ALL.into_iter().zip(seconds);
        timed
            .min_by(|(_, a), (_, b)| a.total_cmp(b))
            .map_or_else(Self::default, |(method, _)| method)
    }
}

impl fmt::Display for ConvShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { input: [c, h, w], weight: [outputs, _, rows, columns], stride, padding } = self;
        write!(f, "{c} x {h} x {w} to {outputs} channels, kernel {rows} x {columns}")?;
        write!(f, ", stride {stride}, padding {padding}")
    }
}

impl ConvShape {
    /// Returns the multiply-adds of each pass over one image.
    pub fn multiply_adds(&self) -> i64 {
        let Self { input: [_, height, width], weight: [outputs, channels, rows, columns], .. } =
            *self;
        let windows = |side: i64, kernel: i64| (side + 2 * self.padding - kernel) / self.stride + 1;
        windows(height, rows) * windows(width, columns) * outputs * channels * rows * columns
    }

    /// Times forward, gradient of the input and gradient of the weight by each method, on `images` images in
    /// bf16 or fp32.
    ///
    /// # Errors
    /// When the shape is not a valid convolution, or memory is short.
    pub fn time(&self, images: usize, bf16: bool) -> Result<[MethodSeconds; 3]> {
        let [channels, height, width] = self.input;
        let input = [images as i64, channels, height, width];
        let mut seconds = [MethodSeconds::default(); 3];
        // SAFETY: sizes are arrays of 4, and `seconds` has room for one number for each method of each pass.
        unsafe {
            check(torch_ext_time_conv2d(
                input.as_ptr(),
                self.weight.as_ptr(),
                self.stride,
                self.padding,
                bf16,
                seconds.as_flattened_mut().as_mut_ptr(),
            ))
        }?;
        Ok(seconds)
    }
}

/// The methods by which the convolutions of a network are computed, by shape.
///
/// The table does not choose methods itself: it starts empty and records the shapes that it is asked for,
/// which are computed by the library until [`set`](Self::set) is called for them.
#[derive(Debug, Default)]
pub struct ConvTable {
    methods: RefCell<HashMap<ConvShape, ConvMethods>>,
    unresolved: RefCell<Vec<ConvShape>>,
}

thread_local! {
    static IN_USE: RefCell<Option<Rc<ConvTable>>> = const { RefCell::new(None) };
}

/// Restores the table that was in use before, also when a panic unwinds.
struct Restore(Option<Rc<ConvTable>>);

impl Drop for Restore {
    fn drop(&mut self) {
        IN_USE.set(self.0.take());
    }
}

impl ConvTable {
    /// Runs `body`; every [`conv2d`] that it calls on this thread, and its backward, follows this table.
    pub fn with_table<T>(self: &Rc<Self>, body: impl FnOnce() -> T) -> T {
        let _restore = Restore(IN_USE.replace(Some(Rc::clone(self))));
        body()
    }

    /// Sets the methods for convolutions of this shape from now on.
    pub fn set(&self, shape: ConvShape, methods: ConvMethods) {
        self.methods.borrow_mut().insert(shape, methods);
    }

    /// Returns the shapes that were asked for and are not in the table, each once, in the order of first use,
    /// and clears that list.
    pub fn take_unresolved(&self) -> Vec<ConvShape> {
        self.unresolved.take()
    }

    fn get(&self, shape: ConvShape) -> ConvMethods {
        let known = self.methods.borrow().get(&shape).copied();
        known.unwrap_or_else(|| {
            let mut unknown = self.unresolved.borrow_mut();
            if !unknown.contains(&shape) {
                unknown.push(shape);
            }
            ConvMethods::default()
        })
    }
}

/// Convolves `input` `[N, C, H, W]` with `weight` `[C', C, K, L]`, which gives `[N, C', H', W']`,
/// channels-last on the CPU. Under autocast the result has its dtype. A convolution without groups on the CPU
/// follows the [`ConvTable`] in use.
///
/// For a convolution that follows the table, backward writes the gradient of the weight to `grad_view`, if
/// that is given, and returns `grad_view` to autograd as the gradient. It has the weight's size and dtype
/// and is channels-last, and the weight may be used only once between two backward passes.
///
/// # Errors
/// When the shapes do not fit, or the weight has a gradient already although `grad_view` is given.
pub fn conv2d(
    input: &Tensor,
    weight: &Tensor,
    grad_view: Option<&Tensor>,
    stride: i64,
    padding: i64,
    groups: i64,
) -> Result<Tensor> {
    let from_tch = |error: tch::TchError| TorchError(error.to_string());
    let mut output = std::ptr::null_mut();
    if let (Device::Cuda(_), Ok(library)) = (input.device(), CudaLibrary::get()) {
        // SAFETY: live tensors, and a valid place for the answer.
        unsafe {
            check((library.conv2d)(
                ptr(input),
                ptr(weight),
                stride,
                padding,
                groups,
                &raw mut output,
            ))
        }?;
        // SAFETY: the library made a tensor on the heap and passed on its ownership.
        return Ok(unsafe { Tensor::from_ptr(output.cast()) });
    }
    let table = IN_USE.with_borrow(Clone::clone);
    let Some(table) = table.filter(|_| groups == 1 && input.device() == Device::Cpu) else {
        let (strides, paddings) = ([stride; 2], [padding; 2]);
        return input
            .f_conv2d(weight, None::<&Tensor>, strides, paddings, [1, 1], groups)
            .map_err(from_tch);
    };
    let (_, channels, height, width) = input.size4().map_err(from_tch)?;
    let (outputs, inputs, rows, columns) = weight.size4().map_err(from_tch)?;
    let shape = ConvShape {
        input: [channels, height, width],
        weight: [outputs, inputs, rows, columns],
        stride,
        padding,
    };
    let methods = table.get(shape);
    // SAFETY: live tensors, a method for each of three passes, and a valid place for the answer.
    unsafe {
        check(torch_ext_conv2d(
            ptr(input),
            ptr(weight),
            grad_view.map_or(std::ptr::null(), |place| ptr(place).cast_const()),
            stride,
            padding,
            methods.as_ptr(),
            &raw mut output,
        ))
    }?;
    // SAFETY: the shim made a tensor on the heap and passed on its ownership.
    Ok(unsafe { Tensor::from_ptr(output.cast()) })
}

#[cfg(test)]
mod tests;
