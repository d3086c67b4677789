//! `trainer CONFIG --measure-all-reduce`: what averaging gradients takes here, for `launcher doctor`.
//! Ranks are started and connect as for training, and need no data.

use std::time::Instant;

use comm::ReduceOp;
use comm::control::Phase;
use comm::env::World;
use job::run_dir::RunDir;
use job::{dataset, network::Network};
use serde_json::json;
use tch::{Kind, Tensor};
use torch_ext::collective::all_reduce;

use crate::cli::TrainArgs;
use crate::connect::{Connected, connect};
use crate::flat::shared_f32;
use crate::link::Link;
use crate::{Result, TrainError};

/// Rounds that are timed, after one for warming up.
const ROUNDS: usize = 5;

/// Averages gradients as long as the network's, and leaves `{bytes, seconds}` in the run directory's
/// `all_reduce.json`: the median over rounds, on the slowest rank.
///
/// # Errors
/// When ranks do not find each other, or one leaves; when there is no run directory.
pub fn measure_all_reduce(args: &TrainArgs, world: World, link: &Link) -> Result<()> {
    let Connected { config, device, communicator, .. } = connect(args, world, link)?;

    let outline = dataset::outline(&config.data)?;
    let network = Network::new(&config.model, outline.shape, outline.classes);
    let len = network.parameter_count();
    let mut grads = shared_f32(len, device, &*communicator)?;
    let mut rounds = Vec::with_capacity(ROUNDS);
    for round in 0..=ROUNDS {
        link.state(Phase::Training, 1, round as u64);
        communicator.barrier()?;
        let started = Instant::now();
        all_reduce(&*communicator, &mut grads, ReduceOp::Mean)?;
        // On a device, the result is there when an element can be read.
        grads.get(0).double_value(&[]);
        rounds.push(started.elapsed().as_secs_f64());
    }
    rounds.remove(0);
    rounds.sort_by(f64::total_cmp);
    let median = [rounds[ROUNDS / 2]];
    let mut slowest = Tensor::from_slice(&median).to_kind(Kind::Double).to_device(device);
    all_reduce(&*communicator, &mut slowest, ReduceOp::Max)?;
    let seconds = slowest.get(0).double_value(&[]);
    communicator.check()?;
    if world.rank == 0 {
        let run_dir = args.run_dir.as_deref();
        let run_dir = run_dir.ok_or_else(|| TrainError::Setup("no --run-dir".to_owned()))?;
        let path = RunDir::at(run_dir).all_reduce_path();
        let text = json!({"bytes": len * size_of::<f32>(), "seconds": seconds}).to_string();
        std::fs::write(&path, text).map_err(|error| {
            TrainError::Setup(format!("cannot write {}: {error}", path.display()))
        })?;
    }
    communicator.finalize()?;
    Ok(())
}
