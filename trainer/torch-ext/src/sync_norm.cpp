// Batch norm over the images of all ranks. Sums are all-reduced in f64 through a callback, forward and
// backward; everything else is libtorch's own kernels.

#include "shim.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/custom_class.h>

namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Sums a tensor over all ranks, in place.
struct Peers : torch::CustomClassHolder {
    void* context;
    void (*all_reduce)(void*, Tensor*);
    void (*release_context)(void*);

    Peers(void* context, void (*all_reduce)(void*, Tensor*), void (*release_context)(void*))
        : context(context), all_reduce(all_reduce), release_context(release_context) {}
    ~Peers() override { release_context(context); }
    void sum(Tensor& tensor) { all_reduce(context, &tensor); }
};

struct Norm {
    double momentum;
    double eps;
};

// Converts [C] to [1, C, 1, 1], in fp32.
Tensor by_channel(const Tensor& values) { return values.to(at::kFloat).view({1, -1, 1, 1}); }

// Returns [1 + 2 C] f64: the number of pixels, then per channel their sum, then per channel the sum of their
// squares.
Tensor sums_of(const Tensor& input) {
    const int64_t channels = input.size(1);
    const auto wide = input.options().dtype(at::kDouble).memory_format(std::nullopt);
    if (input.numel() == 0) return at::zeros({1 + 2 * channels}, wide);
    const Tensor count = at::full({1}, static_cast<double>(input.numel() / channels), wide);
    // The running statistics to update are a dummy; their dtype requests statistics in fp32.
    const Tensor running = at::zeros({channels}, wide.dtype(at::kFloat));
    auto [mean, var] = at::batch_norm_update_stats(input, running, running.clone(), 0.0);
    mean = mean.to(at::kDouble);
    return at::cat({count, mean * count, (var.to(at::kDouble) + mean * mean) * count});
}

struct SyncNormFunction : torch::autograd::Function<SyncNormFunction> {
    static Tensor forward(AutogradContext* ctx, const Tensor& input, const Tensor& weight,
                          const Tensor& bias, Tensor running_mean, Tensor running_var, Norm norm,
                          c10::intrusive_ptr<Peers> peers) {
        const int64_t channels = input.size(1);
        Tensor sums = sums_of(input);
        peers->sum(sums);
        const Tensor count = sums.narrow(0, 0, 1);
        const Tensor mean = sums.narrow(0, 1, channels) / count;
        const Tensor var =
            (sums.narrow(0, 1 + channels, channels) / count - mean * mean).clamp_min(0);
        running_mean.lerp_(mean.to(at::kFloat), norm.momentum);
        running_var.lerp_((var * (count / (count - 1))).to(at::kFloat), norm.momentum);

        const Tensor narrow_mean = mean.to(at::kFloat), narrow_var = var.to(at::kFloat);
        ctx->save_for_backward({input, weight, narrow_mean, narrow_var, count});
        ctx->saved_data["eps"] = norm.eps;
        ctx->saved_data["peers"] = c10::IValue::make_capsule(std::move(peers));
        if (input.numel() == 0) return at::empty_like(input);
        return std::get<0>(at::native_batch_norm(input, weight, bias, narrow_mean, narrow_var,
                                                 /*training=*/false, /*momentum=*/0.0, norm.eps));
    }

    // Source: Ioffe and Szegedy, Batch Normalization, ICML 2015, with sums over all ranks.
    static variable_list backward(AutogradContext* ctx, variable_list grads) {
        const auto saved = ctx->get_saved_variables();
        const Tensor &input = saved[0], &weight = saved[1], &mean = saved[2], &var = saved[3];
        const Tensor& count = saved[4];
        const double eps = ctx->saved_data["eps"].toDouble();
        const int64_t channels = input.size(1);
        // The gradients of weight and bias over this rank's images.
        Tensor of_weight = at::zeros_like(weight), of_bias = at::zeros_like(weight);
        if (input.numel() > 0) {
            std::tie(std::ignore, of_weight, of_bias) = at::native_batch_norm_backward(
                grads[0], input, weight, mean, var, {}, {}, /*train=*/false, eps, {false, true, true});
        }
        Tensor sums = at::cat({of_bias, of_weight}).to(at::kDouble);
        auto peers = c10::static_intrusive_pointer_cast<Peers>(ctx->saved_data["peers"].toCapsule());
        peers->sum(sums);
        const Tensor means = sums / count;
        const Tensor scale = by_channel(at::rsqrt(var + eps));
        const Tensor shift = by_channel(means.narrow(0, 0, channels));
        const Tensor slope = by_channel(means.narrow(0, channels, channels)) * scale;
        const Tensor centred = grads[0] - shift - (input - by_channel(mean)) * slope;
        const Tensor of_input = (centred * (by_channel(weight) * scale)).to(input.scalar_type());
        return {of_input, of_weight, of_bias, Tensor(), Tensor(), Tensor(), Tensor()};
    }
};

}  // namespace

extern "C" {

// Normalizes `input` [N, C, H, W] over the images of all ranks. Takes ownership of `context`, which is passed
// to `release` when neither forward nor backward needs it any more.
char* torch_ext_sync_batch_norm(const Tensor* input, const Tensor* weight, const Tensor* bias,
                                const Tensor* running_mean, const Tensor* running_var,
                                double momentum, double eps, void* context,
                                void (*all_reduce)(void*, Tensor*), void (*release)(void*),
                                Tensor** out) {
    return guarded([&] {
        auto peers = c10::make_intrusive<Peers>(context, all_reduce, release);
        const Norm norm{momentum, eps};
        *out = new Tensor(SyncNormFunction::apply(*input, *weight, *bias, *running_mean,
                                                  *running_var, norm, std::move(peers)));
    });
}

}  // extern "C"
