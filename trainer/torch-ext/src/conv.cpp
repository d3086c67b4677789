// Convolution on the CPU. Each pass is computed by libtorch, as a matrix product over unfolded input, or by
// Winograd's minimal filtering. Tensors are channels-last throughout: the channels of a pixel are contiguous,
// so that unfolding copies whole runs of them.

#include "shim.h"
#include "winograd.h"

#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <limits>
#include <vector>

namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

enum Pass { kForward, kGradInput, kGradWeight, kPasses };

// In the order of ConvMethod in conv.rs.
enum Method : uint8_t { kLibrary, kMatmul, kWinograd, kMethods };

struct Conv {
    int64_t stride;
    int64_t padding;
    std::array<Method, kPasses> methods;
    Tensor grad_view;  // where to write the gradient of the weight; undefined for anywhere
};

Tensor channels_last(const Tensor& tensor) {
    return tensor.contiguous(at::MemoryFormat::ChannelsLast);
}

// Returns a channels-last [N, C, H, W] as the matrix [N H W, C] that it is in memory.
Tensor pixels(const Tensor& tensor) {
    return channels_last(tensor).permute({0, 2, 3, 1}).reshape({-1, tensor.size(1)});
}

// Returns a channels-last kernel [C', C, K, L] as the matrix [C', K L C] that it is in memory.
Tensor kernel_matrix(const Tensor& weight) {
    return channels_last(weight).permute({0, 2, 3, 1}).view({weight.size(0), -1});
}

// The positions at which a kernel is applied to an image.
struct Windows {
    int64_t images, channels, height, width;    // size of the input
    int64_t rows, columns, stride, padding;     // size, stride and padding of the kernel
    int64_t out_height, out_width;              // number of windows in each direction

    Windows(at::IntArrayRef input, at::IntArrayRef weight, const Conv& conv)
        : images(input[0]), channels(input[1]), height(input[2]), width(input[3]),
          rows(weight[2]), columns(weight[3]), stride(conv.stride), padding(conv.padding),
          out_height((height + 2 * padding - rows) / stride + 1),
          out_width((width + 2 * padding - columns) / stride + 1) {}

    // Whether the windows, one after the other, are the image as it is in memory.
    bool are_the_image() const {
        const bool pointwise = rows == 1 && columns == 1 && stride == 1;
        const bool whole = rows == height && columns == width && out_height == 1 && out_width == 1;
        return padding == 0 && (pointwise || whole);
    }

    int64_t window_size() const { return rows * columns * channels; }

    // Calls body(row of the image, first column, offset in the window in elements, number of columns) for
    // each run of pixels of the window at (y, x) that lies inside the image.
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

// Returns the matrix [windows, window size] of the pixels of every window; zero outside the image.
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

// The inverse of unfold: adds the pixels of every window to the pixels of the image that they came from, in
// fp32.
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

const winograd::Algorithm* winograd_algorithm(const Tensor& input, const Tensor& weight, const Conv& conv) {
    if (input.scalar_type() != at::kFloat || weight.scalar_type() != at::kFloat) return nullptr;
    return winograd::algorithm(input.sizes(), weight.sizes(), conv.stride, conv.padding);
}

// Points of larger kernels are not kept from forward to backward: they would take memory, and computing them
// again is a small part of the work.
constexpr int64_t kMaxPointsToKeep = 1 << 20;

struct Forward {
    Tensor output;
    Tensor kernel_points;  // for Winograd's backward to reuse; undefined if there are none to keep
};

Forward forward_pass(const Tensor& input, const Tensor& weight, const Conv& conv) {
    const Method method = conv.methods[kForward];
    if (method == kMatmul) {
        const Windows w(input.sizes(), weight.sizes(), conv);
        const Tensor output = at::mm(unfold(input, w), kernel_matrix(weight).t());
        return {output.view({w.images, w.out_height, w.out_width, weight.size(0)}).permute({0, 3, 1, 2}), {}};
    }
    const auto* algorithm = method == kWinograd ? winograd_algorithm(input, weight, conv) : nullptr;
    if (algorithm == nullptr) return {at::conv2d(input, weight, {}, conv.stride, conv.padding), {}};
    const Tensor points = winograd::kernel_to_points(*algorithm, channels_last(weight));
    return {winograd::forward(*algorithm, channels_last(input), points, conv.padding),
            points.numel() <= kMaxPointsToKeep ? points : Tensor()};
}

// Returns the gradients of input and weight, as far as `wanted`; the latter in conv.grad_view if that is
// defined. `kernel_points` are those of Forward, or undefined.
std::array<Tensor, 2> backward_passes(const Tensor& grad, const Tensor& input, const Tensor& weight,
                                      Tensor kernel_points, const Conv& conv, std::array<bool, 2> wanted) {
    std::array<Tensor, 2> grads;
    const auto is = [&](Pass pass, Method method) {
        return wanted[pass - kGradInput] && conv.methods[pass] == method;
    };
    const std::array<bool, 2> by_winograd{is(kGradInput, kWinograd), is(kGradWeight, kWinograd)};
    const auto* algorithm = winograd_algorithm(input, weight, conv);
    const Tensor& place = conv.grad_view;
    const auto empty_like = [](const Tensor& model) {
        return at::empty_like(model, model.options().memory_format(at::MemoryFormat::ChannelsLast));
    };
    const auto place_of_weight = [&] {
        const bool fits = place.defined() && place.scalar_type() == weight.scalar_type();
        return fits ? place : empty_like(weight);
    };
    if ((by_winograd[0] || by_winograd[1]) && algorithm != nullptr) {
        if (by_winograd[0] && !kernel_points.defined()) {
            kernel_points = winograd::kernel_to_points(*algorithm, channels_last(weight));
        }
        if (by_winograd[0]) grads[0] = empty_like(input);
        if (by_winograd[1]) grads[1] = place_of_weight();
        winograd::backward(*algorithm, channels_last(grad), channels_last(input), kernel_points, conv.padding,
                           grads[0], grads[1]);
    }
    if (is(kGradInput, kMatmul)) {
        const Windows w(input.sizes(), weight.sizes(), conv);
        grads[0] = fold(at::mm(pixels(grad), kernel_matrix(weight)), w);
    }
    if (is(kGradWeight, kMatmul)) {
        const Windows w(input.sizes(), weight.sizes(), conv);
        grads[1] = place_of_weight();
        Tensor matrix = kernel_matrix(grads[1]);
        at::mm_out(matrix, pixels(grad).t(), unfold(input, w));
    }
    const std::array<bool, 3> rest{wanted[0] && !grads[0].defined(),
                                   wanted[1] && !grads[1].defined(), false};
    if (rest[0] || rest[1]) {
        auto [of_input, of_weight, none] = at::convolution_backward(
            grad, input, weight, {}, {conv.stride, conv.stride}, {conv.padding, conv.padding}, {1, 1},
            /*transposed=*/false, {0, 0}, /*groups=*/1, rest);
        if (rest[0]) grads[0] = of_input;
        if (rest[1]) grads[1] = of_weight;
    }
    if (wanted[1] && place.defined()) {
        if (!grads[1].is_same(place)) place.copy_(grads[1]);
        grads[1] = place.detach();  // has no other owner, so autograd adopts it without a copy
    }
    return grads;
}

struct ConvFunction : torch::autograd::Function<ConvFunction> {
    static Tensor forward(AutogradContext* ctx, const Tensor& input, const Tensor& weight,
                          const Conv& conv, at::ScalarType dtype) {
        const Tensor x = input.to(dtype), kernel = weight.to(dtype);
        const Forward forward = forward_pass(x, kernel, conv);
        const bool is_used_again = conv.methods[kGradInput] == kWinograd && input.requires_grad();
        ctx->save_for_backward({x, kernel, is_used_again ? forward.kernel_points : Tensor()});
        ctx->saved_data["stride"] = conv.stride;
        ctx->saved_data["padding"] = conv.padding;
        ctx->saved_data["input_method"] = static_cast<int64_t>(conv.methods[kGradInput]);
        ctx->saved_data["weight_method"] = static_cast<int64_t>(conv.methods[kGradWeight]);
        ctx->saved_data["grad_view"] = conv.grad_view;
        return forward.output;
    }

    static variable_list backward(AutogradContext* ctx, variable_list grads) {
        const auto saved = ctx->get_saved_variables();
        const Conv conv{ctx->saved_data["stride"].toInt(),
                        ctx->saved_data["padding"].toInt(),
                        {kLibrary, static_cast<Method>(ctx->saved_data["input_method"].toInt()),
                         static_cast<Method>(ctx->saved_data["weight_method"].toInt())},
                        ctx->saved_data["grad_view"].toTensor()};
        auto [input, weight] = backward_passes(grads[0], saved[0], saved[1], saved[2], conv,
                                               {ctx->needs_input_grad(0), ctx->needs_input_grad(1)});
        return {input, weight, Tensor(), Tensor()};
    }
};

// Seconds per method after which timing ends: long enough that fast methods are timed twice, against
// interruptions, and slow ones only once.
constexpr double kMaxTimingSeconds = 0.01;
// A method is slower beyond doubt, after one time of each, if it takes more than this many times as long and
// also exceeds the shortest time by more than one interruption.
constexpr double kClearRatio = 1.5;
constexpr double kInterruptionSeconds = 0.001;

template <typename F>
double seconds_of(F&& body) {
    using clock = std::chrono::steady_clock;
    const auto start = clock::now();
    body();
    return std::chrono::duration<double>(clock::now() - start).count();
}

// Calls body(method) for each of `methods` in turn, first once without timing. Returns the shortest of at
// most two times by method, in seconds, and infinity for other methods. A method that is clearly slower is
// timed once.
template <typename F>
std::array<double, kMethods> times_of(std::vector<Method> methods, F&& body) {
    std::array<double, kMethods> least;
    least.fill(std::numeric_limits<double>::infinity());
    for (const Method method : methods) body(method);
    double sum = 0;
    for (int i = 0; i < 2 && sum < methods.size() * kMaxTimingSeconds; i++) {
        for (const Method method : methods) {
            const double seconds = seconds_of([&] { body(method); });
            least[method] = std::min(least[method], seconds);
            sum += seconds;
        }
        const double shortest = *std::min_element(least.begin(), least.end());
        const auto is_clear = [&](Method method) {
            return least[method] > std::max(kClearRatio * shortest, shortest + kInterruptionSeconds);
        };
        methods.erase(std::remove_if(methods.begin(), methods.end(), is_clear), methods.end());
    }
    return least;
}

}  // namespace

extern "C" {

// Convolves `input` [N, C, H, W] with `weight` [C', C, K, L] to [N, C', H', W'], in the dtype of autocast if
// that is enabled. Backward writes the gradient of the weight to `grad_view`, unless that is null.
char* torch_ext_conv2d(const Tensor* input, const Tensor* weight, const Tensor* grad_view, int64_t stride,
                       int64_t padding, const uint8_t* methods, Tensor** out) {
    return guarded([&] {
        const bool autocast = at::autocast::is_autocast_enabled(at::kCPU);
        const auto dtype =
            autocast ? at::autocast::get_autocast_dtype(at::kCPU) : weight->scalar_type();
        c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
        Conv conv{stride, padding, {}, {}};
        if (grad_view != nullptr) {
            TORCH_CHECK(!weight->grad().defined(), "a weight of ", weight->sizes(), " already has a gradient");
            TORCH_CHECK(grad_view->sizes() == weight->sizes() && grad_view->scalar_type() == weight->scalar_type() &&
                            grad_view->is_contiguous(at::MemoryFormat::ChannelsLast),
                        "the view for a gradient does not match a weight of ", weight->sizes());
            conv.grad_view = *grad_view;
        }
        for (int pass = 0; pass < kPasses; pass++) conv.methods[pass] = static_cast<Method>(methods[pass]);
        *out = new Tensor(ConvFunction::apply(*input, *weight, conv, dtype));
    });
}

// Times each pass of a convolution by each method: seconds[3 * pass + method], infinite if the method does
// not support this convolution.
char* torch_ext_time_conv2d(const int64_t* input_size, const int64_t* weight_size, int64_t stride,
                            int64_t padding, bool is_bf16, double* seconds) {
    return guarded([&] {
        at::NoGradGuard no_grad;
        const auto options = at::TensorOptions(is_bf16 ? at::kBFloat16 : at::kFloat);
        const auto last = at::MemoryFormat::ChannelsLast;
        const Tensor input = at::ones({input_size, 4}, options).contiguous(last);
        const Tensor weight = at::ones({weight_size, 4}, options).contiguous(last);
        Tensor grad, kernel_points;
        const auto pass = [&](Pass which, Method method) {
            const Conv conv{stride, padding, {method, method, method}, {}};
            if (which == kForward) {
                const Forward forward = forward_pass(input, weight, conv);
                grad = forward.output;
                if (forward.kernel_points.defined()) kernel_points = forward.kernel_points;
            } else {
                backward_passes(grad, input, weight, kernel_points, conv, {which == kGradInput, which == kGradWeight});
            }
        };
        std::vector<Method> methods{kLibrary, kMatmul};
        if (winograd_algorithm(input, weight, {stride, padding, {}, {}}) != nullptr) methods.push_back(kWinograd);
        for (const Pass which : {kForward, kGradInput, kGradWeight}) {
            const auto times = times_of(methods, [&](Method method) { pass(which, method); });
            std::copy(times.begin(), times.end(), seconds + which * kMethods);
        }
    });
}

}  // extern "C"
