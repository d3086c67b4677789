// CUDA kernels that are compiled where they run.

#pragma once

#include <cuda_runtime_api.h>

#include <string>
#include <vector>

// Machine code for a GPU of compute capability `arch`, such as 90, of CUDA C++ without headers. A GPU is not
// needed. Throws the compiler's messages.
std::string compile_kernels(const char* source, int arch, const std::vector<std::string>& definitions);

// The kernel `name` of such code, as cudaLaunchKernelExC takes it. It stays for the life of the process.
const void* load_kernel(const std::string& code, const char* name);
