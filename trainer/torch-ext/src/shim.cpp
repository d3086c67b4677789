// The parts of libtorch that tch lacks. Every function returns nullptr, or a message that the caller frees
// with torch_ext_free. No CUDA header is needed: streams and statistics come through libtorch_cpu's
// device-agnostic interface.

#include "shim.h"

#include <ATen/DeviceAccelerator.h>
#include <ATen/Functions.h>
#include <ATen/autocast_mode.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <dlfcn.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <utility>
#include <vector>

namespace {

// Calls `call` after backward has accumulated into a gradient; `release` frees `context` with the hook.
struct GradientHook : torch::autograd::PostAccumulateGradHook {
    void* context;
    void (*call)(void*);
    void (*release)(void*);

    GradientHook(void* context, void (*call)(void*), void (*release)(void*))
        : context(context), call(call), release(release) {}
    ~GradientHook() override { release(context); }
    void operator()(const torch::autograd::Variable&) override { call(context); }
};

c10::Device cuda(int index) {
    return c10::Device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(index));
}

}  // namespace

extern "C" {

void torch_ext_free(char* message) { free(message); }

char* torch_ext_set_grad(at::Tensor* parameter, const at::Tensor* grad) {
    return guarded([&] { parameter->mutable_grad() = *grad; });
}

// Moves the gradients of `leaves` to `places`, unless they lie there already. The place of a leaf without a
// gradient is zeroed.
char* torch_ext_gather_grads(size_t count, const at::Tensor* const* leaves,
                             const at::Tensor* const* places) {
    return guarded([&] {
        at::NoGradGuard no_grad;
        // One foreach kernel copies all gradients of a dtype, so fp32 gradients and others are listed apart.
        std::vector<at::Tensor> grads[2], targets[2], zeros;
        for (size_t i = 0; i < count; ++i) {
            auto grad = std::exchange(leaves[i]->mutable_grad(), at::Tensor());
            if (!grad.defined()) {
                zeros.push_back(*places[i]);
                continue;
            }
            const bool is_there = grad.const_data_ptr() == places[i]->const_data_ptr();
            if (is_there) continue;
            const bool is_float = grad.scalar_type() == at::kFloat;
            grads[is_float].push_back(std::move(grad));
            targets[is_float].push_back(*places[i]);
        }
        for (int type = 0; type < 2; ++type) {
            if (!grads[type].empty()) at::_foreach_copy_(targets[type], grads[type]);
        }
        if (!zeros.empty()) at::_foreach_zero_(zeros);
    });
}

char* torch_ext_on_gradient(at::Tensor* parameter, void* context, void (*call)(void*),
                            void (*release)(void*)) {
    return guarded([&] {
        auto hook = std::make_unique<GradientHook>(context, call, release);
        TORCH_CHECK(parameter->is_leaf() && parameter->requires_grad(),
                    "only a leaf that requires a gradient has one");
        torch::autograd::impl::set_post_acc_grad_hooks(*parameter, std::move(hook));
    });
}

// Enters autocast to bfloat16 or half precision; `was_enabled` receives the state to restore.
char* torch_ext_autocast_enter(bool is_cuda, bool is_fp16, bool* was_enabled) {
    return guarded([&] {
        auto device = is_cuda ? at::kCUDA : at::kCPU;
        *was_enabled = at::autocast::is_autocast_enabled(device);
        at::autocast::set_autocast_dtype(device, is_fp16 ? at::kHalf : at::kBFloat16);
        at::autocast::set_autocast_enabled(device, true);
        at::autocast::increment_nesting();
    });
}

// Leaves autocast. Cached casts of weights are dropped at the outermost level, as in Python.
char* torch_ext_autocast_exit(bool is_cuda, bool was_enabled) {
    return guarded([&] {
        if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
        at::autocast::set_autocast_enabled(is_cuda ? at::kCUDA : at::kCPU, was_enabled);
    });
}

// Makes a tensor of `len` f32 over memory that `owner` keeps alive. `release` is called once: when the last view
// is gone, or on failure.
char* torch_ext_from_memory(void* data, int64_t len, void* owner, void (*release)(void*),
                            at::Tensor** out) {
    return guarded([&] {
        std::shared_ptr<void> kept(owner, release);
        auto release_with_last_view = [kept](void*) {};
        *out = new at::Tensor(at::from_blob(data, {len}, release_with_last_view, at::kFloat));
    });
}

// Opens libtorch_cuda.so, whose static initialisers register the device.
char* torch_ext_load_cuda(const char* path) {
    if (dlopen(path, RTLD_NOW | RTLD_GLOBAL)) return nullptr;
    return strdup(dlerror());
}

// Makes the device current for this thread.
char* torch_ext_set_cuda_device(int device) {
    return guarded([&] {
        c10::impl::getDeviceGuardImpl(c10::DeviceType::CUDA)->setDevice(cuda(device));
    });
}

// Makes a stream of libtorch's pool current for this thread: a capture cannot begin on the default stream,
// and the streams that autograd records must not change between eager and captured steps.
char* torch_ext_leave_default_stream(int device) {
    return guarded([&] {
        const auto* guard = c10::impl::getDeviceGuardImpl(c10::DeviceType::CUDA);
        guard->exchangeStream(guard->getStreamFromGlobalPool(cuda(device)));
    });
}

// Sets whether convolutions and matrix products in fp32 round their operands to TF32 on a GPU. Checks the result:
// libtorch keeps a precision for each operation, which wins over the one for all.
char* torch_ext_set_tf32(bool allowed) {
    return guarded([&] {
        auto& context = at::globalContext();
        context.setAllowTF32CuDNN(allowed);
        context.setAllowTF32CuBLAS(allowed);
        const bool convolutions = context.allowTF32CuDNN(at::Float32Op::CONV);
        TORCH_CHECK(convolutions == allowed && context.allowTF32CuBLAS() == allowed,
                    "TF32 cannot be switched ", allowed ? "on" : "off");
    });
}

// Makes a copy of a host tensor on the device, queued on the current stream; the host does not wait for it.
char* torch_ext_upload(const at::Tensor* host, int device, at::Tensor** out) {
    return guarded([&] {
        *out = new at::Tensor(host->pin_memory().to(cuda(device), /*non_blocking=*/true));
    });
}

// Returns libtorch's current stream (cudaStream_t) on the device.
char* torch_ext_cuda_stream(int device, void** stream) {
    return guarded([&] {
        const auto* guard = c10::impl::getDeviceGuardImpl(c10::DeviceType::CUDA);
        *stream = guard->getStreamNativeHandle(guard->getStream(cuda(device)));
    });
}

// Peak bytes reserved by the caching allocator on the device, private pools of graphs included:
// torch.cuda.max_memory_reserved. The context, cuDNN's code and NCCL's buffers come on top.
char* torch_ext_cuda_peak_bytes(int device, int64_t* bytes) {
    return guarded([&] {
        auto stats = at::getDeviceAllocator(c10::DeviceType::CUDA)
                         ->getDeviceStats(static_cast<c10::DeviceIndex>(device));
        *bytes = stats.reserved_bytes[0].peak;
    });
}

}  // extern "C"
