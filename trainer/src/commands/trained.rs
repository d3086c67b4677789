//! A trained network: its checkpoint, and the configuration of its run.

use std::path::{Path, PathBuf};

use comm::Communicator;
use job::config::{self, Config};
use job::dataset::Description;
use job::network::Network;
use job::run_dir::RunDir;
use tch::Device;
use tracing::warn;

use crate::arithmetic::Arithmetic;
use crate::checkpoint::{self, CheckpointError, State, Weights};
use crate::flat::Flat;
use crate::model::Module;
use crate::replica::Replica;
use crate::{Result, TrainError, convolutions, device};

/// A checkpoint, with the configuration and state of its run.
pub(super) struct Trained {
    /// Folder of the checkpoint.
    pub path: PathBuf,
    /// Configuration of the run, with overrides.
    pub config: Config,
    /// State of the run at the checkpoint.
    pub state: State,
}

impl Trained {
    /// Finds the checkpoint at `path`, or the newest good one if `path` is a run directory, and loads the
    /// configuration of its run with `overrides`.
    ///
    /// # Errors
    /// [`TrainError::Usage`] when there is no checkpoint at `path`, and errors of checkpoint and
    /// configuration.
    pub(super) fn find(path: &Path, overrides: &[String]) -> Result<Self> {
        if !path.exists() {
            return Err(TrainError::Usage(format!("{}: no such checkpoint", path.display())));
        }
        let found = checkpoint::find(path)?.ok_or_else(|| CheckpointError::none_in(path))?;
        for refused in &found.refused {
            warn!("{refused}; trying an older checkpoint");
        }
        // Resolved, so that the links `checkpoints/best` and `latest` and relative paths lead to the run too.
        let path = found.path.canonicalize().unwrap_or(found.path);
        let run = path.parent().and_then(Path::parent).unwrap_or(&path);
        let config = config::load(&RunDir::at(run).config_path(), overrides)?;
        Ok(Self { path, config, state: found.state })
    }

    /// Returns the description of the data set that the network was trained on.
    ///
    /// # Errors
    /// [`TrainError::Usage`] for a checkpoint of an earlier version, without that description.
    pub(super) fn data_set(&self) -> Result<&Description> {
        self.state.data_set.as_ref().ok_or_else(|| {
            TrainError::Usage(format!(
                "{} does not describe the data set it was trained on, as it is from an earlier \
                 version; resume its run, and the next checkpoint will",
                self.path.display()
            ))
        })
    }

    /// Returns which weights to use, with `--ema` or without.
    ///
    /// # Errors
    /// [`TrainError::Usage`] when the checkpoint has no averaged weights.
    pub(super) fn weights(&self, ema: bool) -> Result<Weights> {
        match ema {
            false => Ok(Weights::Model),
            true if checkpoint::has_ema(&self.path) => Ok(Weights::Ema),
            true => Err(TrainError::Usage(format!(
                "{} has no averaged weights, since its run had no train.ema_decay; omit --ema",
                self.path.display()
            ))),
        }
    }

    /// Loads the network with its weights, and sets up the device as the run did. A collective: every rank
    /// receives the weights of rank 0, in case the checkpoint is replaced while ranks read it.
    ///
    /// # Errors
    /// When the checkpoint does not fit the network, or a peer fails or times out.
    pub(super) fn replica(
        &self,
        weights: Weights,
        device: Device,
        communicator: &dyn Communicator,
    ) -> Result<Replica> {
        device::tune(device, &self.config.performance)?;
        let Description { shape, classes, .. } = self.data_set()?;
        let network = Network::new(&self.config.model, *shape, classes.len());
        let tensors = network.tensors(self.config.performance.live_taps);
        let mut flat = Flat::new(tensors, device, communicator)?;
        checkpoint::load_weights(&self.path, weights, &mut flat)?;
        for tensor in [&mut flat.parameters, &mut flat.buffers] {
            torch_ext::collective::broadcast(communicator, tensor, 0)?;
        }
        let model = Module::new(&network, &flat);
        let arithmetic = Arithmetic::choose(self.config.precision, device, communicator)?;
        let convolutions = convolutions::table(&self.state.convolutions);
        let replica = Replica::new(flat, model, arithmetic);
        Ok(Replica { convolutions, ..replica })
    }
}
