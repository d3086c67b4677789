//! Links the binaries with an rpath to libtorch and, with the `mpi` feature, to MPI.

fn main() {
    for variable in ["DEP_TORCH_EXT_LIB", "DEP_LOCKSTEP_COMM_MPI_LIBDIR"] {
        println!("cargo::rerun-if-env-changed={variable}");
        let folders = std::env::var(variable).unwrap_or_default();
        for folder in folders.split(':').filter(|folder| !folder.is_empty()) {
            println!("cargo::rustc-link-arg=-Wl,-rpath,{folder}");
        }
    }
}
