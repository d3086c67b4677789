//! Builds a [`Run`] that is ready for its first step from the command line.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use comm::Communicator;
use comm::bootstrap::Backend;
use comm::control::Phase;
use comm::env::World;
use job::config::{self, CommBackend, Config, Dataset, Overlap};
use job::dataset::{self, DataSet, Source};
use job::network::Network;
use job::run_dir::RunDir;
use job::shard;
use tch::{Device, Kind};
use tracing::{info, warn};

use crate::arithmetic::Arithmetic;
use crate::checkpoint::State;
use crate::cli::TrainArgs;
use crate::collective::reduce_values;
use crate::connect::{Connected, connect};
use crate::cuda_graph::{Circumstances, StepGraph};
use crate::data::{Augmenter, Images};
use crate::ema::Ema;
use crate::flat::Flat;
use crate::grad_sync::{GradSync, Options, Timing};
use crate::link::Link;
use crate::model::Module;
use crate::optim::Optimizer;
use crate::rank_0::on_rank_0;
use crate::recorder::Recorder;
use crate::replica::Replica;
use crate::resume::{Progress, broadcast_from_rank_0, find_checkpoint, resume};
use crate::run::Run;
use crate::saver::Saver;
use crate::schedule::LearningRate;
use crate::tally::Counter;
use crate::{Result, TrainError, caught, convolutions, device, init, pretrained};

/// Connects to the other ranks, loads the data set, builds the network, and resumes from a checkpoint if
/// there is one. Collective.
///
/// # Errors
/// When anything that the run needs is missing, invalid or inconsistent between ranks.
pub fn build(args: TrainArgs, world: World, link: &Link) -> Result<Run<'_>> {
    let started = Instant::now();
    let connected = connect(&args, world, link)?;
    // Reports the error before the communicator is dropped, which other ranks notice: see `Run::train`.
    caught(|| assemble(&args, world, link, &connected, started))
        .inspect_err(|error| link.failed(error))
}

fn assemble<'a>(
    args: &TrainArgs,
    world: World,
    link: &'a Link,
    connected: &Connected,
    started: Instant,
) -> Result<Run<'a>> {
    let Connected { config, device, communicator, .. } = connected;
    device::tune(*device, &config.performance)?;
    let run_dir = open_run_dir(args, config, world, link)?;

    link.state(Phase::LoadingData, 0, 0);
    let data_set = load_data(config)?;
    let data_hash = data_set.hash().to_hex().to_string();
    check_equal_on_ranks(&**communicator, *device, "data sets", &data_hash)?;
    let common = config::common_to_machines(config);
    check_equal_on_ranks(&**communicator, *device, "configurations", &common)?;

    link.state(Phase::Preparing, 0, 0);
    let arithmetic = Arithmetic::choose(config.precision, *device, &**communicator)?;
    let network = Network::new(&config.model, data_set.train.shape, data_set.classes.len());
    let train = Images::new(&data_set.train, &data_set.normalization, *device);
    let mut flat = initial_weights(connected, &network, &train)?;
    let preparing = || link.state(Phase::Preparing, 0, 0);
    let find = || find_checkpoint(&args.resume, &run_dir);
    let found = on_rank_0(&**communicator, *device, preparing, find)?.flatten();
    let from_torchvision = config.model.from_torchvision.as_deref();
    if let Some(file) = from_torchvision.filter(|_| world.rank == 0 && found.is_none()) {
        pretrained::load_torchvision(file, &mut flat)?;
    }
    let mut replica = replica(connected, world, &network, flat, arithmetic);
    let mut optimizer = Optimizer::new(&config.optimizer, &replica.flat);
    optimizer.compute_in(arithmetic);
    let mut ema = Ema::new(&config.train, &replica.flat);

    let start =
        State { data_set: Some(data_set.describe()), ..State::start(world.world_size, data_hash) };
    let mut progress =
        Progress { flat: &mut replica.flat, optimizer: &mut optimizer, ema: ema.as_mut() };
    let resumed = on_rank_0(&**communicator, *device, preparing, || {
        let resumed = found.map(|found| resume(found, config, &run_dir, &mut progress, &start));
        resumed.transpose()
    })?;
    let state = resumed.flatten().unwrap_or(start);
    let mut state = broadcast_from_rank_0(&**communicator, progress, state)?;
    if arithmetic == Arithmetic::Fp16 {
        optimizer.scale_losses(state.loss_scaler.unwrap_or_default());
    }
    choose_convolutions(connected, world, link, &replica, data_set.train.shape, &mut state)?;
    let grad_sync = synchronize_gradients(connected, world, &replica, &mut optimizer)?;
    let step_graph = step_graph(connected, world, &replica)?;
    let recorder = Recorder::open(config, &run_dir, &state, world, *device, started)?;
    let global_batch_size = config.train.global_batch_size(world.world_size);
    let steps_per_epoch = shard::steps_per_epoch(data_set.train.labels.len(), global_batch_size);
    describe(connected, world, &network, &data_set);
    Ok(Run {
        learning_rate: LearningRate::new(config, global_batch_size, steps_per_epoch),
        grad_sync,
        step_graph,
        counter: Counter::new(*device),
        augmenter: Augmenter::new(&config.data.augment, config.train.seed),
        train,
        test: Images::new(&data_set.test, &data_set.normalization, *device),
        config: config.clone(),
        world,
        communicator: Arc::clone(communicator),
        link,
        run_dir,
        replica,
        optimizer,
        ema,
        state,
        recorder,
        saver: Saver::new(&config.checkpoint),
    })
}

/// Returns flat storage with the initial weights of training from scratch. `train`: the images from which
/// whitening filters are computed.
fn initial_weights(connected: &Connected, network: &Network, train: &Images) -> Result<Flat> {
    let Connected { config, device, communicator, .. } = connected;
    let whole_tensors = config.optimizer.needs_whole_tensors();
    if whole_tensors && config.performance.live_taps {
        info!("the optimizer needs whole tensors: ignoring performance.live_taps");
    }
    let tensors = network.tensors(config.performance.live_taps && !whole_tensors);
    let mut flat = Flat::new(tensors, *device, &**communicator)?;
    init::initialize(&mut flat, config.train.seed);
    init::whiten(&mut flat, train, config.data.dataset == Dataset::ImageFolder);
    Ok(flat)
}

/// Builds the layers over `flat`. Chooses how gradients are accumulated and which batch norm is used,
/// depending on the device and the configuration.
fn replica(
    connected: &Connected,
    world: World,
    network: &Network,
    mut flat: Flat,
    arithmetic: Arithmetic,
) -> Replica {
    let Connected { config, device, communicator, .. } = connected;
    // Gradients of several microbatches are accumulated in f32, in the flat buffer.
    if config.train.microbatches(world.world_size) == 1 {
        // On the CPU autocast rounds weights layer by layer, so that backward can write f32 gradients
        // directly into the flat buffer.
        flat.defer_gradients(arithmetic.half().filter(|_| device.is_cuda()));
    }
    let mut model = Module::new(network, &flat);
    let sync_batch_norm = config.train.sync_batch_norm && world.world_size > 1;
    if sync_batch_norm {
        model.synchronize_batch_norm(communicator);
    } else if device.is_cuda() && config.performance.fused_batch_norm {
        match torch_ext::prepare_batch_norm(arithmetic.half().unwrap_or(Kind::Float)) {
            Ok(()) => model.fuse_batch_norm(),
            Err(error) => info!("using libtorch's batch norm, which is not fused: {error}"),
        }
    }
    Replica { sync_batch_norm, ..Replica::new(flat, model, arithmetic) }
}

/// On the CPU, chooses the methods of convolutions, or keeps those in `state`. Collective.
fn choose_convolutions(
    connected: &Connected,
    world: World,
    link: &Link,
    replica: &Replica,
    [channels, height, width]: [usize; 3],
    state: &mut State,
) -> Result<()> {
    let Connected { config, device, communicator, .. } = connected;
    if *device == Device::Cpu {
        state.convolutions = convolutions::choose(
            replica,
            config.performance.convolution,
            [config.train.microbatch_size(world.world_size), channels, height, width],
            std::mem::take(&mut state.convolutions),
            &**communicator,
            &|| link.stop_reason().is_some(),
        )?;
    }
    Ok(())
}

/// Builds gradient synchronization, and has ranks share the optimizer's work, once the optimizer is fully
/// set up. Collective.
fn synchronize_gradients(
    connected: &Connected,
    world: World,
    replica: &Replica,
    optimizer: &mut Optimizer,
) -> Result<GradSync> {
    let Connected { config, backend, communicator, .. } = connected;
    let options = Options {
        timing: timing(&config.comm, *backend),
        bucket_cap: config.comm.bucket_cap_mib,
        wire_dtype: config.comm.wire_dtype,
    };
    let grad_sync = GradSync::new(&replica.flat, Arc::clone(communicator), options)?;
    if world.world_size > 1 && options.timing != Timing::Never {
        optimizer.share_work(communicator)?;
    }
    Ok(grad_sync)
}

fn step_graph(connected: &Connected, world: World, replica: &Replica) -> Result<StepGraph> {
    let config = &connected.config;
    let circumstances = Circumstances {
        cuda_graph: config.performance.cuda_graph,
        device: connected.device,
        is_random: replica.model.is_random(),
        sync_batch_norm: replica.sync_batch_norm,
    };
    StepGraph::new(circumstances, config.train.global_batch_size(world.world_size))
}

/// Logs the network, the data set, the device and the batch size of the run.
fn describe(connected: &Connected, world: World, network: &Network, data_set: &DataSet) {
    let Connected { config, device, .. } = connected;
    let World { world_size, .. } = world;
    if config.train.microbatch_size(world_size) == 1
        && !(config.train.sync_batch_norm && world_size > 1)
    {
        warn!(
            "one image per rank: batch norm has nothing to normalise over, and uses running \
             statistics"
        );
    }
    info!(
        "{} on {}, {} parameters, {} training and {} test images of {}, global batch {}",
        job::counted(world_size, "rank"),
        if device.is_cuda() { "GPUs" } else { "the CPU" },
        network.parameter_count(),
        data_set.train.labels.len(),
        data_set.test.labels.len(),
        data_set.name,
        config.train.global_batch_size(world_size),
    );
}

/// Opens the run directory. A launcher has prepared it already; without a launcher, rank 0 does.
fn open_run_dir(args: &TrainArgs, config: &Config, world: World, link: &Link) -> Result<RunDir> {
    let default = || RunDir::default_path(&args.config, time::OffsetDateTime::now_utc());
    let root: PathBuf = args.run_dir.clone().unwrap_or_else(default);
    if world.rank == 0 && !link.has_launcher() {
        let run_dir = RunDir::open(&root, config, &args.resume)?;
        info!("run directory: {}", root.display());
        return Ok(run_dir);
    }
    Ok(RunDir::at(&root))
}

/// Prepares the data set (downloads it if necessary) and reads it.
///
/// # Errors
/// When the data set is missing, cannot be downloaded or is invalid.
pub fn load_data(config: &Config) -> Result<DataSet> {
    let named = std::env::var_os(dataset::CIFAR10_DIR).filter(|folder| !folder.is_empty());
    let named = named.map(PathBuf::from);
    let source = dataset::prepare(&config.data, named.as_deref())?;
    if let Source::Synthetic { because: Some(reason) } = &source {
        warn!("using SYNTHETIC images: {reason}");
    }
    Ok(dataset::load(&source, &config.data, config.train.seed)?)
}

/// Checks that the text `mine` is the same on all ranks, by comparing 32 bits of its hash. `what` names it
/// in the error. Collective.
fn check_equal_on_ranks(
    communicator: &dyn Communicator,
    device: Device,
    what: &str,
    mine: &str,
) -> Result<()> {
    let (rank, world_size) = (communicator.rank(), communicator.world_size());
    let [a, b, c, d, ..] = *blake3::hash(mine.as_bytes()).as_bytes();
    let mut digests = vec![0.0; world_size];
    digests[rank] = f64::from(u32::from_le_bytes([a, b, c, d]));
    let digests = reduce_values(communicator, device, &digests, comm::ReduceOp::Sum)?;
    match digests.iter().position(|digest| *digest != digests[0]) {
        None => Ok(()),
        Some(other) => Err(TrainError::Setup(format!(
            "rank 0 and rank {other} have different {what}: each rank must be given the same"
        ))),
    }
}

/// Returns when gradients are reduced. With `comm.overlap: auto`, CPU ranks that share memory do not overlap
/// communication with backward, which would lose the time that overlap saves: see docs/overlap.md.
fn timing(config: &config::Comm, backend: Backend) -> Timing {
    if config.backend == CommBackend::None {
        warn!(
            "comm.backend: none: ranks do NOT communicate gradients, so their weights DIVERGE and \
             the result is useless; this is for measuring speed only"
        );
        return Timing::Never;
    }
    match config.overlap {
        Overlap::Auto if backend == Backend::Shm => Timing::AfterBackward,
        Overlap::Auto | Overlap::On => Timing::Overlapped,
        Overlap::Off => Timing::AfterBackward,
    }
}
