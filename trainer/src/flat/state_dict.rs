//! Conversion of flat storage to and from state dicts with PyTorch's names.

use std::collections::HashMap;

use job::network::Role;
use tch::Tensor;

use super::{Flat, Storage};

impl Flat {
    /// Returns a copy of the whole state dict on the CPU, with PyTorch's keys, shapes and order of elements.
    pub fn state_dict(&self) -> Vec<(String, Tensor)> {
        self.state_dict_of(&self.storage())
    }

    /// Returns the state dict of `storage`, which must have the layout of `self`.
    pub fn state_dict_of(&self, storage: &Storage) -> Vec<(String, Tensor)> {
        let Storage { parameters, buffers, dead } = storage;
        let entries = self.entries.iter().map(|entry| {
            let source = if entry.spec.role.is_parameter() { parameters } else { buffers };
            let tensor = match entry.spec.role {
                Role::BatchesTracked => Tensor::from(self.batches_tracked),
                _ => entry.assemble(source, Some(dead)),
            };
            (entry.spec.name.clone(), tensor)
        });
        entries.collect()
    }

    /// Loads a state dict, which must have exactly the network's tensors, with their shapes.
    ///
    /// # Errors
    /// A message that names every tensor that is missing, unknown or of another shape. The other tensors
    /// have been loaded.
    pub fn load_state_dict(&mut self, tensors: Vec<(String, Tensor)>) -> Result<(), String> {
        self.batches_tracked = self.load_state_dict_into(&self.storage(), tensors)?;
        Ok(())
    }

    /// Loads a state dict into `storage`, as [`Self::load_state_dict`] does, and returns its number of
    /// batches tracked.
    ///
    /// # Errors
    /// Those of [`Self::load_state_dict`].
    pub fn load_state_dict_into(
        &self,
        storage: &Storage,
        tensors: Vec<(String, Tensor)>,
    ) -> Result<i64, String> {
        let Storage { parameters, buffers, dead } = storage;
        let mut given: HashMap<String, Tensor> = tensors.into_iter().collect();
        let mut batches_tracked = self.batches_tracked;
        let mut problems = Vec::new();
        for entry in &self.entries {
            let name = &entry.spec.name;
            let target = if entry.spec.role.is_parameter() { parameters } else { buffers };
            match given.remove(name) {
                None => problems.push(format!("{name} is missing")),
                Some(tensor) if tensor.size() != entry.size() => {
                    let (found, wanted) = (tensor.size(), entry.size());
                    problems.push(format!("{name} has shape {found:?} instead of {wanted:?}"));
                }
                Some(tensor) if entry.spec.role == Role::BatchesTracked => {
                    batches_tracked = tensor.int64_value(&[]);
                }
                Some(tensor) => entry.scatter(&tensor, target, dead),
            }
        }
        problems.extend(given.into_keys().map(|name| format!("{name} is unknown")));
        if problems.is_empty() { Ok(batches_tracked) } else { Err(problems.join("; ")) }
    }

    /// Returns the whole tensor of each parameter, with its name, on the CPU, from buffers in the layout of
    /// `parameters` and `dead`. Without `dead`, dead taps are zero.
    pub fn assemble(&self, live: &Tensor, dead: Option<&Tensor>) -> Vec<(String, Tensor)> {
        let named = self
            .parameter_entries()
            .map(|entry| (entry.spec.name.clone(), entry.assemble(live, dead)));
        named.collect()
    }

    /// The inverse of [`Self::assemble`]: fills the buffers with `tensor(name)` of each parameter.
    ///
    /// # Errors
    /// A message that names the first parameter whose tensor is missing, has another shape, or without
    /// `dead` is not zero in dead taps.
    pub fn scatter(
        &self,
        live: &Tensor,
        dead: Option<&Tensor>,
        mut tensor: impl FnMut(&str) -> Option<Tensor>,
    ) -> Result<(), String> {
        for entry in self.parameter_entries() {
            let name = &entry.spec.name;
            let given = tensor(name).ok_or_else(|| format!("{name} is missing"))?;
            if given.size() != entry.size() {
                let (found, wanted) = (given.size(), entry.size());
                return Err(format!("{name} has shape {found:?} instead of {wanted:?}"));
            }
            match dead {
                Some(dead) => entry.scatter(&given, live, dead),
                None if entry.dead_taps_are_zero(&given) => entry.scatter_live(&given, live),
                None => return Err(format!("{name} is not zero in taps that never see a pixel")),
            }
        }
        Ok(())
    }
}
