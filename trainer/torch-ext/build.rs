//! Compiles the shim against libtorch, and tells dependents where libtorch is.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// The libtorch that `tch` is made for.
const WANTED: &str = "2.11.0";

/// The shim.
const SOURCES: [&str; 5] =
    ["src/conv.cpp", "src/optimizers.cpp", "src/shim.cpp", "src/sync_norm.cpp", "src/winograd.cpp"];

/// What is compiled for speed in any profile, and once for each of [`VECTORS`], of which other processors
/// than x86-64 have the first: whoever calls it asks first what is there.
const VECTOR_SOURCE: &str = "src/winograd_transforms.cpp";

/// How many f32 a vector register has, and what asks the compiler for such registers on x86-64.
const VECTORS: [(&str, &[&str]); 2] = [("8", &["-mavx2", "-mfma"]), ("16", &["-mavx512f"])];

/// What needs CUDA's headers: a shared library of its own.
const CUDA_SOURCES: [&str; 4] =
    ["src/batch_norm.cpp", "src/gpu_conv.cpp", "src/graph.cpp", "src/kernels.cpp"];

/// Of CUDA's headers, those without which it cannot be compiled, and in which they come in parts.
const HEADERS: [&str; 3] =
    ["include/cuda_runtime_api.h", "include/crt/host_defines.h", "include/nvrtc.h"];

fn main() {
    let headers = [
        "src/capture.h",
        "src/kernels.h",
        "src/shim.h",
        "src/winograd.h",
        "src/winograd_transforms.h",
    ];
    for source in SOURCES.iter().chain(&CUDA_SOURCES).chain(&headers).chain([&VECTOR_SOURCE]) {
        println!("cargo:rerun-if-changed={source}");
    }
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    println!("cargo:rerun-if-env-changed=CUDA_HOME");
    let libtorch = std::env::var_os("LIBTORCH").map(PathBuf::from).unwrap_or_default();
    let Ok(libtorch) = libtorch.canonicalize() else {
        panic!("libtorch is not at LIBTORCH={}: run `make setup`", libtorch.display());
    };
    let found = version(&libtorch).unwrap_or_else(|| "no version".to_owned());
    assert!(
        found == WANTED,
        "LIBTORCH={} holds libtorch {found}, wanted is {WANTED}; unset LIBTORCH and run `make setup`",
        libtorch.display()
    );
    compiler()
        .flag("-isystem")
        .flag(libtorch.join("include"))
        .file(together("shim", &SOURCES))
        .compile("torch_ext");
    let is_x86_64 = std::env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "x86_64");
    for (lanes, flags) in VECTORS.into_iter().take(if is_x86_64 { 2 } else { 1 }) {
        let mut vector = compiler();
        vector.opt_level(3).file(VECTOR_SOURCE).define("WINOGRAD_LANES", lanes);
        if is_x86_64 {
            vector.flags(flags);
        }
        vector.compile(&format!("torch_ext_vector_{lanes}"));
    }
    build_cuda_library(&libtorch);
    let lib = libtorch.join("lib");
    println!("cargo:rustc-link-search=native={}", lib.display());
    println!("cargo:rustc-link-lib=dylib=torch_cpu");
    println!("cargo:rustc-link-lib=dylib=c10");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    println!("cargo:rustc-env=TORCH_EXT_LIBTORCH={}", lib.display());
    println!("cargo:lib={}", lib.display());
}

/// A file that includes `sources`: apart, each would take ten seconds for libtorch's headers.
fn together(name: &str, sources: &[&str]) -> PathBuf {
    let file = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default())
        .join(name)
        .with_extension("cpp");
    let here = std::env::current_dir().unwrap_or_default();
    let lines = sources.iter().map(|source| format!("#include {:?}\n", here.join(source)));
    let written = std::fs::write(&file, lines.collect::<String>());
    assert!(written.is_ok(), "cannot write {}: {written:?}", file.display());
    file
}

/// For C++17, with as much for a debugger as Rust's `line-tables-only`: all that `cc` would ask for is twenty
/// times the code.
fn compiler() -> cc::Build {
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").debug(false).flag_if_supported("-g1");
    build
}

/// Builds `libtorch_ext_cuda.so` where CUDA's headers and libtorch's GPU libraries are, and says where it
/// is in `TORCH_EXT_CUDA_LIBRARY`. Without, steps cannot be captured and batch norm is libtorch's, and all
/// else works.
fn build_cuda_library(libtorch: &Path) {
    let home = std::env::var_os("CUDA_HOME").unwrap_or_else(|| "/usr/local/cuda".into());
    let wheels = libtorch.parent().map(|site| site.join("nvidia/cu13")).unwrap_or_default();
    let folders = [wheels, PathBuf::from(home)];
    let headers = folders.iter().flat_map(|folder| HEADERS.map(|name| folder.join(name)));
    // Cargo takes a file that is not there as one that has changed, each time.
    for header in headers.filter(|header| header.exists()) {
        println!("cargo:rerun-if-changed={}", header.display());
    }
    let has_headers = |folder: &&PathBuf| HEADERS.iter().all(|name| folder.join(name).exists());
    let lib = libtorch.join("lib");
    let (Some(cuda), true) =
        (folders.iter().find(has_headers), lib.join("libc10_cuda.so").exists())
    else {
        return;
    };
    let library =
        PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default()).join("libtorch_ext_cuda.so");
    let compiler = compiler().pic(true).get_compiler();
    // CUDA's runtime comes with libc10_cuda, whose symbols are resolved when it is opened.
    let status = compiler
        .to_command()
        .arg("-shared")
        .arg(together("cuda", &CUDA_SOURCES))
        .args(["-lc10_cuda", "-lc10", "-Wl,--allow-shlib-undefined"])
        .arg(format!("-Wl,-rpath,{}", lib.display()))
        .arg("-L")
        .arg(&lib)
        .args([OsStr::new("-isystem"), libtorch.join("include").as_os_str()])
        .args([OsStr::new("-isystem"), cuda.join("include").as_os_str(), OsStr::new("-o")])
        .arg(&library)
        .status();
    assert!(status.is_ok_and(|status| status.success()), "{CUDA_SOURCES:?} cannot be compiled");
    println!("cargo:rustc-env=TORCH_EXT_CUDA_LIBRARY={}", library.display());
}

fn version(libtorch: &Path) -> Option<String> {
    let header = libtorch.join("include/torch/headeronly/version.h");
    let text = std::fs::read_to_string(header).ok()?;
    let number = |part: &str| {
        let line = text.lines().find(|line| line.contains(&format!("TORCH_VERSION_{part} ")))?;
        line.split_whitespace().last().map(str::to_owned)
    };
    Some([number("MAJOR")?, number("MINOR")?, number("PATCH")?].join("."))
}
