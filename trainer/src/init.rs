//! Initial weights: PyTorch's own default for each layer.

use job::network::Role;
use job::rng::{self, Purpose, Stream};
use tch::{Device, Kind, Tensor};

use crate::flat::Flat;

/// Fills `flat` with initial weights that depend on `seed` only: not on the device, and not on how
/// libtorch draws random numbers.
///
/// Convolution and linear weights: uniform in `±1/sqrt(fan_in)`, which is what
/// `kaiming_uniform_(a=sqrt(5))` comes to; linear biases the same. Batch norm: scale 1, shift 0,
/// running mean 0, running variance 1.
///
/// Source: `reset_parameters` of `torch.nn.Conv2d`, `Linear` and `BatchNorm2d`.
pub fn initialize(flat: &mut Flat, seed: u64) {
    let tensors = flat.specs().enumerate().map(|(place, spec)| {
        let size: Vec<_> = spec.shape.iter().map(|&size| size as i64).collect();
        let tensor = match spec.role {
            Role::Weight { fan_in } | Role::Bias { fan_in } => {
                let bound = 1.0 / (fan_in as f32).sqrt();
                let values = uniform(seed, place as u32, spec.len(), bound);
                Tensor::from_slice(&values).view(size.as_slice())
            }
            Role::NormWeight | Role::RunningVar => Tensor::ones(size, (Kind::Float, Device::Cpu)),
            Role::NormBias | Role::RunningMean => Tensor::zeros(size, (Kind::Float, Device::Cpu)),
            Role::BatchesTracked => Tensor::from(0i64),
        };
        (spec.name.clone(), tensor)
    });
    let tensors = tensors.collect();
    let loaded = flat.load_state_dict(tensors);
    assert!(loaded.is_ok(), "tensors made from their own description: {loaded:?}");
}

/// `len` numbers, uniform in `±bound`.
fn uniform(seed: u64, place: u32, len: usize, bound: f32) -> Vec<f32> {
    let stream = Stream::new(Purpose::Weights, 0);
    let blocks = (0..len.div_ceil(4)).flat_map(|draw| rng::block(seed, stream, place, draw as u32));
    // The upper 24 bits, which f32 holds exactly.
    let unit = |bits: u32| (bits >> 8) as f32 / (1u32 << 24) as f32;
    blocks.take(len).map(|bits| bound * (2.0 * unit(bits) - 1.0)).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use comm::bootstrap::{Backend, connect};
    use comm::env::World;
    use job::config::Model;
    use job::network::Network;

    fn initialized(seed: u64) -> Flat {
        let network = Network::new(&Model::default(), [3, 32, 32], 10);
        let alone = connect(Backend::Shm, World::SINGLE, None, Duration::from_secs(1)).unwrap();
        let mut flat = Flat::new(network.tensors(true), Device::Cpu, &*alone).unwrap();
        initialize(&mut flat, seed);
        flat
    }

    #[test]
    fn weights_have_the_moments_of_pytorchs_distribution() {
        let flat = initialized(0);
        for (spec, (_, tensor)) in flat.specs().zip(flat.state_dict()) {
            let values = tensor.to_kind(Kind::Double);
            let (mean, count) = (values.mean(Kind::Double).double_value(&[]), spec.len() as f64);
            let largest = values.abs().max().double_value(&[]);
            match spec.role {
                Role::Weight { fan_in } | Role::Bias { fan_in } => {
                    // PyTorch: bound = gain(leaky_relu, sqrt(5)) * sqrt(3 / fan_in).
                    let bound = (2.0 / (1.0 + 5.0_f64)).sqrt() * (3.0 / fan_in as f64).sqrt();
                    let deviation = bound / 3.0_f64.sqrt();
                    assert!(largest <= bound * 1.000_001, "{}: {largest} > {bound}", spec.name);
                    assert!(largest > 0.7 * bound, "{}: {largest} of {bound}", spec.name);
                    assert!(mean.abs() < 4.0 * deviation / count.sqrt(), "{}: {mean}", spec.name);
                    if count > 1000.0 {
                        let found = values.std(true).double_value(&[]);
                        assert!((found / deviation - 1.0).abs() < 0.05, "{}: {found}", spec.name);
                    }
                }
                Role::NormWeight | Role::RunningVar => assert_eq!((mean, largest), (1.0, 1.0)),
                _ => assert_eq!((mean, largest), (0.0, 0.0)),
            }
        }
    }

    #[test]
    fn weights_depend_on_the_seed_only() {
        assert_eq!(initialized(3).parameters, initialized(3).parameters);
        assert_ne!(initialized(3).parameters, initialized(4).parameters);
    }
}
