// Stream queries of the GPU part of the shim.

#pragma once

#include <cuda_runtime_api.h>

// Returns whether work that is queued on the stream becomes part of a graph.
inline bool is_capturing(cudaStream_t stream) {
    auto status = cudaStreamCaptureStatusNone;
    if (cudaStreamIsCapturing(stream, &status) == cudaSuccess) {
        return status == cudaStreamCaptureStatusActive;
    }
    (void)cudaGetLastError();  // clear the error, or the next check would report it
    return false;
}
