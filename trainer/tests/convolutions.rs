//! Ranks agree on how convolutions are computed, however measuring them ends.

#![allow(clippy::unwrap_used)]

mod common;

use comm::single::Single;
use common::{on_ranks, replica};
use job::config::Convolution;
use torch_ext::ConvMethod;
use trainer::arithmetic::Arithmetic;
use trainer::convolutions::{ConvChoice, choose};
use trainer::model::Mode;

#[test]
fn a_rank_that_is_asked_to_stop_ends_the_measuring_on_all() {
    let chosen = on_ranks(2, |comm| {
        let replica = replica(&*comm, Mode::Train);
        let measure = |known, is_stopped| {
            let batch = [4, 3, 32, 32];
            choose(&replica, Convolution::Auto, batch, known, &*comm, &|| is_stopped).unwrap()
        };
        let before = measure(Vec::new(), comm.rank() == 1);
        let after = measure(before.clone(), false);
        (before, after)
    });
    assert_eq!(chosen[0], chosen[1]);
    let (before, after) = &chosen[0];
    assert_eq!(before.len(), 1);
    // ResNet-18 has eleven shapes of convolutions.
    assert_eq!((after.len(), &after[0]), (11, &before[0]));
}

#[test]
fn a_run_that_goes_on_computes_as_before_unless_it_is_told_otherwise() {
    let choose = |convolution, known| {
        let (replica, batch) = (replica(&Single::default(), Mode::Train), [4, 3, 32, 32]);
        choose(&replica, convolution, batch, known, &Single::default(), &|| true).unwrap()
    };
    let matmul = choose(Convolution::Matmul, Vec::new());
    assert_eq!(choose(Convolution::Auto, matmul.clone()), matmul);
    let winograd = choose(Convolution::Winograd, matmul.clone());
    assert_eq!(winograd.len(), matmul.len());
    assert!(winograd.iter().all(|it| it.methods == [ConvMethod::Winograd; 3]), "{winograd:?}");
    let in_bf16 = |it: ConvChoice| ConvChoice { arithmetic: Some(Arithmetic::Bf16), ..it };
    let elsewhere: Vec<_> = matmul.into_iter().map(in_bf16).collect();
    let measured = choose(Convolution::Auto, elsewhere);
    assert_eq!(measured.len(), 1, "measuring was stopped after the first");
    assert!(measured.iter().all(|it| it.arithmetic == Some(Arithmetic::Fp32)), "{measured:?}");
}
