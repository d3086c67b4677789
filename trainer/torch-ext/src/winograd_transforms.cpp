// Compiled once per register width, for WINOGRAD_LANES f32 per register (on x86-64 for AVX2 and for AVX-512).
// It includes no header that other files might share: the linker could keep an inline function of it that is
// compiled for AVX-512.

#include "winograd_transforms.h"

namespace winograd {
namespace {

constexpr int64_t kLanes = WINOGRAD_LANES;

using Lanes = float __attribute__((vector_size(kLanes * sizeof(float))));
using UnalignedLanes =
    float __attribute__((vector_size(kLanes * sizeof(float)), aligned(alignof(float)), may_alias));

template <int kRows, int kColumns>
struct Matrix {
    static constexpr int rows = kRows, columns = kColumns;
    float at[kRows][kColumns];

    constexpr Matrix<kColumns, kRows> transposed() const {
        Matrix<kColumns, kRows> result{};
        for (int row = 0; row < kRows; row++) {
            for (int column = 0; column < kColumns; column++) result.at[column][row] = at[row][column];
        }
        return result;
    }
};

// Multiplies row `row` of kMatrix by a column of vectors.
template <const auto& kMatrix>
inline Lanes row_times(int row, const Lanes* vectors) {
    Lanes sum = {};
#pragma GCC unroll 8
    for (int i = 0; i < kMatrix.columns; i++) {
        const float factor = kMatrix.at[row][i];
        if (factor != 0.0f) sum += factor * vectors[i];
    }
    return sum;
}

// Computes kMatrix X kMatrix^T, where X is `from`, into `to`; with kAdd the result is added to `to`.
template <const auto& kMatrix, bool kAdd = false>
void transform(const float* const* from, float* const* to, int64_t channels) {
    constexpr int rows = kMatrix.rows, columns = kMatrix.columns;
    for (int64_t channel = 0; channel < channels; channel += kLanes) {
        Lanes product[rows][columns];
#pragma GCC unroll 8
        for (int column = 0; column < columns; column++) {
            Lanes vectors[columns];
#pragma GCC unroll 8
            for (int i = 0; i < columns; i++) {
                const float* vector = from[i * columns + column] + channel;
                vectors[i] = *reinterpret_cast<const UnalignedLanes*>(vector);
            }
#pragma GCC unroll 8
            for (int row = 0; row < rows; row++) product[row][column] = row_times<kMatrix>(row, vectors);
        }
#pragma GCC unroll 8
        for (int row = 0; row < rows; row++) {
#pragma GCC unroll 8
            for (int column = 0; column < rows; column++) {
                const Lanes sum = row_times<kMatrix>(column, product[row]);
                auto* out = reinterpret_cast<UnalignedLanes*>(to[row * rows + column] + channel);
                *out = kAdd ? *out + sum : sum;
            }
        }
    }
}

// The matrices of Lavin and Gray for F(4x4, 3x3).
constexpr Matrix<6, 6> kTilesBt{{{4, 0, -5, 0, 1, 0},
                                 {0, -4, -4, 1, 1, 0},
                                 {0, 4, -4, -1, 1, 0},
                                 {0, -2, -1, 2, 1, 0},
                                 {0, 2, -1, -2, 1, 0},
                                 {0, 4, 0, -5, 0, 1}}};
constexpr Matrix<6, 3> kTilesG{{{1 / 4.0f, 0, 0},
                                {-1 / 6.0f, -1 / 6.0f, -1 / 6.0f},
                                {-1 / 6.0f, 1 / 6.0f, -1 / 6.0f},
                                {1 / 24.0f, 1 / 12.0f, 1 / 6.0f},
                                {1 / 24.0f, -1 / 12.0f, 1 / 6.0f},
                                {0, 0, 1}}};
constexpr Matrix<4, 6> kTilesAt{{{1, 1, 1, 1, 1, 0},
                                 {0, 1, -1, 2, -2, 0},
                                 {0, 1, 1, 4, 4, 0},
                                 {0, 1, -1, 8, -8, 1}}};

// The matrices for a 2x2 map with padding 1. In one dimension y0 = g1 x0 + g2 x1 and y1 = g0 x0 + g1 x1, that
// is y0 = g1 (x0 + x1) + (g2 - g1) x1 and y1 = g1 (x0 + x1) + (g0 - g1) x0.
constexpr Matrix<3, 2> kSmallMapBt{{{1, 1}, {0, 1}, {1, 0}}};
constexpr Matrix<3, 3> kSmallMapG{{{0, 1, 0}, {0, -1, 1}, {1, -1, 0}}};
constexpr Matrix<2, 3> kSmallMapAt{{{1, 1, 0}, {1, 0, 1}}};

constexpr auto kTilesB = kTilesBt.transposed();
constexpr auto kTilesGt = kTilesG.transposed();
constexpr auto kTilesA = kTilesAt.transposed();
constexpr auto kSmallMapB = kSmallMapBt.transposed();
constexpr auto kSmallMapGt = kSmallMapG.transposed();
constexpr auto kSmallMapA = kSmallMapAt.transposed();

}  // namespace

#if WINOGRAD_LANES == 16
const Algorithms k16Lanes{
#else
const Algorithms k8Lanes{
#endif
    kLanes,
    /*tiles=*/
    {/*input=*/6, /*output=*/4, /*points=*/6, /*padding=*/0,
     transform<kTilesBt>, transform<kTilesG>, transform<kTilesAt>,
     transform<kTilesB>, transform<kTilesB, true>, transform<kTilesGt>, transform<kTilesA>},
    /*small_map=*/
    {/*input=*/2, /*output=*/2, /*points=*/3, /*padding=*/1,
     transform<kSmallMapBt>, transform<kSmallMapG>, transform<kSmallMapAt>,
     transform<kSmallMapB>, transform<kSmallMapB, true>, transform<kSmallMapGt>, transform<kSmallMapA>}};

}  // namespace winograd
