//! Sets the rpath by which binaries find libmpi and benches find libtorch, and embeds the commit and the
//! compiler's version for machines that have neither sources nor Rust.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let commit = ["describe", "--always", "--abbrev=12"];
    println!("cargo::rustc-env=LOCKSTEP_COMMIT={}", first_line("git", &commit));
    let rustc = std::env::var("RUSTC").unwrap_or_default();
    println!("cargo::rustc-env=LOCKSTEP_RUSTC={}", first_line(&rustc, &["--version"]));
    // Every commit appends a line to this log.
    let log = first_line("git", &["rev-parse", "--git-path", "logs/HEAD"]);
    if !log.is_empty() {
        println!("cargo::rerun-if-changed={log}");
    }
    for dir in std::env::var("DEP_LOCKSTEP_COMM_MPI_LIBDIR").unwrap_or_default().split(':') {
        if !dir.is_empty() {
            println!("cargo::rustc-link-arg=-Wl,-rpath,{dir}");
        }
    }
    println!("cargo::rerun-if-env-changed=LIBTORCH");
    if let Ok(libtorch) = std::env::var("LIBTORCH") {
        println!("cargo::rustc-link-arg-benches=-Wl,-rpath,{libtorch}/lib");
    }
}

/// Returns the first line that a command prints; empty where it cannot be run.
fn first_line(program: &str, args: &[&str]) -> String {
    let printed = Command::new(program).args(args).output().map(|output| output.stdout);
    let printed = String::from_utf8_lossy(&printed.unwrap_or_default()).into_owned();
    printed.lines().next().unwrap_or_default().to_owned()
}
