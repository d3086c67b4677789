use tch::{Kind, Tensor};

use super::*;
use crate::{AutocastDtype, autocast};

/// Input `[N, C, H, W]`, weight `[C', C, K, L]`, stride, padding.
const CASES: [([i64; 4], [i64; 4], i64, i64); 17] = [
    ([3, 8, 4, 4], [16, 8, 3, 3], 1, 1),
    ([3, 8, 5, 7], [4, 8, 3, 3], 2, 1),
    ([2, 3, 9, 9], [5, 3, 7, 7], 2, 3),
    ([2, 8, 4, 4], [4, 8, 1, 1], 1, 0),
    ([2, 8, 5, 5], [4, 8, 1, 1], 2, 0),
    ([2, 8, 2, 2], [4, 8, 2, 2], 2, 0),
    ([2, 8, 6, 5], [4, 8, 2, 3], 2, 0),
    ([2, 8, 1, 1], [4, 8, 3, 3], 1, 1),
    // For Winograd's filtering: whole tiles, parts of tiles, other paddings, more tiles than are processed at
    // once, 2x2 maps.
    ([3, 16, 8, 8], [24, 16, 3, 3], 1, 1),
    ([3, 8, 7, 10], [8, 8, 3, 3], 1, 1),
    ([2, 8, 7, 9], [8, 8, 3, 3], 1, 0),
    ([5, 8, 41, 37], [8, 8, 3, 3], 1, 2),
    ([5, 16, 2, 2], [24, 16, 3, 3], 1, 1),
    // For Winograd's filtering in registers of sixteen lanes, where available: the same cases, and one tile
    // per image.
    ([3, 32, 8, 8], [16, 32, 3, 3], 1, 1),
    ([5, 16, 41, 37], [16, 16, 3, 3], 1, 2),
    ([5, 16, 2, 2], [32, 16, 3, 3], 1, 1),
    ([5, 16, 4, 4], [32, 16, 3, 3], 1, 1),
];

/// Pseudo-random numbers between -1 and 1. Not libtorch's generator: tests of one process share it.
fn numbers(size: &[i64], phase: f64) -> Tensor {
    let len = size.iter().product::<i64>();
    let angles = Tensor::arange(len, (Kind::Double, Device::Cpu)) * 12.9898 + phase;
    (angles.sin() * 43758.5453).frac().to_kind(Kind::Float).view(size)
}

#[test]
fn each_number_of_an_output_is_a_sum_over_the_kernel() {
    for (input, weight, stride, padding) in CASES {
        let [images, outputs] = [input[0], weight[0]];
        let output = Tensor::zeros(input, (Kind::Float, Device::Cpu)).conv2d(
            &Tensor::zeros(weight, (Kind::Float, Device::Cpu)),
            None::<Tensor>,
            [stride; 2],
            [padding; 2],
            [1; 2],
            1,
        );
        let kernel = weight.iter().product::<i64>() / outputs;
        let shape = ConvShape { input: [input[1], input[2], input[3]], weight, stride, padding };
        assert_eq!(shape.multiply_adds(), output.numel() as i64 / images * kernel, "{shape}");
    }
}

/// Copies a kernel to the memory layout that kernels have during training: same values, channels last.
fn channels_last(kernel: &Tensor) -> Tensor {
    kernel.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])
}

/// Returns the output, the gradient of the input and the gradient of the weight.
fn passes(
    input: &Tensor,
    weight: &Tensor,
    output: impl FnOnce(&Tensor, &Tensor) -> Tensor,
) -> [Tensor; 3] {
    let input = input.detach().copy().set_requires_grad(true);
    let weight = weight.detach().copy().set_requires_grad(true);
    let output = output(&input, &weight);
    // A gradient that differs from element to element.
    let grad = numbers(&output.size(), 2.0);
    (&output * grad).sum(Kind::Float).backward();
    [output.detach(), input.grad(), weight.grad()]
}

fn relative_error(found: &Tensor, wanted: &Tensor) -> f64 {
    let difference = (found.to_kind(Kind::Float) - wanted).norm().double_value(&[]);
    difference / wanted.norm().double_value(&[])
}

fn largest_error(methods: ConvMethods, bf16: bool) -> f64 {
    tch::set_num_threads(1); // so that CASES has more tiles than one thread processes at once
    let mut largest: f64 = 0.0;
    for (input, weight, stride, padding) in CASES {
        let [channels, height, width] = [input[1], input[2], input[3]];
        let shape = ConvShape { input: [channels, height, width], weight, stride, padding };
        let table = Rc::new(ConvTable::default());
        table.set(shape, methods);
        let (input, weight) = (numbers(&input, 0.0), numbers(&weight, 1.0));
        let convolve = |x: &Tensor, w: &Tensor| {
            let run = || table.with_table(|| conv2d(x, w, None, stride, padding, 1).unwrap());
            if bf16 { autocast(Device::Cpu, AutocastDtype::Bf16, run).unwrap() } else { run() }
        };
        let found = passes(&input, &weight, convolve);
        assert!(table.take_unresolved().is_empty(), "{shape:?} is another shape");
        let wanted =
            passes(&input, &weight, |x, w| conv2d(x, w, None, stride, padding, 1).unwrap());
        for (found, wanted) in found.iter().zip(&wanted) {
            assert_eq!(found.size(), wanted.size());
            let error = relative_error(found, wanted);
            assert!(error.is_finite(), "{shape}: {error}");
            largest = largest.max(error);
        }
    }
    largest
}

#[test]
fn matrix_products_give_what_the_library_gives() {
    let error = largest_error([ConvMethod::Matmul; 3], false);
    assert!(error < 5e-6, "{error}");
}

#[test]
fn winograd_filtering_gives_what_the_library_gives() {
    let error = largest_error([ConvMethod::Winograd; 3], false);
    assert!(error < 1e-5, "{error}");
    #[cfg(target_arch = "x86_64")]
    let runs_here = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    #[cfg(not(target_arch = "x86_64"))]
    let runs_here = true;
    // Winograd's roundings differ from the library's, so an error of zero would mean that the library was
    // used.
    assert_eq!(error > 0.0, runs_here);
}

#[test]
fn winograd_filtering_is_for_fp32_only() {
    let library = largest_error([ConvMethod::Library; 3], true);
    assert_eq!(largest_error([ConvMethod::Winograd; 3], true), library);
}

#[test]
fn in_bf16_both_round_alike() {
    let library = largest_error([ConvMethod::Library; 3], true);
    let matmul = largest_error([ConvMethod::Matmul; 3], true);
    assert!(matmul < 1.1 * library && library < 0.02, "{matmul} {library}");
}

#[test]
fn each_pass_has_its_own_method() {
    for chosen in 1..8 {
        for (method, tolerance) in [(ConvMethod::Matmul, 5e-6), (ConvMethod::Winograd, 1e-5)] {
            let has = |pass: usize| chosen >> pass & 1 == 1;
            let methods =
                std::array::from_fn(|pass| if has(pass) { method } else { ConvMethod::Library });
            let error = largest_error(methods, false);
            assert!(error < tolerance, "{error}");
        }
    }
}

#[test]
fn the_gradient_of_the_weight_is_made_in_its_place() {
    tch::set_num_threads(1);
    for (methods, bf16) in ConvMethod::ALL
        .map(|method| ([method; 3], false))
        .into_iter()
        .chain([([ConvMethod::Matmul; 3], true), ([ConvMethod::Library; 3], true)])
    {
        for (input, weight, stride, padding) in CASES {
            let input_size = [input[1], input[2], input[3]];
            let shape = ConvShape { input: input_size, weight, stride, padding };
            let table = Rc::new(ConvTable::default());
            table.set(shape, methods);
            let (input, weight) = (numbers(&input, 0.0), channels_last(&numbers(&weight, 1.0)));
            let grads = |place: Option<&Tensor>| {
                let input = input.detach().set_requires_grad(true);
                let weight = weight.detach().set_requires_grad(true);
                let run = || {
                    table.with_table(|| conv2d(&input, &weight, place, stride, padding, 1).unwrap())
                };
                let output = if bf16 {
                    autocast(Device::Cpu, AutocastDtype::Bf16, run).unwrap()
                } else {
                    run()
                };
                output.square().sum(Kind::Float).backward();
                [input.grad(), weight.grad()]
            };
            let place = weight.full_like(f64::NAN);
            let in_place = grads(Some(&place));
            assert_eq!(in_place[1].data_ptr(), place.data_ptr(), "{shape}: a copy was made");
            assert_eq!(in_place, grads(None), "{shape}");
        }
    }
}

#[test]
fn a_place_that_does_not_fit_is_an_error() {
    let table = Rc::new(ConvTable::default());
    let (input, weight) = (numbers(&[1, 2, 4, 4], 0.0), numbers(&[3, 2, 3, 3], 1.0));
    let error = |place: &Tensor| {
        let output = table.with_table(|| conv2d(&input, &weight, Some(place), 1, 1, 1));
        output.unwrap_err().to_string()
    };
    for place in [numbers(&[3, 2, 3, 3], 1.0), numbers(&[2, 3, 3, 3], 1.0)] {
        let error = error(&place);
        assert!(error.contains("does not match a weight of [3, 2, 3, 3]"), "{error}");
    }
    crate::set_grad(&weight, &weight.zeros_like()).unwrap();
    let error = error(&weight.zeros_like());
    assert!(error.contains("already has a gradient"), "{error}");
}

#[test]
fn a_rank_without_images_has_gradients_of_zero() {
    let shape = ConvShape { input: [8, 8, 8], weight: [16, 8, 3, 3], stride: 1, padding: 1 };
    for method in ConvMethod::ALL {
        let table = Rc::new(ConvTable::default());
        table.set(shape, [method; 3]);
        let (input, weight) = (numbers(&[0, 8, 8, 8], 0.0), numbers(&shape.weight, 1.0));
        let weight = channels_last(&weight);
        // The gradient place as a previous step may have left it.
        let place = weight.full_like(f64::NAN);
        let convolve = |x: &Tensor, w: &Tensor| {
            table.with_table(|| conv2d(x, w, Some(&place), 1, 1, 1).unwrap())
        };
        let [output, of_input, of_weight] = passes(&input, &weight, convolve);
        assert_eq!(of_weight.data_ptr(), place.data_ptr());
        assert_eq!((output.size(), of_input.size()), (vec![0, 16, 8, 8], input.size()));
        assert_eq!(of_weight.size(), weight.size());
        assert_eq!(of_weight.abs().max().double_value(&[]), 0.0, "{method:?}");
    }
}

#[test]
fn a_table_notes_what_it_does_not_know_once() {
    let table = Rc::new(ConvTable::default());
    let (input, weight) = (numbers(&[1, 2, 4, 4], 0.0), numbers(&[3, 2, 3, 3], 1.0));
    table.with_table(|| {
        for _ in 0..2 {
            let _ = conv2d(&input, &weight, None, 1, 1, 1).unwrap();
        }
    });
    let shape = ConvShape { input: [2, 4, 4], weight: [3, 2, 3, 3], stride: 1, padding: 1 };
    assert_eq!(table.take_unresolved(), [shape]);
    assert_eq!(table.take_unresolved(), []);
}

#[test]
fn shapes_that_do_not_fit_are_an_error() {
    let table = Rc::new(ConvTable::default());
    let (input, weight) = (numbers(&[1, 2, 4, 4], 0.0), numbers(&[3, 5, 3, 3], 1.0));
    assert!(table.with_table(|| conv2d(&input, &weight, None, 1, 1, 1)).is_err());
    assert!(conv2d(&input, &weight, None, 1, 1, 1).is_err());
}

#[test]
fn every_pass_is_timed_by_each_method_that_is_one_for_it() {
    let shape = ConvShape { input: [8, 4, 4], weight: [8, 8, 3, 3], stride: 1, padding: 1 };
    let strided = ConvShape { stride: 2, ..shape };
    for (shape, bf16, winograd) in
        [(shape, false, true), (shape, true, false), (strided, false, false)]
    {
        for [library, matmul, by_winograd] in shape.time(4, bf16).unwrap() {
            assert!(library > 0.0 && matmul > 0.0 && library.max(matmul).is_finite());
            assert!(by_winograd > 0.0 && (winograd || by_winograd.is_infinite()), "{by_winograd}");
        }
    }
}

#[test]
fn the_fastest_method_takes_least() {
    assert_eq!(ConvMethod::fastest([2.0, 1.0, f64::INFINITY]), ConvMethod::Matmul);
    assert_eq!(ConvMethod::fastest([2.0, 3.0, 1.0]), ConvMethod::Winograd);
    assert_eq!(ConvMethod::fastest([1.0, 1.0, 1.0]), ConvMethod::Library);
}
