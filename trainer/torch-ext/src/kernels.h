// CUDA kernels that are compiled at run time, for the GPU at hand.

#pragma once

#include <cuda_runtime_api.h>

#include <string>
#include <vector>

// Compiles CUDA C++ that includes no headers to machine code for a GPU of compute capability `arch`, such as
// 90. Needs no GPU. Throws the compiler's messages.
std::string compile_kernels(const char* source, int arch, const std::vector<std::string>& definitions);

// Loads the kernel `name` of such machine code, as cudaLaunchKernelExC takes it. It stays loaded for the life
// of the process.
const void* load_kernel(const std::string& code, const char* name);
