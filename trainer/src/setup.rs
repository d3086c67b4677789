//! From a command line to a run that is ready for its first step.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use comm::Communicator;
use comm::bootstrap::Backend;
use comm::control::Phase;
use comm::env::World;
use job::config::{self, CommBackend, Config, Dataset, Overlap};
use job::dataset::{self, DataSet, Source};
use job::network::Network;
use job::run_dir::{Resume, RunDir};
use job::shard;
use tch::{Device, Kind, Tensor};
use tracing::{info, warn};

use crate::arithmetic::Arithmetic;
use crate::checkpoint::{self, CheckpointError, Found, State};
use crate::cli::TrainArgs;
use crate::cuda_graph::{Circumstances, StepGraph};
use crate::data::{Augmenter, Images};
use crate::ema::Ema;
use crate::flat::Flat;
use crate::grad_sync::{GradSync, Options, Timing};
use crate::link::Link;
use crate::model::{Mode, Module};
use crate::optim::Optimizer;
use crate::patience::on_rank_0;
use crate::recorder::Recorder;
use crate::run::Run;
use crate::schedule::LearningRate;
use crate::step::{Counter, Replica};
use crate::{Result, TrainError, caught, convolutions, device, init, pretrained};

/// Connects to the other ranks, reads the data, builds the network, and finds where to go on.
///
/// # Errors
/// Whatever is missing or does not fit.
pub fn build(args: TrainArgs, world: World, link: &Link) -> Result<Run<'_>> {
    let started = Instant::now();
    let overrides = args.overrides();
    let config = config::load(&args.config, &overrides)?;
    let refused = |invalid| config::refused(&args.config, &overrides, invalid);
    config.train.check_shared_by(world.world_size).map_err(refused)?;
    device::limit_threads(world);
    let device = device::open(args.device, world)?;
    config.performance.check_device(device.is_cuda()).map_err(refused)?;
    device::tune(device, &config.performance)?;

    link.state(Phase::Connecting, 0, 0);
    let timeout = Duration::from_secs(config.comm.timeout_seconds);
    let backend = device::backend(&config.comm, device, world).map_err(refused)?;
    let communicator = comm::bootstrap::connect(backend, world, link.store(), timeout)?;
    let connected = Connected { world, link, device, backend, communicator: &communicator };
    // Before the communicator is dropped, of which the others learn: see `Run::train`.
    caught(|| assemble(&args, config, &connected, started)).inspect_err(|error| link.failed(error))
}

/// One of all ranks.
struct Connected<'a, 'b> {
    world: World,
    link: &'a Link,
    device: Device,
    backend: Backend,
    communicator: &'b Arc<dyn Communicator>,
}

fn assemble<'a>(
    args: &TrainArgs,
    config: Config,
    connected: &Connected<'a, '_>,
    started: Instant,
) -> Result<Run<'a>> {
    let Connected { world, link, device, backend, communicator } = *connected;
    let communicator = Arc::clone(communicator);
    let run_dir = open_run_dir(args, &config, world, link)?;

    link.state(Phase::LoadingData, 0, 0);
    let data_set = load_data(&config)?;
    let data_hash = data_set.hash().to_hex().to_string();
    agree(&*communicator, device, "data sets", &data_hash)?;
    agree(&*communicator, device, "configurations", &config::to_yaml(&config))?;

    link.state(Phase::Preparing, 0, 0);
    let arithmetic = Arithmetic::choose(config.precision, device, &*communicator)?;
    let network = Network::new(&config.model, data_set.train.shape, data_set.classes.len());
    let whole_tensors = config.optimizer.needs_whole_tensors();
    if whole_tensors && config.performance.live_taps {
        info!("the optimizer needs whole tensors: performance.live_taps is taken as false");
    }
    let tensors = network.tensors(config.performance.live_taps && !whole_tensors);
    let mut flat = Flat::new(tensors, device, &*communicator)?;
    init::initialize(&mut flat, config.train.seed);
    let train = Images::new(&data_set.train, &data_set.normalization, device);
    init::whiten(&mut flat, &train, config.data.dataset == Dataset::ImageFolder);
    let preparing = || link.state(Phase::Preparing, 0, 0);
    let found =
        on_rank_0(&*communicator, device, preparing, || find_checkpoint(&args.resume, &run_dir))?
            .flatten();
    let from_torchvision = config.model.from_torchvision.as_deref();
    if let Some(file) = from_torchvision.filter(|_| world.rank == 0 && found.is_none()) {
        pretrained::load_torchvision(file, &mut flat)?;
    }
    // Several microbatches add up in f32, and so in the flat buffer.
    if device.is_cuda() && config.train.microbatches(world.world_size) == 1 {
        flat.defer_gradients(arithmetic.half());
    }
    let mut model = Module::new(&network, &flat);
    if config.train.sync_batch_norm && world.world_size > 1 {
        model.synchronize_batch_norm(&communicator);
    } else if device.is_cuda() && config.performance.fused_batch_norm {
        match torch_ext::prepare_batch_norm(arithmetic.half().unwrap_or(Kind::Float)) {
            Ok(()) => model.fuse_batch_norm(),
            Err(error) => info!("batch norm is libtorch's, in several kernels: {error}"),
        }
    }
    let mut replica = Replica {
        flat,
        model,
        device,
        arithmetic,
        convolutions: Rc::default(),
        norm_mode: Mode::Train,
        sync_batch_norm: config.train.sync_batch_norm && world.world_size > 1,
    };
    let mut optimizer = Optimizer::new(&config.optimizer, &replica.flat);
    optimizer.compute_in(arithmetic);
    let start =
        State { data_set: Some(data_set.describe()), ..State::start(world.world_size, data_hash) };
    let mut ema = Ema::new(&config.train, &replica.flat);
    let mut progress =
        Progress { flat: &mut replica.flat, optimizer: &mut optimizer, ema: ema.as_mut() };
    let resumed = on_rank_0(&*communicator, device, preparing, || {
        let resumed = found.map(|found| resume(found, &config, &run_dir, &mut progress, &start));
        resumed.transpose()
    })?;
    let state = resumed.flatten().unwrap_or(start);
    let mut state = share(&*communicator, progress, state)?;
    if arithmetic == Arithmetic::Fp16 {
        optimizer.scale_losses(state.loss_scaler.unwrap_or_default());
    }
    if device == Device::Cpu {
        let [channels, height, width] = data_set.train.shape;
        state.convolutions = convolutions::choose(
            &replica,
            config.performance.convolution,
            [config.train.microbatch_size(world.world_size), channels, height, width],
            std::mem::take(&mut state.convolutions),
            &*communicator,
            &|| link.stop_reason().is_some(),
        )?;
    }

    let options = Options {
        timing: timing(&config.comm, backend),
        bucket_cap: config.comm.bucket_cap_mib,
        wire_dtype: config.comm.wire_dtype,
    };
    let grad_sync = GradSync::new(&replica.flat, Arc::clone(&communicator), options)?;
    if world.world_size > 1 && options.timing != Timing::Never {
        optimizer.share_work(&communicator)?;
    }
    if config.train.microbatch_size(world.world_size) == 1 && !replica.sync_batch_norm {
        warn!(
            "one image a rank: batch norm has nothing to normalise over and uses running statistics"
        );
    }
    let circumstances = Circumstances {
        cuda_graph: config.performance.cuda_graph,
        device,
        is_random: replica.model.is_random(),
        sync_batch_norm: replica.sync_batch_norm,
    };
    let global_batch_size = config.train.global_batch_size(world.world_size);
    let step_graph = StepGraph::new(circumstances, global_batch_size)?;
    let recorder = Recorder::open(&config, &run_dir, &state, world, device, started)?;
    let steps_per_epoch = shard::steps_per_epoch(data_set.train.labels.len(), global_batch_size);
    info!(
        "{} rank{} on {}, {} parameters, {} training and {} test images of {}, global batch {}",
        world.world_size,
        if world.world_size == 1 { "" } else { "s" },
        if device.is_cuda() { "GPUs" } else { "the CPU" },
        network.parameter_count(),
        data_set.train.labels.len(),
        data_set.test.labels.len(),
        data_set.name,
        global_batch_size,
    );
    Ok(Run {
        learning_rate: LearningRate::new(&config, global_batch_size, steps_per_epoch),
        grad_sync,
        step_graph,
        counter: Counter::new(device),
        augmenter: Augmenter::new(&config.data.augment, config.train.seed),
        train,
        test: Images::new(&data_set.test, &data_set.normalization, device),
        config,
        world,
        communicator,
        link,
        run_dir,
        replica,
        optimizer,
        ema,
        state,
        recorder,
    })
}

/// The launcher has prepared the run directory for its trainers; without one, rank 0 does it.
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

/// Gets the data set there and reads it.
///
/// # Errors
/// Whatever is missing or bad.
pub fn load_data(config: &Config) -> Result<DataSet> {
    let named = std::env::var_os(dataset::CIFAR10_DIR).map(PathBuf::from);
    let source = dataset::prepare(&config.data, named.as_deref())?;
    if let Source::Synthetic { because: Some(reason) } = &source {
        warn!("taking SYNTHETIC images: {reason}");
    }
    Ok(dataset::load(&source, &config.data, config.train.seed)?)
}

/// Makes sure that all ranks have the same of something. Collective.
fn agree(communicator: &dyn Communicator, device: Device, what: &str, mine: &str) -> Result<()> {
    let (rank, world_size) = (communicator.rank(), communicator.world_size());
    let [a, b, c, d, ..] = *blake3::hash(mine.as_bytes()).as_bytes();
    let mut digests = Tensor::zeros([world_size as i64], (Kind::Int64, device));
    let _ = digests.get(rank as i64).fill_(i64::from(u32::from_le_bytes([a, b, c, d])));
    torch_ext::collective::all_reduce(communicator, &mut digests, comm::ReduceOp::Sum)?;
    let digests = Vec::<i64>::try_from(&digests)?;
    communicator.check()?; // on a GPU a late rank shows here
    match digests.iter().position(|digest| *digest != digests[0]) {
        None => Ok(()),
        Some(other) => Err(TrainError::Setup(format!(
            "rank 0 and rank {other} have different {what}: each rank must be given the same"
        ))),
    }
}

/// What training changes.
struct Progress<'a> {
    flat: &'a mut Flat,
    optimizer: &'a mut Optimizer,
    ema: Option<&'a mut Ema>,
}

/// The checkpoint to go on from, if there is one: the run's own or, until it has one, what it begins from.
fn find_checkpoint(resume: &Resume, run_dir: &RunDir) -> Result<Option<Found>> {
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
fn resume(
    found: Found,
    config: &Config,
    run_dir: &RunDir,
    progress: &mut Progress<'_>,
    start: &State,
) -> Result<State> {
    let is_own = found.path.starts_with(run_dir.checkpoints_dir());
    for refused in &found.refused {
        warn!("{refused}; taking an older one");
    }
    if found.state.data_hash != start.data_hash {
        let reason = "it was trained on other images".to_owned();
        return Err(CheckpointError::DoesNotFit { path: found.path, reason }.into());
    }
    if let Some(theirs) = config_of(&found.path) {
        if theirs.comm.backend == CommBackend::None {
            let reason =
                "it is from a run with comm.backend: none, whose ranks diverged".to_owned();
            return Err(CheckpointError::DoesNotFit { path: found.path, reason }.into());
        }
        if !is_own {
            warn_of_differences(&theirs, config);
        }
    }
    if !is_own && found.state.is_complete(&config.train) {
        let State { epochs_completed, step, .. } = found.state;
        let reason = format!(
            "nothing is left to train: it has {epochs_completed} epochs and {step} steps; raise train.epochs \
             or train.max_steps"
        );
        return Err(CheckpointError::DoesNotFit { path: found.path, reason }.into());
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
        if found.state.is_best() {
            // The run may have ended before it could say so.
            checkpoint::point(checkpoint::Link::Best, &found.path)?;
        }
        // Fewer may be kept than before, since the disk was full.
        checkpoint::prune(&run_dir.checkpoints_dir(), config.checkpoint.keep);
    }
    let State { world_size, data_set, .. } = start.clone();
    let mut state = State { world_size, data_set, ..found.state };
    if !is_own {
        state.best_test_accuracy = None;
        state.convolutions.clear();
    }
    Ok(state)
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

/// When gradients are reduced. Between CPU ranks that share memory, doing so while backward goes on
/// takes from backward the time that it saves, see docs/overlap.md.
fn timing(config: &config::Comm, backend: Backend) -> Timing {
    if config.backend == CommBackend::None {
        warn!(
            "comm.backend: none: ranks do NOT communicate gradients, so their weights DIVERGE and \
             the result is good for nothing; this is for measuring speed only"
        );
        return Timing::Never;
    }
    match config.overlap {
        Overlap::Auto if backend == Backend::Shm => Timing::AfterBackward,
        Overlap::Auto | Overlap::On => Timing::Overlapped,
        Overlap::Off => Timing::AfterBackward,
    }
}

/// Gives every rank what rank 0 has: weights, running statistics, optimizer, averages, place in the run.
fn share(
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
        .map_err(|error| TrainError::Setup(error.to_string()))?;
    let text = broadcast_bytes(communicator, device, text)?;
    let (state, steps, batches_tracked) = serde_json::from_slice(&text)
        .map_err(|error| TrainError::Setup(format!("rank 0 sent an unreadable state: {error}")))?;
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
