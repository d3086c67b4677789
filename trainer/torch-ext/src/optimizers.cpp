// Optimizer steps, each one call over flat tensors. Of 0-d f32 tensors, which may be null: gradients are
// divided by `grad_scale` first, in the same pass, nothing changes where `found_inf` is 1, and
// `lr_on_device` is taken instead of `lr`.

#include "shim.h"

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>

namespace {

std::optional<at::Tensor> optional(const at::Tensor* tensor) {
    return tensor ? std::optional(*tensor) : std::nullopt;
}

}  // namespace

extern "C" {

char* torch_ext_fused_adamw(at::Tensor* parameters, const at::Tensor* grads, at::Tensor* exp_avg,
                            at::Tensor* exp_avg_sq, at::Tensor* step, const at::Tensor* lr_on_device,
                            const at::Tensor* grad_scale, const at::Tensor* found_inf, double lr,
                            double beta1, double beta2, double weight_decay, double eps) {
    return guarded([&] {
        at::NoGradGuard no_grad;
        const auto step_with = [&](const auto& rate) {
            at::_fused_adamw_({*parameters}, {*grads}, {*exp_avg}, {*exp_avg_sq}, {}, {*step}, rate,
                              beta1, beta2, weight_decay, eps, /*amsgrad=*/false,
                              /*maximize=*/false, optional(grad_scale), optional(found_inf));
        };
        lr_on_device ? step_with(*lr_on_device) : step_with(lr);
    });
}

char* torch_ext_fused_sgd(at::Tensor* parameters, const at::Tensor* grads, at::Tensor* momentum,
                          const at::Tensor* lr_on_device, const at::Tensor* grad_scale,
                          const at::Tensor* found_inf, double lr, double momentum_factor,
                          double weight_decay, bool nesterov) {
    return guarded([&] {
        at::NoGradGuard no_grad;
        std::vector<at::Tensor> buffers;
        if (momentum_factor != 0) buffers.push_back(*momentum);
        const auto step_with = [&](const auto& rate) {
            at::_fused_sgd_({*parameters}, {*grads}, buffers, weight_decay, momentum_factor, rate,
                            /*dampening=*/0, nesterov, /*maximize=*/false, /*is_first_step=*/false,
                            optional(grad_scale), optional(found_inf));
        };
        lr_on_device ? step_with(*lr_on_device) : step_with(lr);
    });
}

// Multiplies gradients by `inv_scale`, and sets `found_inf` to 1 where one of them is not finite.
char* torch_ext_unscale(at::Tensor* grads, at::Tensor* found_inf, const at::Tensor* inv_scale) {
    return guarded([&] {
        at::NoGradGuard no_grad;
        at::_amp_foreach_non_finite_check_and_unscale_({*grads}, *found_inf, *inv_scale);
    });
}

}  // extern "C"
