//! Trains one network of every family for some steps, and reports whether its loss falls, its throughput, and
//! its memory use.

mod run;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use job::config::{Model, ModelName, Stem};
use job::network::{ReferenceDataset, catalogue};

use run::{Launcher, Measured};

/// Trains networks for some steps each, on the images of CIFAR-10.
#[derive(Debug, Parser)]
struct Args {
    /// Ranks on the CPU.
    #[arg(long, value_name = "N", default_value_t = 2, conflicts_with = "gpus")]
    cpu: usize,
    /// Ranks on GPUs instead.
    #[arg(long, value_name = "N")]
    gpus: Option<usize>,
    /// Networks to train; `all` for every one.
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_values = ONE_OF_EACH)]
    networks: Vec<String>,
    /// Optimizer steps of each; the first 10 are excluded from the throughput.
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u64).range(20..))]
    steps: u64,
    /// Images per rank and step.
    #[arg(long, value_name = "N", default_value_t = 32)]
    batch_per_rank: usize,
    /// Folder with CIFAR-10's .bin files; without it images are synthetic.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Override one configuration key in all runs; repeatable.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// The smallest network of each family and kind.
const ONE_OF_EACH: [&str; 12] = [
    "resnet18",
    "resnet50",
    "resnet20",
    "plain18",
    "plain20",
    "vgg19",
    "vgg19_bn",
    "resnext50_32x4d",
    "wrn16_8",
    "wide_resnet50_2",
    "preact_resnet18",
    "airbench94",
];

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let launcher = Launcher::new(&args)?;
    let mut fell = true;
    println!(
        "| network | stem | parameters | loss, first and last 5 steps | images/s | peak memory of a rank, GiB |"
    );
    println!("|---|---|---|---|---|---|");
    for model in models(&args.networks)? {
        let measured = launcher.train(&model)?;
        println!("{}", row(&model, &measured));
        std::io::stdout().flush()?;
        fell &= measured.falls();
    }
    if !fell {
        eprintln!("networks: the loss of at least one network did not fall; the table marks it");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns the networks with these names, each with the project's stem for small images.
fn models(names: &[String]) -> anyhow::Result<Vec<Model>> {
    let names: Vec<ModelName> = if names == ["all"] {
        catalogue().map(ModelName::from).collect()
    } else {
        names.iter().map(|name| name.parse()).collect::<Result<_, _>>()?
    };
    let stem = |name: ModelName| match name.entry().dataset {
        ReferenceDataset::Imagenet => Stem::Notes,
        ReferenceDataset::Cifar => Stem::Cifar,
    };
    Ok(names.into_iter().map(|name| Model { name, stem: stem(name), ..Model::default() }).collect())
}

fn row(model: &Model, measured: &Measured) -> String {
    let Measured { parameters, first_loss, last_loss, images_per_s, peak_memory_bytes } = measured;
    let gib = *peak_memory_bytes as f64 / f64::from(1 << 30);
    format!(
        "| {} | {} | {parameters} | {first_loss:.3}, {last_loss:.3}{} | {images_per_s:.1} | {gib:.2} |",
        model.name,
        model.stem.as_str(),
        if measured.falls() { "" } else { ": **does not fall**" },
    )
}
