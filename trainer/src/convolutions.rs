//! Chooses the method by which each convolution is computed on the CPU, by measurement before the first step.
//!
//! The methods' results differ by rounding only. All ranks make the same choice, which is kept in
//! checkpoints, so that a resumed run computes as before.

use std::rc::Rc;

use comm::{Communicator, ReduceOp};
use job::config::Convolution;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};
use torch_ext::{ConvMethod, ConvMethods, ConvShape, ConvTable};
use tracing::{debug, info};

use crate::Result;
use crate::arithmetic::Arithmetic;
use crate::model::Mode;
use crate::replica::Replica;

/// The methods in fp16, which are not measured: libtorch's gradient of the weight takes hundreds of times as
/// long as the matrix product, and the other passes differ little.
const FP16_METHODS: ConvMethods = [ConvMethod::Library, ConvMethod::Matmul, ConvMethod::Matmul];

/// Number of multiply-adds per thread in a timed pass that is enough to tell methods apart; it takes ten
/// milliseconds or more. Limits the batch of the measurement: a pass with more is timed on fewer images
/// than training gives it.
const ENOUGH_MULTIPLY_ADDS: i64 = 500_000_000;

/// The names of the three passes, in the order of [`ConvMethods`].
const PASSES: [&str; 3] = ["forward", "the gradient of the input", "the gradient of the weight"];

/// The names of the methods, in the order of [`ConvMethod::ALL`].
const NAMES: [&str; 3] = ["the library", "a matrix product", "Winograd's filtering"];

/// How the convolutions of one shape are computed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConvChoice {
    /// The shape of the convolutions.
    pub shape: ConvShape,
    /// The method of each pass.
    pub methods: ConvMethods,
    /// The arithmetic for which the methods were chosen; `None` in checkpoints written before this field
    /// existed.
    #[serde(default)]
    pub arithmetic: Option<Arithmetic>,
}

/// Returns the lookup table of the choices in a checkpoint.
pub fn table(choices: &[ConvChoice]) -> Rc<ConvTable> {
    let table = Rc::<ConvTable>::default();
    for ConvChoice { shape, methods, .. } in choices {
        table.set(*shape, *methods);
    }
    table
}

/// Chooses the methods of every convolution of `replica` for batches of size `[N, C, H, W]`, sets them in
/// its table, and returns all choices. With `performance.convolution: auto`, the choices in `known` that
/// were made for the same arithmetic are kept, so that a resumed run computes as before. Collective.
///
/// Measuring ends early if `is_stopped` returns true on any rank; libtorch then computes the convolutions
/// that have no choice yet.
///
/// # Errors
/// When a peer is gone or late, or libtorch refuses.
pub fn choose(
    replica: &Replica,
    convolution: Convolution,
    [images, image @ ..]: [usize; 4],
    mut known: Vec<ConvChoice>,
    communicator: &dyn Communicator,
    is_stopped: &dyn Fn() -> bool,
) -> Result<Vec<ConvChoice>> {
    let fixed = match convolution {
        Convolution::Library => return Ok(Vec::new()),
        Convolution::Matmul => Some([ConvMethod::Matmul; 3]),
        Convolution::Winograd => Some([ConvMethod::Winograd; 3]),
        Convolution::Auto if replica.arithmetic == Arithmetic::Fp16 => Some(FP16_METHODS),
        Convolution::Auto => None,
    };
    let table = &replica.convolutions;
    let arithmetic = Some(replica.arithmetic);
    known.retain(|it| fixed.is_none() && (it.arithmetic.is_none() || it.arithmetic == arithmetic));
    for ConvChoice { shape, methods, .. } in &known {
        table.set(*shape, *methods);
    }
    let unknown = shapes_without_choice(replica, image)?;
    let methods = match fixed {
        Some(methods) => vec![methods; unknown.len()],
        None => measure(&unknown, replica.arithmetic, images, communicator, is_stopped)?,
    };
    for (shape, methods) in unknown.into_iter().zip(methods) {
        table.set(shape, methods);
        known.push(ConvChoice { shape, methods, arithmetic });
    }
    let count = |wanted| {
        let passes = known.iter().flat_map(|choice| choice.methods);
        passes.filter(|method| *method == wanted).count()
    };
    let [library, matmul, winograd] = ConvMethod::ALL.map(count);
    info!(
        "of {} convolution passes, {library} use the library, {matmul} matrix products and \
         {winograd} Winograd's filtering",
        3 * known.len()
    );
    Ok(known)
}

/// Returns the shapes of the network's convolutions that are not in the table, by running two images
/// through it; a single image might be treated as a special case.
fn shapes_without_choice(replica: &Replica, image: [usize; 3]) -> Result<Vec<ConvShape>> {
    let [channels, height, width] = image.map(|size| size as i64);
    let images = Tensor::zeros([2, channels, height, width], (Kind::Float, replica.device));
    let _ = replica.in_precision(|model| tch::no_grad(|| model.forward(&images, Mode::Eval)))?;
    Ok(replica.convolutions.take_unresolved())
}

fn images_to_time(shape: &ConvShape, images: usize) -> usize {
    let enough = ENOUGH_MULTIPLY_ADDS * i64::from(tch::get_num_threads()) / shape.multiply_adds();
    images.min(enough.max(1) as usize)
}

/// Returns the fastest method of each pass of each of `shapes`, by the sum of all ranks' times. Ranks
/// measure simultaneously, as they will train. If a rank is stopped, the result covers only the first
/// shapes. Collective.
fn measure(
    shapes: &[ConvShape],
    arithmetic: Arithmetic,
    images: usize,
    communicator: &dyn Communicator,
    is_stopped: &dyn Fn() -> bool,
) -> Result<Vec<ConvMethods>> {
    let mut methods = Vec::with_capacity(shapes.len());
    for shape in shapes {
        let times = shape.time(images_to_time(shape, images), arithmetic == Arithmetic::Bf16)?;
        let stops = [f64::from(is_stopped())];
        let mut sums = Tensor::from_slice(&[times.as_flattened(), &stops].concat());
        torch_ext::collective::all_reduce(communicator, &mut sums, ReduceOp::Sum)?;
        let sums = Vec::<f64>::try_from(&sums)?;
        let (passes, stops) = sums.as_chunks();
        let ranks = communicator.world_size() as f64;
        for (pass, seconds) in PASSES.iter().zip(passes) {
            let timed = NAMES.iter().zip(seconds).filter(|(_, sum)| sum.is_finite());
            let times = timed.map(|(name, sum)| format!("{:.2} with {name}", 1e3 * sum / ranks));
            debug!("{shape}: {pass}, in ms: {}", times.collect::<Vec<_>>().join(", "));
        }
        methods.push(std::array::from_fn(|pass| ConvMethod::fastest(passes[pass])));
        if stops.iter().any(|stops| *stops > 0.0) {
            break;
        }
    }
    Ok(methods)
}
