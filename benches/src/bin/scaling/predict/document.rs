//! Renders a prediction as a document.

use figure::{Line, MUTED, Point, Stroke, colour};

use super::{HIDDEN, MOST_RANKS, Model, Step};
use crate::cli::Args;
use crate::document::{Align, Block, Picture, Table};
use crate::pictures::{slug, throughput_and_efficiency};

pub(super) fn of(model: &Model, args: &Args) -> Vec<Block> {
    let counts = counts(args);
    let steps: Vec<Step> = counts.iter().map(|ranks| model.step(*ranks)).collect();
    let title = format!("{}, batch {} per rank", model.layers.name, model.batch_per_rank);
    let mut blocks = vec![
        Block::Heading(2, title.clone()),
        Block::Text(basis(model)),
        Block::Table(table(model, &steps)),
        Block::Picture(picture(model, &title, &counts)),
    ];
    blocks.extend(advice(model, &counts).into_iter().map(Block::Text));
    for global_batch in &args.global_batch {
        blocks.push(Block::Heading(3, format!("Strong scaling, global batch {global_batch}")));
        blocks.push(Block::Table(strong(model, &counts, *global_batch)));
    }
    blocks.push(Block::Heading(3, "Figures".to_owned()));
    blocks.push(Block::Table(figures(model)));
    blocks
}

/// Returns the GPU counts to predict, including one GPU, with which the others are compared.
fn counts(args: &Args) -> Vec<usize> {
    let mut counts: Vec<usize> = args.predict.iter().copied().filter(|ranks| *ranks > 0).collect();
    counts.push(1);
    counts.sort_unstable();
    counts.dedup();
    counts
}

fn basis(model: &Model) -> String {
    let compute = model.compute;
    format!(
        "{}. {:.2} billion multiply-accumulates forward, an image. One GPU: {:.2} ms a step, of it \
         {:.2} forward and {:.2} backward ({}). Gradients on the wire: {:.1} MB; buckets of at most {:.0} \
         MiB: {}.",
        model.cluster.description.trim(),
        model.layers.macs() / 1e9,
        compute.total() * 1e3,
        compute.forward * 1e3,
        compute.backward * 1e3,
        model.basis,
        (4 * model.layers.gradient_elements()) as f64 * model.wire_share() / 1e6,
        model.bucket_cap_bytes as f64 / f64::from(1 << 20),
        model.step(2).timeline.buckets,
    )
}

fn table(model: &Model, steps: &[Step]) -> Table {
    let mut table = Table::new([
        ("GPUs", Align::Right),
        ("global batch", Align::Right),
        ("step, ms", Align::Right),
        ("communication, ms", Align::Right),
        ("exposed, ms", Align::Right),
        ("images/s", Align::Right),
        ("efficiency", Align::Right),
        ("if all figures are off", Align::Right),
        ("speed-up to the same loss", Align::Right),
    ]);
    for step in steps {
        let (low, high) = model.efficiency_range(step.ranks);
        table.row(vec![
            step.ranks.to_string(),
            (step.ranks * model.batch_per_rank).to_string(),
            format!("{:.2}", step.seconds * 1e3),
            format!("{:.3}", step.timeline.communication * 1e3),
            format!("{:.3}", step.timeline.exposed() * 1e3),
            format!("{:.0}", model.images_per_s(step)),
            percent(model.efficiency(step)),
            format!("{}..{}", percent(low), percent(high)),
            format!("{:.1}", model.training_speed_up(step)),
        ]);
    }
    table
}

/// Describes where communication is no longer hidden, and what would hide it.
fn advice(model: &Model, counts: &[usize]) -> Vec<String> {
    let limit = HIDDEN * 100.0;
    let mut texts = vec![match model.stops_hiding() {
        Some(ranks) => format!(
            "From {ranks} GPUs on, communication is no longer hidden: more than {limit} % of a step \
             waits for it."
        ),
        None => format!(
            "Communication is hidden up to {MOST_RANKS} GPUs: at most {limit} % of a step waits \
             for it."
        ),
    }];
    for &ranks in counts.iter().filter(|ranks| !model.is_hidden(**ranks)) {
        let (mib, step) = model.best_bucket_mib(ranks);
        let batch = model.hiding_batch(ranks).map_or_else(
            || "no batch up to 256 times as large hides communication".to_owned(),
            |batch| format!("a batch of {batch} per rank hides communication"),
        );
        texts.push(format!(
            "{ranks} GPUs: buckets of {mib} MiB are the best, with steps of {:.2} ms, of which \
             {:.2} ms are exposed communication; with the present bucket size {batch}.",
            step.seconds * 1e3,
            step.timeline.exposed() * 1e3,
        ));
    }
    let (critical, source) = model.layers.critical_batch;
    let ranks = critical / model.batch_per_rank as f64;
    texts.push(format!(
        "The critical batch is about {critical:.0} images ({source}): {ranks:.0} GPUs at this batch. \
         It limits scaling: at the critical batch, doubling the batch saves only a quarter of the \
         steps, and far beyond it none."
    ));
    texts
}

/// Returns the table of strong scaling: each rank takes its share of the global batch. Efficiency is relative
/// to one GPU that takes all of it.
fn strong(model: &Model, counts: &[usize], global_batch: usize) -> Table {
    let alone = model.with_batch(global_batch as f64).compute.total();
    let mut table = Table::new([
        ("GPUs", Align::Right),
        ("batch per rank", Align::Right),
        ("step, ms", Align::Right),
        ("exposed, ms", Align::Right),
        ("images/s", Align::Right),
        ("efficiency", Align::Right),
    ]);
    for &ranks in counts.iter().filter(|ranks| global_batch.is_multiple_of(**ranks)) {
        let per_rank = global_batch / ranks;
        let model = model.with_batch(per_rank as f64);
        let step = model.step(ranks);
        table.row(vec![
            ranks.to_string(),
            per_rank.to_string(),
            format!("{:.2}", step.seconds * 1e3),
            format!("{:.3}", step.timeline.exposed() * 1e3),
            format!("{:.0}", global_batch as f64 / step.seconds),
            percent(alone / (ranks as f64 * step.seconds)),
        ]);
    }
    table
}

fn figures(model: &Model) -> Table {
    let columns = [("figure", Align::Left), ("value", Align::Right), ("uncertainty", Align::Right)];
    let mut table = Table::new(columns.into_iter().chain([("source", Align::Left)]));
    for (name, figure) in model.cluster.figures() {
        table.row(vec![
            name.to_owned(),
            format!("{}", figure.value),
            format!("{:.0} %", figure.uncertainty * 100.0),
            figure.source.trim().to_owned(),
        ]);
    }
    table
}

fn picture(model: &Model, title: &str, counts: &[usize]) -> Picture {
    let last = counts.last().copied().unwrap_or(1);
    let doublings = std::iter::successors(Some(1usize), |ranks| ranks.checked_mul(2));
    let steps: Vec<Step> =
        doublings.take_while(|ranks| *ranks <= last).map(|ranks| model.step(ranks)).collect();
    let line = |name: &str, colour, stroke, point: &dyn Fn(&Step) -> Point| Line {
        name: name.to_owned(),
        colour,
        stroke,
        points: steps.iter().map(point).collect(),
    };
    let predicted = |point: &dyn Fn(&Step) -> Point| {
        line("predicted, with its range", colour(0), Stroke::Solid, point)
    };
    let ideal = |point: &dyn Fn(&Step) -> Point| line("ideal", MUTED, Stroke::Dashed, point);
    let point = |step: &Step, y: f64, range: (f64, f64)| Point { x: step.ranks as f64, y, range };
    let rate = |step: &Step| model.images_per_s(step);
    let alone = (model.batch_per_rank as f64) / model.compute.total();
    let rates = vec![
        predicted(&|step| {
            let (low, high) = model.efficiency_range(step.ranks);
            let ideal = alone * step.ranks as f64;
            point(step, rate(step), (low * ideal, high * ideal))
        }),
        ideal(&|step| Point::exact(step.ranks as f64, alone * step.ranks as f64)),
    ];
    let efficiencies = vec![
        predicted(&|step| {
            let (low, high) = model.efficiency_range(step.ranks);
            point(step, model.efficiency(step) * 100.0, (low * 100.0, high * 100.0))
        }),
        ideal(&|step| Point::exact(step.ranks as f64, 100.0)),
    ];
    let drawn = throughput_and_efficiency(
        "GPUs",
        ("Images a second", rates),
        ("Efficiency, %", efficiencies, 110.0),
    );
    let alt = format!("{title}: predicted images a second and efficiency");
    Picture { name: slug(title, "prediction"), alt, drawn }
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}
