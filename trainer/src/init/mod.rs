//! Initial weights, from the distributions that the network's description names.

mod whitening;

use job::network::{Init, Role};
use job::rng::{self, Purpose, Stream};
use tch::Tensor;

use crate::flat::Flat;

pub use whitening::whiten;

/// Fills `flat` with initial weights that depend on `seed` only, neither on the device nor on
/// libtorch's random number generator. Weights of whitening filters are set to 0: see [`whiten`].
pub fn initialize(flat: &mut Flat, seed: u64) {
    let tensors = flat.specs().enumerate().map(|(place, spec)| {
        let size: Vec<_> = spec.shape.iter().map(|&size| size as i64).collect();
        let tensor = match spec.role {
            Role::BatchesTracked => Tensor::from(0i64),
            _ => {
                let values = draw(spec.init, seed, place as u32, spec.len());
                let tensor = Tensor::from_slice(&values).view(size.as_slice());
                match spec.init {
                    Init::Dirac { .. } => pass_channels(tensor),
                    _ => tensor,
                }
            }
        };
        (spec.name.clone(), tensor)
    });
    let tensors = tensors.collect();
    let loaded = flat.load_state_dict(tensors);
    assert!(loaded.is_ok(), "tensors made from their own description: {loaded:?}");
}

/// Draws `len` initial values for the tensor at index `place` of the state dict.
fn draw(init: Init, seed: u64, place: u32, len: usize) -> Vec<f32> {
    let stream = Stream::new(Purpose::Weights, 0);
    let blocks = (0..len.div_ceil(4)).map(|draw| rng::block(seed, stream, place, draw as u32));
    match init {
        Init::Constant(value) => vec![value; len],
        Init::Whitening => vec![0.0; len],
        Init::Uniform { bound } | Init::Dirac { bound } => {
            blocks.flatten().take(len).map(|bits| bound * (2.0 * unit(bits) - 1.0)).collect()
        }
        Init::Normal { deviation } => {
            let pairs = |[a, b, c, d]: [u32; 4]| [normal_pair(a, b), normal_pair(c, d)];
            let normals = blocks.flat_map(pairs).flatten();
            normals.take(len).map(|value| (f64::from(deviation) * value) as f32).collect()
        }
    }
}

/// Replaces the first `min(C', C)` filters of a convolution's weight `[C', C, H, W]` by identities, each of
/// which passes the channel with its index.
fn pass_channels(weight: Tensor) -> Tensor {
    let size = weight.size();
    for channel in 0..size[0].min(size[1]) {
        let _ = weight.get(channel).zero_();
        let _ = weight.get(channel).get(channel).get(size[2] / 2).get(size[3] / 2).fill_(1.0);
    }
    weight
}

/// Maps random bits to a number in `0..1`, from their upper 24 bits, which f32 represents exactly.
fn unit(bits: u32) -> f32 {
    (bits >> 8) as f32 / (1u32 << 24) as f32
}

/// Returns two independent numbers of the standard normal distribution from random bits.
///
/// Source: Box and Muller, A Note on the Generation of Random Normal Deviates, 1958.
fn normal_pair(a: u32, b: u32) -> [f64; 2] {
    // The argument of the logarithm is never 0.
    let radius = (-2.0 * ((f64::from(a) + 1.0) / 2f64.powi(32)).ln()).sqrt();
    let (sin, cos) = (std::f64::consts::TAU * f64::from(b) / 2f64.powi(32)).sin_cos();
    [radius * cos, radius * sin]
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use comm::bootstrap::{Backend, connect};
    use comm::env::World;
    use job::config::{Model, Stem};
    use job::network::Network;
    use tch::{Device, Kind};

    fn initialized(model: &Model, seed: u64) -> Flat {
        let network = Network::new(model, [3, 32, 32], 10);
        let alone = connect(Backend::Shm, World::SINGLE, None, Duration::from_secs(1)).unwrap();
        let mut flat = Flat::new(network.tensors(true), Device::Cpu, &*alone).unwrap();
        initialize(&mut flat, seed);
        flat
    }

    fn model(name: &str, stem: Stem) -> Model {
        Model { name: name.parse().unwrap(), stem, ..Model::default() }
    }

    /// The initial values of a tensor in the program that a network is from.
    enum Start {
        /// `kaiming_uniform_(a=sqrt(5))`, and the bias beside it, for this fan-in.
        Default(usize),
        /// `kaiming_normal_` for this fan.
        Kaiming(usize),
        /// `normal_` with this deviation.
        Normal(f64),
        All(f64),
    }

    fn check(what: &str, tensor: &Tensor, start: &Start) {
        let values = tensor.to_kind(Kind::Double);
        let count = values.numel() as f64;
        let mean = values.mean(Kind::Double).double_value(&[]);
        let moment = |power: i64| {
            (&values - mean).pow_tensor_scalar(power).mean(Kind::Double).double_value(&[])
        };
        let (deviation, flatness) = match start {
            // A uniform distribution has a kurtosis of 1.8, a normal one of 3.
            Start::Default(fan_in) => ((2.0f64 / 6.0).sqrt() / (*fan_in as f64).sqrt(), 1.8),
            Start::Kaiming(fan) => ((2.0 / *fan as f64).sqrt(), 3.0),
            Start::Normal(deviation) => (*deviation, 3.0),
            Start::All(value) => {
                let (low, high) = (values.min(), values.max());
                assert_eq!([low.double_value(&[]), high.double_value(&[])], [*value; 2], "{what}");
                return;
            }
        };
        assert!(mean.abs() < 5.0 * deviation / count.sqrt(), "mean of {what}: {mean}");
        let off = 5.0 / count.sqrt();
        let found = moment(2).sqrt() / deviation;
        assert!((found - 1.0).abs() < off, "deviation of {what}: {found} of {deviation}");
        let found = moment(4) / moment(2).powi(2);
        assert!((found - flatness).abs() < 5.0 * off, "kurtosis of {what}: {found}");
    }

    #[test]
    fn weights_have_the_moments_of_each_sources_distribution() {
        use Start::{All, Default, Kaiming, Normal};
        let cases: [(_, _, &[(_, _)]); 7] = [
            // The notes' module keeps PyTorch's default initialization.
            (
                "resnet18",
                Stem::Notes,
                &[
                    ("conv1.weight", Default(27)),
                    ("layer2.0.conv1.weight", Default(64 * 9)),
                    ("layer2.0.shortcut.0.weight", Default(64)),
                    ("linear.weight", Default(512)),
                    ("layer1.0.bn1.weight", All(1.0)),
                    ("layer1.0.bn1.bias", All(0.0)),
                    ("layer1.0.bn1.running_mean", All(0.0)),
                    ("layer1.0.bn1.running_var", All(1.0)),
                ],
            ),
            // torchvision/models/resnet.py: mode fan_out; the head is nn.Linear's own.
            (
                "resnext50_32x4d",
                Stem::Imagenet,
                &[
                    ("conv1.weight", Kaiming(64 * 49)),
                    ("layer1.0.conv2.weight", Kaiming(128 * 9)),
                    ("layer1.0.shortcut.0.weight", Kaiming(256)),
                    ("linear.weight", Default(2048)),
                    ("layer1.0.bn3.weight", All(1.0)),
                ],
            ),
            // The ResNet paper: variance 2 over fan-in.
            (
                "resnet20",
                Stem::Cifar,
                &[("layer2.0.conv1.weight", Kaiming(16 * 9)), ("linear.weight", Kaiming(64))],
            ),
            // torchvision/models/vgg.py.
            (
                "vgg19",
                Stem::Cifar,
                &[
                    ("features.5.weight", Kaiming(128 * 9)),
                    ("features.5.bias", All(0.0)),
                    ("classifier.weight", Normal(0.01)),
                    ("classifier.bias", All(0.0)),
                ],
            ),
            // The Torch programs of Zagoruyko, He and Xie: fan-out, linear bias 0.
            (
                "wrn16_8",
                Stem::Cifar,
                &[
                    ("layer1.0.conv1.weight", Kaiming(128 * 9)),
                    ("linear.weight", Default(512)),
                    ("linear.bias", All(0.0)),
                ],
            ),
            ("preact_resnet18", Stem::Cifar, &[("layer1.0.conv1.weight", Kaiming(64 * 9))]),
            ("plain20", Stem::Cifar, &[("layer3.0.conv1.weight", Kaiming(32 * 9))]),
        ];
        for (name, stem, expected) in cases {
            let flat = initialized(&model(name, stem), 0);
            let tensors: std::collections::HashMap<_, _> = flat.state_dict().into_iter().collect();
            for (tensor, start) in expected {
                check(&format!("{name}'s {tensor}"), &tensors[*tensor], start);
            }
        }
    }

    #[test]
    fn blocks_can_start_as_the_identity() {
        let zero = Model { zero_init_residual: true, ..Model::default() };
        let flat = initialized(&zero, 0);
        for (name, tensor) in flat.state_dict() {
            let zero = name.ends_with("bn2.weight");
            if zero || name.ends_with("bn1.weight") {
                check(&name, &tensor, &Start::All(if zero { 0.0 } else { 1.0 }));
            }
        }
    }

    #[test]
    fn weights_depend_on_the_seed_only() {
        let parameters = |seed| initialized(&Model::default(), seed).parameters;
        assert_eq!(parameters(3), parameters(3));
        assert_ne!(parameters(3), parameters(4));
    }
}
