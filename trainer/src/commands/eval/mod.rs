//! `trainer eval`: evaluation of a checkpoint.

mod picture;
mod ranks;
mod report;

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use comm::Communicator;
use comm::bootstrap::Store;
use comm::control::{ControlClient, StopFlag};
use comm::env::{CONTROL_SOCKET, World};
use job::config::{CommBackend, Config, Dataset, Fallback};
use job::dataset::{DataSet, Description};
use job::files::write_atomically;
use tracing::{info, warn};

use super::trained::Trained;
use crate::checkpoint::Weights;
use crate::connect::find_peers;
use crate::data::Images;
use crate::device::{self, DeviceKind};
use crate::eval::evaluate_by_class;
use crate::metrics::MetricsError;
use crate::{Result, TrainError, caught, setup};
use report::Report;

/// `trainer eval`.
#[derive(Debug, Args)]
pub struct EvalArgs {
    /// A checkpoint, or a run directory, of which the newest good one is taken.
    pub checkpoint: PathBuf,
    /// Override one key of the run's configuration; repeatable: --set data.root=elsewhere
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// The images to measure on.
    #[arg(long, value_enum, default_value = "test")]
    pub split: Split,
    /// Measure the moving average of the weights instead of the weights.
    #[arg(long)]
    pub ema: bool,
    /// Average logits over views of each image: none, flip or multi_crop; default: as in the run. Short
    /// for --set eval.tta=TTA
    #[arg(long, value_name = "TTA")]
    pub tta: Option<String>,
    /// Directory for the confusion matrix: confusion.png, confusion.svg, confusion.csv.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Number of ranks within this process that share the images: GPUs, or parts of the CPU's cores.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub ranks: u16,
    /// Print one JSON object instead of tables.
    #[arg(long)]
    pub json: bool,
    /// The device to compute on.
    #[arg(long, value_enum, default_value = "auto")]
    pub device: DeviceKind,
}

/// A part of a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Split {
    /// The training images, without augmentation.
    Train,
    /// The test images.
    Test,
}

impl Split {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Test => "test",
        }
    }
}

/// Evaluates the checkpoint over all ranks of `world`, or over as many threads as `--ranks` asks for. Returns
/// the report of rank 0; on other ranks it is empty.
///
/// # Errors
/// When there is no good checkpoint, the data set is missing or does not fit the network, or a peer fails.
pub fn eval(args: &EvalArgs, world: World) -> Result<String> {
    let tta = args.tta.iter().map(|tta| format!("eval.tta={tta}"));
    let overrides: Vec<String> = args.set.iter().cloned().chain(tta).collect();
    let mut trained = Trained::find(&args.checkpoint, &overrides)?;
    if args.ranks > 1 {
        // Threads of one process choose their backend themselves, whatever the run's ranks used.
        trained.config.comm.backend = CommBackend::Auto;
    }
    let weights = trained.weights(args.ema)?;
    if let Some(folder) = &args.out {
        // Created before evaluating, so that an unwritable folder is reported at once.
        std::fs::create_dir_all(folder)
            .map_err(|source| MetricsError::Write { path: folder.clone(), source })?;
    }
    device::limit_threads(world);
    let one_rank =
        |world, store: Option<&dyn Store>| measure_on(args, &trained, weights, world, store);
    let report = match usize::from(args.ranks) {
        1 => {
            let launcher = std::env::var_os(CONTROL_SOCKET).map(PathBuf::from);
            let launcher = launcher
                .map(|socket| ControlClient::connect(&socket, world.rank, StopFlag::default()))
                .transpose()?;
            one_rank(world, launcher.as_ref().map(|client| client as &dyn Store))?
        }
        _ if world.world_size > 1 => {
            let problem = "--ranks is for a single process, and this one is one of several ranks";
            return Err(TrainError::Usage(problem.to_owned()));
        }
        ranks => {
            // Fails at once if there are too few GPUs.
            device::open(args.device, ranks::world(ranks - 1, ranks))?;
            ranks::run(ranks, |world, store| {
                device::limit_own_threads(world);
                one_rank(world, Some(store))
            })?
        }
    };
    if world.rank != 0 {
        return Ok(String::new());
    }
    if let Some(folder) = &args.out {
        write_pictures(folder, &report)?;
    }
    Ok(if args.json { super::json(&report.to_json()) } else { report.to_text() })
}

/// Connects one rank with its peers and evaluates its share.
fn measure_on(
    args: &EvalArgs,
    trained: &Trained,
    weights: Weights,
    world: World,
    store: Option<&dyn Store>,
) -> Result<Report> {
    let device = device::open(args.device, world)?;
    let comm = &trained.config.comm;
    let backend = device::backend(comm, device, world)?;
    let communicator = find_peers(comm, backend, world, store)?;
    let measured = caught(|| measure(args, trained, weights, device, &*communicator));
    match &measured {
        Ok(_) => communicator.finalize()?,
        Err(error) => communicator.abort(&error.to_string(), error.blame()),
    }
    measured
}

fn measure(
    args: &EvalArgs,
    trained: &Trained,
    weights: Weights,
    device: tch::Device,
    communicator: &dyn Communicator,
) -> Result<Report> {
    let description = trained.data_set()?;
    let data_set = load(&trained.config, description, args.split)?;
    check_fit(&data_set, description)?;
    let split = match args.split {
        Split::Train => &data_set.train,
        Split::Test => &data_set.test,
    };
    if communicator.rank() == 0 {
        let (name, ranks) = (data_set.name, job::counted(communicator.world_size(), "rank"));
        info!("{} of {name}: {} images, over {ranks}", args.split.as_str(), split.len());
    }
    // The network expects images normalized as in its training, whatever the configuration says now.
    let images = Images::new(split, &description.normalization, device);
    let mut replica = trained.replica(weights, device, communicator)?;
    let classes = description.classes.len();
    let (tally, confusion) =
        evaluate_by_class(&mut replica, &images, classes, trained.config.eval.tta, communicator)?;
    Ok(Report {
        checkpoint: trained.path.clone(),
        step: trained.state.step,
        data_set: data_set.name,
        split: args.split.as_str(),
        classes: description.classes.clone(),
        ranks: communicator.world_size(),
        tally,
        confusion,
    })
}

/// Loads the data set of a configuration, with a single image of the split that is not evaluated.
fn load(config: &Config, trained: &Description, split: Split) -> Result<DataSet> {
    let mut config = config.clone();
    if trained.name != Dataset::Synthetic {
        // Results on synthetic images would say nothing about a network that was trained on others.
        config.data.fallback = Fallback::None;
    }
    match split {
        Split::Train => config.data.test_images = Some(1),
        Split::Test => config.data.train_images = Some(1),
    }
    setup::load_data(&config)
}

/// Checks that a network that was trained on `trained` can be evaluated on `data_set`.
fn check_fit(data_set: &DataSet, trained: &Description) -> Result<()> {
    let (name, theirs) = (data_set.name, trained.name);
    let shape = data_set.train.shape;
    if shape != trained.shape {
        let [size, trained_size] = [shape, trained.shape]
            .map(|[channels, height, width]| format!("{channels}x{height}x{width}"));
        let hint = match shape[0] == trained.shape[0] && name == Dataset::ImageFolder {
            true => format!("; set data.image_size={}", trained.shape[1]),
            false => String::new(),
        };
        return Err(TrainError::Usage(format!(
            "the network was trained on {theirs}, whose images are {trained_size}, and those of \
             {name} are {size}{hint}"
        )));
    }
    if data_set.classes.len() != trained.classes.len() {
        return Err(TrainError::Usage(format!(
            "the network was trained on {theirs}, which has {} classes, and {name} has {}",
            trained.classes.len(),
            data_set.classes.len()
        )));
    }
    if data_set.classes != trained.classes {
        warn!("the class names of {name} differ from those that the network was trained on");
    }
    Ok(())
}

fn write_pictures(folder: &Path, report: &Report) -> Result<()> {
    let picture = picture::draw(report);
    let png = folder.join("confusion.png");
    let bytes =
        picture.to_png().map_err(|problem| MetricsError::Draw { path: png.clone(), problem })?;
    let files = [
        (png, bytes),
        (folder.join("confusion.svg"), picture.to_svg().into_bytes()),
        (folder.join("confusion.csv"), report.to_csv().into_bytes()),
    ];
    for (path, bytes) in files {
        write_atomically(&path, &bytes).map_err(|source| MetricsError::Write { path, source })?;
    }
    info!("wrote confusion.png, confusion.svg and confusion.csv to {}", folder.display());
    Ok(())
}

#[cfg(test)]
mod tests;
