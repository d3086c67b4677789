// CUDA graphs: work that a thread queues on its current stream is captured once and can be replayed. A shared
// library of its own, opened only where there is a GPU, since it needs CUDA's headers and libc10_cuda, which
// the shim does without. Every function returns nullptr, or a message that the caller frees with
// torch_ext_free.

#include "capture.h"
#include "shim.h"

#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include <atomic>
#include <memory>

namespace {

namespace allocator = c10::cuda::CUDACachingAllocator;

// Returns a new id for a memory pool. The first number of an id is for pools of captures, the second for
// pools that users make.
c10::MempoolId_t new_pool() {
    static std::atomic<c10::CaptureId_t> next{1};
    return {next++, 0};
}

// A capture in progress, and afterwards its graph with the memory that its kernels use.
class Graph {
public:
    Graph() : stream_(c10::cuda::getCurrentCUDAStream()), pool_(new_pool()) {
        C10_CUDA_CHECK(cudaDeviceSynchronize());
        // During a capture, blocks cached for other pools can be neither used nor freed.
        allocator::emptyCache();
        // The predicate is_capturing routes allocations to the pool: only this stream, and streams that join
        // it by events, are capturing.
        allocator::beginAllocateToPool(device(), pool_, is_capturing);
        const auto begun = cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal);
        if (begun != cudaSuccess) release();
        C10_CUDA_CHECK(begun);
        capturing_ = true;
    }

    ~Graph() noexcept(false) {
        if (capturing_) {
            cudaGraph_t unfinished = nullptr;
            (void)cudaStreamEndCapture(stream_, &unfinished);
            if (unfinished) (void)cudaGraphDestroy(unfinished);
            (void)cudaGetLastError();
            release();
        } else if (executable_) {
            (void)cudaGraphExecDestroy(executable_);
            allocator::releasePool(device(), pool_);
        }
    }

    void end() {
        cudaGraph_t captured = nullptr;
        const auto ended = cudaStreamEndCapture(stream_, &captured);
        capturing_ = false;
        allocator::endAllocateToPool(device(), pool_);
        auto made = ended;
        if (captured) {
            made = cudaGraphInstantiate(&executable_, captured, cudaGraphInstantiateFlagAutoFreeOnLaunch);
            (void)cudaGraphDestroy(captured);
        }
        if (!executable_) allocator::releasePool(device(), pool_);
        C10_CUDA_CHECK(ended);
        C10_CUDA_CHECK(made);
    }

    void replay() { C10_CUDA_CHECK(cudaGraphLaunch(executable_, c10::cuda::getCurrentCUDAStream())); }

private:
    c10::DeviceIndex device() const { return stream_.device_index(); }

    void release() {
        allocator::endAllocateToPool(device(), pool_);
        allocator::releasePool(device(), pool_);
    }

    c10::cuda::CUDAStream stream_;
    c10::MempoolId_t pool_;
    bool capturing_ = false;
    cudaGraphExec_t executable_ = nullptr;
};

}  // namespace

extern "C" {

// Begins to capture what this thread queues on its current stream.
char* torch_ext_graph_begin(Graph** out) {
    return guarded([&] { *out = std::make_unique<Graph>().release(); });
}

// Ends the capture. On failure the graph has still to be freed.
char* torch_ext_graph_end(Graph* graph) {
    return guarded([&] { graph->end(); });
}

// Queues the graph on this thread's current stream.
char* torch_ext_graph_replay(Graph* graph) {
    return guarded([&] { graph->replay(); });
}

// Frees the graph and its memory; a capture that has not ended is abandoned.
char* torch_ext_graph_free(Graph* graph) {
    return guarded([&] { delete graph; });
}

}  // extern "C"
