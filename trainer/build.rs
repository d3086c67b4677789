//! Lets binaries find libtorch, and MPI where it is asked for, by rpath.

fn main() {
    for variable in ["DEP_TORCH_EXT_LIB", "DEP_COMM_MPI_LIB"] {
        println!("cargo:rerun-if-env-changed={variable}");
        if let Ok(lib) = std::env::var(variable) {
            println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
        }
    }
}
