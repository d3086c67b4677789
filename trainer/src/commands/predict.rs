//! `trainer predict`: classifies images with a checkpoint.

use std::path::PathBuf;

use clap::Args;
use comm::bootstrap::Backend;
use comm::env::World;
use job::ExitCode;
use job::dataset::{self, Description};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use super::Answer;
use super::trained::Trained;
use crate::data::Images;
use crate::device::{self, DeviceKind};
use crate::eval::batch_size;
use crate::log::print_error;
use crate::model::Mode;
use crate::replica::Replica;
use crate::{Result, TrainError};

/// Number of classes that are reported per image.
const MOST_CLASSES: usize = 5;

/// `trainer predict`.
#[derive(Debug, Args)]
pub struct PredictArgs {
    /// A checkpoint, or a run directory, of which the newest good one is taken.
    pub checkpoint: PathBuf,
    /// PNG or JPEG files; resized to the network's input.
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<PathBuf>,
    /// Use the moving average of the weights instead of the weights.
    #[arg(long)]
    pub ema: bool,
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
    /// The device to compute on.
    #[arg(long, value_enum, default_value = "auto")]
    pub device: DeviceKind,
}

/// An image and its most likely classes.
struct Prediction {
    image: PathBuf,
    /// Labels and their probabilities, the most likely first; or the reason why the image cannot be read.
    classes: std::result::Result<Vec<(usize, f64)>, String>,
}

/// Predicts the class of each image. Images that cannot be read are named, and the exit code is then
/// [`ExitCode::Data`]. Runs in a single process, also under `mpirun`.
///
/// # Errors
/// When there is no good checkpoint.
pub fn predict(args: &PredictArgs) -> Result<Answer> {
    let trained = Trained::find(&args.checkpoint, &[])?;
    device::limit_threads(World::SINGLE);
    let device = device::open(args.device, World::SINGLE)?;
    let nobody =
        comm::bootstrap::connect(Backend::Shm, World::SINGLE, None, std::time::Duration::MAX)?;
    let replica = trained.replica(trained.weights(args.ema)?, device, &*nobody)?;
    let description = trained.data_set()?;
    let mut predictions = Vec::new();
    let [_, height, width] = description.shape;
    for images in args.images.chunks(batch_size(height * width)) {
        predictions.extend(predict_batch(images, &replica, description)?);
    }
    let text = match args.json {
        true => super::json(&to_json(&trained, &predictions, description)),
        false => to_text(&predictions, description),
    };
    let mut exit_code = ExitCode::Done;
    for prediction in &predictions {
        if let Err(problem) = &prediction.classes {
            print_error(format_args!("trainer: {problem}"));
            exit_code = ExitCode::Data;
        }
    }
    Ok(Answer { text, exit_code })
}

fn predict_batch(
    paths: &[PathBuf],
    replica: &Replica,
    description: &Description,
) -> Result<Vec<Prediction>> {
    let shape = description.shape;
    let mut pixels = Vec::new();
    let mut readable = Vec::new();
    for path in paths {
        let read = dataset::read_image(path, shape);
        readable
            .push(read.map(|image| pixels.extend(image)).map_err(|problem| problem.to_string()));
    }
    let count = readable.iter().filter(|image| image.is_ok()).count();
    let mut likeliest = match count {
        0 => Vec::new(),
        _ => {
            let images = dataset::Images { pixels: pixels.into(), labels: vec![0; count], shape };
            let images = Images::new(&images, &description.normalization, replica.device);
            likeliest_classes(&images, replica, description.classes.len().min(MOST_CLASSES))?
        }
    }
    .into_iter();
    let prediction = |(image, readable): (&PathBuf, std::result::Result<(), String>)| {
        let classes = readable.map(|()| likeliest.next().unwrap_or_default());
        Prediction { image: image.clone(), classes }
    };
    Ok(paths.iter().zip(readable).map(prediction).collect())
}

/// Returns for each image the `count` most likely labels with their probabilities.
fn likeliest_classes(
    images: &Images,
    replica: &Replica,
    count: usize,
) -> Result<Vec<Vec<(usize, f64)>>> {
    let indices: Vec<u32> = (0..images.len() as u32).collect();
    let batch = images.batch(&indices);
    let logits =
        tch::no_grad(|| replica.in_precision(|model| model.forward(&batch.images, Mode::Eval)))?;
    let (values, labels) = logits.softmax(-1, Kind::Float).topk(count as i64, -1, true, true);
    let rows = |tensor: &Tensor, kind| tensor.to_kind(kind).to_device(tch::Device::Cpu);
    let values = Vec::<Vec<f64>>::try_from(&rows(&values, Kind::Double))?;
    let labels = Vec::<Vec<i64>>::try_from(&rows(&labels, Kind::Int64))?;
    if values.iter().flatten().any(|value| !value.is_finite()) {
        return Err(TrainError::OutputNotFinite);
    }
    let pair = |(labels, values): (Vec<i64>, Vec<f64>)| {
        labels.into_iter().map(|label| label as usize).zip(values).collect()
    };
    Ok(labels.into_iter().zip(values).map(pair).collect())
}

fn to_text(predictions: &[Prediction], description: &Description) -> String {
    let mut text = String::new();
    for Prediction { image, classes } in predictions {
        let Ok(classes) = classes else { continue };
        text.push_str(&format!("{}\n", image.display()));
        for (label, probability) in classes {
            text.push_str(&format!("  {probability:.4}  {}\n", description.classes[*label]));
        }
    }
    text
}

fn to_json(trained: &Trained, predictions: &[Prediction], description: &Description) -> Value {
    let class = |(label, probability): &(usize, f64)| {
        let name = &description.classes[*label];
        json!({"label": label, "name": name, "probability": probability})
    };
    let images = predictions.iter().map(|Prediction { image, classes }| match classes {
        Ok(classes) => {
            json!({"image": image, "classes": classes.iter().map(class).collect::<Vec<_>>()})
        }
        Err(problem) => json!({"image": image, "error": problem}),
    });
    json!({"checkpoint": trained.path, "images": images.collect::<Vec<_>>()})
}

#[cfg(test)]
mod tests {
    use comm::single::Single;
    use job::config::{Model, Normalization};
    use job::network::Network;
    use tch::Device;

    use super::*;
    use crate::arithmetic::Arithmetic;
    use crate::flat::Flat;
    use crate::model::Module;

    #[test]
    fn an_answer_that_is_no_number_has_the_exit_code_of_what_is_not_finite() {
        let shape = [3, 32, 32];
        let network = Network::new(&Model::default(), shape, 10);
        let mut flat = Flat::new(network.tensors(true), Device::Cpu, &Single::default()).unwrap();
        let _ = flat.parameters.fill_(f64::NAN);
        let model = Module::new(&network, &flat);
        let replica = Replica::new(flat, model, Arithmetic::Fp32);
        let pixels = vec![0; shape.iter().product()].into();
        let images = dataset::Images { pixels, labels: vec![0], shape };
        let normalization = Normalization { mean: vec![0.5; 3], std: vec![0.5; 3] };
        let images = Images::new(&images, &normalization, Device::Cpu);
        let error = likeliest_classes(&images, &replica, MOST_CLASSES).unwrap_err();
        assert_eq!(error.exit_code(), ExitCode::NotFinite, "{error}");
    }
}
