//! airbench: Keller Jordan, 94% on CIFAR-10 in 3.29 Seconds on a Single GPU, 2024.
//!
//! Small networks that are trained in ten to forty epochs, named after the accuracy they aim at. The first
//! convolution whitens 2x2 patches and is not trained, batch norms have no trained scale, and convolutions
//! start as the identity on as many channels as they can. Tensor names are those of the state dicts of the
//! author's programs, `legacy/airbench94.py` and so on.

use super::super::blocks::Maker;
use super::super::catalogue::{Architecture, Entry, ReferenceDataset};
use super::super::init::{Init, Scheme};
use super::super::layer::{BatchNorm, Conv, Layer, Linear, Residual, Shape};
use super::super::walk::walk;

/// A whitening convolution followed by groups of convolutions.
#[derive(Debug)]
pub(in super::super) struct Airbench {
    /// Channels of each group.
    widths: &'static [usize],
    /// Whether a group has three convolutions, with a shortcut past the last two; otherwise it has two and no
    /// shortcut.
    residual: bool,
    /// Weight of the current batch in the running statistics.
    norm_momentum: f64,
}

/// Kernel size of the whitening convolution.
const WHITENING_KERNEL: usize = 2;
/// Factor of the logits.
const LOGIT_SCALE: f64 = 1.0 / 9.0;
/// Height and width of the windows of the last pool.
const LAST_POOL: usize = 3;
const NORM_EPS: f64 = 1e-12;

impl Airbench {
    pub(in super::super) fn layers(
        &self,
        maker: &Maker<'_>,
        [channels, height, width]: [usize; 3],
        classes: usize,
    ) -> Vec<Layer> {
        let mut layers = Vec::new();
        let mut shape = Shape { channels, map: [height, width] };
        let mut add = |added: Vec<Layer>| {
            shape = walk(&added, shape, &mut |_, _, _| ());
            layers.extend(added);
            shape
        };
        let kernel = WHITENING_KERNEL.min(height).min(width);
        let mut at = add(vec![Layer::Conv(whitening(channels, kernel)), Layer::Gelu]);
        for (place, outputs) in (2..).zip(self.widths) {
            let conv = |number, inputs| {
                let mut conv =
                    maker.conv(format!("{place}.conv{number}"), [inputs, *outputs], 3, 1, 1);
                conv.init = Init::Dirac { bound: 1.0 / ((inputs * 9) as f32).sqrt() };
                Layer::Conv(conv)
            };
            let norm = |number| {
                Layer::BatchNorm(BatchNorm {
                    trains_scale: false,
                    momentum: self.norm_momentum,
                    eps: NORM_EPS,
                    ..BatchNorm::new(format!("{place}.norm{number}"), *outputs)
                })
            };
            add(vec![conv(1, at.channels)]);
            add(pool(at, 2));
            let mut rest = vec![conv(2, *outputs), norm(2)];
            if self.residual {
                rest.extend([Layer::Gelu, conv(3, *outputs), norm(3)]);
                rest = vec![Layer::Residual(Residual {
                    before: Vec::new(),
                    body: rest,
                    shortcut: Vec::new(),
                    survival: 1.0,
                })];
            }
            add(vec![norm(1), Layer::Gelu]);
            rest.push(Layer::Gelu);
            at = add(rest);
        }
        at = add(pool(at, LAST_POOL));
        // The author's program flattens a single pixel; larger images leave a larger map, which is averaged.
        layers.push(Layer::AveragePool { size: 1 });
        let head = self.widths.len() + 4;
        let [init, _] = maker.scheme.linear(at.channels);
        layers.push(Layer::Linear(Linear {
            name: head.to_string(),
            inputs: at.channels,
            outputs: classes,
            init,
            bias: None,
        }));
        layers.push(Layer::Scale { factor: LOGIT_SCALE });
        layers
    }
}

/// Makes the whitening convolution: two filters, of opposite sign, for each principal direction of the
/// patches.
fn whitening(inputs: usize, kernel: usize) -> Conv {
    Conv {
        name: "0".to_owned(),
        inputs,
        outputs: 2 * inputs * kernel * kernel,
        kernel,
        stride: 1,
        padding: 0,
        groups: 1,
        init: Init::Whitening,
        bias: Some(Init::Constant(0.0)),
    }
}

/// Returns a max-pool, or no layer if the window is larger than the map.
fn pool(at: Shape, size: usize) -> Vec<Layer> {
    let fits = at.map.iter().all(|side| *side >= size);
    fits.then_some(Layer::MaxPool { kernel: size, stride: size, padding: 0 }).into_iter().collect()
}

const fn airbench(name: &'static str, network: Airbench) -> Entry {
    Entry {
        name,
        source: "Keller Jordan, 2024",
        dataset: ReferenceDataset::Cifar,
        in_torchvision: false,
        scheme: Scheme::Default,
        architecture: Architecture::Airbench(network),
    }
}

pub(super) const NETWORKS: &[Entry] = &[
    airbench(
        "airbench94",
        Airbench { widths: &[64, 256, 256], residual: false, norm_momentum: 0.4 },
    ),
    airbench(
        "airbench95",
        Airbench { widths: &[128, 384, 384], residual: false, norm_momentum: 0.4 },
    ),
    airbench(
        "airbench96",
        Airbench { widths: &[128, 384, 512], residual: true, norm_momentum: 0.1 },
    ),
];
