//! Compiles the C++ shim against libtorch, and tells dependent crates where libtorch is.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// The libtorch version that `tch` is made for.
const WANTED: &str = "2.11.0";

/// Sources of the shim, compiled as one translation unit.
const SOURCES: [&str; 5] =
    ["src/conv.cpp", "src/optimizers.cpp", "src/shim.cpp", "src/sync_norm.cpp", "src/winograd.cpp"];

/// Winograd transforms: compiled at -O3 in any profile, and once per entry of [`VECTORS`] (only the first
/// entry on other processors than x86-64). The caller checks at run time which instruction set is available.
const VECTOR_SOURCE: &str = "src/winograd_transforms.cpp";

/// Number of f32 lanes of a vector register, and the compiler flags that enable such registers on x86-64.
const VECTORS: [(&str, &[&str]); 2] = [("8", &["-mavx2", "-mfma"]), ("16", &["-mavx512f"])];

/// Sources that need CUDA's headers; they become a shared library of their own.
const CUDA_SOURCES: [&str; 4] =
    ["src/batch_norm.cpp", "src/gpu_conv.cpp", "src/graph.cpp", "src/kernels.cpp"];

/// The CUDA headers that the build requires, one of each package in which CUDA's headers are distributed.
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
    let found = version(&libtorch).unwrap_or_else(|| "of unknown version".to_owned());
    assert!(
        found == WANTED,
        "LIBTORCH={} holds libtorch {found}, but {WANTED} is needed; unset LIBTORCH and run `make \
         setup`",
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
    // Where `comm` has the feature `mpi`, some linkers make the unit tests need its library.
    for folder in std::env::var("DEP_LOCKSTEP_COMM_MPI_LIBDIR").unwrap_or_default().split(':') {
        if !folder.is_empty() {
            println!("cargo:rustc-link-arg=-Wl,-rpath,{folder}");
        }
    }
    println!("cargo:rustc-env=TORCH_EXT_LIBTORCH={}", lib.display());
    println!("cargo:lib={}", lib.display());
}

/// Writes a file that includes all of `sources`, and returns its path. Compiled one by one, each source would
/// take ten seconds for libtorch's headers.
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

/// Returns a C++17 compiler with as much debug information as Rust's `line-tables-only`: what `cc` would ask
/// for by default is twenty times the size of the code.
fn compiler() -> cc::Build {
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").debug(false).flag_if_supported("-g1");
    // False positives of GCC 14, in `vector<bool>::reserve` as torch/csrc/autograd/custom_function.h calls it.
    build.flag_if_supported("-Wno-array-bounds").flag_if_supported("-Wno-stringop-overflow");
    build
}

/// Builds `libtorch_ext_cuda.so` if CUDA's headers and libtorch's GPU libraries are found, and passes its
/// path on in `TORCH_EXT_CUDA_LIBRARY`. Without it, steps cannot be captured and batch norm falls back to
/// libtorch's; everything else works.
fn build_cuda_library(libtorch: &Path) {
    let home = std::env::var_os("CUDA_HOME").unwrap_or_else(|| "/usr/local/cuda".into());
    let wheels = libtorch.parent().map(|site| site.join("nvidia/cu13")).unwrap_or_default();
    let folders = [wheels, PathBuf::from(home)];
    let headers = folders.iter().flat_map(|folder| HEADERS.map(|name| folder.join(name)));
    // Cargo treats a listed file that does not exist as changed, in every build.
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
    // CUDA's runtime comes with libc10_cuda, whose symbols are resolved when the library is opened.
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
