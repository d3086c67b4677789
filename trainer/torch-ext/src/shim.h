// Error handling that the parts of the shim share.

#pragma once

#include <c10/util/Exception.h>

#include <cstring>
#include <exception>

// Runs `body` and returns nullptr, or the message of its exception, which the caller frees with
// torch_ext_free. c10::Error::what() would add a C++ backtrace, which is left out.
template <typename F>
char* guarded(F&& body) {
    try {
        body();
        return nullptr;
    } catch (const c10::Error& error) {
        return strdup(error.what_without_backtrace());
    } catch (const std::exception& error) {
        return strdup(error.what());
    }
}
