//! Links the launcher with an rpath to MPI where the whole workspace is built with the feature `mpi`: `comm` then
//! has it, and some linkers keep its library though the launcher calls nothing of it.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    for folder in std::env::var("DEP_LOCKSTEP_COMM_MPI_LIBDIR").unwrap_or_default().split(':') {
        if !folder.is_empty() {
            println!("cargo::rustc-link-arg=-Wl,-rpath,{folder}");
        }
    }
}
