// What the parts of the shim share.

#pragma once

#include <c10/util/Exception.h>

#include <cstring>
#include <exception>

// Runs `body`; an exception becomes a message that the caller frees with torch_ext_free.
// c10::Error's own what() carries a C++ backtrace, which helps nobody here.
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
