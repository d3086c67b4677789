// Convolution on a GPU. When a step is captured into a graph, the two kernels of backward, which do not
// depend on each other, become parallel branches of the graph: at small batches neither fills the GPU.

#include "capture.h"
#include "shim.h"

#include <ATen/Functions.h>
#include <ATen/autocast_mode.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/csrc/autograd/custom_function.h>

namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Makes work that is queued on `second` from now on wait for what is queued on `first`.
void follow(c10::cuda::CUDAStream second, c10::cuda::CUDAStream first) {
    cudaEvent_t event = nullptr;
    C10_CUDA_CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    C10_CUDA_CHECK(cudaEventRecord(event, first));
    C10_CUDA_CHECK(cudaStreamWaitEvent(second, event, 0));
    C10_CUDA_CHECK(cudaEventDestroy(event));
}

struct Conv {
    int64_t stride, padding, groups;
};

struct ConvFunction : torch::autograd::Function<ConvFunction> {
    static Tensor forward(AutogradContext* ctx, const Tensor& input, const Tensor& weight, const Conv& conv,
                          at::ScalarType dtype) {
        const Tensor x = input.to(dtype), kernel = weight.to(dtype);
        ctx->save_for_backward({x, kernel});
        ctx->saved_data["stride"] = conv.stride;
        ctx->saved_data["padding"] = conv.padding;
        ctx->saved_data["groups"] = conv.groups;
        return at::conv2d(x, kernel, {}, conv.stride, conv.padding, /*dilation=*/1, conv.groups);
    }

    static variable_list backward(AutogradContext* ctx, variable_list grads) {
        const auto saved = ctx->get_saved_variables();
        const int64_t stride = ctx->saved_data["stride"].toInt();
        const int64_t padding = ctx->saved_data["padding"].toInt();
        const auto gradients = [&](bool of_input, bool of_weight) {
            return at::convolution_backward(grads[0], saved[0], saved[1], {}, {stride, stride},
                                            {padding, padding}, {1, 1}, /*transposed=*/false, {0, 0},
                                            ctx->saved_data["groups"].toInt(),
                                            {of_input, of_weight, false});
        };
        const bool wants_input = ctx->needs_input_grad(0), wants_weight = ctx->needs_input_grad(1);
        const auto stream = c10::cuda::getCurrentCUDAStream();
        Tensor of_input, of_weight;
        if (wants_input && wants_weight && is_capturing(stream)) {
            // Tensors made on the branch are used only after it has joined the main stream, and memory freed
            // on it is reused only by the next branch, which begins later still.
            static thread_local const auto branch = c10::cuda::getStreamFromPool();
            follow(branch, stream);
            {
                const c10::cuda::CUDAStreamGuard guard(branch);
                of_weight = std::get<1>(gradients(false, true));
            }
            of_input = std::get<0>(gradients(true, false));
            follow(stream, branch);
        } else {
            std::tie(of_input, of_weight, std::ignore) = gradients(wants_input, wants_weight);
        }
        return {of_input, of_weight, Tensor(), Tensor()};
    }
};

}  // namespace

extern "C" {

// Convolves `input` [N, C, H, W] with `weight` [C', C / groups, K, L] to [N, C', H', W'], in the dtype of
// autocast if that is enabled.
char* torch_ext_gpu_conv2d(const Tensor* input, const Tensor* weight, int64_t stride, int64_t padding,
                           int64_t groups, Tensor** out) {
    return guarded([&] {
        const bool autocast = at::autocast::is_autocast_enabled(at::kCUDA);
        const auto dtype =
            autocast ? at::autocast::get_autocast_dtype(at::kCUDA) : weight->scalar_type();
        const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
        *out = new Tensor(ConvFunction::apply(*input, *weight, Conv{stride, padding, groups}, dtype));
    });
}

}  // extern "C"
