//! All parameters, all gradients and all running statistics: one buffer each.
//!
//! A tensor of the network is a view into its buffer. So a bucket of gradients is a slice, an
//! optimizer step is one call, and a broadcast is one call. Convolution weights lie in channels-last
//! order, in which libtorch's convolutions are fastest; [`Flat::state_dict`] gives the usual order.

use std::collections::HashMap;
use std::ops::Range;

use comm::Communicator;
use job::network::{Role, TensorSpec};
use tch::{Device, Kind, Tensor};

use crate::{Result, TrainError};

/// A network's numbers.
pub struct Flat {
    /// `[parameters]` f32, on the device.
    pub parameters: Tensor,
    /// `[parameters]` f32: where backward adds gradients. In memory that the communicator can
    /// reduce without a copy, where it has such memory.
    pub grads: Tensor,
    /// `[buffers]` f32: running means and variances.
    pub buffers: Tensor,
    /// Training batches that batch norm has seen.
    pub batches_tracked: i64,
    entries: Vec<Entry>,
    by_name: HashMap<String, usize>,
}

struct Entry {
    spec: TensorSpec,
    /// In `parameters` or `buffers`, by the role.
    range: Range<usize>,
    /// The tensor that layers use; none for the counter of batches.
    view: Option<Tensor>,
}

impl Flat {
    /// Zeroed storage for `tensors` on `device`, with gradients attached to the parameters.
    ///
    /// # Errors
    /// When memory is short.
    pub fn new(
        tensors: Vec<TensorSpec>,
        device: Device,
        communicator: &dyn Communicator,
    ) -> Result<Self> {
        let count = |wanted: fn(&TensorSpec) -> bool| -> usize {
            tensors.iter().filter(|spec| wanted(spec)).map(TensorSpec::len).sum()
        };
        let parameter_count = count(|spec| spec.role.is_parameter());
        let buffer_count = count(|spec| matches!(spec.role, Role::RunningMean | Role::RunningVar));
        let zeros = |len: usize| Tensor::f_zeros([len as i64], (Kind::Float, device));

        let mut flat = Self {
            parameters: zeros(parameter_count)?,
            grads: shared_grads(parameter_count, device, communicator)?,
            buffers: zeros(buffer_count)?,
            batches_tracked: 0,
            entries: Vec::with_capacity(tensors.len()),
            by_name: HashMap::new(),
        };
        let (mut next_parameter, mut next_buffer) = (0, 0);
        for spec in tensors {
            let next =
                if spec.role.is_parameter() { &mut next_parameter } else { &mut next_buffer };
            let range = match spec.role {
                Role::BatchesTracked => 0..0,
                _ => *next..*next + spec.len(),
            };
            *next = (*next).max(range.end);
            flat.push(spec, range)?;
        }
        Ok(flat)
    }

    fn push(&mut self, spec: TensorSpec, range: Range<usize>) -> Result<()> {
        let view = match spec.role {
            Role::BatchesTracked => None,
            Role::RunningMean | Role::RunningVar => Some(view(&self.buffers, &range, &spec.shape)),
            _ => {
                let parameter =
                    view(&self.parameters, &range, &spec.shape).detach().set_requires_grad(true);
                torch_ext::set_grad(&parameter, &view(&self.grads, &range, &spec.shape))?;
                Some(parameter)
            }
        };
        self.by_name.insert(spec.name.clone(), self.entries.len());
        self.entries.push(Entry { spec, range, view });
        Ok(())
    }

    /// The tensor of this name, as a layer uses it.
    ///
    /// # Panics
    /// When the network has no such tensor: its description and its layers disagree.
    pub fn tensor(&self, name: &str) -> Tensor {
        let entry = self.by_name.get(name).map(|&index| &self.entries[index]);
        match entry.and_then(|entry| entry.view.as_ref()) {
            Some(view) => view.shallow_clone(),
            None => panic!("the network has no tensor {name}"),
        }
    }

    /// Elements of each parameter, in the order of the flat buffer.
    pub fn parameter_lens(&self) -> Vec<usize> {
        self.parameters_of().map(|entry| entry.range.len()).collect()
    }

    fn parameters_of(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|entry| entry.spec.role.is_parameter())
    }

    /// Description and view of every tensor but the counters of batches.
    pub fn views(&self) -> impl Iterator<Item = (&TensorSpec, &Tensor)> {
        self.entries.iter().filter_map(|entry| Some((&entry.spec, entry.view.as_ref()?)))
    }

    /// The whole state dict on the CPU, in the usual order of elements: PyTorch's keys and shapes.
    pub fn state_dict(&self) -> Vec<(String, Tensor)> {
        let entries = self.entries.iter().map(|entry| {
            let tensor = match &entry.view {
                Some(view) => to_file_order(view),
                None => Tensor::from(self.batches_tracked),
            };
            (entry.spec.name.clone(), tensor)
        });
        entries.collect()
    }

    /// Takes over a state dict. Every tensor must be there, with its shape, and no other.
    ///
    /// # Errors
    /// Names every tensor that is missing, unknown or of another shape.
    pub fn load_state_dict(
        &mut self,
        tensors: Vec<(String, Tensor)>,
    ) -> std::result::Result<(), String> {
        let mut given: HashMap<String, Tensor> = tensors.into_iter().collect();
        let mut problems = Vec::new();
        for entry in &self.entries {
            let name = &entry.spec.name;
            let wanted: Vec<i64> = entry.spec.shape.iter().map(|&size| size as i64).collect();
            match given.remove(name) {
                None => problems.push(format!("{name} is missing")),
                Some(tensor) if tensor.size() != wanted => {
                    problems.push(format!("{name} is {:?} instead of {wanted:?}", tensor.size()));
                }
                Some(tensor) => match &entry.view {
                    Some(view) => tch::no_grad(|| view.shallow_clone().copy_(&tensor)),
                    None => self.batches_tracked = tensor.int64_value(&[]),
                },
            }
        }
        problems.extend(given.into_keys().map(|name| format!("{name} is unknown")));
        if problems.is_empty() { Ok(()) } else { Err(problems.join("; ")) }
    }

    /// A buffer laid out like the parameters, by parameter: name and contiguous CPU tensor.
    ///
    /// `flat`: `[parameters]`, such as an optimizer's state.
    pub fn split(&self, flat: &Tensor) -> Vec<(String, Tensor)> {
        let named = self.parameters_of().map(|entry| {
            let part = view(flat, &entry.range, &entry.spec.shape);
            (entry.spec.name.clone(), to_file_order(&part))
        });
        named.collect()
    }

    /// The opposite of [`Self::split`]: fills `flat` with `tensor(name)` for every parameter.
    ///
    /// # Errors
    /// Names the first parameter whose tensor is missing or of another shape.
    pub fn join(
        &self,
        flat: &Tensor,
        mut tensor: impl FnMut(&str) -> Option<Tensor>,
    ) -> std::result::Result<(), String> {
        for Entry { spec, range, .. } in self.parameters_of() {
            let mut part = view(flat, range, &spec.shape);
            let given = tensor(&spec.name).ok_or_else(|| format!("{} is missing", spec.name))?;
            if given.size() != part.size() {
                return Err(format!("{} is {:?}", spec.name, given.size()));
            }
            tch::no_grad(|| part.copy_(&given));
        }
        Ok(())
    }
}

fn to_file_order(view: &Tensor) -> Tensor {
    // `copy` makes it independent of the buffer, which the next step overwrites.
    tch::no_grad(|| view.detach().to_device(Device::Cpu).contiguous().copy())
}

/// The part `range` of a flat buffer with a shape; a convolution's weight in channels-last order.
fn view(flat: &Tensor, range: &Range<usize>, shape: &[usize]) -> Tensor {
    let part = flat.narrow(0, range.start as i64, range.len() as i64);
    match *shape {
        [out, inputs, height, width] => {
            let stored = [out, height, width, inputs].map(|size| size as i64);
            part.view(stored).permute([0, 3, 1, 2])
        }
        _ => part.view(shape.iter().map(|&size| size as i64).collect::<Vec<_>>().as_slice()),
    }
}

fn shared_grads(len: usize, device: Device, communicator: &dyn Communicator) -> Result<Tensor> {
    if device == Device::Cpu
        && let Some(memory) = communicator.alloc_shared(len * size_of::<f32>())?
    {
        return Ok(torch_ext::tensor_in_shared_memory(memory, len)?);
    }
    Tensor::f_zeros([len as i64], (Kind::Float, device)).map_err(TrainError::from)
}
