//! VGG: Simonyan and Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition,
//! ICLR 2015.
//!
//! With the `imagenet` stem the network is torchvision's. With the two stems for small images one linear
//! layer replaces the three; with `notes` the first convolution also has stride 2. Pools that would not fit
//! the map are left out.

use super::super::blocks::{Maker, batch_norm};
use super::super::catalogue::{Architecture, Entry, ReferenceDataset};
use super::super::init::{Init, Scheme};
use super::super::layer::{Layer, Shape};
use super::super::walk::walk;
use crate::config::Stem;

/// Stages of convolutions, each followed by a max-pool.
#[derive(Debug)]
pub(in super::super) struct Vgg {
    /// Number of convolutions and their output channels, by stage.
    stages: &'static [(usize, usize)],
    batch_norm: bool,
}

/// Height and width of the map that the three linear layers expect.
const HEAD_MAP: usize = 7;
const HEAD_WIDTH: usize = 4096;
const HEAD_DROPOUT: f64 = 0.5;

impl Vgg {
    pub(in super::super) fn layers(
        &self,
        maker: &Maker<'_>,
        [channels, height, width]: [usize; 3],
        classes: usize,
    ) -> Vec<Layer> {
        let mut layers = Vec::new();
        let mut shape = Shape { channels, map: [height, width] };
        // Index of a layer in torchvision's `features`, which counts every layer.
        let mut place = 0;
        for (count, outputs) in self.stages {
            for _ in 0..*count {
                let is_notes_first = place == 0 && maker.model.stem == Stem::Notes;
                let stride = if is_notes_first { 2 } else { 1 };
                let name = format!("features.{place}");
                let mut conv = maker.conv(name, [shape.channels, *outputs], 3, stride, 1);
                conv.bias = Some(Init::Constant(0.0));
                let norm = self
                    .batch_norm
                    .then(|| batch_norm(format!("features.{}", place + 1), *outputs));
                place += if self.batch_norm { 3 } else { 2 };
                let added: Vec<_> =
                    std::iter::once(Layer::Conv(conv)).chain(norm).chain([Layer::Relu]).collect();
                shape = walk(&added, shape, &mut |_, _, _| ());
                layers.extend(added);
            }
            place += 1;
            if shape.map.iter().all(|size| *size >= 2) {
                let pool = Layer::MaxPool { kernel: 2, stride: 2, padding: 0 };
                shape = walk(std::slice::from_ref(&pool), shape, &mut |_, _, _| ());
                layers.push(pool);
            }
        }
        layers.extend(head(maker, shape.channels, classes));
        layers
    }
}

fn head(maker: &Maker<'_>, features: usize, classes: usize) -> Vec<Layer> {
    let dropout = |default: f64| {
        let probability = maker.model.dropout.unwrap_or(default);
        (probability > 0.0).then_some(Layer::Dropout { probability })
    };
    let mut layers = Vec::new();
    if maker.model.stem != Stem::Imagenet {
        layers.push(Layer::AveragePool { size: 1 });
        layers.extend(dropout(0.0));
        layers.push(maker.linear("classifier", [features, classes]));
        return layers;
    }
    layers.push(Layer::AveragePool { size: HEAD_MAP });
    let widths = [features * HEAD_MAP * HEAD_MAP, HEAD_WIDTH];
    for (place, inputs) in [0, 3].into_iter().zip(widths) {
        layers.push(maker.linear(&format!("classifier.{place}"), [inputs, HEAD_WIDTH]));
        layers.push(Layer::Relu);
        layers.extend(dropout(HEAD_DROPOUT));
    }
    layers.push(maker.linear("classifier.6", [HEAD_WIDTH, classes]));
    layers
}

const fn vgg(name: &'static str, stages: &'static [(usize, usize)], batch_norm: bool) -> Entry {
    Entry {
        name,
        source: "Simonyan & Zisserman, ICLR 2015",
        dataset: ReferenceDataset::Imagenet,
        in_torchvision: true,
        scheme: Scheme::Vgg,
        architecture: Architecture::Vgg(Vgg { stages, batch_norm }),
    }
}

const VGG19: &[(usize, usize)] = &[(2, 64), (2, 128), (4, 256), (4, 512), (4, 512)];

pub(super) const NETWORKS: &[Entry] = &[vgg("vgg19", VGG19, false), vgg("vgg19_bn", VGG19, true)];
