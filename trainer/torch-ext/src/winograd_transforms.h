// Winograd's minimal filtering: convolution with a 3x3 kernel in fewer multiplications (Lavin and Gray, "Fast
// Algorithms for Convolutional Neural Networks", 2016).
//
// A tile d of the input and a kernel g are transformed to points, multiplied point by point, summed over
// channels, and transformed to a tile of the output: A^T [(G g G^T) * (B^T d B)] A. Gradients are propagated
// through the transposed matrices in reverse order.

#pragma once

#include <cstdint>

namespace winograd {

// Multiplies a square of vectors, `from`, by a matrix on both sides, into the square `to`. Each vector has
// `channels` numbers, a multiple of Algorithms::lanes. Both squares list their vectors row by row.
using Transform = void (*)(const float* const* from, float* const* to, int64_t channels);

constexpr int64_t kMaxPoints = 36;
constexpr int64_t kKernel = 3;

struct Algorithm {
    int64_t input;     // side of a tile of the input
    int64_t output;    // side of a tile of the output
    int64_t points;    // side of the square of points in which tiles are multiplied
    int64_t padding;   // part of the convolution's padding that is implicit in the transforms

    Transform input_to_points, kernel_to_points, points_to_output;
    // The adjoint transforms. add_points_to_input adds to its destination, for input tiles that overlap.
    Transform points_to_input, add_points_to_input, points_to_kernel, output_to_points;
};

struct Algorithms {
    int64_t lanes;  // f32 per vector register

    // F(4x4, 3x3): 36 products for 16 pixels instead of 144.
    Algorithm tiles;

    // A map of 2x2 pixels with padding 1: 9 products instead of 16 (those with padding not counted).
    Algorithm small_map;
};

// k8Lanes: for AVX2, or for any processor that is not x86-64. k16Lanes: for AVX-512, on x86-64 only.
extern const Algorithms k8Lanes, k16Lanes;

}  // namespace winograd
