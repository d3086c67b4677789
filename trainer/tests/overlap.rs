//! Properties that the reduction of gradients during backward relies on.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::{Arc, Mutex};

use comm::single::Single;
use common::{TIMEOUT, on_ranks, on_ranks_that_wait, options, replica};
use job::config::{Convolution, Model, Stem};
use job::network::{Network, catalogue};
use tch::{Device, Kind, Tensor};
use trainer::arithmetic::Arithmetic;
use trainer::convolutions::choose;
use trainer::flat::Flat;
use trainer::grad_sync::{GradSync, Timing};
use trainer::init::initialize;
use trainer::model::{Mode, Module};
use trainer::replica::Replica;

/// Returns the positions of parameters in the flat order, sorted by when backward makes their gradients.
fn order_of_gradients(network: &Network) -> Vec<usize> {
    let mut flat = Flat::new(network.tensors(true), Device::Cpu, &Single::default()).unwrap();
    initialize(&mut flat, 0);
    let order = Arc::new(Mutex::new(Vec::new()));
    for (position, parameter) in flat.parameters_in_flat_order().enumerate() {
        let order = Arc::clone(&order);
        torch_ext::on_gradient(parameter, move || order.lock().unwrap().push(position)).unwrap();
    }
    let images = Tensor::ones([2, 3, 32, 32], (Kind::Float, Device::Cpu));
    Module::new(network, &flat).forward(&images, Mode::Train).sum(Kind::Float).backward();
    let order = order.lock().unwrap();
    order.clone()
}

#[test]
fn backward_makes_gradients_in_the_order_in_which_they_lie() {
    tch::set_num_threads(1);
    for name in ["resnet18", "resnet50", "plain20", "preact_resnet18", "vgg19_bn"] {
        let name = catalogue().find(|entry| entry.name == name).unwrap().into();
        for stem in [Stem::Notes, Stem::Cifar] {
            // With 16 classes, the bias of the last layer misaligns nothing, so it has its place in the order
            // too.
            let network = Network::new(&Model { name, stem, ..Model::default() }, [3, 32, 32], 16);
            let order = order_of_gradients(&network);
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert!(sorted.into_iter().eq(0..order.len()), "not each once: {order:?}");
            for (came, &position) in order.iter().enumerate() {
                // Weight and bias of a layer come one after the other, in either order.
                assert!(came.abs_diff(position) <= 1, "{name:?} {stem:?}: {order:?}");
            }
        }
    }
}

#[test]
fn hooks_keep_no_communicator() {
    let are_gone = on_ranks_that_wait(TIMEOUT, 2, |communicator| {
        let watched = Arc::downgrade(&communicator);
        let mut replica = replica(&*communicator, Mode::Train);
        replica.flat.defer_gradients(None);
        let sync = GradSync::new(&replica.flat, communicator, options(Timing::Overlapped, 1));
        drop((sync.unwrap(), replica));
        watched.upgrade().is_none()
    });
    assert_eq!(are_gone, [true; 2]);
}

#[test]
fn a_parameter_without_gradient_neither_hangs_nor_spoils_the_sums() {
    for is_deferred in [false, true] {
        let sums = on_ranks(2, |communicator| {
            let mut replica = replica(&*communicator, Mode::TrainFrozenNorm);
            if is_deferred {
                replica.flat.defer_gradients(None);
            }
            let options = options(Timing::Overlapped, 1);
            let sync = GradSync::new(&replica.flat, communicator.clone(), options).unwrap();
            let steps = (0..2).map(|_| {
                let _ = replica.flat.grads.fill_(f64::NAN);
                communicator.barrier().unwrap();
                replica.flat.clear_gradients();
                sync.begin();
                // Each rank uses another parameter, and nobody uses the rest.
                let used = ["linear.bias", "conv1.weight"][communicator.rank()];
                (replica.flat.tensor(used) * 2.0).sum(Kind::Float).backward();
                sync.finish().unwrap();
                replica.flat.assemble(&replica.flat.grads, None)
            });
            steps.collect::<Vec<_>>()
        });
        for (name, gradient) in sums.iter().flatten().flatten() {
            let is_used = ["linear.bias", "conv1.weight"].contains(&name.as_str());
            let expected = if is_used { 2.0 } else { 0.0 };
            let [least, most] = [gradient.min(), gradient.max()].map(|x| x.double_value(&[]));
            assert!(least == expected && most == expected, "{name}: {least} to {most}");
        }
    }
}

#[test]
fn gradients_that_are_gathered_are_those_that_are_added_in_place() {
    tch::set_num_threads(1);
    let cases = [
        (Arithmetic::Fp32, Convolution::Library, None),
        (Arithmetic::Fp32, Convolution::Matmul, None),
        (Arithmetic::Fp32, Convolution::Winograd, None),
        (Arithmetic::Bf16, Convolution::Matmul, None),
        (Arithmetic::Bf16, Convolution::Library, Some(Kind::BFloat16)),
    ];
    for (arithmetic, convolution, kind) in cases {
        let grads = |is_deferred: bool| {
            let alone = Arc::new(Single::default());
            let mut replica = Replica { arithmetic, ..replica(&*alone, Mode::Train) };
            if is_deferred {
                replica.flat.defer_gradients(kind);
                let network = Network::new(&Model::default(), [3, 32, 32], 10);
                replica.model = Module::new(&network, &replica.flat);
            }
            choose(&replica, convolution, [4, 3, 32, 32], Vec::new(), &*alone, &|| false).unwrap();
            let sync = GradSync::new(&replica.flat, alone.clone(), options(Timing::Overlapped, 1))
                .unwrap();
            let images = Tensor::arange(4 * 3 * 32 * 32, (Kind::Float, Device::Cpu)).sin();
            let images = images.view([4, 3, 32, 32]);
            let mut seen = Vec::new();
            for _ in 0..2 {
                let _ = replica.flat.grads.fill_(f64::NAN);
                replica.flat.clear_gradients();
                sync.begin();
                let logits = replica.in_precision(|model| model.forward(&images, Mode::Train));
                logits.unwrap().logsumexp([1], false).sum(Kind::Float).backward();
                sync.finish().unwrap();
                seen.push(replica.flat.grads.copy());
                replica.flat.parameters -= replica.flat.grads.copy() * 1e-3;
            }
            seen
        };
        let (added, gathered) = (grads(false), grads(true));
        assert!(f64::try_from(added[0].norm()).unwrap() > 0.1);
        assert!(added[0] != added[1], "the second pass should see other weights");
        assert!(added == gathered, "{arithmetic:?}, {convolution:?}, {kind:?}");
    }
}
