//! Ranks agree on how convolutions are computed, however measuring them ends.

#![allow(clippy::unwrap_used)]

mod common;

use common::{on_ranks, replica};
use job::config::Convolution;
use trainer::convolutions::choose;
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
