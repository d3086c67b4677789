// Batch norm of a training step on a GPU, fused with the residual addition and the ReLU that follow it: one
// or two kernels forward and as many backward, where libtorch has eight. The kernels are in batch_norm.cu.

#include "kernels.h"
#include "shim.h"

#include <ATen/Functions.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <array>
#include <mutex>
#include <optional>

namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// These constants and structs must match those of batch_norm.cu.
constexpr int kLanes = 8, kGroups = 2, kSliceSums = 2 * kLanes * kGroups, kMaxThreads = 256;
struct Forward {
    const void *input, *residual;
    void* output;
    const float *weight, *bias;
    float *running_mean, *running_var, *mean, *inv_std;
    int64_t rows;
    int channels, has_relu;
    float momentum, eps;
};
struct Backward {
    const void *grad, *input, *output;
    void *grad_input, *grad_residual;
    const float *weight, *mean, *inv_std;
    float *grad_weight, *grad_bias;
    int64_t rows;
    int channels;
};

// Least compute capability: 8.0, which bf16 needs.
constexpr int kMinArch = 80;
// Least rows per block of a cluster, as measured on an H100 (docs/gpu.md). With fewer rows another block does
// not pay, since its sums have to cross the cluster.
constexpr int64_t kMinRowsPerBlock = 64;
// Most blocks of a cluster, which every GPU with clusters supports, and most rows per block of a cluster:
// with more rows, two kernels with more blocks are faster.
constexpr int kMaxBlocks = 8;
constexpr int64_t kMaxRowsPerBlock = 512;

// The kernels of one pass: the whole pass by clusters, and its two halves.
struct Pass {
    const void *whole, *sums, *result;
};
struct Kernels {
    Pass forward, backward;
};

const char* element_of(at::ScalarType type) {
    switch (type) {
        case at::kFloat: return "float";
        case at::kBFloat16: return "BFloat16";
        case at::kHalf: return "Half";
        default: return nullptr;
    }
}

at::ScalarType type_of(std::string_view element) {
    for (const auto type : {at::kFloat, at::kBFloat16, at::kHalf}) {
        if (element == element_of(type)) return type;
    }
    TORCH_CHECK(false, "batch norm has no kernels for ", element);
}

int multiprocessors() {
    int count = 0;
    const auto device = c10::cuda::current_device();
    C10_CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
    return count;
}

std::string compile_for(const char* source, const char* element, int arch) {
    return compile_kernels(source, arch,
                           {c10::str("-DELEMENT=", element), c10::str("-DMAX_THREADS=", kMaxThreads)});
}

// Returns the compute capability, such as 90. All GPUs of a process are of one kind.
int arch_of_device() {
    static const int arch = [] {
        const auto device = c10::cuda::current_device();
        int major = 0, minor = 0;
        C10_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
        C10_CUDA_CHECK(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
        return 10 * major + minor;
    }();
    return arch;
}

Pass load_pass(const std::string& code, const std::string& name) {
    const auto load = [&](const char* part) { return load_kernel(code, (name + part).c_str()); };
    return {load(""), load("_sums"), load("_result")};
}

// Returns the kernels for inputs of `type`, compiled on first use. The reference stays valid for the life of
// the process.
const Kernels& kernels_for(at::ScalarType type, const char* source) {
    static std::mutex mutex;
    static std::array<std::optional<Kernels>, static_cast<size_t>(at::ScalarType::NumOptions)> compiled;
    const std::lock_guard lock(mutex);
    auto& kernels = compiled[static_cast<size_t>(type)];
    if (!kernels) {
        const auto code = compile_for(source, element_of(type), arch_of_device());
        kernels = Kernels{load_pass(code, "batch_norm_forward"), load_pass(code, "batch_norm_backward")};
    }
    return *kernels;
}

int64_t ceil_div(int64_t number, int64_t by) { return (number + by - 1) / by; }

void launch(const void* kernel, int64_t blocks, int64_t threads, int cluster_blocks, void** arguments) {
    cudaLaunchAttribute cluster{};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {static_cast<unsigned>(cluster_blocks), 1, 1};
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(blocks);
    config.blockDim = dim3(threads);
    config.stream = c10::cuda::getCurrentCUDAStream();
    config.attrs = &cluster;
    config.numAttrs = cluster_blocks > 1 ? 1 : 0;
    C10_CUDA_CHECK(cudaLaunchKernelExC(&config, kernel, arguments));
}

template <typename Parameters>
void run(const Pass& pass, Parameters parameters, const at::TensorOptions& f32) {
    const int64_t rows = parameters.rows, slices = ceil_div(parameters.channels, kGroups * kLanes);
    int cluster = 1;
    if (arch_of_device() >= 90) {
        while (cluster < kMaxBlocks && rows / (2 * cluster) >= kMinRowsPerBlock) cluster *= 2;
    }
    if (rows <= cluster * kMaxRowsPerBlock) {
        const int64_t threads = ceil_div(ceil_div(rows, cluster) * kGroups, kSliceSums) * kSliceSums;
        void* arguments[] = {&parameters};
        launch(pass.whole, slices * cluster, std::min<int64_t>(threads, kMaxThreads), cluster, arguments);
        return;
    }
    // As many blocks as run at once, unless there are too few rows.
    static const int64_t at_once = 2 * multiprocessors();
    int blocks = static_cast<int>(std::min(ceil_div(at_once, slices), ceil_div(rows, kMaxRowsPerBlock)));
    const Tensor sums = at::empty({slices * blocks * kSliceSums}, f32);
    float* place = sums.mutable_data_ptr<float>();
    void* arguments[] = {&parameters, &blocks, &place};
    launch(pass.sums, slices * blocks, kMaxThreads, 1, arguments);
    launch(pass.result, slices * blocks, kMaxThreads, 1, arguments);
}

bool is_suited(const Tensor& input) {
    if (!input.is_cuda() || input.dim() != 4 || !element_of(input.scalar_type())) return false;
    const int64_t channels = input.size(1), rows = input.numel() / std::max<int64_t>(channels, 1);
    return input.is_contiguous(at::MemoryFormat::ChannelsLast) && channels % kLanes == 0 && rows > 1 &&
           reinterpret_cast<uintptr_t>(input.const_data_ptr()) % 16 == 0 && arch_of_device() >= kMinArch;
}

Tensor like(const Tensor& tensor, const Tensor& model) {
    TORCH_CHECK(tensor.sizes() == model.sizes(), "batch norm: sizes ", tensor.sizes(), " instead of ",
                model.sizes());
    return tensor.to(model.scalar_type()).contiguous(at::MemoryFormat::ChannelsLast);
}

struct Norm {
    Tensor running_mean, running_var;
    double momentum, eps;
    bool has_relu;
    const Kernels& kernels;
};

struct BatchNormFunction : torch::autograd::Function<BatchNormFunction> {
    // `residual` comes last: autograd does not count the position of an input that is missing.
    static Tensor forward(AutogradContext* ctx, const Tensor& input, const Tensor& weight, const Tensor& bias,
                          const std::optional<Tensor>& residual, const Norm& norm) {
        const int64_t channels = input.size(1);
        const Tensor added = residual ? like(*residual, input) : Tensor();
        const Tensor output = at::empty_like(input);
        const Tensor mean = at::empty_like(weight), inv_std = at::empty_like(weight);
        run(norm.kernels.forward,
            Forward{input.const_data_ptr(), residual ? added.const_data_ptr() : nullptr,
                       output.mutable_data_ptr(), weight.const_data_ptr<float>(),
                       bias.const_data_ptr<float>(), norm.running_mean.mutable_data_ptr<float>(),
                       norm.running_var.mutable_data_ptr<float>(), mean.mutable_data_ptr<float>(),
                       inv_std.mutable_data_ptr<float>(), input.numel() / channels,
                       static_cast<int>(channels), norm.has_relu, static_cast<float>(norm.momentum),
                       static_cast<float>(norm.eps)},
            weight.options());
        variable_list saved{input, weight, mean, inv_std};
        // Where the ReLU has clipped, the output is 0.
        if (norm.has_relu) saved.push_back(output);
        ctx->save_for_backward(std::move(saved));
        ctx->saved_data["backward"] = reinterpret_cast<int64_t>(&norm.kernels.backward);
        ctx->saved_data["has_residual"] = residual.has_value();
        return output;
    }

    // Source: Ioffe and Szegedy, Batch Normalization, ICML 2015.
    static variable_list backward(AutogradContext* ctx, variable_list grads) {
        const auto saved = ctx->get_saved_variables();
        const Tensor &input = saved[0], &weight = saved[1], &mean = saved[2], &inv_std = saved[3];
        const bool has_relu = saved.size() > 4, has_residual = ctx->saved_data["has_residual"].toBool();
        const int64_t channels = input.size(1);
        const Tensor grad = like(grads[0], input);
        const Tensor of_input = at::empty_like(input);
        const Tensor of_weight = at::empty_like(weight), of_bias = at::empty_like(weight);
        // Without a ReLU the gradient of the residual is that of the output.
        Tensor of_residual = has_residual ? grad : Tensor();
        if (has_residual && has_relu) of_residual = at::empty_like(input);
        run(*reinterpret_cast<const Pass*>(ctx->saved_data["backward"].toInt()),
               Backward{grad.const_data_ptr(), input.const_data_ptr(),
                        has_relu ? saved[4].const_data_ptr() : nullptr, of_input.mutable_data_ptr(),
                        has_residual && has_relu ? of_residual.mutable_data_ptr() : nullptr,
                        weight.const_data_ptr<float>(), mean.const_data_ptr<float>(),
                        inv_std.const_data_ptr<float>(), of_weight.mutable_data_ptr<float>(),
                        of_bias.mutable_data_ptr<float>(), input.numel() / channels,
                        static_cast<int>(channels)},
            weight.options());
        return {of_input, of_weight, of_bias, of_residual, Tensor()};
    }
};

}  // namespace

extern "C" {

// Computes relu(norm(input) + residual) with the kernels of `source`; `residual` may be null, and without
// `has_relu` there is no ReLU. `*out` is null if the kernels do not support the input.
char* torch_ext_batch_norm(const char* source, const Tensor* input, const Tensor* residual,
                           const Tensor* weight, const Tensor* bias, const Tensor* running_mean,
                           const Tensor* running_var, double momentum, double eps, bool has_relu,
                           Tensor** out) {
    return guarded([&] {
        *out = nullptr;
        if (!is_suited(*input)) return;
        for (const auto* tensor : {weight, bias, running_mean, running_var}) {
            TORCH_CHECK(tensor->scalar_type() == at::kFloat && tensor->is_contiguous() &&
                            tensor->numel() == input->size(1),
                        "batch norm: a parameter is not a contiguous f32 tensor of size ",
                        input->size(1));
        }
        const Norm norm{*running_mean, *running_var, momentum,
                        eps, has_relu, kernels_for(input->scalar_type(), source)};
        const auto added = residual ? std::optional(*residual) : std::nullopt;
        *out = new Tensor(BatchNormFunction::apply(*input, *weight, *bias, added, norm));
    });
}

// Compiles `source` for elements of `type` and this thread's GPU, unless that is done already.
char* torch_ext_batch_norm_prepare(const char* source, const char* type) {
    return guarded([&] {
        TORCH_CHECK(arch_of_device() >= kMinArch, "kernels need compute capability ", kMinArch,
                    ", the GPU has ", arch_of_device());
        kernels_for(type_of(type), source);
    });
}

// Compiles `source` for elements of `type` and compute capability `arch`, for a test without a GPU.
char* torch_ext_batch_norm_compile(const char* source, const char* type, int arch, size_t* bytes) {
    return guarded([&] {
        *bytes = compile_for(source, element_of(type_of(type)), arch).size();
    });
}

}  // extern "C"
