// Convolution on the CPU by Winograd's minimal filtering, in fp32.

#pragma once

#include <ATen/core/Tensor.h>

namespace winograd {

struct Algorithm;

// Returns the algorithm for a convolution of `input` [N, C, H, W] with `weight` [C', C, K, L]; null if there
// is none for this shape or this processor, or none that needs fewer multiplications.
const Algorithm* algorithm(at::IntArrayRef input, at::IntArrayRef weight, int64_t stride, int64_t padding);

// In the functions below all tensors are fp32 and channels-last, and `algorithm` was returned for this
// convolution.

// Transforms a kernel [C', C, 3, 3] to [points, C', C], the form in which forward and backward multiply by
// it.
at::Tensor kernel_to_points(const Algorithm& algorithm, const at::Tensor& weight);

// `points`: the kernel as transformed by kernel_to_points.
at::Tensor forward(const Algorithm& algorithm, const at::Tensor& input, const at::Tensor& points, int64_t padding);

// Fills `of_input` and `of_weight` with the gradients of input and weight; an undefined tensor is skipped.
// `points` is needed for `of_input` only.
void backward(const Algorithm& algorithm, const at::Tensor& grad, const at::Tensor& input, const at::Tensor& points,
              int64_t padding, const at::Tensor& of_input, const at::Tensor& of_weight);

}  // namespace winograd
