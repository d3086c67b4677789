// Batch norm of a training step with what follows it, y = relu(norm(x) + residual). Compiled at run time by
// NVRTC for the GPU at hand, hence without any header.
//
// Images are channels-last: [rows, channels], one row per pixel. GROUPS * LANES channels form a slice, and
// several thread blocks share the rows of a slice. Each block goes over its rows twice, for the sums and then
// for the result. If there are few rows, the blocks of a slice form a cluster and exchange their sums through
// distributed shared memory, all in one kernel; if there are many, more blocks work on a slice, with one
// kernel for the sums and one for the result. Sums are taken in a fixed order: equal inputs give equal bits.

constexpr int LANES = 8;   // channels per thread: 16 bytes of a row in 16-bit dtypes
constexpr int GROUPS = 2;  // groups of LANES channels per slice: 32 bytes, the size of a memory transaction
constexpr int WARP = 32;
constexpr int MAX_WARPS = MAX_THREADS / WARP;
constexpr int SUMS = 2 * LANES;            // sums per thread
constexpr int SLICE_SUMS = GROUPS * SUMS;  // sums per slice

struct BFloat16 { unsigned short bits; };
struct Half { unsigned short bits; };

__device__ float widen(float value) { return value; }
__device__ float widen(BFloat16 value) { return __uint_as_float(static_cast<unsigned>(value.bits) << 16); }
__device__ float widen(Half value) {
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
    return wide;
}

__device__ void round_to(float& out, float value) { out = value; }
__device__ void round_to(BFloat16& out, float value) {
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(value));
}
__device__ void round_to(Half& out, float value) {
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(value));
}

// The channels of one thread in one row.
template <typename T>
struct alignas(16) Pack { T values[LANES]; };

// Loads from memory that no thread writes during the kernel (__ldg), so that loads need not wait for stores.
template <typename T>
__device__ Pack<T> load(const T* at) {
    union {
        Pack<T> pack;
        uint4 words[sizeof(Pack<T>) / sizeof(uint4)];
    };
    for (auto& word : words) word = __ldg(reinterpret_cast<const uint4*>(at) + (&word - words));
    return pack;
}

// The part of the rows and channels that one thread processes.
struct Part {
    int block, blocks;  // index of this block among the blocks of its slice, and their number
    int slice;
    int group;             // index of the thread's group of channels within the slice
    int channel;           // first channel of this thread
    bool is_inside;        // whether that channel exists
    long long begin, end;  // range of rows of this thread, of which it takes every `step`-th
    int step;
};

__device__ Part part_of(long long rows, int channels, int block, int blocks) {
    Part part;
    part.block = block;
    part.blocks = blocks;
    part.slice = static_cast<int>(blockIdx.x) / blocks;
    part.group = threadIdx.x % GROUPS;
    part.channel = (part.slice * GROUPS + part.group) * LANES;
    part.is_inside = part.channel < channels;
    const long long share = (rows + blocks - 1) / blocks;
    const long long first = block * share;
    part.begin = first + threadIdx.x / GROUPS;
    part.end = min(rows, first + share);
    part.step = blockDim.x / GROUPS;
    return part;
}

__device__ int cluster_block() {
#if __CUDA_ARCH__ >= 900
    int rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
#else
    return 0;
#endif
}

__device__ int cluster_blocks() {
#if __CUDA_ARCH__ >= 900
    int size;
    asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
    return size;
#else
    return 1;
#endif
}

__device__ void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}

__device__ void cluster_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

// Returns the value at the address `place` of this block's shared memory, as it is in block `block` of the
// cluster.
__device__ float peer_value(const float* place, int block) {
#if __CUDA_ARCH__ >= 900
    const unsigned own = static_cast<unsigned>(__cvta_generic_to_shared(place));
    unsigned address;
    float value;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(own), "r"(block));
    asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(value) : "r"(address) : "memory");
    return value;
#else
    return *place;
#endif
}

// Adds up `values` over the threads of the block that have the same channels, into `sums` in shared memory.
// All threads of the block must call this, once.
__device__ void sum_over_block(float (&values)[SUMS], float (&sums)[SLICE_SUMS]) {
    __shared__ float by_warp[SLICE_SUMS][MAX_WARPS + 1];
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
#pragma unroll
    for (int i = 0; i < SUMS; i++) {
#pragma unroll
        for (int distance = GROUPS; distance < WARP; distance *= 2) {
            values[i] += __shfl_xor_sync(~0u, values[i], distance);
        }
    }
    if (lane < GROUPS) {
#pragma unroll
        for (int i = 0; i < SUMS; i++) by_warp[lane * SUMS + i][warp] = values[i];
    }
    __syncthreads();
    if (threadIdx.x < SLICE_SUMS) {
        float sum = 0.0f;
        for (int i = 0; i < warps; i++) sum += by_warp[threadIdx.x][i];
        sums[threadIdx.x] = sum;
    }
    __syncthreads();
}

// Adds up `values` over all blocks of the cluster, which shares a slice; each thread receives the sums of its
// channels. All threads must call this once, and cluster_wait() before the block ends.
__device__ void sum_over_cluster(float (&values)[SUMS], const Part& part) {
    __shared__ float of_block[SLICE_SUMS];
    __shared__ float of_cluster[SLICE_SUMS];
    sum_over_block(values, of_block);
    cluster_arrive();
    cluster_wait();
    if (threadIdx.x < SLICE_SUMS) {
        float sum = 0.0f;
        for (int block = 0; block < part.blocks; block++) sum += peer_value(&of_block[threadIdx.x], block);
        of_cluster[threadIdx.x] = sum;
    }
    __syncthreads();
    cluster_arrive();  // no block may end while another reads its shared memory
#pragma unroll
    for (int i = 0; i < SUMS; i++) values[i] = of_cluster[part.group * SUMS + i];
}

// Writes the sums of this block to global memory for all blocks that share its slice: `sums` is [slices,
// blocks, SLICE_SUMS].
__device__ void leave_sums(float (&values)[SUMS], const Part& part, float* sums) {
    __shared__ float of_block[SLICE_SUMS];
    sum_over_block(values, of_block);
    const long long place = static_cast<long long>(part.slice) * part.blocks + part.block;
    if (threadIdx.x < SLICE_SUMS) sums[place * SLICE_SUMS + threadIdx.x] = of_block[threadIdx.x];
}

// Adds up the sums that the blocks of a slice have written; each thread receives those of its channels. All
// threads must call this once; their number is a multiple of SLICE_SUMS.
__device__ void collect_sums(float (&values)[SUMS], const Part& part, const float* sums) {
    constexpr int MAX_SHARES = MAX_THREADS / SLICE_SUMS;
    __shared__ float by_share[MAX_SHARES][SLICE_SUMS];
    __shared__ float all[SLICE_SUMS];
    const int place = threadIdx.x % SLICE_SUMS, share = threadIdx.x / SLICE_SUMS;
    const int shares = blockDim.x / SLICE_SUMS;
    const float* const of_slice = sums + static_cast<long long>(part.slice) * part.blocks * SLICE_SUMS;
    float sum = 0.0f;
#pragma unroll 4
    for (int block = share; block < part.blocks; block += shares) {
        sum += of_slice[block * SLICE_SUMS + place];
    }
    by_share[share][place] = sum;
    __syncthreads();
    if (share == 0) {
        for (int i = 1; i < shares; i++) sum += by_share[i][place];
        all[place] = sum;
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < SUMS; i++) values[i] = all[part.group * SUMS + i];
}

struct Forward {
    const void* input;
    const void* residual;  // or null
    void* output;
    const float* weight;
    const float* bias;
    float* running_mean;
    float* running_var;
    float* mean;     // mean of this batch
    float* inv_std;  // 1 / sqrt(variance + eps) of this batch
    long long rows;
    int channels;
    int has_relu;
    float momentum;
    float eps;
};

// Sets `origin` to one value of each channel (its first row). Distances are taken from it, so that sums of
// squares do not cancel where the mean is large.
template <typename T>
__device__ void origin_of(float (&origin)[LANES], const Forward& p, const Part& part) {
    const auto pack = load(static_cast<const T*>(p.input) + part.channel);
#pragma unroll
    for (int i = 0; i < LANES; i++) origin[i] = widen(pack.values[i]);
}

// Sums of distances and of their squares, over the rows of one thread.
template <typename T>
__device__ void forward_sums(float (&sums)[SUMS], const Forward& p, const Part& part) {
    if (!part.is_inside) return;
    const T* const input = static_cast<const T*>(p.input) + part.channel;
    float origin[LANES];
    origin_of<T>(origin, p, part);
#pragma unroll 4
    for (long long row = part.begin; row < part.end; row += part.step) {
        const auto pack = load(input + row * p.channels);
#pragma unroll
        for (int i = 0; i < LANES; i++) {
            const float distance = widen(pack.values[i]) - origin[i];
            sums[i] += distance;
            sums[LANES + i] += distance * distance;
        }
    }
}

// Writes the output and the statistics, from the sums over all rows.
template <typename T>
__device__ void forward_result(const float (&sums)[SUMS], const Forward& p, const Part& part) {
    if (!part.is_inside) return;
    const T* const input = static_cast<const T*>(p.input) + part.channel;
    const float rows = static_cast<float>(p.rows);
    float origin[LANES], mean[LANES], scale[LANES], bias[LANES];
    origin_of<T>(origin, p, part);
#pragma unroll
    for (int i = 0; i < LANES; i++) {
        const int channel = part.channel + i;
        const float shift = sums[i] / rows;
        const float var = fmaxf(sums[LANES + i] / rows - shift * shift, 0.0f);
        const float inv_std = 1.0f / sqrtf(var + p.eps);
        mean[i] = origin[i] + shift;
        scale[i] = inv_std * p.weight[channel];
        bias[i] = p.bias[channel];
        if (part.block == 0 && threadIdx.x < GROUPS) {
            p.mean[channel] = mean[i];
            p.inv_std[channel] = inv_std;
            const float keep = 1.0f - p.momentum;
            p.running_mean[channel] = keep * p.running_mean[channel] + p.momentum * mean[i];
            p.running_var[channel] =
                keep * p.running_var[channel] + p.momentum * (var * (rows / (rows - 1.0f)));
        }
    }
    const T* const residual = p.residual ? static_cast<const T*>(p.residual) + part.channel : nullptr;
    T* const output = static_cast<T*>(p.output) + part.channel;
#pragma unroll 4
    for (long long row = part.begin; row < part.end; row += part.step) {
        const long long at = row * p.channels;
        const auto pack = load(input + at);
        Pack<T> added = {};
        if (residual) added = load(residual + at);
        Pack<T> result;
#pragma unroll
        for (int i = 0; i < LANES; i++) {
            float value = (widen(pack.values[i]) - mean[i]) * scale[i] + bias[i];
            if (residual) value += widen(added.values[i]);
            if (p.has_relu && value < 0.0f) value = 0.0f;  // NaN stays NaN
            round_to(result.values[i], value);
        }
        *reinterpret_cast<Pack<T>*>(output + at) = result;
    }
}

struct Backward {
    const void* grad;    // gradient of the output
    const void* input;
    const void* output;  // output of forward if a ReLU clipped it, else null
    void* grad_input;
    void* grad_residual;  // or null
    const float* weight;
    const float* mean;
    const float* inv_std;
    float* grad_weight;
    float* grad_bias;
    long long rows;
    int channels;
};

// Computes the gradient before the ReLU.
template <typename T>
__device__ void grad_before(float (&grads)[LANES], const Backward& p, long long at) {
    const auto grad = load(static_cast<const T*>(p.grad) + at);
    Pack<T> output = {};
    if (p.output) output = load(static_cast<const T*>(p.output) + at);
#pragma unroll
    for (int i = 0; i < LANES; i++) {
        const bool is_cut = p.output && widen(output.values[i]) <= 0.0f;
        grads[i] = is_cut ? 0.0f : widen(grad.values[i]);
    }
}

// Sums of gradients and of their products with distances from the mean, over the rows of one thread.
template <typename T>
__device__ void backward_sums(float (&sums)[SUMS], const Backward& p, const Part& part) {
    if (!part.is_inside) return;
    float mean[LANES];
#pragma unroll
    for (int i = 0; i < LANES; i++) mean[i] = p.mean[part.channel + i];
#pragma unroll 4
    for (long long row = part.begin; row < part.end; row += part.step) {
        const long long at = row * p.channels + part.channel;
        const auto pack = load(static_cast<const T*>(p.input) + at);
        float grads[LANES];
        grad_before<T>(grads, p, at);
#pragma unroll
        for (int i = 0; i < LANES; i++) {
            sums[i] += grads[i];
            sums[LANES + i] += grads[i] * (widen(pack.values[i]) - mean[i]);
        }
    }
}

// Writes the gradients, from the sums over all rows.
template <typename T>
__device__ void backward_result(const float (&sums)[SUMS], const Backward& p, const Part& part) {
    if (!part.is_inside) return;
    const float rows = static_cast<float>(p.rows);
    float mean[LANES], scale[LANES], grad_mean[LANES], slope[LANES];
#pragma unroll
    for (int i = 0; i < LANES; i++) {
        const int channel = part.channel + i;
        const float inv_std = p.inv_std[channel];
        mean[i] = p.mean[channel];
        scale[i] = inv_std * p.weight[channel];
        grad_mean[i] = sums[i] / rows;
        slope[i] = sums[LANES + i] / rows * inv_std * inv_std;
        if (part.block == 0 && threadIdx.x < GROUPS) {
            p.grad_bias[channel] = sums[i];
            p.grad_weight[channel] = sums[LANES + i] * inv_std;
        }
    }
#pragma unroll 4
    for (long long row = part.begin; row < part.end; row += part.step) {
        const long long at = row * p.channels + part.channel;
        const auto pack = load(static_cast<const T*>(p.input) + at);
        float grads[LANES];
        grad_before<T>(grads, p, at);
        Pack<T> of_input, of_residual;
#pragma unroll
        for (int i = 0; i < LANES; i++) {
            const float centred = widen(pack.values[i]) - mean[i];
            round_to(of_input.values[i], (grads[i] - grad_mean[i] - centred * slope[i]) * scale[i]);
            round_to(of_residual.values[i], grads[i]);
        }
        *reinterpret_cast<Pack<T>*>(static_cast<T*>(p.grad_input) + at) = of_input;
        if (p.grad_residual) {
            *reinterpret_cast<Pack<T>*>(static_cast<T*>(p.grad_residual) + at) = of_residual;
        }
    }
}

#define KERNEL extern "C" __global__ void __launch_bounds__(MAX_THREADS)

// The whole forward pass, with one cluster per slice.
KERNEL batch_norm_forward(Forward p) {
    const Part part = part_of(p.rows, p.channels, cluster_block(), cluster_blocks());
    float sums[SUMS] = {};
    forward_sums<ELEMENT>(sums, p, part);
    sum_over_cluster(sums, part);
    forward_result<ELEMENT>(sums, p, part);
    cluster_wait();
}

// First half of the forward pass, the sums, with `blocks` blocks per slice.
KERNEL batch_norm_forward_sums(Forward p, int blocks, float* sums) {
    const Part part = part_of(p.rows, p.channels, blockIdx.x % blocks, blocks);
    float own[SUMS] = {};
    forward_sums<ELEMENT>(own, p, part);
    leave_sums(own, part, sums);
}

// Second half of the forward pass, the result, with `blocks` blocks per slice.
KERNEL batch_norm_forward_result(Forward p, int blocks, const float* sums) {
    const Part part = part_of(p.rows, p.channels, blockIdx.x % blocks, blocks);
    float all[SUMS];
    collect_sums(all, part, sums);
    forward_result<ELEMENT>(all, p, part);
}

// The whole backward pass, with one cluster per slice.
KERNEL batch_norm_backward(Backward p) {
    const Part part = part_of(p.rows, p.channels, cluster_block(), cluster_blocks());
    float sums[SUMS] = {};
    backward_sums<ELEMENT>(sums, p, part);
    sum_over_cluster(sums, part);
    backward_result<ELEMENT>(sums, p, part);
    cluster_wait();
}

// First half of the backward pass, the sums, with `blocks` blocks per slice.
KERNEL batch_norm_backward_sums(Backward p, int blocks, float* sums) {
    const Part part = part_of(p.rows, p.channels, blockIdx.x % blocks, blocks);
    float own[SUMS] = {};
    backward_sums<ELEMENT>(own, p, part);
    leave_sums(own, part, sums);
}

// Second half of the backward pass, the result, with `blocks` blocks per slice.
KERNEL batch_norm_backward_result(Backward p, int blocks, const float* sums) {
    const Part part = part_of(p.rows, p.channels, blockIdx.x % blocks, blocks);
    float all[SUMS];
    collect_sums(all, part, sums);
    backward_result<ELEMENT>(all, p, part);
}
