//! `trainer CONFIG --measure-all-reduce`: measures the time of averaging gradients on this set-up, for
//! `launcher doctor`. Ranks are started and connect as for training, but load no data.

use std::time::Instant;

use comm::ReduceOp;
use comm::control::Phase;
use comm::env::World;
use job::run_dir::RunDir;
use job::{dataset, network::Network};
use serde_json::json;
use torch_ext::collective::all_reduce;

use crate::cli::TrainArgs;
use crate::collective::reduce_values;
use crate::connect::{Connected, connect};
use crate::flat::shared_f32;
use crate::link::Link;
use crate::{Result, TrainError};

/// Number of timed all-reduces, after one for warm-up.
const ROUNDS: usize = 5;

/// Averages a buffer with as many f32 elements as the network has parameters, and writes `{bytes, seconds}`
/// to `all_reduce.json` in the run directory; `seconds` is the median over rounds on the slowest rank.
/// Collective.
///
/// # Errors
/// When ranks do not find each other, a peer is gone or late, or on rank 0 there is no run directory.
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
        // On a GPU, reading an element waits for the result.
        grads.get(0).double_value(&[]);
        rounds.push(started.elapsed().as_secs_f64());
    }
    rounds.remove(0);
    rounds.sort_by(f64::total_cmp);
    let median = [rounds[ROUNDS / 2]];
    let seconds = reduce_values(&*communicator, device, &median, ReduceOp::Max)?[0];
    if world.rank == 0 {
        let run_dir = args.run_dir.as_deref();
        let run_dir = run_dir
            .ok_or_else(|| TrainError::Setup("--measure-all-reduce needs --run-dir".to_owned()))?;
        let path = RunDir::at(run_dir).all_reduce_path();
        let text = json!({"bytes": len * size_of::<f32>(), "seconds": seconds}).to_string();
        std::fs::write(&path, text).map_err(|error| {
            TrainError::Setup(format!("cannot write {}: {error}", path.display()))
        })?;
    }
    communicator.finalize()?;
    Ok(())
}
