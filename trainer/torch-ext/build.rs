//! Compiles the shim against libtorch, and tells dependents where libtorch is.

use std::path::{Path, PathBuf};

/// The libtorch that `tch` is made for.
const WANTED: &str = "2.11.0";

/// The shim.
const SOURCES: [&str; 4] =
    ["src/conv.cpp", "src/optimizers.cpp", "src/shim.cpp", "src/sync_norm.cpp"];

fn main() {
    for source in SOURCES.iter().chain(&["src/shim.h"]) {
        println!("cargo:rerun-if-changed={source}");
    }
    println!("cargo:rerun-if-env-changed=LIBTORCH");
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
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .flag("-isystem")
        .flag(libtorch.join("include"))
        .files(SOURCES)
        .compile("torch_ext");
    let lib = libtorch.join("lib");
    println!("cargo:rustc-link-search=native={}", lib.display());
    println!("cargo:rustc-link-lib=dylib=torch_cpu");
    println!("cargo:rustc-link-lib=dylib=c10");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    println!("cargo:rustc-env=TORCH_EXT_LIBTORCH={}", lib.display());
    println!("cargo:lib={}", lib.display());
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
