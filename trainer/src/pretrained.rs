//! Starting from pretrained weights.

use std::path::Path;

use job::network::names;
use tch::Tensor;
use tracing::warn;

use crate::checkpoint::tensors;
use crate::flat::Flat;
use crate::{Result, TrainError};

/// Fills `flat` from a safetensors file with a state dict under torchvision's names. If only the number of
/// classes differs, the last layer keeps its initial weights.
///
/// # Errors
/// [`TrainError::Usage`] when the file cannot be read or tensors do not fit; the error names all of these.
pub fn load_torchvision(file: &Path, flat: &mut Flat) -> Result<()> {
    let refuse = |reason: String| TrainError::Usage(format!("{}: {reason}", file.display()));
    let read = tensors::read(file).map_err(|error| TrainError::Usage(error.to_string()))?;
    let mut tensors: Vec<_> =
        read.into_iter().map(|(name, tensor)| (names::from_torchvision(&name), tensor)).collect();
    keep_head_of_other_classes(file, &mut tensors, flat);
    flat.load_state_dict(tensors).map_err(refuse)
}

fn keep_head_of_other_classes(file: &Path, tensors: &mut [(String, Tensor)], flat: &Flat) {
    let own = flat.state_dict();
    // A state dict ends with the weight and the bias of the last layer.
    let [.., weight, bias] = own.as_slice() else { return };
    let size = |name: &str| {
        tensors.iter().find(|(given, _)| given == name).map(|(_, tensor)| tensor.size())
    };
    let (Some(found), wanted) = (size(&weight.0), weight.1.size()) else { return };
    if found.len() != 2 || found[1] != wanted[1] || found[0] == wanted[0] {
        return;
    }
    warn!(
        "{} has {} classes, the data set has {}; {} keeps its initial values",
        file.display(),
        found[0],
        wanted[0],
        weight.0
    );
    for (name, initial) in [weight, bias] {
        if let Some((_, tensor)) = tensors.iter_mut().find(|(given, _)| given == name) {
            *tensor = initial.shallow_clone();
        }
    }
}
