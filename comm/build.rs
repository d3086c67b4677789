//! Finds MPI, if the feature `mpi` is enabled, and tells dependents where it is.
//!
//! Binaries find libmpi by rpath. A dependent's build script gets the library directories in
//! `DEP_LOCKSTEP_COMM_MPI_LIBDIR`, separated by `:`.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "mpi")]
    mpi();
}

#[cfg(feature = "mpi")]
fn mpi() {
    println!("cargo::rerun-if-changed=src/mpi/shim.c");
    println!("cargo::rerun-if-env-changed=MPICC");
    let library = match build_probe_mpi::probe() {
        Ok(library) => library,
        Err(errors) => {
            for error in errors {
                println!("cargo::warning={error}");
            }
            println!("cargo::error=no MPI was found: install one and set MPICC to its mpicc");
            return;
        }
    };
    let mut shim = cc::Build::new();
    match &library.mpicc {
        Some(mpicc) => _ = shim.compiler(mpicc),
        None => _ = shim.includes(&library.include_paths),
    }
    shim.file("src/mpi/shim.c").compile("lockstep_mpi_shim");
    let dirs: Vec<_> = library.lib_paths.iter().map(|dir| dir.display().to_string()).collect();
    for dir in &dirs {
        // Not the `-tests` or `-bins` form: neither covers unit tests, and this package links nothing else.
        // tests.
        println!("cargo::rustc-link-arg=-Wl,-rpath,{dir}");
    }
    println!("cargo::metadata=mpi_libdir={}", dirs.join(":"));
    // For `bootstrap::MPIRUN`, and for the tests, which start their ranks with it.
    let launcher = library.mpicc.and_then(|mpicc| {
        let beside = std::path::Path::new(&mpicc).with_file_name("mpirun");
        beside.exists().then_some(beside)
    });
    let launcher = launcher.unwrap_or_else(|| "mpirun".into());
    println!("cargo::rustc-env=LOCKSTEP_MPIRUN={}", launcher.display());
}
