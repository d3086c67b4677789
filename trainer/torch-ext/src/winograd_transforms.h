// Winograd's minimal filtering: a convolution with a 3x3 kernel by fewer multiplications (Lavin and Gray, "Fast
// Algorithms for Convolutional Neural Networks", 2016).
//
// A tile d of the input and a kernel g are transformed to points, multiplied point by point, summed over
// channels, and transformed to a tile of the output: A^T [(G g G^T) * (B^T d B)] A. Gradients go the same way
// back, through the transposed matrices.

#pragma once

#include <cstdint>

namespace winograd {

// Multiplies a square of vectors of `channels` numbers, `from`, by a matrix on both sides, into the square `to`.
// `channels` is a multiple of Algorithms::lanes. Both list their vectors row by row.
using Transform = void (*)(const float* const* from, float* const* to, int64_t channels);

constexpr int64_t kMaxPoints = 36;
constexpr int64_t kKernel = 3;

struct Algorithm {
    int64_t input;     // side of a tile of the input,
    int64_t output;    // of the output,
    int64_t points;    // and of the square in which they are multiplied.
    int64_t padding;   // the part of a convolution's padding that a tile of the input holds

    Transform input_to_points, kernel_to_points, points_to_output;
    // Their adjoints; add_points_to_input is for tiles of the input that overlap.
    Transform points_to_input, add_points_to_input, points_to_kernel, output_to_points;
};

struct Algorithms {
    int64_t lanes;  // numbers of a vector register

    // F(4x4, 3x3): 36 products for 16 pixels instead of 144.
    Algorithm tiles;

    // A map of 2x2 pixels with padding 1: 9 products instead of the 16 that are not with padding.
    Algorithm small_map;
};

// For AVX2, or any processor that is not x86-64; and for AVX-512, on x86-64 only.
extern const Algorithms k8Lanes, k16Lanes;

}  // namespace winograd
