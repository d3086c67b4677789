//! Measures training at several rank counts, beside PyTorch DDP in the same rounds; compares two such
//! measurements; predicts what more GPUs would do.
//!
//! ```text
//! cargo build --release -p launcher -p trainer
//! cargo run --release -p benches --bin scaling
//! cargo run --release -p benches --bin scaling -- --cpu 1,2 --configs configs/resnet18.yaml \
//!     --batch-per-rank 64 --repeats 5 --python /path/to/python --out benches/results/NAME
//! ```

mod accuracy;
mod cli;
mod compare;
mod curves;
mod document;
mod energy;
mod error;
mod load;
mod machine;
mod ours;
mod peer;
mod pictures;
mod plan;
mod predict;
mod process;
mod record;
mod rounds;
mod srun;
mod stats;
mod summary;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use serde::de::DeserializeOwned;

use cli::{Args, Cli, Command};
use document::Block;
use ours::Ours;
use peer::Peer;
use plan::Plan;
use record::Report;
use rounds::Runner;

fn main() -> Result<()> {
    let cli = Cli::parse();
    match cli.command {
        Some(Command::Compare { before, after }) => compare(&before, &after),
        Some(Command::Render { results }) => {
            write(results.parent().unwrap_or(Path::new(".")), &read(&results)?)
        }
        Some(Command::Curves { runs, out }) => write_picture(&out, &curves::draw(&runs)?),
        Some(Command::Check { results, all_reduce }) => check(&results, &all_reduce),
        None => {
            let args = cli.run.with_defaults(machine::visible_gpus);
            if args.predict.is_empty() { measure(&args) } else { predict(&args) }
        }
    }
}

fn measure(args: &Args) -> Result<()> {
    let plan = Plan::new(args)?;
    let ours = Ours::new(args)?;
    let peer = Peer::find(args, plan.has_peers());
    let mut report = Report::new(args, peer.versions());
    let out = args.out.clone().unwrap_or_else(|| default_out(&plan, &report));
    fs::create_dir_all(&out).with_context(|| format!("cannot create {}", out.display()))?;
    let runner = Runner { args, ours: &ours, peer: &peer, out: &out };
    let keep = |report: &Report| write_results(&out, report);
    runner.run(&plan, &mut report, keep)?;
    if let Some(target) = args.to_accuracy {
        runner.run_to_accuracy(&plan, target, &mut report, keep)?;
    }
    ensure!(report.has_results(), "nothing was measured");
    write(&out, &report)
}

fn predict(args: &Args) -> Result<()> {
    let document = predict::document(args)?;
    let Some(out) = &args.out else {
        print!("{}", document::to_markdown(&document));
        return Ok(());
    };
    fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    let records = serde_json::to_string(&std::env::args().collect::<Vec<_>>())?;
    write_document(out, ["prediction.md", "prediction.html"], "Prediction", &document, &records)
}

/// Returns the default output folder, such as `benches/results/resnet18_2cpu_2026-11-24`.
fn default_out(plan: &Plan, report: &Report) -> PathBuf {
    let model = plan.cases.first().map_or("none", |case| case.network.model);
    let hardware = match report.machine.gpus.as_slice() {
        [] => format!("{}cpu", report.machine.logical_cpus),
        [first, ..] => {
            let name = first.split(',').next().unwrap_or("gpu").replace("NVIDIA ", "");
            format!("{}x{}", report.machine.gpus.len(), name.replace(' ', "-").to_lowercase())
        }
    };
    let date = report.date.split('T').next().unwrap_or_default();
    Path::new("benches/results").join(format!("{model}_{hardware}_{date}"))
}

fn compare(before: &Path, after: &Path) -> Result<()> {
    let (a, b) = (before.display().to_string(), after.display().to_string());
    let document = compare::document([&a, &b], [&read(before)?, &read(after)?]);
    print!("{}", document::to_markdown(&document));
    Ok(())
}

/// Prints predictions beside measurements, and writes them to `prediction.md` beside `results`.
fn check(results: &Path, all_reduce: &[PathBuf]) -> Result<()> {
    let tables = all_reduce.iter().map(|path| read(path)).collect::<Result<Vec<_>>>()?;
    let text = document::to_markdown(&predict::check::document(&read(results)?, &tables)?);
    fs::write(results.with_file_name("prediction.md"), &text)?;
    print!("{text}");
    Ok(())
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let name = || path.display().to_string();
    let text = fs::read_to_string(path).with_context(name)?;
    serde_json::from_str(&text).with_context(name)
}

/// Writes `results.json`; called after every run, so that nothing is lost when a later one is interrupted.
fn write_results(out: &Path, report: &Report) -> Result<()> {
    Ok(fs::write(out.join("results.json"), serde_json::to_string_pretty(report)? + "\n")?)
}

/// Writes table, HTML and pictures of the results, and prints the table.
fn write(out: &Path, report: &Report) -> Result<()> {
    let document = summary::document(report);
    let records = serde_json::to_string(&report.records)?;
    write_document(out, ["table.md", "report.html"], "Scaling", &document, &records)
}

fn write_document(
    out: &Path,
    [markdown, html_name]: [&str; 2],
    title: &str,
    document: &[Block],
    records: &str,
) -> Result<()> {
    let text = document::to_markdown(document);
    fs::write(out.join(markdown), &text)?;
    let html = document::to_html(title, document, records);
    fs::write(out.join(html_name), html)?;
    for picture in document::pictures(document) {
        write_picture(&out.join(&picture.name), &picture.drawn)?;
    }
    print!("{text}");
    Ok(())
}

/// Writes a picture as SVG and PNG, at `path` with the extension appended.
fn write_picture(path: &Path, picture: &figure::Picture) -> Result<()> {
    let with = |extension: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(extension);
        PathBuf::from(name)
    };
    let write = |path: PathBuf, bytes: &[u8]| {
        fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))
    };
    write(with(".svg"), picture.to_svg().as_bytes())?;
    write(with(".png"), &picture.to_png().map_err(anyhow::Error::msg)?)
}
