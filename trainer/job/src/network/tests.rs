use super::*;
use crate::config::Stem;

fn model(name: &str, stem: Stem) -> Model {
    Model { name: name.parse().unwrap(), stem, ..Model::default() }
}

/// Returns the network for the data set that it was published for.
fn at_home(name: &str) -> Network {
    let dataset = name.parse::<ModelName>().unwrap().entry().dataset;
    let image = [3, dataset.image(), dataset.image()];
    Network::new(&model(name, dataset.stem()), image, dataset.classes())
}

fn on_cifar(name: &str, stem: Stem) -> Network {
    Network::new(&model(name, stem), [3, 32, 32], 10)
}

#[test]
fn parameter_counts_are_those_of_the_pytorch_modules() {
    for stem in [Stem::Notes, Stem::Cifar] {
        assert_eq!(on_cifar("resnet18", stem).parameter_count(), 11_173_962);
        assert_eq!(on_cifar("resnet34", stem).parameter_count(), 21_282_122);
    }
    let published = [
        // torchvision 0.26
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
        ("resnet101", 44_549_160),
        ("resnet152", 60_192_808),
        ("vgg19", 143_667_240),
        ("vgg19_bn", 143_678_248),
        ("resnext50_32x4d", 25_028_904),
        ("resnext101_32x8d", 88_791_336),
        ("resnext101_64x4d", 83_455_272),
        ("wide_resnet50_2", 68_883_240),
        ("wide_resnet101_2", 126_886_696),
        // timm 1.0
        ("resnet200", 64_673_832),
        ("resnext101_32x4d", 44_177_704),
        // akamaster/pytorch_resnet_cifar10
        ("resnet20", 269_722),
        ("resnet32", 464_154),
        ("resnet44", 658_586),
        ("resnet56", 853_018),
        ("resnet110", 1_727_962),
    ];
    for (name, parameters) in published {
        assert_eq!(at_home(name).parameter_count(), parameters, "{name}");
    }
}

#[test]
fn other_counts_round_to_those_of_the_papers() {
    let papers = [
        ("resnext29_8x64d", 34.4),
        ("resnext29_16x64d", 68.1),
        ("wrn16_8", 11.0),
        ("wrn28_10", 36.5),
        ("preact_resnet110", 1.7),
        ("preact_resnet164", 1.7),
        // The paper's 10.2 million are with zeros in place of projections.
        ("preact_resnet1001", 10.3),
    ];
    for (name, millions) in papers {
        let found = at_home(name).parameter_count() as f64 / 1e6;
        assert!((found - millions).abs() < 0.06, "{name}: {found} million");
    }
}

#[test]
fn multiply_adds_are_those_of_the_notes() {
    let billions = |name| at_home(name).summary().multiply_adds as f64 / 1e9;
    for (name, notes) in [("vgg19", 19.6), ("plain34", 3.6), ("resnet34", 3.6)] {
        // The shortcuts account for 0.02 billion: ResNet-34 has 3.66, plain-34 3.64.
        assert!((billions(name) - notes).abs() < 0.07, "{name}: {}", billions(name));
    }
    let pixels = 56 * 56;
    let of = |name, block| {
        let Summary { layers, .. } = at_home(name).summary();
        let convs = layers
            .into_iter()
            .filter(|layer| layer.name.starts_with(block) && layer.kind.starts_with("conv"));
        convs.fold((0, 0), |(parameters, multiply_adds), layer| {
            (parameters + layer.parameters, multiply_adds + layer.multiply_adds)
        })
    };
    // Two 3x3 convolutions on 64 channels cost as much as 1x1, 3x3, 1x1 on 256 channels, four times as many.
    assert_eq!(of("resnet34", "layer1.1."), (73_728, 73_728 * pixels));
    assert_eq!(of("resnet50", "layer1.1."), (69_632, 69_632 * pixels));
}

#[test]
fn most_parameters_never_see_a_pixel_behind_the_notes_stem() {
    let dead = |name, stem| {
        let network = on_cifar(name, stem);
        assert_eq!(
            network.summary().unseen_parameters,
            network.parameter_count() - network.live_parameter_count()
        );
        network.summary().unseen_parameters
    };
    // layer4 is at 1x1: three kernels keep 1 of 9 taps, the one of stride 2 keeps 4 of 9.
    let first = 512 * 256 * 5;
    assert_eq!(dead("resnet18", Stem::Notes), first + 3 * 512 * 512 * 8);
    assert_eq!(dead("resnet34", Stem::Notes), first + 5 * 512 * 512 * 8);
    assert_eq!(dead("resnet18", Stem::Cifar), 0);
    // Grouped convolutions: 1024 kernels of 1024 / 32 channels.
    assert_eq!(dead("resnext50_32x4d", Stem::Notes), 32 * 1024 * 5 + 2 * 32 * 1024 * 8);
}

#[test]
fn shortcuts_are_only_where_the_shape_changes() {
    let names = |name| -> Vec<String> {
        let tensors = on_cifar(name, Stem::Notes).tensors(true).into_iter();
        tensors.map(|tensor| tensor.name).filter(|name| name.contains("shortcut.0")).collect()
    };
    let of = |stages: &[&str]| -> Vec<String> {
        stages.iter().map(|stage| format!("{stage}.0.shortcut.0.weight")).collect()
    };
    assert_eq!(names("resnet34"), of(&["layer2", "layer3", "layer4"]));
    assert_eq!(names("resnet50"), of(&["layer1", "layer2", "layer3", "layer4"]));
    assert_eq!(names("resnet20"), of(&[]));
    assert_eq!(names("plain34"), of(&[]));
}

#[test]
fn every_network_takes_every_stem_image_size_and_channel_count() {
    for entry in catalogue() {
        for stem in Stem::ALL {
            for image in [[3, 32, 32], [1, 28, 28], [3, 64, 48], [3, 1, 1]] {
                let network = Network::new(&model(entry.name, stem), image, 7);
                let summary = network.summary();
                assert_eq!(summary.layers.last().unwrap().output, [7, 1, 1], "{}", entry.name);
                let tensors = network.tensors(true);
                let names: std::collections::HashSet<_> =
                    tensors.iter().map(|tensor| &tensor.name).collect();
                assert_eq!(names.len(), tensors.len(), "{}: a name is given twice", entry.name);
            }
        }
    }
}

#[test]
fn names_of_networks_are_unique() {
    let names: std::collections::HashSet<_> = catalogue().map(|entry| entry.name).collect();
    assert_eq!(names.len(), catalogue().count());
}

#[test]
fn skipping_a_block_becomes_likelier_towards_the_last() {
    let model = Model { stochastic_depth: 0.5, ..model("resnet18", Stem::Notes) };
    let network = Network::new(&model, [3, 32, 32], 10);
    let survival: Vec<f64> = network
        .layers
        .iter()
        .filter_map(|layer| match layer {
            Layer::Residual(residual) => Some(residual.survival),
            _ => None,
        })
        .collect();
    let expected: Vec<f64> = (1..=8).map(|block| 1.0 - f64::from(block) / 16.0).collect();
    assert_eq!(survival, expected);
}

#[test]
fn torchvisions_names_and_ours_translate_into_each_other() {
    let pairs = [
        ("layer2.0.shortcut.1.running_var", "layer2.0.downsample.1.running_var"),
        ("linear.weight", "fc.weight"),
        ("features.0.bias", "features.0.bias"),
    ];
    for (ours, theirs) in pairs {
        assert_eq!(names::to_torchvision(ours), theirs);
        assert_eq!(names::from_torchvision(theirs), ours);
    }
}

#[test]
fn a_larger_map_leaves_more_activations() {
    let notes = on_cifar("resnet18", Stem::Notes).activations_per_image();
    let cifar = on_cifar("resnet18", Stem::Cifar).activations_per_image();
    assert!(cifar > 10 * notes, "{cifar} {notes}");
}
