//! Networks as data: their blocks, the tensors they hold, and what they cost.
//!
//! The trainer builds its layers from this, so a shape is written once. Names and order are those
//! of the PyTorch module's state dict.

mod taps;

use crate::config::{Model, ModelName, Stem};

pub use taps::Taps;
use taps::output_size;

/// A residual network of basic blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// What comes before the first stage.
    pub stem: Stem,
    /// Channels, height and width of an image.
    pub image: [usize; 3],
    /// Outputs.
    pub classes: usize,
    /// What comes between stem and average pool.
    pub blocks: Vec<Block>,
}

/// Two 3x3 convolutions with batch norm, and the way past them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// Its prefix in the state dict, such as `layer2.0`.
    pub name: String,
    /// Channels in.
    pub in_channels: usize,
    /// Channels out.
    pub out_channels: usize,
    /// Of the first convolution. Where it is not 1, the way past is a 1x1 convolution with batch
    /// norm, else the identity.
    pub stride: usize,
}

/// A tensor of the state dict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its key.
    pub name: String,
    /// Its shape; empty for a number.
    pub shape: Vec<usize>,
    /// What it is for.
    pub role: Role,
    /// The taps of a convolution's kernel that ever see a pixel; `None` when all do.
    pub live: Option<Taps>,
}

impl TensorSpec {
    /// Its number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The shape of the part that is trained.
    pub fn live_shape(&self) -> Vec<usize> {
        let mut shape = self.shape.clone();
        if let Some(Taps { rows, columns }) = &self.live {
            shape[2] = rows.len();
            shape[3] = columns.len();
        }
        shape
    }

    /// Elements of the part that is trained.
    pub fn live_len(&self) -> usize {
        self.live_shape().iter().product()
    }
}

/// What a tensor is for, which decides how it starts and whether it is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A convolution's or linear layer's weight.
    Weight {
        /// Inputs of one output.
        fan_in: usize,
    },
    /// A linear layer's bias.
    Bias {
        /// Inputs of one output of the layer.
        fan_in: usize,
    },
    /// A batch norm's scale.
    NormWeight,
    /// A batch norm's shift.
    NormBias,
    /// A batch norm's running mean: not trained.
    RunningMean,
    /// A batch norm's running variance: not trained.
    RunningVar,
    /// How many batches a batch norm has seen: not trained, i64.
    BatchesTracked,
}

impl Role {
    /// Whether an optimizer changes it.
    pub const fn is_parameter(self) -> bool {
        matches!(self, Self::Weight { .. } | Self::Bias { .. } | Self::NormWeight | Self::NormBias)
    }
}

/// Channels after the stem.
pub const STEM_CHANNELS: usize = 64;

impl Network {
    /// The network that a configuration names, for images of `image` (channels, height, width).
    pub fn new(model: &Model, image: [usize; 3], classes: usize) -> Self {
        let blocks_per_stage = match model.name {
            ModelName::Resnet18 => [2, 2, 2, 2],
            ModelName::Resnet34 => [3, 4, 6, 3],
        };
        let mut blocks = Vec::new();
        let mut in_channels = STEM_CHANNELS;
        for (stage, (count, out_channels)) in
            blocks_per_stage.into_iter().zip([64, 128, 256, 512]).enumerate()
        {
            for index in 0..count {
                blocks.push(Block {
                    name: format!("layer{}.{index}", stage + 1),
                    in_channels,
                    out_channels,
                    stride: if index == 0 && stage > 0 { 2 } else { 1 },
                });
                in_channels = out_channels;
            }
        }
        Self { stem: model.stem, image, classes, blocks }
    }

    /// Every tensor of the state dict, in its order. `live_taps`: whether to tell taps that see
    /// pixels from those that do not.
    pub fn tensors(&self, live_taps: bool) -> Vec<TensorSpec> {
        let mut tensors = self.tensors_with_taps();
        if !live_taps {
            tensors.iter_mut().for_each(|tensor| tensor.live = None);
        }
        tensors
    }

    fn tensors_with_taps(&self) -> Vec<TensorSpec> {
        let mut tensors = Vec::new();
        let mut map = [self.image[1], self.image[2]];
        let stem_stride = self.stem_stride();
        conv(
            &mut tensors,
            "conv1",
            [STEM_CHANNELS, self.image[0]],
            Kernel::three(stem_stride),
            map,
        );
        batch_norm(&mut tensors, "bn1", STEM_CHANNELS);
        map = self.map_after_stem();
        for Block { name, in_channels, out_channels, stride } in &self.blocks {
            let (widening, keeping) = ([*out_channels, *in_channels], [*out_channels; 2]);
            let shrunk = Kernel::three(*stride).output(map);
            conv(&mut tensors, &format!("{name}.conv1"), widening, Kernel::three(*stride), map);
            batch_norm(&mut tensors, &format!("{name}.bn1"), *out_channels);
            conv(&mut tensors, &format!("{name}.conv2"), keeping, Kernel::three(1), shrunk);
            batch_norm(&mut tensors, &format!("{name}.bn2"), *out_channels);
            if *stride != 1 {
                let kernel = Kernel { size: 1, stride: *stride };
                conv(&mut tensors, &format!("{name}.shortcut.0"), widening, kernel, map);
                batch_norm(&mut tensors, &format!("{name}.shortcut.1"), *out_channels);
            }
            map = shrunk;
        }
        let fan_in = self.features();
        let mut linear = |suffix, shape, role| {
            let name = format!("linear.{suffix}");
            tensors.push(TensorSpec { name, shape, role, live: None });
        };
        linear("weight", vec![self.classes, fan_in], Role::Weight { fan_in });
        linear("bias", vec![self.classes], Role::Bias { fan_in });
        tensors
    }

    fn stem_stride(&self) -> usize {
        match self.stem {
            Stem::Notes => 2,
            Stem::Cifar => 1,
        }
    }

    fn map_after_stem(&self) -> [usize; 2] {
        let map = Kernel::three(self.stem_stride()).output([self.image[1], self.image[2]]);
        match self.stem {
            Stem::Notes => Kernel::three(2).output(map),
            Stem::Cifar => map,
        }
    }

    /// Channels that reach the linear layer.
    pub fn features(&self) -> usize {
        self.blocks.last().map_or(STEM_CHANNELS, |block| block.out_channels)
    }

    /// Numbers that PyTorch's module counts as parameters.
    pub fn parameter_count(&self) -> usize {
        self.parameters().map(|tensor| tensor.len()).sum()
    }

    /// Those of them that ever see a pixel of an image of this size.
    pub fn live_parameter_count(&self) -> usize {
        self.parameters().map(|tensor| tensor.live_len()).sum()
    }

    fn parameters(&self) -> impl Iterator<Item = TensorSpec> {
        self.tensors_with_taps().into_iter().filter(|tensor| tensor.role.is_parameter())
    }

    /// Numbers that one image leaves in memory for the backward pass: the output of every
    /// convolution, of its batch norm, and the pool's output.
    pub fn activations_per_image(&self) -> usize {
        let area = |[height, width]: [usize; 2]| height * width;
        let image = [self.image[1], self.image[2]];
        let mut map = self.map_after_stem();
        let mut total = 2 * STEM_CHANNELS * area(Kernel::three(self.stem_stride()).output(image));
        if self.stem == Stem::Notes {
            total += STEM_CHANNELS * area(map);
        }
        for block in &self.blocks {
            map = Kernel::three(block.stride).output(map);
            let convolutions = if block.stride == 1 { 2 } else { 3 };
            total += 2 * convolutions * block.out_channels * area(map);
        }
        total
    }
}

/// A square kernel, padded by half its size.
#[derive(Debug, Clone, Copy)]
struct Kernel {
    size: usize,
    stride: usize,
}

impl Kernel {
    const fn three(stride: usize) -> Self {
        Self { size: 3, stride }
    }

    fn output(self, map: [usize; 2]) -> [usize; 2] {
        map.map(|size| output_size(size, self.size, self.stride, self.size / 2))
    }
}

fn conv(
    tensors: &mut Vec<TensorSpec>,
    name: &str,
    [out, inputs]: [usize; 2],
    Kernel { size, stride }: Kernel,
    map: [usize; 2],
) {
    tensors.push(TensorSpec {
        name: format!("{name}.weight"),
        shape: vec![out, inputs, size, size],
        role: Role::Weight { fan_in: inputs * size * size },
        live: Taps::of(map, size, stride, size / 2),
    });
}

fn batch_norm(tensors: &mut Vec<TensorSpec>, name: &str, channels: usize) {
    let entries = [
        ("weight", vec![channels], Role::NormWeight),
        ("bias", vec![channels], Role::NormBias),
        ("running_mean", vec![channels], Role::RunningMean),
        ("running_var", vec![channels], Role::RunningVar),
        ("num_batches_tracked", vec![], Role::BatchesTracked),
    ];
    tensors.extend(entries.map(|(suffix, shape, role)| TensorSpec {
        name: format!("{name}.{suffix}"),
        shape,
        role,
        live: None,
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(name: ModelName, stem: Stem) -> Network {
        Network::new(&Model { name, stem }, [3, 32, 32], 10)
    }

    #[test]
    fn parameter_counts_are_those_of_the_pytorch_modules() {
        for stem in [Stem::Notes, Stem::Cifar] {
            assert_eq!(network(ModelName::Resnet18, stem).parameter_count(), 11_173_962);
            assert_eq!(network(ModelName::Resnet34, stem).parameter_count(), 21_282_122);
        }
    }

    #[test]
    fn most_parameters_never_see_a_pixel_behind_the_notes_stem() {
        let dead = |name, stem| {
            let network = network(name, stem);
            network.parameter_count() - network.live_parameter_count()
        };
        // layer4 is at 1x1: three kernels keep 1 of 9 taps, the one of stride 2 keeps 4 of 9.
        let first = 512 * 256 * 5;
        assert_eq!(dead(ModelName::Resnet18, Stem::Notes), first + 3 * 512 * 512 * 8);
        assert_eq!(dead(ModelName::Resnet34, Stem::Notes), first + 5 * 512 * 512 * 8);
        assert_eq!(dead(ModelName::Resnet18, Stem::Cifar), 0);
    }

    #[test]
    fn shortcuts_are_only_where_the_stride_is_not_1() {
        let names: Vec<_> = network(ModelName::Resnet34, Stem::Notes)
            .tensors(true)
            .into_iter()
            .map(|tensor| tensor.name)
            .filter(|name| name.ends_with("shortcut.0.weight"))
            .collect();
        let expected =
            ["layer2.0", "layer3.0", "layer4.0"].map(|l| format!("{l}.shortcut.0.weight"));
        assert_eq!(names, expected);
    }

    #[test]
    fn a_larger_map_leaves_more_activations() {
        let notes = network(ModelName::Resnet18, Stem::Notes).activations_per_image();
        let cifar = network(ModelName::Resnet18, Stem::Cifar).activations_per_image();
        assert!(cifar > 10 * notes, "{cifar} {notes}");
    }
}
