// Convolution on the CPU by Winograd's minimal filtering, in fp32.

#pragma once

#include <ATen/core/Tensor.h>

namespace winograd {

struct Algorithm;

// The algorithm for a convolution of `input` [N, C, H, W] with `weight` [C', C, K, L]; null where there is none,
// or none that multiplies less, or not on this processor.
const Algorithm* algorithm(at::IntArrayRef input, at::IntArrayRef weight, int64_t stride, int64_t padding);

// All tensors are fp32 and channels-last, and the convolution is one that the algorithm was given for.
at::Tensor forward(const Algorithm& algorithm, const at::Tensor& input, const at::Tensor& weight,
                   int64_t padding);
at::Tensor grad_of_input(const Algorithm& algorithm, const at::Tensor& grad, at::IntArrayRef input,
                         const at::Tensor& weight, int64_t padding);
at::Tensor grad_of_weight(const Algorithm& algorithm, const at::Tensor& grad, const at::Tensor& input,
                          int64_t padding);

}  // namespace winograd
