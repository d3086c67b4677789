// Compilation and loading of CUDA kernels by NVRTC, which comes with libtorch's GPU libraries and is opened
// when the first kernel is compiled.

#include "kernels.h"

#include <c10/cuda/CUDAException.h>
#include <c10/util/Exception.h>
#include <c10/util/StringUtil.h>
#include <cuda.h>
#include <dlfcn.h>
#include <nvrtc.h>

#include <memory>

namespace {

// Returns the folder in which libtorch's wheel has NVRTC: ../../nvidia/cu13/lib, relative to libc10_cuda's
// folder.
std::string folder_of_wheels() {
    Dl_info found{};
    const auto* here = reinterpret_cast<const void*>(&c10::cuda::c10_cuda_check_implementation);
    if (!dladdr(here, &found) || !found.dli_fname) return {};
    const std::string library = found.dli_fname;
    return c10::str(library.substr(0, library.rfind('/') + 1), "../../nvidia/cu", CUDA_VERSION / 1000,
                    "/lib/");
}

class Nvrtc {
public:
    static const Nvrtc& get() {
        static const Nvrtc nvrtc;
        return nvrtc;
    }

    void check(nvrtcResult result) const {
        TORCH_CHECK(result == NVRTC_SUCCESS, "NVRTC: ", error_string(result));
    }

    decltype(&nvrtcGetErrorString) error_string;
    decltype(&nvrtcCreateProgram) create;
    decltype(&nvrtcDestroyProgram) destroy;
    decltype(&nvrtcCompileProgram) compile;
    decltype(&nvrtcGetProgramLogSize) log_size;
    decltype(&nvrtcGetProgramLog) log;
    decltype(&nvrtcGetCUBINSize) code_size;
    decltype(&nvrtcGetCUBIN) code;

private:
    Nvrtc() {
        const int major = CUDA_VERSION / 1000, minor = CUDA_VERSION % 1000 / 10;
        const auto name = c10::str("libnvrtc.so.", major);
        const auto folder = folder_of_wheels();
        // NVRTC looks for this library by name, and finds it if it is loaded already.
        dlopen(c10::str(folder, "libnvrtc-builtins.so.", major, ".", minor).c_str(), RTLD_NOW | RTLD_GLOBAL);
        void* library = dlopen((folder + name).c_str(), RTLD_NOW | RTLD_LOCAL);
        if (!library) library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
        TORCH_CHECK(library, name, " is neither in ", folder, " nor on the loader's search path");
        const auto find = [&](auto& function, const char* symbol) {
            function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, symbol));
            TORCH_CHECK(function, name, " has no ", symbol);
        };
        find(error_string, "nvrtcGetErrorString");
        find(create, "nvrtcCreateProgram");
        find(destroy, "nvrtcDestroyProgram");
        find(compile, "nvrtcCompileProgram");
        find(log_size, "nvrtcGetProgramLogSize");
        find(log, "nvrtcGetProgramLog");
        find(code_size, "nvrtcGetCUBINSize");
        find(code, "nvrtcGetCUBIN");
    }
};

}  // namespace

std::string compile_kernels(const char* source, int arch, const std::vector<std::string>& definitions) {
    const Nvrtc& nvrtc = Nvrtc::get();
    nvrtcProgram program = nullptr;
    nvrtc.check(nvrtc.create(&program, source, nullptr, 0, nullptr, nullptr));
    const auto destroy = [&](nvrtcProgram* program) { nvrtc.destroy(program); };
    const std::unique_ptr<nvrtcProgram, decltype(destroy)> owner(&program, destroy);

    std::vector<std::string> options{"--std=c++17", c10::str("-arch=sm_", arch)};
    options.insert(options.end(), definitions.begin(), definitions.end());
    std::vector<const char*> pointers;
    for (const auto& option : options) pointers.push_back(option.c_str());
    const auto compiled = nvrtc.compile(program, static_cast<int>(pointers.size()), pointers.data());

    size_t size = 0;
    if (compiled != NVRTC_SUCCESS) {
        nvrtc.check(nvrtc.log_size(program, &size));
        std::string log(size, '\0');
        nvrtc.check(nvrtc.log(program, log.data()));
        TORCH_CHECK(false, "NVRTC for sm_", arch, ": ", log.substr(0, log.find('\n')));
    }
    nvrtc.check(nvrtc.code_size(program, &size));
    std::string code(size, '\0');
    nvrtc.check(nvrtc.code(program, code.data()));
    return code;
}

const void* load_kernel(const std::string& code, const char* name) {
    cudaLibrary_t library = nullptr;
    cudaKernel_t kernel = nullptr;
    C10_CUDA_CHECK(cudaLibraryLoadData(&library, code.data(), nullptr, nullptr, 0, nullptr, nullptr, 0));
    C10_CUDA_CHECK(cudaLibraryGetKernel(&kernel, library, name));
    return reinterpret_cast<const void*>(kernel);
}
