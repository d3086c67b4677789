//! Lets binaries find libmpi, and benches libtorch, by rpath.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    for dir in std::env::var("DEP_LOCKSTEP_COMM_MPI_LIBDIR").unwrap_or_default().split(':') {
        if !dir.is_empty() {
            println!("cargo::rustc-link-arg-bins=-Wl,-rpath,{dir}");
        }
    }
    println!("cargo::rerun-if-env-changed=LIBTORCH");
    if let Ok(libtorch) = std::env::var("LIBTORCH") {
        println!("cargo::rustc-link-arg-benches=-Wl,-rpath,{libtorch}/lib");
    }
}
