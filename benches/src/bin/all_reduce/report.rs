//! The report of a measurement, as text and as JSON.

use std::fmt;
use std::process::Command;

use anyhow::Result;
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::measure::Series;
use crate::ranks::Group;
use crate::{Args, Element};

/// A measurement with what is needed to repeat it.
#[derive(Serialize)]
pub struct Report {
    date: String,
    cpu: String,
    cores: usize,
    kernel: String,
    commit: String,
    warmup_rounds: usize,
    mpi: Option<String>,
    world_size: usize,
    dtype: String,
    records: Vec<Record>,
}

#[derive(Serialize)]
struct Record {
    backend: &'static str,
    bytes: usize,
    median_ms: f64,
    min_ms: f64,
    max_ms: f64,
    /// Bytes of the buffer over the median time.
    algorithm_gb_per_s: f64,
    /// Bytes that each rank must at least send and receive over the median time: comparable between world
    /// sizes.
    bus_gb_per_s: f64,
    rounds_ms: Vec<f64>,
}

impl Report {
    /// Summarises the timings.
    pub fn new(group: &Group, args: &Args, series: Vec<Series>) -> Result<Self> {
        let world_size = group.any().world_size();
        let dtype = match args.dtype {
            Element::F32 => "f32",
            Element::F64 => "f64",
            Element::Bf16 => "bf16",
            Element::I64 => "i64",
        };
        Ok(Self {
            date: OffsetDateTime::now_utc().format(&Rfc3339)?,
            cpu: cpuinfo("model name").next().unwrap_or_default(),
            // All of the machine's, not only those to which mpirun has pinned this rank.
            cores: cpuinfo("processor").count(),
            kernel: linux_version()?,
            commit: commit(),
            warmup_rounds: args.warmup,
            mpi: group.mpi.is_some().then(mpi_version),
            world_size,
            dtype: dtype.to_owned(),
            records: series.into_iter().map(|series| Record::new(series, world_size)).collect(),
        })
    }
}

impl Record {
    fn new(series: Series, world_size: usize) -> Self {
        let rounds_ms: Vec<_> = series.seconds.iter().map(|seconds| seconds * 1e3).collect();
        let mut sorted = rounds_ms.clone();
        sorted.sort_by(f64::total_cmp);
        let median_ms = sorted[sorted.len() / 2];
        let algorithm_gb_per_s = series.bytes as f64 / median_ms / 1e6;
        let ranks = world_size as f64;
        Self {
            backend: series.name,
            bytes: series.bytes,
            median_ms,
            min_ms: sorted[0],
            max_ms: sorted[sorted.len() - 1],
            algorithm_gb_per_s,
            bus_gb_per_s: algorithm_gb_per_s * 2.0 * (ranks - 1.0) / ranks,
            rounds_ms,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { date, commit, cpu, cores, kernel, world_size, dtype, .. } = self;
        writeln!(f, "all_reduce (sum) of {dtype}, {world_size} ranks, {date}, {commit}")?;
        writeln!(f, "{cores} cores of {cpu}, Linux {kernel}")?;
        if let Some(mpi) = &self.mpi {
            writeln!(f, "{mpi}")?;
        }
        writeln!(
            f,
            "{:>10}  {:<16} {:>10} {:>10} {:>10} {:>10} {:>10}",
            "bytes", "backend", "median ms", "min ms", "max ms", "alg GB/s", "bus GB/s"
        )?;
        for record in &self.records {
            writeln!(
                f,
                "{:>10}  {:<16} {:>10.4} {:>10.4} {:>10.4} {:>10.2} {:>10.2}",
                record.bytes,
                record.backend,
                record.median_ms,
                record.min_ms,
                record.max_ms,
                record.algorithm_gb_per_s,
                record.bus_gb_per_s
            )?;
        }
        Ok(())
    }
}

#[cfg(feature = "mpi")]
fn mpi_version() -> String {
    let version = mpi::environment::library_version().unwrap_or_default();
    version.split(',').next().unwrap_or_default().trim_end_matches('\0').to_owned()
}

#[cfg(not(feature = "mpi"))]
fn mpi_version() -> String {
    String::new()
}

/// Returns all values of a key in `/proc/cpuinfo`.
fn cpuinfo(key: &str) -> impl Iterator<Item = String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let value = |line: &str| Some(line.strip_prefix(key)?.split_once(':')?.1.trim().to_owned());
    text.lines().filter_map(value).collect::<Vec<_>>().into_iter()
}

/// Returns the kernel's version without a distribution's or provider's suffix.
fn linux_version() -> std::io::Result<String> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    Ok(release.trim().split('-').next().unwrap_or_default().to_owned())
}

/// Returns the commit of the sources, if this runs in their repository; empty elsewhere.
fn commit() -> String {
    let mut command = Command::new("git");
    command.args(["describe", "--always", "--dirty"]).current_dir(env!("CARGO_MANIFEST_DIR"));
    let text = command.output().map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&text).trim().to_owned()
}
