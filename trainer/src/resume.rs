//! Resuming from a checkpoint, which rank 0 reads and broadcasts to the other ranks.

use std::path::Path;

use comm::Communicator;
use job::config::{self, CommBackend, Config};
use job::metrics::Record;
use job::run_dir::{Resume, RunDir};
use tch::{Device, Kind, Tensor};
use tracing::{info, warn};

use crate::checkpoint::{self, CheckpointError, Found, State};
use crate::ema::Ema;
use crate::flat::Flat;
use crate::optim::Optimizer;
use crate::{Result, TrainError};

/// The tensors that training changes.
pub struct Progress<'a> {
    /// The weights and running statistics.
    pub flat: &'a mut Flat,
    /// The optimizer's state.
    pub optimizer: &'a mut Optimizer,
    /// The averaged weights; `None` without `train.ema_decay`.
    pub ema: Option<&'a mut Ema>,
}

/// Returns the checkpoint to resume from, if there is one: the newest of the run itself or, as long as the
/// run has none, of the run or checkpoint that it was started from.
///
/// # Errors
/// When there are checkpoints and none is intact, when the run has ended and has none, or the named origin has
/// none.
pub fn find_checkpoint(resume: &Resume, run_dir: &RunDir) -> Result<Option<Found>> {
    let origin = match resume {
        Resume::Never => return Ok(None),
        Resume::From(folder) => Some(folder.clone()),
        Resume::Auto => run_dir.origin(),
    };
    if let Some(own) = checkpoint::find(&run_dir.checkpoints_dir())? {
        return Ok(Some(own));
    }
    let epochs = epochs_without_checkpoint(run_dir)?;
    let Some(folder) = origin else {
        if epochs > 0 {
            warn!(
                "{} holds no checkpoint: training starts again, and the records of {} are replaced",
                run_dir.checkpoints_dir().display(),
                job::counted(epochs, "epoch")
            );
        }
        return Ok(None);
    };
    let found = checkpoint::find(&folder)?.ok_or_else(|| CheckpointError::none_in(&folder))?;
    Ok(Some(found))
}

/// Returns of how many epochs a run without a checkpoint has records.
///
/// # Errors
/// When the run has ended: its checkpoints were removed then, and training it again would replace its records.
fn epochs_without_checkpoint(run_dir: &RunDir) -> Result<usize> {
    // What cannot be read is reported when the recorder opens the file.
    let bytes = job::metrics::read_bytes(&run_dir.metrics_path()).unwrap_or_default();
    let lines = job::metrics::complete_lines(&bytes);
    let records: Vec<Record> = lines.filter_map(|line| serde_json::from_slice(line).ok()).collect();
    let steps = |record: &Record| match record {
        Record::Summary(summary) => Some(summary.steps),
        _ => None,
    };
    match records.iter().rev().find_map(steps) {
        Some(steps) => {
            Err(CheckpointError::Removed { path: run_dir.checkpoints_dir(), steps }.into())
        }
        None => Ok(records.iter().filter(|record| matches!(record, Record::Epoch(_))).count()),
    }
}

/// Loads the checkpoint `found` into `progress` and returns the state from which the run continues.
/// `start`: the state of a run from scratch, which supplies the world size and the data set.
///
/// # Errors
/// When the checkpoint belongs to another network, data set or optimizer, nothing is left to train, or it
/// cannot be read.
pub fn resume(
    mut found: Found,
    config: &Config,
    run_dir: &RunDir,
    progress: &mut Progress<'_>,
    start: &State,
) -> Result<State> {
    let is_own = found.path.starts_with(run_dir.checkpoints_dir());
    for refused in &found.refused {
        warn!("{refused}; trying an older checkpoint");
    }
    check_fits(&found, config, start, is_own)?;
    if is_own {
        found.path = checkpoint::restore_replaced(&found.path)?;
    }
    let Progress { flat, optimizer, ema } = progress;
    checkpoint::load_model(&found.path, flat)?;
    checkpoint::load_optimizer(&found.path, flat, optimizer)?;
    match ema {
        Some(ema) if checkpoint::has_ema(&found.path) => {
            checkpoint::load_ema(&found.path, flat, ema)?;
        }
        Some(ema) => ema.restart(flat),
        None => {}
    }
    info!("resuming from {} at step {}", found.path.display(), found.state.step);
    if found.state.world_size != start.world_size {
        let effect = match config.train.global_batch_size {
            Some(_) => "the global batch stays the same",
            None => "the global batch changes",
        };
        warn!(
            "the checkpoint was written by {}, now there are {}: {effect}",
            job::counted(found.state.world_size, "rank"),
            start.world_size
        );
    }
    if is_own {
        repair_links(&found, config, run_dir)?;
    }
    let State { world_size, data_set, .. } = start.clone();
    let mut state = State { world_size, data_set, ..found.state };
    if !is_own {
        (state.best_test_accuracy, state.best_step) = (None, None);
        state.convolutions.clear();
    }
    Ok(state)
}

/// Checks that training with `config` can continue from the checkpoint. `is_own`: whether it is from this
/// run.
fn check_fits(found: &Found, config: &Config, start: &State, is_own: bool) -> Result<()> {
    let Found { path, state, .. } = found;
    let does_not_fit =
        |reason: String| Err(CheckpointError::DoesNotFit { path: path.clone(), reason }.into());
    if state.data_hash != start.data_hash {
        return does_not_fit("it was trained on other images".to_owned());
    }
    if let Some(theirs) = config_of(path) {
        if theirs.comm.backend == CommBackend::None {
            return does_not_fit(
                "it is from a run with comm.backend: none, whose ranks diverged".to_owned(),
            );
        }
        if !is_own {
            warn_of_differences(&theirs, config);
        }
    }
    if !is_own && state.is_complete(&config.train) {
        let State { epochs_completed, step, .. } = state;
        return does_not_fit(format!(
            "nothing is left to train: it has {epochs_completed} epochs and {step} steps; raise train.epochs \
             or train.max_steps"
        ));
    }
    Ok(())
}

/// Updates the links and removes old checkpoints, as would have been done if the run had not been cut off
/// right after writing the checkpoint `found`.
fn repair_links(found: &Found, config: &Config, run_dir: &RunDir) -> Result<()> {
    if found.state.is_best() {
        checkpoint::point(checkpoint::Pointer::Best, &found.path)?;
    }
    // `latest` may point to a newer checkpoint that was refused as damaged.
    checkpoint::point(checkpoint::Pointer::Latest, &found.path)?;
    // `checkpoint.keep` may have been reduced because the disk was full.
    checkpoint::prune(&run_dir.checkpoints_dir(), config.checkpoint.keep);
    Ok(())
}

/// Returns the configuration of the run that wrote a checkpoint, if it can be found and read.
fn config_of(checkpoint: &Path) -> Option<Config> {
    let run = checkpoint.parent().and_then(Path::parent)?;
    config::load(&RunDir::at(run).config_path(), &[]).ok()
}

/// Warns of each difference that affects training between `config` and `theirs`, the configuration of the
/// run that wrote the checkpoint.
fn warn_of_differences(theirs: &Config, config: &Config) {
    for difference in config::differences_in_training(theirs, config) {
        warn!(
            "the configuration differs from that of the run that this one starts from: {difference}"
        );
    }
}

/// Broadcasts from rank 0 the weights, running statistics, averages, optimizer state and `state`, and
/// returns rank 0's `state`. Collective.
///
/// # Errors
/// When a peer is gone or late.
pub fn broadcast_from_rank_0(
    communicator: &dyn Communicator,
    Progress { flat, optimizer, ema }: Progress<'_>,
    state: State,
) -> Result<State> {
    let mut tensors = vec![flat.parameters.shallow_clone(), flat.buffers.shallow_clone()];
    let averages = ema.iter().map(|ema| ema.storage());
    tensors.extend(
        averages.flat_map(|it| [it.parameters.shallow_clone(), it.buffers.shallow_clone()]),
    );
    // Dead taps are not sent: only files contain them, and rank 0 alone writes files.
    tensors.extend(optimizer.state().iter().map(|state| state.live.shallow_clone()));
    for tensor in &mut tensors {
        torch_ext::collective::broadcast(communicator, tensor, 0)?;
    }
    let device = flat.parameters.device();
    let text = serde_json::to_vec(&(state, optimizer.steps(), flat.batches_tracked))
        .map_err(TrainError::State)?;
    let text = broadcast_bytes(communicator, device, text)?;
    let (state, steps, batches_tracked) =
        serde_json::from_slice(&text).map_err(TrainError::State)?;
    optimizer.resume_at(steps);
    flat.batches_tracked = batches_tracked;
    Ok(state)
}

fn broadcast_bytes(
    communicator: &dyn Communicator,
    device: Device,
    bytes: Vec<u8>,
) -> Result<Vec<u8>> {
    let mut len = Tensor::from_slice(&[bytes.len() as i64]).to_device(device);
    torch_ext::collective::broadcast(communicator, &mut len, 0)?;
    let wide = if communicator.rank() == 0 {
        Tensor::from_slice(&bytes).to_kind(Kind::Int64)
    } else {
        Tensor::zeros([len.int64_value(&[0])], (Kind::Int64, Device::Cpu))
    };
    let mut wide = wide.to_device(device);
    torch_ext::collective::broadcast(communicator, &mut wide, 0)?;
    Ok(Vec::<u8>::try_from(&wide.to_kind(Kind::Uint8))?)
}
