//! The module of a whole network: computes logits from images, layer by layer.

use std::cell::Cell;
use std::sync::Arc;

use comm::Communicator;
use job::network::{self, Network};
use job::rng::{self, Purpose, Stream};
use tch::Tensor;

use super::Mode;
use super::layers::{BatchNorm, Conv, Linear, pad_channels};
use crate::flat::Flat;

/// A network whose tensors are views into a [`Flat`].
pub struct Module {
    layers: Vec<Layer>,
    has_dropout: bool,
    draw: Cell<Draw>,
}

/// The inputs from which the random choices of a training step are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Draw {
    /// Seed of the run.
    pub seed: u64,
    /// Number of optimizer steps taken so far.
    pub step: u64,
    /// This rank. Dropout differs between ranks, which have different images; stochastic depth skips the
    /// same blocks on all ranks.
    pub rank: usize,
}

impl Draw {
    /// Returns whether this step computes block `place`, which has probability `survival`.
    fn survives(self, place: usize, survival: f64) -> bool {
        let bits =
            rng::bits(self.seed, Stream::new(Purpose::StochasticDepth, self.step), place as u32, 0);
        // The upper 53 bits, which f64 represents exactly.
        ((bits >> 11) as f64) < survival * (1u64 << 53) as f64
    }

    /// Seeds libtorch's generator, from which dropout draws.
    fn seed_dropout(self) {
        let stream = Stream::new(Purpose::Dropout, self.step);
        tch::manual_seed((rng::bits(self.seed, stream, self.rank as u32, 0) >> 1) as i64);
    }
}

impl Module {
    /// Builds the layers of `network` over its tensors in `flat`.
    pub fn new(network: &Network, flat: &Flat) -> Self {
        let mut blocks = 0;
        let layers = build(&network.layers, flat, &mut blocks);
        let has_dropout = has_dropout(&network.layers);
        Self { layers, has_dropout, draw: Cell::new(Draw::default()) }
    }

    /// From now on, batch norm computes its training statistics over the images of all ranks. Training
    /// passes are then collective: every rank must run forward and backward, even without images.
    pub fn synchronize_batch_norm(&mut self, peers: &Arc<dyn Communicator>) {
        for_each_norm(&mut self.layers, &mut |norm| norm.synchronize(peers));
    }

    /// From now on, training steps on a GPU compute batch norm, with the addition and ReLU that follow it,
    /// in one or two kernels.
    pub fn fuse_batch_norm(&mut self) {
        for_each_norm(&mut self.layers, &mut BatchNorm::fuse);
    }

    /// Returns whether passes in modes other than [`Mode::Eval`] draw random numbers.
    pub fn is_random(&self) -> bool {
        self.has_dropout || skips_blocks(&self.layers)
    }

    /// Sets the inputs of the random choices of the next passes, except those in [`Mode::Eval`]. Dropout
    /// differs between these passes.
    pub fn set_draw(&self, draw: Draw) {
        self.draw.set(draw);
        if self.has_dropout {
            draw.seed_dropout();
        }
    }

    /// Computes logits `[N, classes]` from images `[N, C, H, W]`.
    pub fn forward(&self, images: &Tensor, mode: Mode) -> Tensor {
        forward(&self.layers, images, Pass { mode, draw: self.draw.get() })
    }
}

fn has_dropout(layers: &[network::Layer]) -> bool {
    layers.iter().any(|layer| match layer {
        network::Layer::Dropout { .. } => true,
        network::Layer::Residual(residual) => has_dropout(&residual.body),
        _ => false,
    })
}

fn skips_blocks(layers: &[Layer]) -> bool {
    layers.iter().any(|layer| match layer {
        Layer::Residual(residual) => residual.survival < 1.0 || skips_blocks(&residual.body),
        _ => false,
    })
}

fn for_each_norm(layers: &mut [Layer], body: &mut impl FnMut(&mut BatchNorm)) {
    for layer in layers {
        match layer {
            Layer::BatchNorm(norm) => body(norm),
            Layer::Residual(residual) => {
                for part in [&mut residual.before, &mut residual.body, &mut residual.shortcut] {
                    for_each_norm(part, body);
                }
                residual.join.iter_mut().for_each(&mut *body);
            }
            _ => {}
        }
    }
}

/// The settings that all layers of a pass share.
#[derive(Clone, Copy)]
struct Pass {
    mode: Mode,
    draw: Draw,
}

enum Layer {
    Conv(Conv),
    BatchNorm(BatchNorm),
    Relu,
    Gelu,
    Scale { factor: f64 },
    MaxPool { kernel: i64, stride: i64, padding: i64 },
    AveragePool { size: i64 },
    PadChannels { stride: i64, channels: i64 },
    Linear(Linear),
    Dropout { probability: f64 },
    Residual(Residual),
}

/// Builds layers from their descriptions. A ReLU after batch norm, or after a block that ends in batch
/// norm, becomes part of the norm. `blocks`: number of residual blocks built so far.
fn build(layers: &[network::Layer], flat: &Flat, blocks: &mut usize) -> Vec<Layer> {
    let mut built: Vec<Layer> = Vec::with_capacity(layers.len());
    for layer in layers {
        let norm = match built.last_mut() {
            Some(Layer::BatchNorm(norm)) => Some(norm),
            Some(Layer::Residual(residual)) => residual.join.as_mut(),
            _ => None,
        };
        match (layer, norm) {
            (network::Layer::Relu, Some(norm)) => norm.has_relu = true,
            _ => built.push(build_one(layer, flat, blocks)),
        }
    }
    built
}

fn build_one(layer: &network::Layer, flat: &Flat, blocks: &mut usize) -> Layer {
    match layer {
        network::Layer::Conv(conv) => Layer::Conv(Conv::new(flat, conv)),
        network::Layer::BatchNorm(norm) => Layer::BatchNorm(BatchNorm::new(flat, norm)),
        network::Layer::Relu => Layer::Relu,
        network::Layer::Gelu => Layer::Gelu,
        network::Layer::Scale { factor } => Layer::Scale { factor: *factor },
        network::Layer::MaxPool { kernel, stride, padding } => Layer::MaxPool {
            kernel: *kernel as i64,
            stride: *stride as i64,
            padding: *padding as i64,
        },
        network::Layer::AveragePool { size } => Layer::AveragePool { size: *size as i64 },
        network::Layer::PadChannels { stride, channels } => {
            Layer::PadChannels { stride: *stride as i64, channels: *channels as i64 }
        }
        network::Layer::Linear(linear) => Layer::Linear(Linear::new(flat, linear)),
        network::Layer::Dropout { probability } => Layer::Dropout { probability: *probability },
        network::Layer::Residual(residual) => {
            *blocks += 1;
            let place = *blocks;
            let before = build(&residual.before, flat, blocks);
            let mut body = build(&residual.body, flat, blocks);
            let shortcut = build(&residual.shortcut, flat, blocks);
            let ends_in_norm = residual.survival >= 1.0
                && matches!(body.last(), Some(Layer::BatchNorm(norm)) if !norm.has_relu);
            let join = match ends_in_norm.then(|| body.pop()).flatten() {
                Some(Layer::BatchNorm(norm)) => Some(norm),
                _ => None,
            };
            Layer::Residual(Residual {
                place,
                before,
                body,
                join,
                shortcut,
                survival: residual.survival,
            })
        }
    }
}

fn forward(layers: &[Layer], input: &Tensor, pass: Pass) -> Tensor {
    layers.iter().fold(input.shallow_clone(), |x, layer| layer.forward(x, pass))
}

impl Layer {
    fn forward(&self, x: Tensor, pass: Pass) -> Tensor {
        match self {
            Self::Conv(conv) => conv.forward(&x),
            Self::BatchNorm(norm) => norm.forward(&x, None, pass.mode),
            // In place: the layer before is a convolution, a linear layer or an addition, none of
            // which needs its output in backward.
            Self::Relu => {
                let mut x = x;
                x.relu_()
            }
            Self::Gelu => x.gelu("none"),
            Self::Scale { factor } => x * *factor,
            Self::MaxPool { kernel, stride, padding } => {
                x.max_pool2d([*kernel; 2], [*stride; 2], [*padding; 2], [1, 1], false)
            }
            Self::AveragePool { size: 1 } => x.mean_dim([2i64, 3].as_slice(), false, None),
            Self::AveragePool { size } => x.adaptive_avg_pool2d([*size; 2]).flatten(1, -1),
            Self::PadChannels { stride, channels } => pad_channels(&x, *stride, *channels),
            Self::Linear(linear) => linear.forward(&x),
            Self::Dropout { probability } => x.dropout(*probability, pass.mode != Mode::Eval),
            Self::Residual(residual) => residual.forward(&x, pass),
        }
    }
}

/// A residual block: the sum of a branch and its shortcut.
struct Residual {
    /// Number of this block among all residual blocks, from 1.
    place: usize,
    before: Vec<Layer>,
    body: Vec<Layer>,
    /// The batch norm at the end of the branch, which also adds the shortcut. `None` if the branch does not
    /// end in one, or is skipped in some steps.
    join: Option<BatchNorm>,
    shortcut: Vec<Layer>,
    survival: f64,
}

impl Residual {
    /// Computes the block, with stochastic depth as in its paper: a skipped branch costs nothing, and
    /// evaluation multiplies the branch by its survival probability.
    fn forward(&self, input: &Tensor, pass: Pass) -> Tensor {
        let input = forward(&self.before, input, pass);
        let shortcut = || forward(&self.shortcut, &input, pass);
        if let Some(norm) = &self.join {
            return norm.forward(&forward(&self.body, &input, pass), Some(&shortcut), pass.mode);
        }
        if self.survival < 1.0 {
            match pass.mode {
                Mode::Eval => {
                    return forward(&self.body, &input, pass) * self.survival + shortcut();
                }
                Mode::Train | Mode::TrainFrozenNorm => {
                    if !pass.draw.survives(self.place, self.survival) {
                        // A copy, since an in-place ReLU may follow.
                        return shortcut().copy();
                    }
                }
            }
        }
        forward(&self.body, &input, pass) + shortcut()
    }
}

#[cfg(test)]
mod tests {
    use comm::bootstrap::{Backend, connect};
    use comm::env::World;
    use job::config;
    use tch::{Device, Kind};

    use super::*;
    use crate::init;

    #[test]
    fn each_microbatch_of_a_step_drops_other_numbers() {
        let model = config::Model {
            name: "wrn16_8".parse().unwrap(),
            dropout: Some(0.5),
            ..config::Model::default()
        };
        let network = Network::new(&model, [3, 8, 8], 10);
        let alone = connect(Backend::Shm, World::SINGLE, None, std::time::Duration::MAX).unwrap();
        let mut flat = Flat::new(network.tensors(true), Device::Cpu, &*alone).unwrap();
        init::initialize(&mut flat, 0);
        let module = Module::new(&network, &flat);
        let images = Tensor::ones([2, 3, 8, 8], (Kind::Float, Device::Cpu));
        module.set_draw(Draw::default());
        let [first, second] = tch::no_grad(|| [0, 1].map(|_| module.forward(&images, Mode::Train)));
        assert!(first != second);
        let statistics = flat.buffers.copy();
        let frozen = || tch::no_grad(|| module.forward(&images, Mode::TrainFrozenNorm));
        assert!(frozen() != frozen(), "also where batch norm takes its running statistics");
        assert_eq!(flat.buffers, statistics);
    }
}
