//! The data that a prediction needs of a network: work and gradients, layer by layer.

use job::config::{Config, Model, ModelName, Stem};
use job::dataset::{self, Outline};
use job::network::{Network, ReferenceDataset, catalogue};

use crate::error::Result;

/// A convolution or a linear layer, with the batch norm that follows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Layer {
    /// Multiply-accumulates of the forward pass per image.
    pub macs: f64,
    /// Number of elements of each parameter, in the order of registration.
    pub parameters: Vec<usize>,
}

/// A network's layers.
#[derive(Debug, Clone, PartialEq)]
pub struct Layers {
    /// Name in reports.
    pub name: String,
    /// Layers in the order of the forward pass.
    pub layers: Vec<Layer>,
    /// Critical batch in images, from which a larger batch no longer saves steps, and its source.
    pub critical_batch: (f64, &'static str),
}

const NOISE_SCALE: &str = "the order that McCandlish et al., An Empirical Model of Large-Batch Training, \
                           2018, find for such images; it grows while training";

impl Layers {
    /// Returns the layers of a configuration's network for the size of its images.
    ///
    /// # Errors
    /// When the configuration names a folder of images that is missing or invalid.
    pub fn of_config(config: &Config) -> Result<Self> {
        let Outline { shape, classes, .. } = dataset::outline(&config.data)?;
        let network = Network::new(&config.model, shape, classes);
        let stem = match config.model.stem {
            Stem::Notes => "notes' stem",
            Stem::Cifar => "CIFAR stem",
            Stem::Imagenet => "ImageNet's stem",
        };
        let [_, height, width] = shape;
        Ok(Self {
            name: format!("{}, {stem}, {height}x{width}", config.model.name),
            layers: layers(&network, config.performance.live_taps),
            critical_batch: (900.0, NOISE_SCALE),
        })
    }

    /// Returns the layers of a network of the catalogue for ImageNet, 224x224; `None` for any other name.
    pub fn for_imagenet(name: &str) -> Option<Self> {
        let name: ModelName = catalogue()
            .find(|it| it.name == name && it.dataset == ReferenceDataset::Imagenet)?
            .into();
        let model = Model { name, stem: Stem::Imagenet, ..Model::default() };
        Some(Self {
            name: format!("{name}, 224x224"),
            layers: layers(&Network::new(&model, [3, 224, 224], 1000), false),
            critical_batch: (15_000.0, NOISE_SCALE),
        })
    }

    /// Returns the number of elements of all parameters.
    pub fn gradient_elements(&self) -> usize {
        self.layers.iter().flat_map(|layer| &layer.parameters).sum()
    }

    /// Returns the multiply-accumulates of a forward pass per image.
    pub fn macs(&self) -> f64 {
        self.layers.iter().map(|layer| layer.macs).sum()
    }
}

fn layers(network: &Network, live_taps: bool) -> Vec<Layer> {
    let mut tensors = network.tensors(live_taps).into_iter().filter(|it| it.role.is_parameter());
    let mut layers = Vec::<Layer>::new();
    for summary in network.summary().layers.iter().filter(|layer| layer.parameters > 0) {
        let (mut len, mut parameters) = (0, Vec::new());
        while len < summary.parameters {
            let Some(tensor) = tensors.next() else { break };
            len += tensor.len();
            parameters.push(tensor.live_len());
        }
        let live = parameters.iter().sum::<usize>() as f64 / len as f64;
        match layers.last_mut() {
            // Batch norm goes with the convolution before it.
            Some(last) if summary.multiply_adds == 0 => last.parameters.extend(parameters),
            _ => layers.push(Layer { macs: summary.multiply_adds as f64 * live, parameters }),
        }
    }
    layers
}

#[cfg(test)]
mod tests {
    use job::config::Dataset;

    use super::*;

    #[test]
    fn networks_for_imagenet_are_torchvisions() {
        // Parameters and GFLOPS as documented with torchvision's weights.
        for (name, parameters, gmacs) in [
            ("resnet18", 11_689_512, 1.814),
            ("resnet34", 21_797_672, 3.664),
            ("resnet50", 25_557_032, 4.089),
            ("resnet101", 44_549_160, 7.801),
            ("resnet152", 60_192_808, 11.514),
        ] {
            let layers = Layers::for_imagenet(name).unwrap();
            assert_eq!(layers.gradient_elements(), parameters, "{name}");
            assert!((layers.macs() / 1e9 / gmacs - 1.0).abs() < 2e-3, "{name}: {}", layers.macs());
        }
        assert_eq!(Layers::for_imagenet("resnet20"), None);
    }

    #[test]
    fn a_configurations_gradients_are_those_that_the_trainer_communicates() {
        let mut config = Config::default();
        for name in catalogue().map(ModelName::from) {
            for stem in [Stem::Notes, Stem::Cifar] {
                (config.model.name, config.model.stem) = (name, stem);
                let network = Network::new(&config.model, [3, 32, 32], 10);
                let layers = Layers::of_config(&config).unwrap();
                assert_eq!(layers.gradient_elements(), network.live_parameter_count());
            }
        }
        config.performance.live_taps = false;
        config.data.dataset = Dataset::FashionMnist;
        let network = Network::new(&config.model, [1, 28, 28], 10);
        let layers = Layers::of_config(&config).unwrap();
        assert_eq!(layers.gradient_elements(), network.parameter_count());
        assert!(layers.name.ends_with("28x28"), "{}", layers.name);
    }
}
