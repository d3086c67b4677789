//! `trainer models`: lists the networks.

use clap::Args;
use job::config::Model;
use job::network::{Network, catalogue};
use job::thousands;
use serde::Serialize;

use super::table::{Align, table};

/// `trainer models`.
#[derive(Debug, Args)]
pub struct ModelsArgs {
    /// One JSON array instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// A network with its costs, on the data set that it was published for.
#[derive(Debug, Serialize)]
struct Line {
    name: &'static str,
    stem: &'static str,
    image: usize,
    classes: usize,
    parameters: usize,
    multiply_adds: u64,
    torchvision: bool,
    source: &'static str,
}

/// Returns the list, as text that ends with a line break.
pub fn models(args: &ModelsArgs) -> String {
    let lines: Vec<Line> = catalogue().map(line).collect();
    if args.json {
        return super::json(&lines);
    }
    use Align::{Left, Right};
    let columns = [
        ("name", Left),
        ("parameters", Right),
        ("multiply-adds", Right),
        ("stem", Left),
        ("image", Right),
        ("classes", Right),
        ("torchvision", Left),
        ("source", Left),
    ];
    table(
        columns,
        lines.iter().map(|line| {
            [
                line.name.to_owned(),
                thousands(line.parameters as u64),
                thousands(line.multiply_adds),
                line.stem.to_owned(),
                line.image.to_string(),
                line.classes.to_string(),
                if line.torchvision { "yes" } else { "" }.to_owned(),
                line.source.to_owned(),
            ]
        }),
    )
}

fn line(entry: &'static job::network::Entry) -> Line {
    let dataset = entry.dataset;
    let model = Model { name: entry.into(), stem: dataset.stem(), ..Model::default() };
    let network = Network::new(&model, [3, dataset.image(), dataset.image()], dataset.classes());
    let summary = network.summary();
    Line {
        name: entry.name,
        stem: dataset.stem().as_str(),
        image: dataset.image(),
        classes: dataset.classes(),
        parameters: summary.parameters,
        multiply_adds: summary.multiply_adds,
        torchvision: entry.in_torchvision,
        source: entry.source,
    }
}
