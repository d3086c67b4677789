#include "winograd.h"

#include "winograd_transforms.h"

#include <ATen/Functions.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <array>
#include <vector>

namespace winograd {
namespace {

using at::Tensor;

// Number of tiles per thread that are transformed and multiplied at once: enough for the matrix product to be
// fast, and few enough for its matrices to stay in the cache.
constexpr int64_t kTilesAtOnce = 256;

constexpr int64_t kTaps = kKernel * kKernel;

// Returns the algorithms for these numbers of channels in the widest registers of this processor; null if
// there are none.
const Algorithms* algorithms(int64_t inputs, int64_t outputs) {
    const auto fit = [&](const Algorithms& some) { return inputs % some.lanes == 0 && outputs % some.lanes == 0; };
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && fit(k16Lanes)) return &k16Lanes;
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return nullptr;
#endif
    return fit(k8Lanes) ? &k8Lanes : nullptr;
}

// Channels-last images, divided into a grid of tiles.
template <typename T>
struct Tiles {
    T* images;
    int64_t height, width, channels;
    int64_t side;      // side of a tile
    int64_t distance;  // distance between the origins of neighbouring tiles
    int64_t before;    // rows and columns of the first tile that lie outside the image

    // Calls body(tile index, pointers to the tile's pixels, row by row) for each of the rows x columns tiles
    // of each image. Outside the image a tile reads zeros, and writes have no effect.
    template <typename F>
    void for_each(int64_t count, int64_t rows, int64_t columns, F&& body) const {
        at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
            std::vector<float> outside(channels);
            std::array<T*, kMaxPoints> pixels;
            for (int64_t tile = begin * rows * columns; tile < end * rows * columns; tile++) {
                const int64_t top = tile / columns % rows * distance - before;
                const int64_t left = tile % columns * distance - before;
                T* image = images + tile / (rows * columns) * height * width * channels;
                for (int64_t i = 0; i < side * side; i++) {
                    const int64_t row = top + i / side, column = left + i % side;
                    const bool inside = row >= 0 && row < height && column >= 0 && column < width;
                    pixels[i] = inside ? image + (row * width + column) * channels : outside.data();
                }
                body(tile, pixels.data());
            }
        });
    }
};

// Returns pointers to `count` vectors that lie `step` numbers apart.
template <typename T>
std::array<T*, kMaxPoints> vectors_at(T* first, int64_t count, int64_t step) {
    std::array<T*, kMaxPoints> vectors;
    for (int64_t i = 0; i < count; i++) vectors[i] = first + i * step;
    return vectors;
}

template <typename F>
void for_each_kernel(int64_t kernels, F&& body) {
    at::parallel_for(0, kernels, 1, [&](int64_t begin, int64_t end) {
        for (int64_t kernel = begin; kernel < end; kernel++) body(kernel);
    });
}

// The grid of tiles of one convolution, and the operations on a part of its images.
struct Grid {
    const Algorithm& algorithm;
    int64_t height, width, padding;
    int64_t out_height, out_width;
    int64_t rows, columns;

    Grid(const Algorithm& algorithm, at::IntArrayRef input, int64_t padding)
        : algorithm(algorithm), height(input[2]), width(input[3]), padding(padding),
          out_height(height + 2 * padding - kKernel + 1), out_width(width + 2 * padding - kKernel + 1),
          rows((out_height + algorithm.output - 1) / algorithm.output),
          columns((out_width + algorithm.output - 1) / algorithm.output) {}

    int64_t points() const { return algorithm.points * algorithm.points; }

    bool is_one_tile() const { return rows == 1 && columns == 1; }

    // Calls body(first, count) for consecutive ranges of images, one after the other.
    template <typename F>
    void for_each_part(int64_t images, F&& body) const {
        const int64_t tiles = kTilesAtOnce * at::get_num_threads();
        const int64_t most = std::max<int64_t>(1, tiles / (rows * columns));
        for (int64_t first = 0; first < images; first += most) {
            body(first, std::min(most, images - first));
        }
    }

    template <typename T>
    Tiles<T> input_tiles(T* images, int64_t channels) const {
        return {images, height, width, channels, algorithm.input, algorithm.output, padding - algorithm.padding};
    }

    template <typename T>
    Tiles<T> output_tiles(T* images, int64_t channels) const {
        return {images, out_height, out_width, channels, algorithm.output, algorithm.output, 0};
    }

    // Transforms tiles to points; returns [points, tiles, channels].
    Tensor to_points(Transform transform, const Tiles<const float>& tiles, int64_t count,
                     const at::TensorOptions& options) const {
        const int64_t in_all = count * rows * columns;
        Tensor result = at::empty({points(), in_all, tiles.channels}, options);
        auto* data = result.data_ptr<float>();
        tiles.for_each(count, rows, columns, [&](int64_t tile, const float* const* pixels) {
            const auto to = vectors_at(data + tile * tiles.channels, points(), in_all * tiles.channels);
            transform(pixels, to.data(), tiles.channels);
        });
        return result;
    }

    void from_points(Transform transform, const Tensor& products, const Tiles<float>& tiles,
                     int64_t count) const {
        const auto* data = products.const_data_ptr<float>();
        const int64_t step = products.stride(0);
        tiles.for_each(count, rows, columns, [&](int64_t tile, float* const* pixels) {
            const auto from = vectors_at(data + tile * tiles.channels, points(), step);
            transform(from.data(), pixels, tiles.channels);
        });
    }

    Tensor input_to_points(const Tensor& input) const {
        const auto tiles = input_tiles(input.const_data_ptr<float>(), input.size(1));
        return to_points(algorithm.input_to_points, tiles, input.size(0), input.options());
    }

    Tensor grad_to_points(const Tensor& grad) const {
        const auto tiles = output_tiles(grad.const_data_ptr<float>(), grad.size(1));
        return to_points(algorithm.output_to_points, tiles, grad.size(0), grad.options());
    }
};

void points_to_kernel(const Algorithm& algorithm, const Tensor& points, const Tensor& weight) {
    const int64_t kernels = points.size(1), channels = points.size(2);
    const auto* from = points.const_data_ptr<float>();
    auto* to = weight.data_ptr<float>();
    for_each_kernel(kernels, [&](int64_t kernel) {
        const auto at_points = vectors_at(from + kernel * channels, points.size(0), kernels * channels);
        const auto taps = vectors_at(to + kernel * kTaps * channels, kTaps, channels);
        algorithm.points_to_kernel(at_points.data(), taps.data(), channels);
    });
}

}  // namespace

const Algorithm* algorithm(at::IntArrayRef input, at::IntArrayRef weight, int64_t stride, int64_t padding) {
    if (weight[2] != kKernel || weight[3] != kKernel || stride != 1) return nullptr;
    const auto* available = algorithms(weight[1], weight[0]);
    if (available == nullptr) return nullptr;
    if (input[2] == 2 && input[3] == 2 && padding == 1) return &available->small_map;
    const Grid grid(available->tiles, input, padding);
    const int64_t products = grid.rows * grid.columns * grid.points();
    const int64_t direct = grid.out_height * grid.out_width * kTaps;
    return grid.out_height > 0 && grid.out_width > 0 && products < direct ? &available->tiles : nullptr;
}

Tensor kernel_to_points(const Algorithm& algorithm, const Tensor& weight) {
    const int64_t kernels = weight.size(0), channels = weight.size(1);
    const int64_t points = algorithm.points * algorithm.points;
    Tensor result = at::empty({points, kernels, channels}, weight.options());
    const auto* from = weight.const_data_ptr<float>();
    auto* to = result.data_ptr<float>();
    for_each_kernel(kernels, [&](int64_t kernel) {
        const auto taps = vectors_at(from + kernel * kTaps * channels, kTaps, channels);
        const auto at_points = vectors_at(to + kernel * channels, points, kernels * channels);
        algorithm.kernel_to_points(taps.data(), at_points.data(), channels);
    });
    return result;
}

Tensor forward(const Algorithm& algorithm, const Tensor& input, const Tensor& points, int64_t padding) {
    const Grid grid(algorithm, input.sizes(), padding);
    const int64_t outputs = points.size(1);
    Tensor output = at::empty({input.size(0), outputs, grid.out_height, grid.out_width},
                              input.options().memory_format(at::MemoryFormat::ChannelsLast));
    grid.for_each_part(input.size(0), [&](int64_t first, int64_t count) {
        const Tensor products =
            at::bmm(grid.input_to_points(input.narrow(0, first, count)), points.transpose(1, 2));
        auto* part = output.narrow(0, first, count).data_ptr<float>();
        grid.from_points(algorithm.points_to_output, products, grid.output_tiles(part, outputs), count);
    });
    return output;
}

void backward(const Algorithm& algorithm, const Tensor& grad, const Tensor& input, const Tensor& points,
              int64_t padding, const Tensor& of_input, const Tensor& of_weight) {
    const Grid grid(algorithm, input.sizes(), padding);
    const int64_t channels = input.size(1);
    if (of_input.defined() && !grid.is_one_tile()) of_input.zero_();
    const auto to_input = grid.is_one_tile() ? algorithm.points_to_input : algorithm.add_points_to_input;
    Tensor sums;
    grid.for_each_part(input.size(0), [&](int64_t first, int64_t count) {
        const Tensor grads = grid.grad_to_points(grad.narrow(0, first, count));
        if (of_input.defined()) {
            auto* part = of_input.narrow(0, first, count).data_ptr<float>();
            grid.from_points(to_input, at::bmm(grads, points), grid.input_tiles(part, channels), count);
        }
        if (of_weight.defined()) {
            const Tensor inputs = grid.input_to_points(input.narrow(0, first, count));
            const Tensor by_channel = grads.transpose(1, 2);
            sums = sums.defined() ? sums.baddbmm_(by_channel, inputs) : at::bmm(by_channel, inputs);
        }
    });
    if (sums.defined()) {
        points_to_kernel(algorithm, sums, of_weight);
    } else if (of_weight.defined()) {
        of_weight.zero_();  // a rank may have no images
    }
}

}  // namespace winograd
