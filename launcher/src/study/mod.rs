//! `launcher study`: executes many runs, compares them and draws figures.
//!
//! Each run is an ordinary run in a directory of its own, started as a user would start it. Runs that are
//! done are skipped and runs that have begun are resumed, so a study is resumed by the command that started
//! it.

mod cli;
mod draw;
mod expand;
mod figures;
mod file;
mod images;
mod planned;
mod report;
mod results;
mod run;
mod slots;

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use job::ExitCode;
use job::files::write_atomically;
use job::{counted, run_dir, thousands};

pub use cli::StudyCli;

use crate::error::LaunchError;
use crate::plan::Request;
use crate::signals::Signals;
use crate::topology::Topology;
use crate::{data, gpus, plan, slurm, spawn};
use figures::X;
use file::StudyFile;
use images::StudyImages;
use planned::{Planned, RunResources, State};
use report::Report;
use run::{Ended, Failure, Runner};
use slots::{Resources, Slot, slots};

/// Executes the command line and returns the exit code of the launcher.
///
/// # Errors
/// [`LaunchError`] when the study cannot be run. A run that fails is not an error; it determines the exit
/// code.
pub async fn study(cli: &StudyCli) -> Result<ExitCode, LaunchError> {
    let (study, document) = file::read(&cli.file)?;
    let wrong = |invalid| planned::invalid(&document, invalid);
    let expanded = expand::expand(&study, cli.reduced).map_err(wrong)?;
    let ranks = expanded.ranks;
    let visible_gpus = match cli.request() {
        Request::Cpu { .. } => 0,
        Request::AllGpus | Request::Gpus { .. } => gpus::visible().await,
    };
    let topology = Topology::detect();
    let out = cli.out();
    // Drawing starts no runs, so any device will do.
    let request = if cli.draw_only { Request::Cpu { ranks } } else { cli.request() };
    let (device, available) = plan::devices(request, visible_gpus, false, &topology)?;
    let resources = RunResources { device, ranks, topology: &topology };
    let mut images = if cli.draw_only { StudyImages::read(&out) } else { StudyImages::default() };
    let mut runs = planned::plan(expanded, &document, resources, &out, &mut images)?;
    let axes = figures::check(&study, &runs, cli.reduced).map_err(wrong)?;
    let visible_devices = std::env::var("CUDA_VISIBLE_DEVICES").ok();
    let slots = slots(
        &Resources {
            device,
            ranks: available,
            jobs: cli.jobs,
            topology: &topology,
            visible_devices: visible_devices.as_deref(),
        },
        ranks,
    )?;
    if cli.dry_run {
        return print_plan(&study, &runs, &slots, ranks, &out);
    }
    let mut ended = Ended::default();
    fs::create_dir_all(&out).map_err(cannot_write(&out))?;
    // Drawing replaces each file atomically, so it may be done while the study runs.
    let _lock = if cli.draw_only { None } else { Some(run_dir::lock(&out)?) };
    if !cli.draw_only {
        images.write(&out).map_err(cannot_write(&out))?;
        let logs = out.join("logs");
        for folder in std::iter::once(&logs).chain(runs.iter().map(|run| &run.root)) {
            fs::create_dir_all(folder).map_err(cannot_write(folder))?;
        }
        let launcher =
            std::env::current_exe().map_err(LaunchError::system("find this executable"))?;
        let runner = Runner { launcher, resources, slots: &slots, logs };
        ended = run_all(&runner, &mut runs).await?;
    }
    let report =
        Report { study: &study, reduced: cli.reduced, ranks, runs: &runs, failed: &ended.failed };
    write(&report, &axes, &out)?;
    Ok(conclude(cli, &runs, &ended, &out))
}

/// Checks what all runs need, once, and runs them.
async fn run_all(runner: &Runner<'_>, runs: &mut [Planned]) -> Result<Ended, LaunchError> {
    if slurm::step(|name| std::env::var(name).ok())?.is_some() {
        let text = "a study runs on one machine; start it with srun --nodes=1".to_owned();
        return Err(LaunchError::Nodes(text));
    }
    spawn::find_trainer(&runner.launcher, std::env::var_os("PATH"))?;
    let mut signals = Signals::catch()?;
    signals.unless_stopped(prepare_data(runs, runner.resources)).await?;
    let done = runs.iter().filter(|run| run.state == State::Done).count();
    tracing::info!(
        "{}, {done} done, {} at a time; their logs are in {}",
        counted(runs.len(), "run"),
        runner.slots.len(),
        runner.logs.display()
    );
    Ok(runner.run(runs, &mut signals).await)
}

/// Gets the images that runs need. If synthetic images replace those of a data set, they do so for all runs
/// on it.
async fn prepare_data(
    runs: &mut [Planned],
    resources: RunResources<'_>,
) -> Result<(), LaunchError> {
    let mut wanted: Vec<job::config::Data> = Vec::new();
    for run in runs.iter().filter(|run| run.state != State::Done) {
        if !wanted.contains(&run.config.data) {
            wanted.push(run.config.data.clone());
        }
    }
    for wanted in wanted {
        let mut taken = wanted.clone();
        let same = runs.iter().filter(|run| run.config.data == wanted);
        let before = same.map(Planned::images_before).find_map(Result::transpose).transpose()?;
        data::prepare(&mut taken, before.as_ref()).await?;
        for run in runs.iter_mut().filter(|run| run.config.data == wanted) {
            run.take_images(&taken, resources)?;
        }
    }
    Ok(())
}

fn print_plan(
    study: &StudyFile,
    runs: &[Planned],
    slots: &[Slot],
    ranks: usize,
    out: &Path,
) -> Result<ExitCode, LaunchError> {
    let width = runs.iter().map(|run| run.spec.name.len()).max().unwrap_or(0);
    let mut text = format!("{}\n\n", study.title);
    for run in runs {
        let Planned { state, steps, epochs, global_batch_size, parameters, .. } = run;
        text += &format!(
            "{:<width$}  {:<5}  {}, {}, global batch {global_batch_size}, {} parameters\n",
            run.spec.name,
            state.as_str(),
            counted(*steps as usize, "step"),
            counted(*epochs, "epoch"),
            thousands(*parameters as u64)
        );
    }
    let names: Vec<&str> = study.figures.iter().map(|figure| figure.name.as_str()).collect();
    text += &format!(
        "\n{} of {}, {} at a time\nfigures  {}\nin       {}\n",
        counted(runs.len(), "run"),
        counted(ranks, "rank"),
        slots.len(),
        names.join(", "),
        out.display()
    );
    io::stdout()
        .write_all(text.as_bytes())
        .map(|()| ExitCode::Done)
        .map_err(LaunchError::system("print the plan"))
}

/// Writes tables and figures.
fn write(report: &Report<'_>, axes: &[X], out: &Path) -> Result<(), LaunchError> {
    let write = |name: &str, bytes: &[u8]| {
        let path = out.join(name);
        write_atomically(&path, bytes).map_err(cannot_write(&path))
    };
    for (entry, x) in report.study.figures.iter().zip(axes) {
        let picture = draw::draw(&report.study.title, entry, x, report.runs);
        write(&format!("{}.svg", entry.name), picture.to_svg().as_bytes())?;
        let png = picture.to_png().map_err(|problem| LaunchError::Study {
            exit_code: ExitCode::Setup,
            text: format!("cannot draw {}: {problem}", entry.name),
        })?;
        write(&format!("{}.png", entry.name), &png)?;
    }
    write("study.md", report.to_markdown().as_bytes())?;
    write("study.json", format!("{:#}\n", report.to_json()).as_bytes())
}

fn conclude(cli: &StudyCli, runs: &[Planned], ended: &Ended, out: &Path) -> ExitCode {
    let done = runs.iter().filter(|run| run.state == State::Done).count();
    let of = runs.len();
    tracing::info!("{done} of {of} runs are done; tables and figures are in {}", out.display());
    for (run, Failure { exit_code, reason }) in &ended.failed {
        let name = &runs[*run].spec.name;
        tracing::error!("{name} failed with exit code {}: {reason}", *exit_code as u8);
    }
    if !cli.draw_only && done < of {
        tracing::warn!("run the same command again for the runs that are left");
    }
    match ended.failed.as_slice() {
        _ if ended.stopped && done < of => ExitCode::Stopped,
        [] => ExitCode::Done,
        [(_, first), rest @ ..] if rest.iter().all(|(_, it)| it.exit_code == first.exit_code) => {
            first.exit_code
        }
        _ => ExitCode::RankFailed,
    }
}

fn cannot_write(path: &Path) -> impl FnOnce(io::Error) -> LaunchError {
    LaunchError::system(format!("write {}", path.display()))
}
