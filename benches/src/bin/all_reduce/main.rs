//! Measures all_reduce between CPU ranks, by buffer size. On one machine: shared memory with and without a
//! copy and, if built with the feature `mpi` and started by `mpirun`, MPI in the same rounds. On several
//! machines: MPI between all ranks, alone and hierarchically through shared memory.
//!
//! ```text
//! cargo run --release -p benches --bin all_reduce -- --ranks 2
//! mpirun -n 2 target/release/all_reduce --json FILE      (built with --features mpi)
//! ```

mod measure;
mod ranks;
mod report;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, ValueEnum};

use measure::measure;
use report::Report;

/// Measures all_reduce between CPU ranks.
#[derive(Debug, Parser)]
struct Args {
    /// Ranks to start, where mpirun has not started them.
    #[arg(long, default_value_t = 2)]
    ranks: usize,
    /// Buffer lengths in bytes.
    #[arg(long, value_delimiter = ',', default_values_t = [
        1 << 10, 32 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20, 45_000_000,
    ])]
    bytes: Vec<usize>,
    /// The type of the elements.
    #[arg(long, value_enum, default_value_t = Element::F32)]
    dtype: Element,
    /// Timed rounds of each size; every backend runs once per round.
    #[arg(long, default_value_t = 31)]
    rounds: usize,
    /// Untimed rounds before those.
    #[arg(long, default_value_t = 5)]
    warmup: usize,
    /// Where to write the records, rounds included.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// Element types of the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Element {
    F32,
    F64,
    Bf16,
    I64,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let Some(group) = ranks::connect_or_start(args.ranks)? else {
        return Ok(());
    };
    let series = match args.dtype {
        Element::F32 => measure::<f32>(&group, &args),
        Element::F64 => measure::<f64>(&group, &args),
        Element::Bf16 => measure::<half::bf16>(&group, &args),
        Element::I64 => measure::<i64>(&group, &args),
    }?;
    if group.is_first() {
        let report = Report::new(&group, &args, series)?;
        print!("{report}");
        if let Some(path) = &args.json {
            std::fs::write(path, serde_json::to_string_pretty(&report)? + "\n")?;
        }
    }
    group.finalize()?;
    Ok(())
}
