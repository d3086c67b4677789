//! Where training goes on from: a checkpoint, which rank 0 reads and the others are sent.

use std::path::Path;

use comm::Communicator;
use job::config::{self, CommBackend, Config};
use job::run_dir::{Resume, RunDir};
use tch::{Device, Kind, Tensor};
use tracing::{info, warn};

use crate::checkpoint::{self, CheckpointError, Found, State};
use crate::ema::Ema;
use crate::flat::Flat;
use crate::optim::Optimizer;
use crate::{Result, TrainError};

/// What training changes.
pub struct Progress<'a> {
    /// Weights and running statistics.
    pub flat: &'a mut Flat,
    /// The optimizer's state.
    pub optimizer: &'a mut Optimizer,
    /// Averages of the weights, where there are any.
    pub ema: Option<&'a mut Ema>,
}

/// The checkpoint to go on from, if there is one: the run's own or, until it has one, what it begins from.
///
/// # Errors
/// When none can be read that should.
pub fn find_checkpoint(resume: &Resume, run_dir: &RunDir) -> Result<Option<Found>> {
    let origin = match resume {
        Resume::Never => return Ok(None),
        Resume::From(folder) => Some(folder.clone()),
        Resume::Auto => run_dir.origin(),
    };
    if let Some(own) = checkpoint::find(&run_dir.checkpoints_dir())? {
        return Ok(Some(own));
    }
    let Some(folder) = origin else { return Ok(None) };
    let found = checkpoint::find(&folder)?.ok_or_else(|| CheckpointError::none_in(&folder))?;
    Ok(Some(found))
}

/// Loads a checkpoint and says where it was.
///
/// # Errors
/// When it is another network's, or cannot be read.
pub fn resume(
    mut found: Found,
    config: &Config,
    run_dir: &RunDir,
    progress: &mut Progress<'_>,
    start: &State,
) -> Result<State> {
    let is_own = found.path.starts_with(run_dir.checkpoints_dir());
    for refused in &found.refused {
        warn!("{refused}; taking an older one");
    }
    check_fits(&found, config, start, is_own)?;
    if is_own {
        found.path = checkpoint::put_back(&found.path)?;
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
    info!("going on from {} at step {}", found.path.display(), found.state.step);
    if found.state.world_size != start.world_size {
        let effect = match config.train.global_batch_size {
            Some(_) => "the global batch stays",
            None => "the global batch changes",
        };
        warn!(
            "the checkpoint was written by {} ranks, now there are {}: {effect}",
            found.state.world_size, start.world_size
        );
    }
    if is_own {
        put_right(&found, config, run_dir)?;
    }
    let State { world_size, data_set, .. } = start.clone();
    let mut state = State { world_size, data_set, ..found.state };
    if !is_own {
        (state.best_test_accuracy, state.best_step) = (None, None);
        state.convolutions.clear();
    }
    Ok(state)
}

/// Whether the checkpoint can be gone on with as `config`.
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

/// Brings links and old checkpoints of the run to where they would be, had it not been cut off after this one.
fn put_right(found: &Found, config: &Config, run_dir: &RunDir) -> Result<()> {
    if found.state.is_best() {
        checkpoint::point(checkpoint::Link::Best, &found.path)?;
    }
    // Not one that was refused.
    checkpoint::point(checkpoint::Link::Latest, &found.path)?;
    // Fewer may be kept than before, since the disk was full.
    checkpoint::prune(&run_dir.checkpoints_dir(), config.checkpoint.keep);
    Ok(())
}

/// The configuration of the run that a checkpoint is from, where it can be found.
fn config_of(checkpoint: &Path) -> Option<Config> {
    let run = checkpoint.parent().and_then(Path::parent)?;
    config::load(&RunDir::at(run).config_path(), &[]).ok()
}

/// Says what shapes training otherwise than in the run that a checkpoint is taken from.
fn warn_of_differences(theirs: &Config, config: &Config) {
    for difference in config::differences_in_training(theirs, config) {
        warn!("the run that this one goes on from had another configuration: {difference}");
    }
}

/// Gives every rank what rank 0 has: weights, running statistics, optimizer, averages, place in the run.
/// Collective.
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
    // Dead taps are rank 0's own business: only files show them, and it writes those.
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
