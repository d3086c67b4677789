//! Measures training at several rank counts, beside PyTorch DDP in the same rounds.
//!
//! ```text
//! cargo build --release -p launcher -p trainer
//! cargo run --release -p benches --bin scaling -- --cpu 1,2 --configs configs/resnet18.yaml \
//!     --batch-per-rank 64 --repeats 5 --python /path/to/python --out benches/results/NAME
//! ```

mod cli;
mod error;
mod load;
mod machine;
mod ours;
mod peer;
mod plan;
mod process;
mod record;
mod rounds;
mod stats;
mod table;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use clap::Parser;

use cli::Args;
use ours::Ours;
use peer::Peer;
use plan::Plan;
use record::Report;
use rounds::Runner;

fn main() -> Result<()> {
    let args = Args::parse();
    let plan = Plan::new(&args)?;
    let ours = Ours::new(&args)?;
    let peer = Peer::find(&args, plan.has_peers());
    fs::create_dir_all(&args.out).with_context(|| format!("cannot make {}", args.out.display()))?;
    let mut report = Report::new(&args, peer.versions());
    let runner = Runner { args: &args, ours: &ours, peer: &peer };
    runner.run(&plan, &mut report, |report| write(&args.out, &plan, report))?;
    print!("{}", table::render(&plan, &report));
    ensure!(report.has_results(), "nothing was measured");
    Ok(())
}

fn write(out: &Path, plan: &Plan, report: &Report) -> Result<()> {
    fs::write(out.join("results.json"), serde_json::to_string_pretty(report)? + "\n")?;
    fs::write(out.join("table.md"), table::render(plan, report))?;
    Ok(())
}
