// What the GPU part of the shim asks of streams.

#pragma once

#include <cuda_runtime_api.h>

// Whether what is queued on the stream becomes part of a graph.
inline bool is_capturing(cudaStream_t stream) {
    auto status = cudaStreamCaptureStatusNone;
    if (cudaStreamIsCapturing(stream, &status) == cudaSuccess) {
        return status == cudaStreamCaptureStatusActive;
    }
    (void)cudaGetLastError();  // or the next check would report it
    return false;
}
