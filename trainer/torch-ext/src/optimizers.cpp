// Optimizer steps, each one call over slices of flat tensors. They take 0-d f32 tensors, each of which may be
// null: gradients are first divided by `grad_scale`, in the same pass; nothing changes if `found_inf` is 1;
// and `lr_on_device` replaces `lr`.

#include "shim.h"

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>

namespace {

std::optional<at::Tensor> optional(const at::Tensor* tensor) {
    return tensor ? std::optional(*tensor) : std::nullopt;
}

std::vector<at::Tensor> list(const at::Tensor* const* tensors, size_t count) {
    std::vector<at::Tensor> copies;
    for (size_t index = 0; index < count; index++) copies.push_back(*tensors[index]);
    return copies;
}

// Returns approximately the orthogonal matrix nearest to `matrix`: torch.optim.Muon's operations, in its
// order.
at::Tensor newton_schulz(const at::Tensor& matrix, int64_t steps, bool is_bf16) {
    const double a = 3.4445, b = -4.7750, c = 2.0315, eps = 1e-7;
    const bool tall = matrix.size(0) > matrix.size(1);
    at::Tensor x = matrix.to(is_bf16 ? at::kBFloat16 : at::kFloat);
    if (tall) x = x.t();
    x = at::div(x, x.norm().clamp_min(eps));
    for (int64_t step = 0; step < steps; step++) {
        at::Tensor gram = at::mm(x, x.t());
        x = at::addmm(x, at::addmm(gram, gram, gram, b, c), x, a);
    }
    return tall ? x.t() : x;
}

}  // namespace

extern "C" {

char* torch_ext_fused_adamw(size_t count, const at::Tensor* const* parameters, const at::Tensor* const* grads,
                            const at::Tensor* const* exp_avg, const at::Tensor* const* exp_avg_sq,
                            const at::Tensor* step, const at::Tensor* lr_on_device,
                            const at::Tensor* grad_scale, const at::Tensor* found_inf, double lr, double beta1,
                            double beta2, double weight_decay, double eps) {
    return guarded([&] {
        at::NoGradGuard no_grad;
        const std::vector<at::Tensor> steps(count, *step);
        const auto step_with = [&](const auto& rate) {
            at::_fused_adamw_(list(parameters, count), list(grads, count), list(exp_avg, count),
                              list(exp_avg_sq, count), {}, steps, rate, beta1, beta2, weight_decay, eps,
                              /*amsgrad=*/false, /*maximize=*/false, optional(grad_scale), optional(found_inf));
        };
        lr_on_device ? step_with(*lr_on_device) : step_with(lr);
    });
}

char* torch_ext_fused_sgd(size_t count, const at::Tensor* const* parameters, const at::Tensor* const* grads,
                          const at::Tensor* const* momentum, const at::Tensor* lr_on_device,
                          const at::Tensor* grad_scale, const at::Tensor* found_inf, double lr,
                          double momentum_factor, double weight_decay, bool nesterov) {
    return guarded([&] {
        at::NoGradGuard no_grad;
        const size_t buffers = momentum_factor != 0 ? count : 0;
        const auto step_with = [&](const auto& rate) {
            at::_fused_sgd_(list(parameters, count), list(grads, count), list(momentum, buffers), weight_decay,
                            momentum_factor, rate, /*dampening=*/0, nesterov, /*maximize=*/false,
                            /*is_first_step=*/false, optional(grad_scale), optional(found_inf));
        };
        lr_on_device ? step_with(*lr_on_device) : step_with(lr);
    });
}

// Multiplies gradients by `inv_scale`, and sets `found_inf` to 1 if any of them is not finite.
char* torch_ext_unscale(at::Tensor* grads, at::Tensor* found_inf, const at::Tensor* inv_scale) {
    return guarded([&] {
        at::NoGradGuard no_grad;
        at::_amp_foreach_non_finite_check_and_unscale_({*grads}, *found_inf, *inv_scale);
    });
}

// Writes the 2-norm of each tensor to `norms`, `[count]`.
char* torch_ext_norms(size_t count, const at::Tensor* const* tensors, at::Tensor* norms) {
    return guarded([&] {
        at::NoGradGuard no_grad;
        at::stack_out(*norms, at::_foreach_norm(list(tensors, count), 2));
    });
}

char* torch_ext_newton_schulz(const at::Tensor* matrix, at::Tensor* out, int64_t steps, bool is_bf16) {
    return guarded([&] {
        at::NoGradGuard no_grad;
        out->copy_(newton_schulz(*matrix, steps, is_bf16));
    });
}

}  // extern "C"
