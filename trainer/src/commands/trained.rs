//! A network that was trained: its checkpoint, and the configuration of its run.

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

/// A checkpoint, and how its network was trained.
pub(super) struct Trained {
    /// The checkpoint's folder.
    pub path: PathBuf,
    /// The configuration of its run.
    pub config: Config,
    /// Where the run was.
    pub state: State,
}

impl Trained {
    /// Finds the checkpoint that `path` means: itself, or the newest good one in a run directory, and
    /// the configuration of its run, with `overrides`.
    ///
    /// # Errors
    /// [`TrainError::Usage`] where there is no good one.
    pub(super) fn find(path: &Path, overrides: &[String]) -> Result<Self> {
        if !path.exists() {
            return Err(TrainError::Usage(format!("{}: no such checkpoint", path.display())));
        }
        let found = checkpoint::find(path)?.ok_or_else(|| CheckpointError::none_in(path))?;
        for refused in &found.refused {
            warn!("{refused}; taking an older one");
        }
        // `checkpoints/best` and a path from within the folder lead to the run as well.
        let path = found.path.canonicalize().unwrap_or(found.path);
        let run = path.parent().and_then(Path::parent).unwrap_or(&path);
        let config = config::load(&RunDir::at(run).config_path(), overrides)?;
        Ok(Self { path, config, state: found.state })
    }

    /// The data set that it was trained on.
    ///
    /// # Errors
    /// [`TrainError::Usage`] for a checkpoint that does not say.
    pub(super) fn data_set(&self) -> Result<&Description> {
        self.state.data_set.as_ref().ok_or_else(|| {
            TrainError::Usage(format!(
                "{} does not say what images it was trained on: it is from an earlier version; go on \
                 with its run, and the next checkpoint will say",
                self.path.display()
            ))
        })
    }

    /// Which weights `--ema` asks for.
    ///
    /// # Errors
    /// [`TrainError::Usage`] where the checkpoint does not have them.
    pub(super) fn weights(&self, ema: bool) -> Result<Weights> {
        match ema {
            false => Ok(Weights::Model),
            true if checkpoint::has_ema(&self.path) => Ok(Weights::Ema),
            true => Err(TrainError::Usage(format!(
                "{} has no averaged weights: its run had no train.ema_decay; leave --ema out",
                self.path.display()
            ))),
        }
    }

    /// The network with its weights, and the device to compute as in its run. Collective: every rank has
    /// rank 0's, should the checkpoint be replaced while they read.
    ///
    /// # Errors
    /// When the checkpoint is another network's, or a peer is gone or late.
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
