//! Compares predictions with steps measured here, for each bucket size. The predictions start from ranks that
//! do not communicate and from `all_reduce` measured by itself.

use clap::Parser;
use job::config::{BucketCap, Config, Overlap};
use serde::Deserialize;

use super::compute::Compute;
use super::network::Layers;
use super::schedule::{Communication, simulate};

use crate::cli::{Args, Cli, Variant};
use crate::document::{Align, Block, Table};
use crate::error::{BenchError, Result};
use crate::plan::Contestant;
use crate::record::{Measured, Report};
use crate::stats::Spread;

/// The fields that are used here of the file that the binary `all_reduce` writes.
#[derive(Debug, Clone, Deserialize)]
pub struct AllReduce {
    world_size: usize,
    records: Vec<Timing>,
}

#[derive(Debug, Clone, Deserialize)]
struct Timing {
    backend: String,
    bytes: f64,
    median_ms: f64,
}

impl AllReduce {
    /// Returns the seconds for `bytes`, interpolated linearly between measured sizes, extrapolated from the
    /// last two beyond them, and constant below the smallest.
    fn seconds(&self, backend: &str, bytes: f64) -> Option<f64> {
        let mut points: Vec<(f64, f64)> = self
            .records
            .iter()
            .filter(|record| record.backend == backend)
            .map(|record| (record.bytes, record.median_ms / 1e3))
            .collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        let &(smallest, seconds) = points.first()?;
        if bytes <= smallest || points.len() == 1 {
            return Some(seconds);
        }
        let above = points.partition_point(|point| point.0 < bytes).min(points.len() - 1);
        let [(x0, y0), (x1, y1)] = [points[above - 1], points[above]];
        Some(y0 + (bytes - x0) * (y1 - y0) / (x1 - x0))
    }
}

/// Predicted and measured milliseconds per step of one contestant at one size.
struct Row {
    ranks: usize,
    contestant: String,
    bucket_cap_bytes: usize,
    overlap: bool,
    buckets: usize,
    predicted_ms: f64,
    measured_ms: f64,
}

/// Returns the comparison as a document. `report` is from `scaling`, with a variant for each bucket size.
///
/// # Errors
/// When the report or the tables lack something.
pub fn document(report: &Report, tables: &[AllReduce]) -> Result<Vec<Block>> {
    let rows = rows(report, tables)?;
    let mut table = Table::new([
        ("ranks", Align::Right),
        ("", Align::Left),
        ("bucket, MiB", Align::Right),
        ("overlap", Align::Left),
        ("buckets", Align::Right),
        ("predicted step, ms", Align::Right),
        ("measured step, ms", Align::Right),
        ("error", Align::Right),
    ]);
    let error = |row: &Row| row.predicted_ms / row.measured_ms - 1.0;
    for row in &rows {
        table.row(vec![
            row.ranks.to_string(),
            row.contestant.clone(),
            bucket_cap(row.bucket_cap_bytes),
            if row.overlap { "on" } else { "off" }.to_owned(),
            row.buckets.to_string(),
            format!("{:.2}", row.predicted_ms),
            format!("{:.2}", row.measured_ms),
            format!("{:+.1} %", error(row) * 100.0),
        ]);
    }
    let worst = rows.iter().map(|row| error(row).abs()).fold(0.0, f64::max);
    Ok(vec![
        Block::Heading(1, "Predicted and measured".to_owned()),
        Block::Text(format!("{}, Lockstep {}", report.machine.cpu, report.versions.lockstep)),
        Block::Table(table),
        Block::Text(format!(
            "The largest error is {:.1} %. Predicted from as many isolated ranks, which do not \
             communicate, and from all_reduce measured by itself. An overlapped collective slows \
             backward by as much time as it hides, since it runs on the cores that ranks compute \
             on.",
            worst * 100.0
        )),
    ])
}

fn rows(report: &Report, tables: &[AllReduce]) -> Result<Vec<Row>> {
    let problem = |problem: String| BenchError::Unexpected { what: "the measurement", problem };
    let args = Cli::try_parse_from(&report.command)
        .map_err(|error| problem(format!("its command line: {error}")))?
        .run
        // Only its configurations matter.
        .with_defaults(|| 0);
    let mut rows = Vec::new();
    for case in report.cases() {
        for (ranks, batch) in report.sizes(case).into_iter().filter(|(ranks, _)| *ranks > 1) {
            let over_mpi = report.nodes(case, ranks) > 1;
            let compute = isolated(report, case, ranks, batch).ok_or_else(|| {
                problem(format!("no run of {ranks} isolated ranks with the parts of a step's time"))
            })?;
            let table = tables.iter().find(|table| table.world_size == ranks);
            for variant in std::iter::once(&Variant::default()).chain(&args.variants) {
                let contestant = Contestant::Ours(variant.clone()).name();
                let Some(measured_ms) = step_ms(report, case, ranks, batch, &contestant) else {
                    continue;
                };
                let config = configuration(&args, case, variant)?;
                let backends = backends(&config, over_mpi);
                let all_reduce =
                    |bytes| backends.iter().find_map(|backend| table?.seconds(backend, bytes));
                if all_reduce(1.0).is_none() {
                    let any = backends.join(" or ");
                    return Err(problem(format!(
                        "no all_reduce table of {any} with {ranks} ranks"
                    )));
                }
                let seconds = |bytes| all_reduce(bytes).unwrap_or(f64::NAN);
                let row = row(&config, over_mpi, &compute, seconds)?;
                rows.push(Row { ranks, contestant, measured_ms, ..row });
            }
        }
    }
    if rows.is_empty() {
        return Err(problem("no run of more than one rank".to_owned()));
    }
    Ok(rows)
}

/// Returns the names that `all_reduce` gives to the ways in which a step may have reduced its gradients, the
/// likeliest first: hierarchically only where nodes have several ranks.
fn backends(config: &Config, over_mpi: bool) -> &'static [&'static str] {
    match (over_mpi, config.comm.hierarchical) {
        (false, _) => &["shm in place"],
        (true, true) => &["hierarchical", "mpi backend"],
        (true, false) => &["mpi backend"],
    }
}

/// Formats a bucket size in MiB; `all` where one bucket holds all gradients.
fn bucket_cap(bytes: usize) -> String {
    if bytes == usize::MAX { "all".to_owned() } else { (bytes >> 20).to_string() }
}

/// Returns the configuration with which a variant ran.
fn configuration(args: &Args, case: &str, variant: &Variant) -> Result<Config> {
    let is_its = |path: &&std::path::PathBuf| {
        let stem = path.file_stem().map(|stem| stem.to_string_lossy());
        stem.is_some_and(|stem| case.starts_with(&format!("{stem},")))
    };
    let path = args.configs.iter().find(is_its).unwrap_or(&args.configs[0]);
    let overrides = [&args.overrides[..], &variant.overrides].concat();
    Ok(job::config::load(path, &overrides)?)
}

/// Predicts a step with a configuration; the caller fills in ranks, contestant and measurement.
fn row(
    config: &Config,
    over_mpi: bool,
    compute: &Compute,
    all_reduce: impl Fn(f64) -> f64,
) -> Result<Row> {
    // What `auto` means between CPU ranks.
    let overlap = match config.comm.overlap {
        Overlap::On => true,
        Overlap::Off => false,
        Overlap::Auto => over_mpi,
    };
    let bucket_cap_bytes = match (config.comm.bucket_cap_mib, overlap) {
        // Without overlap, all gradients are reduced at once.
        (BucketCap::Auto, false) => usize::MAX,
        (cap, _) => super::bucket_mib(cap) << 20,
    };
    let communication = Communication { bucket_cap_bytes, overlap, slowdown: 1.0 };
    let layers = Layers::of_config(config)?;
    let timeline = simulate(&layers.layers, compute, &communication, all_reduce);
    let seconds = compute.forward + timeline.communication_end + compute.rest;
    Ok(Row {
        ranks: 0,
        contestant: String::new(),
        bucket_cap_bytes,
        overlap,
        buckets: timeline.buckets,
        predicted_ms: seconds * 1e3,
        measured_ms: 0.0,
    })
}

fn step_ms(report: &Report, case: &str, ranks: usize, batch: usize, who: &str) -> Option<f64> {
    let rates = report.rates(case, ranks, who).into_values();
    Some((ranks * batch) as f64 / Spread::of(rates)?.median * 1e3)
}

/// Returns the compute time of a step of ranks that do not communicate.
fn isolated(report: &Report, case: &str, ranks: usize, batch: usize) -> Option<Compute> {
    let name = Contestant::Isolated.name();
    let step = step_ms(report, case, ranks, batch, &name)? / 1e3;
    let runs: Vec<&Measured> = report.measured(case, ranks, &name).map(|(_, run)| run).collect();
    Some(Compute::of_runs(&runs, step))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::to_markdown;
    use crate::record::Outcome;
    use crate::record::Split;
    use crate::record::tests::{report, run};

    fn all_reduce() -> AllReduce {
        let text = r#"{"world_size": 2, "records": [
            {"backend": "shm in place", "bytes": 1048576, "median_ms": 1.0},
            {"backend": "shm in place", "bytes": 4194304, "median_ms": 4.0},
            {"backend": "shm staged", "bytes": 1048576, "median_ms": 9.0}]}"#;
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn between_measured_sizes_and_past_them_lines_are_straight() {
        let table = all_reduce();
        let milliseconds = |bytes| table.seconds("shm in place", bytes).unwrap() * 1e3;
        assert_eq!(milliseconds(1000.0), 1.0);
        assert!((milliseconds(2_097_152.0) - 2.0).abs() < 1e-9);
        assert!((milliseconds(16_777_216.0) - 16.0).abs() < 1e-9);
        assert_eq!(table.seconds("mpi backend", 1.0), None);
    }

    #[test]
    fn a_step_is_what_isolated_ranks_take_and_communication() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("job.yaml");
        std::fs::write(&path, "").unwrap();
        let (_, mut report) = report(&[]);
        let command = ["scaling", "--cpu", "2", "--out", "o", "--configs", path.to_str().unwrap()];
        report.command = command.map(str::to_owned).to_vec();
        // 100 ms a step for two ranks of 64 images.
        let mut isolated = run(1, 2, "Lockstep, isolated", 1280.0);
        let Outcome::Measured(measured) = &mut isolated.outcome else { unreachable!() };
        measured.split = Some(Split { forward_ms: 30.0, backward_ms: 60.0, ..Split::default() });
        report.records.extend([isolated, run(1, 2, "Lockstep", 1000.0)]);
        // One bucket of 4,227,146 elements takes a millisecond for each MiB.
        let text = to_markdown(&document(&report, &[all_reduce()]).unwrap());
        assert!(
            text.contains("| 2 | Lockstep | all | off | 1 | 116.13 | 128.00 | -9.3 % |"),
            "{text}"
        );
        assert!(document(&report, &[]).is_err());
        // Between nodes it is not shared memory that counts.
        report.records.iter_mut().for_each(|record| record.nodes = 2);
        let error = document(&report, &[all_reduce()]).err().unwrap().to_string();
        assert!(
            error.contains("no all_reduce table of hierarchical or mpi backend with 2 ranks"),
            "{error}"
        );
    }
}
