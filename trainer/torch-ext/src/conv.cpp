// Convolution on the CPU whose passes are each computed by the library or as a matrix product over
// unfolded input. Tensors are channels-last throughout: one pixel's channels lie together, so that
// unfolding copies whole runs of them.

#include "shim.h"

#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <chrono>
#include <cstring>

namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

enum Pass { kForward, kGradInput, kGradWeight, kPasses };

struct Conv {
    int64_t stride;
    int64_t padding;
    // By pass: whether it is a matrix product over unfolded input.
    bool unfolds[kPasses];
};

Tensor channels_last(const Tensor& tensor) {
    return tensor.contiguous(at::MemoryFormat::ChannelsLast);
}

// A channels-last [N, C, H, W] as the matrix [N H W, C] that it is in memory.
Tensor pixels(const Tensor& tensor) {
    return channels_last(tensor).permute({0, 2, 3, 1}).reshape({-1, tensor.size(1)});
}

// A channels-last kernel [C', C, K, L] as the matrix [C', K L C] that it is in memory.
Tensor kernel_matrix(const Tensor& weight) {
    return channels_last(weight).permute({0, 2, 3, 1}).reshape({weight.size(0), -1});
}

// Where windows of a kernel lie over an image.
struct Windows {
    int64_t images, channels, height, width;    // of the input
    int64_t rows, columns, stride, padding;     // of the kernel
    int64_t out_height, out_width;              // how many windows

    Windows(at::IntArrayRef input, at::IntArrayRef weight, const Conv& conv)
        : images(input[0]), channels(input[1]), height(input[2]), width(input[3]),
          rows(weight[2]), columns(weight[3]), stride(conv.stride), padding(conv.padding),
          out_height((height + 2 * padding - rows) / stride + 1),
          out_width((width + 2 * padding - columns) / stride + 1) {}

    // Whether the windows, one after the other, are the image as it lies in memory.
    bool are_the_image() const {
        const bool pointwise = rows == 1 && columns == 1 && stride == 1;
        const bool whole = rows == height && columns == width && out_height == 1 && out_width == 1;
        return padding == 0 && (pointwise || whole);
    }

    int64_t window_size() const { return rows * columns * channels; }

    // Calls body(row of the image, its first column, offset in the window, columns) for each run of
    // pixels that the window at (y, x) shares with the image.
    template <typename F>
    void for_each_run(int64_t y, int64_t x, F&& body) const {
        const int64_t left = x * stride - padding;
        const int64_t from = std::max<int64_t>(0, -left);
        const int64_t to = std::min(columns, width - left);
        for (int64_t row = 0; row < rows; row++) {
            const int64_t image_row = y * stride - padding + row;
            if (image_row < 0 || image_row >= height || from >= to) continue;
            body(image_row, left + from, (row * columns + from) * channels, to - from);
        }
    }
};

// The matrix [windows, window size] of every window's pixels; zero outside the image.
Tensor unfold(const Tensor& input, const Windows& w) {
    if (w.are_the_image()) {
        return channels_last(input).permute({0, 2, 3, 1}).reshape({-1, w.window_size()});
    }
    const Tensor source = channels_last(input);
    const bool covers = w.padding == 0;
    const int64_t windows = w.images * w.out_height * w.out_width;
    Tensor unfolded = covers ? at::empty({windows, w.window_size()}, input.options())
                             : at::zeros({windows, w.window_size()}, input.options());
    const int64_t item = input.element_size();
    const auto* from = static_cast<const char*>(source.const_data_ptr());
    auto* to = static_cast<char*>(unfolded.data_ptr());
    at::parallel_for(0, w.images, 1, [&](int64_t begin, int64_t end) {
        char* window = to + begin * w.out_height * w.out_width * w.window_size() * item;
        for (int64_t image = begin; image < end; image++) {
            for (int64_t y = 0; y < w.out_height; y++) {
                for (int64_t x = 0; x < w.out_width; x++) {
                    w.for_each_run(y, x, [&](int64_t row, int64_t column, int64_t at, int64_t len) {
                        const int64_t pixel = (image * w.height + row) * w.width + column;
                        std::memcpy(window + at * item, from + pixel * w.channels * item,
                                    len * w.channels * item);
                    });
                    window += w.window_size() * item;
                }
            }
        }
    });
    return unfolded;
}

// sum[i] += values[i]
template <typename T>
void accumulate(float* sum, const T* values, int64_t len) {
    for (int64_t i = 0; i < len; i++) sum[i] += static_cast<float>(values[i]);
}

// The opposite of unfold: adds every window's pixels to where they came from, in fp32.
template <typename T>
void fold_into(const T* windows, T* image_data, const Windows& w) {
    at::parallel_for(0, w.images, 1, [&](int64_t begin, int64_t end) {
        const int64_t len = w.height * w.width * w.channels;
        std::vector<float> sum(len);
        const T* window = windows + begin * w.out_height * w.out_width * w.window_size();
        for (int64_t image = begin; image < end; image++) {
            std::fill(sum.begin(), sum.end(), 0.0f);
            for (int64_t y = 0; y < w.out_height; y++) {
                for (int64_t x = 0; x < w.out_width; x++) {
                    w.for_each_run(y, x, [&](int64_t row, int64_t column, int64_t at, int64_t run) {
                        accumulate(sum.data() + (row * w.width + column) * w.channels, window + at,
                                   run * w.channels);
                    });
                    window += w.window_size();
                }
            }
            std::copy(sum.begin(), sum.end(), image_data + image * len);
        }
    });
}

Tensor fold(const Tensor& unfolded, const Windows& w) {
    const auto image_size = {w.images, w.height, w.width, w.channels};
    if (w.are_the_image()) return unfolded.view(image_size).permute({0, 3, 1, 2});
    Tensor images = at::empty(image_size, unfolded.options());
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, unfolded.scalar_type(), "fold", [&] {
        fold_into(unfolded.const_data_ptr<scalar_t>(), images.data_ptr<scalar_t>(), w);
    });
    return images.permute({0, 3, 1, 2});
}

Tensor forward_pass(const Tensor& input, const Tensor& weight, const Conv& conv) {
    if (!conv.unfolds[kForward]) {
        return at::conv2d(input, weight, {}, conv.stride, conv.padding);
    }
    const Windows w(input.sizes(), weight.sizes(), conv);
    const Tensor output = at::mm(unfold(input, w), kernel_matrix(weight).t());
    return output.view({w.images, w.out_height, w.out_width, -1}).permute({0, 3, 1, 2});
}

Tensor grad_of_input(const Tensor& grad, const Tensor& input, const Tensor& weight, const Conv& conv) {
    const Windows w(input.sizes(), weight.sizes(), conv);
    return fold(at::mm(pixels(grad), kernel_matrix(weight)), w);
}

Tensor grad_of_weight(const Tensor& grad, const Tensor& input, const Tensor& weight, const Conv& conv) {
    const Windows w(input.sizes(), weight.sizes(), conv);
    const Tensor matrix = at::mm(pixels(grad).t(), unfold(input, w));
    return matrix.view({weight.size(0), w.rows, w.columns, w.channels}).permute({0, 3, 1, 2});
}

// The gradients of input and weight that `wanted` asks for.
std::array<Tensor, 2> backward_passes(const Tensor& grad, const Tensor& input, const Tensor& weight,
                                      const Conv& conv, std::array<bool, 2> wanted) {
    std::array<Tensor, 2> grads;
    if (wanted[0] && conv.unfolds[kGradInput]) grads[0] = grad_of_input(grad, input, weight, conv);
    if (wanted[1] && conv.unfolds[kGradWeight]) grads[1] = grad_of_weight(grad, input, weight, conv);
    const std::array<bool, 3> rest{wanted[0] && !grads[0].defined(),
                                   wanted[1] && !grads[1].defined(), false};
    if (rest[0] || rest[1]) {
        auto [of_input, of_weight, none] = at::convolution_backward(
            grad, input, weight, {}, {conv.stride, conv.stride}, {conv.padding, conv.padding}, {1, 1},
            /*transposed=*/false, {0, 0}, /*groups=*/1, rest);
        if (rest[0]) grads[0] = of_input;
        if (rest[1]) grads[1] = of_weight;
    }
    return grads;
}

struct ConvFunction : torch::autograd::Function<ConvFunction> {
    static Tensor forward(AutogradContext* ctx, const Tensor& input, const Tensor& weight,
                          const Conv& conv, at::ScalarType dtype) {
        const Tensor x = input.to(dtype), kernel = weight.to(dtype);
        ctx->save_for_backward({x, kernel});
        ctx->saved_data["stride"] = conv.stride;
        ctx->saved_data["padding"] = conv.padding;
        ctx->saved_data["input_unfolds"] = conv.unfolds[kGradInput];
        ctx->saved_data["weight_unfolds"] = conv.unfolds[kGradWeight];
        return forward_pass(x, kernel, conv);
    }

    static variable_list backward(AutogradContext* ctx, variable_list grads) {
        const auto saved = ctx->get_saved_variables();
        const Conv conv{ctx->saved_data["stride"].toInt(),
                        ctx->saved_data["padding"].toInt(),
                        {false, ctx->saved_data["input_unfolds"].toBool(),
                         ctx->saved_data["weight_unfolds"].toBool()}};
        auto [input, weight] = backward_passes(grads[0], saved[0], saved[1], conv,
                                               {ctx->needs_input_grad(0), ctx->needs_input_grad(1)});
        return {input, weight, Tensor(), Tensor()};
    }
};

// Enough to time once what is slow, and twice what a single interruption would falsify.
constexpr double kMaxTimingSeconds = 0.01;
// One time of each tells two ways apart if one takes so many times as long, and more than an interruption longer.
constexpr double kClearRatio = 1.5;
constexpr double kInterruptionSeconds = 0.001;

template <typename F>
double seconds_of(F&& body) {
    using clock = std::chrono::steady_clock;
    const auto start = clock::now();
    body();
    return std::chrono::duration<double>(clock::now() - start).count();
}

// The least of at most two times of `library` and of `product`, taken in turn after a call of each that is not
// counted, in seconds.
template <typename F, typename G>
std::array<double, 2> times_of(F&& library, G&& product) {
    library();
    product();
    std::array<double, 2> least{1e9, 1e9};
    double sum = 0;
    for (int i = 0; i < 2 && sum < 2 * kMaxTimingSeconds; i++) {
        const std::array<double, 2> times{seconds_of(library), seconds_of(product)};
        for (int way = 0; way < 2; way++) least[way] = std::min(least[way], times[way]);
        sum += times[0] + times[1];
        const auto [shorter, longer] = std::minmax(least[0], least[1]);
        if (longer > std::max(kClearRatio * shorter, shorter + kInterruptionSeconds)) break;
    }
    return least;
}

}  // namespace

extern "C" {

// `input` [N, C, H, W] and `weight` [C', C, K, L] to [N, C', H', W'], in the dtype of autocast where
// that is on.
char* torch_ext_conv2d(const Tensor* input, const Tensor* weight, int64_t stride, int64_t padding,
                       const bool* unfolds, Tensor** out) {
    return guarded([&] {
        const bool autocast = at::autocast::is_autocast_enabled(at::kCPU);
        const auto dtype =
            autocast ? at::autocast::get_autocast_dtype(at::kCPU) : weight->scalar_type();
        c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
        const Conv conv{stride, padding, {unfolds[0], unfolds[1], unfolds[2]}};
        *out = new Tensor(ConvFunction::apply(*input, *weight, conv, dtype));
    });
}

// Times each pass of a convolution both ways, in seconds: seconds[pass] is the library's,
// seconds[3 + pass] the matrix product's.
char* torch_ext_time_conv2d(const int64_t* input_size, const int64_t* weight_size, int64_t stride,
                            int64_t padding, bool is_bf16, double* seconds) {
    return guarded([&] {
        at::NoGradGuard no_grad;
        const auto options = at::TensorOptions(is_bf16 ? at::kBFloat16 : at::kFloat);
        const auto last = at::MemoryFormat::ChannelsLast;
        const Tensor input = at::ones({input_size, 4}, options).contiguous(last);
        const Tensor weight = at::ones({weight_size, 4}, options).contiguous(last);
        const Conv library{stride, padding, {false, false, false}};
        const Conv product{stride, padding, {true, true, true}};
        Tensor grad;
        const auto pass = [&](Pass which, const Conv& conv) {
            if (which == kForward) {
                grad = forward_pass(input, weight, conv);
            } else {
                backward_passes(grad, input, weight, conv, {which == kGradInput, which == kGradWeight});
            }
        };
        for (const Pass which : {kForward, kGradInput, kGradWeight}) {
            const auto times = times_of([&] { pass(which, library); }, [&] { pass(which, product); });
            seconds[which] = times[0];
            seconds[kPasses + which] = times[1];
        }
    });
}

}  // extern "C"
