//! `trainer summary`: parameters and multiply-adds of a network, layer by layer.

use clap::Args;
use clap::builder::PossibleValuesParser;
use job::config::{Model, ModelName, Stem};
use job::network::{LayerSummary, Network, Summary};
use job::thousands;
use serde::Serialize;

use super::table::{Align, table};

/// `trainer summary`.
#[derive(Debug, Args)]
pub struct SummaryArgs {
    /// A network that `trainer models` lists.
    pub model: ModelName,
    /// The layers before the first stage; default: as published.
    #[arg(long, value_parser = stem_parser())]
    pub stem: Option<Stem>,
    /// Height and width of an image; default: as published, 224 or 32.
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub image: Option<u32>,
    /// Number of classes; default: as published, 1000 or 10.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub classes: Option<u32>,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    pub json: bool,
}

fn stem_parser() -> impl clap::builder::TypedValueParser<Value = Stem> {
    use clap::builder::TypedValueParser;
    PossibleValuesParser::new(Stem::ALL.map(Stem::as_str)).map(|name| {
        let named = |stem: &Stem| stem.as_str() == name;
        Stem::ALL.into_iter().find(named).unwrap_or(Stem::Notes)
    })
}

/// The network that was asked for, and its summary.
#[derive(Debug, Serialize)]
struct Answer {
    model: ModelName,
    stem: Stem,
    image: [usize; 3],
    classes: usize,
    #[serde(flatten)]
    summary: Summary,
}

/// Returns the summary, as text that ends with a line break.
pub fn summary(args: &SummaryArgs) -> String {
    let dataset = args.model.entry().dataset;
    let stem = args.stem.unwrap_or(dataset.stem());
    let side = args.image.map_or(dataset.image(), |image| image as usize);
    let classes = args.classes.map_or(dataset.classes(), |classes| classes as usize);
    let model = Model { name: args.model, stem, ..Model::default() };
    let image = [3, side, side];
    let summary = Network::new(&model, image, classes).summary();
    let answer = Answer { model: args.model, stem, image, classes, summary };
    if args.json { super::json(&answer) } else { in_words(&answer) }
}

fn in_words(answer: &Answer) -> String {
    use Align::{Left, Right};
    let Answer { model, stem, image, classes, summary } = answer;
    let columns = [
        ("layer", Left),
        ("kind", Left),
        ("output", Right),
        ("parameters", Right),
        ("never see a pixel", Right),
        ("multiply-adds", Right),
    ];
    let rows = table(columns, summary.layers.iter().map(row));
    format!(
        "{model}, stem {}, images {}, {classes} classes\n\n{rows}\n\
         parameters         {}\n\
         never see a pixel  {}\n\
         multiply-adds      {}, {}\n",
        stem.as_str(),
        sizes(image),
        thousands(summary.parameters as u64),
        thousands(summary.unseen_parameters as u64),
        thousands(summary.multiply_adds),
        in_short(summary.multiply_adds),
    )
}

/// Formats `19632062464` as `19.6 billion`.
fn in_short(number: u64) -> String {
    match number {
        1_000_000_000.. => format!("{:.1} billion", number as f64 / 1e9),
        _ => format!("{:.1} million", number as f64 / 1e6),
    }
}

fn row(layer: &LayerSummary) -> [String; 6] {
    let unless_none = |number: u64| if number == 0 { String::new() } else { thousands(number) };
    [
        layer.name.clone(),
        layer.kind.clone(),
        sizes(&layer.output),
        unless_none(layer.parameters as u64),
        unless_none(layer.unseen_parameters as u64),
        unless_none(layer.multiply_adds),
    ]
}

fn sizes([channels, height, width]: &[usize; 3]) -> String {
    format!("{channels}x{height}x{width}")
}
