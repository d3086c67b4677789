//! `trainer augment`: a picture of the training images as a configuration augments them.

mod sheet;

use std::path::PathBuf;

use clap::Args;
use job::config::{self, Augment, Config};
use job::dataset::DataSet;
use job::files::write_atomically;
use tch::{Device, Tensor};

use crate::data::{Augmenter, Images};
use crate::metrics::MetricsError;
use crate::{Result, setup};
use sheet::Row;

/// Number of epochs for which all augmentations together are shown.
const EPOCHS: usize = 3;

/// `trainer augment`.
#[derive(Debug, Args)]
pub struct AugmentArgs {
    /// The configuration, a YAML file.
    pub config: PathBuf,
    /// Override one configuration key; repeatable: --set train.seed=1
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// The picture to write, a PNG.
    #[arg(long, value_name = "FILE", default_value = "augmented.png")]
    pub out: PathBuf,
    /// How many of the first training images to show.
    #[arg(long, value_name = "N", default_value = "8", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub images: u32,
    /// The epoch to show, from 1; of all augmentations together, two more.
    #[arg(long, value_name = "E", default_value = "1", value_parser = clap::value_parser!(u32).range(1..))]
    pub epoch: u32,
}

/// Draws training images: unchanged, with each augmentation alone, and with all of them in several epochs.
/// Returns the path of the picture.
///
/// # Errors
/// When the configuration is wrong, its data set is missing, or the picture cannot be written.
pub fn augment(args: &AugmentArgs) -> Result<PathBuf> {
    let config = config::load(&args.config, &args.set)?;
    let mut data = config.data.clone();
    data.test_images = Some(1);
    let data_set = setup::load_data(&Config { data, ..config.clone() })?;
    let rows = rows(&config, &data_set, args.images, args.epoch as usize);
    let title = format!("Augmentations of {} on {}", args.config.display(), data_set.name);
    let picture = sheet::draw(&title, &rows);
    let path = args.out.clone();
    let bytes =
        picture.to_png().map_err(|problem| MetricsError::Draw { path: path.clone(), problem })?;
    write_atomically(&path, &bytes)
        .map_err(|source| MetricsError::Write { path: path.clone(), source })?;
    Ok(path)
}

/// Returns the rows of the picture. `epoch` counts from 1.
fn rows(config: &Config, data_set: &DataSet, count: u32, epoch: usize) -> Vec<Row> {
    let images = Images::new(&data_set.train, &data_set.normalization, Device::Cpu);
    let indices: Vec<u32> = (0..count.min(images.len() as u32)).collect();
    let changed = |augment: &[Augment], epoch: usize| {
        let augmenter = Augmenter::new(augment, config.train.seed)?;
        Some(images.augmented_batch(&indices, &augmenter, epoch - 1).images)
    };
    let bytes = |normalized: &Tensor| images.bytes(normalized);
    let mut rows = vec![Row::new("original", "", bytes(&images.batch(&indices).images))];
    let all = &config.data.augment;
    for one in all.iter().filter(|_| all.len() > 1) {
        let pictures = changed(std::slice::from_ref(one), epoch);
        rows.extend(pictures.map(|it| Row::new(one.name(), &sheet::keys(one), bytes(&it))));
    }
    for epoch in epoch..epoch + EPOCHS {
        let what =
            if all.len() > 1 { "all of them" } else { all.first().map_or("", Augment::name) };
        let when = format!("epoch {epoch}");
        rows.extend(changed(all, epoch).map(|it| Row::new(what, &when, bytes(&it))));
    }
    rows
}
