// Convolution on the CPU by Winograd's minimal filtering, in fp32.

#pragma once

#include <ATen/core/Tensor.h>

namespace winograd {

struct Algorithm;

// The algorithm for a convolution of `input` [N, C, H, W] with `weight` [C', C, K, L]; null where there is none,
// or none that multiplies less, or not on this processor.
const Algorithm* algorithm(at::IntArrayRef input, at::IntArrayRef weight, int64_t stride, int64_t padding);

// All tensors are fp32 and channels-last, and the convolution is one that the algorithm was given for.

// A kernel [C', C, 3, 3] as both passes multiply by it: [points, C', C].
at::Tensor kernel_to_points(const Algorithm& algorithm, const at::Tensor& weight);

// `points`: what kernel_to_points has made.
at::Tensor forward(const Algorithm& algorithm, const at::Tensor& input, const at::Tensor& points, int64_t padding);

// Fills `of_input` and `of_weight` with their gradients; what is not defined is not wanted. `points` are needed for
// the former.
void backward(const Algorithm& algorithm, const at::Tensor& grad, const at::Tensor& input, const at::Tensor& points,
              int64_t padding, const at::Tensor& of_input, const at::Tensor& of_weight);

}  // namespace winograd
