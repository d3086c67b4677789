//! Element-wise reductions of several vectors into one, or into several copies of it.
//!
//! Elements are always combined in rank order, from rank 0 on, by the same instructions, so every rank
//! that reduces the same elements gets the same bits. bf16 is summed in f32 and rounded once, to
//! nearest, ties to even. Maximum and minimum propagate NaN, as PyTorch's do. Integer sums wrap.

use half::bf16;

use crate::{DType, ReduceOp};

/// Elements that are loaded, combined and stored at a time. With 64, and loops over arrays, the code for each
/// dtype is vectorised; with 32, or with `array::from_fn`, bf16 is four times slower.
const BLOCK: usize = 64;

/// Reduces `len` elements of each of `sources`, given in rank order, into each of `targets`.
///
/// # Safety
/// Every source is readable and every target writable for `len` elements of `dtype`, aligned for
/// it, and nobody else accesses the targets or writes to the sources meanwhile. A target is one of
/// the sources or overlaps none of them.
pub(crate) unsafe fn reduce(
    dtype: DType,
    op: ReduceOp,
    sources: &[*const u8],
    targets: &[*mut u8],
    len: usize,
) {
    let run = match dtype {
        DType::F32 => kernel_for::<f32>(op, sources.len()),
        DType::F64 => kernel_for::<f64>(op, sources.len()),
        DType::Bf16 => kernel_for::<bf16>(op, sources.len()),
        DType::I64 => kernel_for::<i64>(op, sources.len()),
    };
    // SAFETY: the caller's promise.
    unsafe { run(sources, targets, len) }
}

type Kernel = unsafe fn(&[*const u8], &[*mut u8], usize);

fn kernel_for<T: Lane>(op: ReduceOp, count: usize) -> Kernel {
    match op {
        ReduceOp::Sum => best_kernel::<T, Sum>(),
        // Multiplying is faster than dividing, and gives the same bits where the factor is exact.
        ReduceOp::Mean if count.is_power_of_two() => best_kernel::<T, MultipliedMean>(),
        ReduceOp::Mean => best_kernel::<T, DividedMean>(),
        ReduceOp::Max => best_kernel::<T, Max>(),
        ReduceOp::Min => best_kernel::<T, Min>(),
    }
}

/// The same loop, compiled for the widest vectors that this CPU has.
fn best_kernel<T: Lane, O: Join<T>>() -> Kernel {
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("avx512f")
            && std::arch::is_x86_feature_detected!("avx512bw")
            && std::arch::is_x86_feature_detected!("avx512vl")
        {
            return avx512::<T, O>;
        }
        if std::arch::is_x86_feature_detected!("avx2") {
            return avx2::<T, O>;
        }
    }
    kernel::<T, O>
}

/// # Safety
/// As [`reduce`], on a CPU with these features.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn avx512<T: Lane, O: Join<T>>(sources: &[*const u8], targets: &[*mut u8], len: usize) {
    // SAFETY: the caller's promise.
    unsafe { kernel::<T, O>(sources, targets, len) }
}

/// # Safety
/// As [`reduce`], on a CPU with these features.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn avx2<T: Lane, O: Join<T>>(sources: &[*const u8], targets: &[*mut u8], len: usize) {
    // SAFETY: the caller's promise.
    unsafe { kernel::<T, O>(sources, targets, len) }
}

/// # Safety
/// As [`reduce`].
#[inline(always)]
unsafe fn kernel<T: Lane, O: Join<T>>(sources: &[*const u8], targets: &[*mut u8], len: usize) {
    let scale = O::scale(sources.len());
    let mut i = 0;
    while i + BLOCK <= len {
        // SAFETY: elements `i..i + BLOCK` lie within `len`.
        unsafe { block::<T, O, BLOCK>(sources, targets, i, scale) };
        i += BLOCK;
    }
    while i < len {
        // SAFETY: element `i` lies within `len`.
        unsafe { block::<T, O, 1>(sources, targets, i, scale) };
        i += 1;
    }
}

/// Reduces elements `i..i + B`. All loads come before all stores, so that a target may be a source.
///
/// # Safety
/// As [`reduce`], for these elements.
#[inline(always)]
unsafe fn block<T: Lane, O: Join<T>, const B: usize>(
    sources: &[*const u8],
    targets: &[*mut u8],
    i: usize,
    scale: T::Wide,
) {
    // SAFETY: the caller's promise for the sources.
    let load = |source: *const u8| unsafe { source.cast::<T>().add(i).cast::<[T; B]>().read() };
    let first = load(sources[0]);
    let mut joined = [T::ZERO; B];
    for k in 0..B {
        joined[k] = first[k].widen();
    }
    for &source in &sources[1..] {
        let next = load(source);
        for k in 0..B {
            joined[k] = O::join(joined[k], next[k].widen());
        }
    }
    let mut out = first;
    for k in 0..B {
        out[k] = T::narrow(O::finish(joined[k], scale));
    }
    for &target in targets {
        // SAFETY: the caller's promise for the targets.
        unsafe { target.cast::<T>().add(i).cast::<[T; B]>().write(out) };
    }
}

/// An element, and the type in which it is joined.
trait Lane: Copy {
    type Wide: Copy + PartialOrd;
    const ZERO: Self::Wide;
    fn widen(self) -> Self::Wide;
    fn narrow(wide: Self::Wide) -> Self;
    fn add(a: Self::Wide, b: Self::Wide) -> Self::Wide;
    fn is_nan(wide: Self::Wide) -> bool;
    /// `count` in this type, and its reciprocal.
    fn scales(count: usize) -> (Self::Wide, Self::Wide);
    fn multiply(a: Self::Wide, b: Self::Wide) -> Self::Wide;
    fn divide(a: Self::Wide, b: Self::Wide) -> Self::Wide;
}

macro_rules! float_lane {
    ($type:ty, $wide:ty, $widen:expr, $narrow:expr) => {
        impl Lane for $type {
            type Wide = $wide;
            const ZERO: $wide = 0.0;
            #[inline(always)]
            fn widen(self) -> $wide {
                $widen(self)
            }
            #[inline(always)]
            fn narrow(wide: $wide) -> Self {
                $narrow(wide)
            }
            #[inline(always)]
            fn add(a: $wide, b: $wide) -> $wide {
                a + b
            }
            #[inline(always)]
            fn is_nan(wide: $wide) -> bool {
                wide.is_nan()
            }
            fn scales(count: usize) -> ($wide, $wide) {
                (count as $wide, 1.0 / count as $wide)
            }
            #[inline(always)]
            fn multiply(a: $wide, b: $wide) -> $wide {
                a * b
            }
            #[inline(always)]
            fn divide(a: $wide, b: $wide) -> $wide {
                a / b
            }
        }
    };
}

float_lane!(f32, f32, |x| x, |x| x);
float_lane!(f64, f64, |x| x, |x| x);
float_lane!(bf16, f32, widen_bf16, narrow_bf16);

#[inline(always)]
fn widen_bf16(value: bf16) -> f32 {
    f32::from_bits(u32::from(value.to_bits()) << 16)
}

/// As `bf16::from_f32`, without a branch, so that it becomes vector code.
#[inline(always)]
fn narrow_bf16(value: f32) -> bf16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    let quiet_nan = bits >> 16 | 0x40;
    bf16::from_bits((if value.is_nan() { quiet_nan } else { rounded }) as u16)
}

impl Lane for i64 {
    type Wide = i64;
    const ZERO: i64 = 0;
    #[inline(always)]
    fn widen(self) -> i64 {
        self
    }
    #[inline(always)]
    fn narrow(wide: i64) -> Self {
        wide
    }
    #[inline(always)]
    fn add(a: i64, b: i64) -> i64 {
        a.wrapping_add(b)
    }
    #[inline(always)]
    fn is_nan(_: i64) -> bool {
        false
    }
    /// Never asked for, as the next two: `check_request` refuses means of integers.
    fn scales(_: usize) -> (i64, i64) {
        (1, 1)
    }
    #[inline(always)]
    fn multiply(a: i64, b: i64) -> i64 {
        a.wrapping_mul(b)
    }
    #[inline(always)]
    fn divide(a: i64, b: i64) -> i64 {
        a.wrapping_div(b)
    }
}

/// How elements become one.
trait Join<T: Lane> {
    fn join(a: T::Wide, b: T::Wide) -> T::Wide;
    /// What [`Self::finish`] gets, from the number of sources.
    fn scale(_: usize) -> T::Wide {
        T::ZERO
    }
    #[inline(always)]
    fn finish(joined: T::Wide, _: T::Wide) -> T::Wide {
        joined
    }
}

struct Sum;
struct MultipliedMean;
struct DividedMean;
struct Max;
struct Min;

impl<T: Lane> Join<T> for Sum {
    #[inline(always)]
    fn join(a: T::Wide, b: T::Wide) -> T::Wide {
        T::add(a, b)
    }
}

impl<T: Lane> Join<T> for MultipliedMean {
    #[inline(always)]
    fn join(a: T::Wide, b: T::Wide) -> T::Wide {
        T::add(a, b)
    }
    fn scale(count: usize) -> T::Wide {
        T::scales(count).1
    }
    #[inline(always)]
    fn finish(joined: T::Wide, scale: T::Wide) -> T::Wide {
        T::multiply(joined, scale)
    }
}

impl<T: Lane> Join<T> for DividedMean {
    #[inline(always)]
    fn join(a: T::Wide, b: T::Wide) -> T::Wide {
        T::add(a, b)
    }
    fn scale(count: usize) -> T::Wide {
        T::scales(count).0
    }
    #[inline(always)]
    fn finish(joined: T::Wide, scale: T::Wide) -> T::Wide {
        T::divide(joined, scale)
    }
}

impl<T: Lane> Join<T> for Max {
    #[inline(always)]
    fn join(a: T::Wide, b: T::Wide) -> T::Wide {
        if a > b || T::is_nan(a) { a } else { b }
    }
}

impl<T: Lane> Join<T> for Min {
    #[inline(always)]
    fn join(a: T::Wide, b: T::Wide) -> T::Wide {
        if a < b || T::is_nan(a) { a } else { b }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Element;

    fn reduced<T: Element>(op: ReduceOp, sources: &[Vec<T>]) -> Vec<T> {
        let mut out = sources[0].clone();
        let pointers: Vec<_> = sources.iter().map(|source| source.as_ptr().cast()).collect();
        // SAFETY: all vectors have the same length, and `out` is none of the sources.
        unsafe { reduce(T::DTYPE, op, &pointers, &[out.as_mut_ptr().cast()], out.len()) };
        out
    }

    #[test]
    fn the_fast_rounding_is_the_correct_one() {
        for high in 0..=u16::MAX {
            for low in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let value = f32::from_bits(u32::from(high) << 16 | low);
                let (fast, right) = (narrow_bf16(value), bf16::from_f32(value));
                assert_eq!(fast.to_bits(), right.to_bits(), "{value:e}");
            }
        }
    }

    #[test]
    fn bf16_is_summed_in_f32_and_rounded_once() {
        // 256 + 1 is not a bf16: rounding after each sum would lose both ones.
        let sources = [256.0, 1.0, 1.0].map(|x| vec![bf16::from_f32(x); 80]);
        assert_eq!(reduced(ReduceOp::Sum, &sources), vec![bf16::from_f32(258.0); 80]);
    }

    #[test]
    fn nan_wins_over_every_number() {
        for sources in [[1.0, f32::NAN, 2.0], [f32::NAN, 1.0, 2.0], [1.0, 2.0, f32::NAN]] {
            let sources = sources.map(|x| vec![x; 90]);
            for op in [ReduceOp::Max, ReduceOp::Min, ReduceOp::Sum, ReduceOp::Mean] {
                assert!(reduced(op, &sources).iter().all(|x| x.is_nan()), "{op:?}");
            }
        }
    }

    #[test]
    fn integer_extremes_hold_and_sums_wrap() {
        let sources = [vec![i64::MAX; 70], vec![1; 70]];
        assert_eq!(reduced(ReduceOp::Max, &sources), vec![i64::MAX; 70]);
        assert_eq!(reduced(ReduceOp::Min, &sources), vec![1; 70]);
        assert_eq!(reduced(ReduceOp::Sum, &sources), vec![i64::MIN; 70]);
    }

    #[test]
    fn a_mean_of_three_is_divided_not_multiplied() {
        let sources = [1.0_f32, 2.0, 4.0].map(|x| vec![x; 70]);
        let divided = 7.0_f32 / 3.0;
        assert_ne!(divided, 7.0 * (1.0 / 3.0), "they round alike");
        assert_eq!(reduced(ReduceOp::Mean, &sources), vec![divided; 70]);
    }

    #[test]
    fn a_target_may_be_a_source() {
        let mut first: Vec<f64> = (0..100).map(f64::from).collect();
        let second = first.clone();
        let target: *mut u8 = first.as_mut_ptr().cast();
        let sources = [target.cast_const(), second.as_ptr().cast()];
        // SAFETY: both vectors have 100 elements, and the target is the first source.
        unsafe { reduce(DType::F64, ReduceOp::Sum, &sources, &[target], 100) };
        assert!(first.iter().zip(&second).all(|(sum, x)| *sum == 2.0 * x));
    }
}
