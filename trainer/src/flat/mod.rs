//! All parameters, all gradients and all running statistics: one buffer each.
//!
//! A tensor of the network is a view into its buffer. Parameters lie in the order in which backward
//! makes their gradients: the last layer first; but those whose odd lengths would misalign the rest, such
//! as the bias of ten classes, come at the end. So a bucket of gradients is a slice, an
//! optimizer step is one call, and a broadcast is one call. Convolution weights lie in channels-last
//! order, in which libtorch's convolutions are fastest; files have the usual order.
//!
//! Taps of a kernel that never see a pixel ([`job::network::Taps`]) are kept apart: they are neither
//! convolved, communicated nor stepped. Weight decay changes them all the same, and files show them,
//! so nobody who reads a checkpoint can tell.

mod entry;
mod memory;
mod state_dict;

use std::collections::HashMap;

use comm::Communicator;
use job::network::{Role, TensorSpec};
use tch::{Device, Kind, Tensor};

use crate::Result;

pub use entry::Extent;
use entry::{Entry, lay_out, view};
pub(crate) use memory::{shared_bf16, shared_f32};

/// A network's numbers.
pub struct Flat {
    /// `[live]` f32, on the device: the parameters that see pixels.
    pub parameters: Tensor,
    /// `[live]` f32: where backward adds gradients, or makes them, or they are gathered. In memory that the communicator can
    /// reduce without a copy, where it has such memory.
    pub grads: Tensor,
    /// `[buffers]` f32: running means and variances, and weights that stay as they started.
    pub buffers: Tensor,
    /// `[dead]` f32, on the CPU: in full, the kernels some of whose taps never see a pixel. Only
    /// those taps count.
    pub dead: Tensor,
    /// Training batches that batch norm has seen.
    pub batches_tracked: i64,
    /// `[live]`, the parameters as layers read them, where that is not `parameters` itself.
    rounded: Option<Tensor>,
    /// See [`Self::defer_gradients`].
    is_deferred: bool,
    entries: Vec<Entry>,
    by_name: HashMap<String, usize>,
}

/// Numbers of a network, laid out as a [`Flat`] says.
pub struct Storage {
    /// `[live]` f32, on the device.
    pub parameters: Tensor,
    /// `[buffers]` f32, on the device.
    pub buffers: Tensor,
    /// `[dead]` f32, on the CPU.
    pub dead: Tensor,
}

impl Storage {
    /// The same numbers in memory of their own.
    pub fn copy(&self) -> Self {
        let Self { parameters, buffers, dead } = self;
        Self { parameters: parameters.copy(), buffers: buffers.copy(), dead: dead.copy() }
    }

    /// Takes over numbers that are laid out alike.
    pub fn copy_from(&mut self, other: &Self) {
        self.parameters.copy_(&other.parameters);
        self.buffers.copy_(&other.buffers);
        self.dead.copy_(&other.dead);
    }
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
        let entries = lay_out(tensors);
        let end = |wanted: fn(&Entry) -> bool, range: fn(&Entry) -> usize| {
            entries.iter().filter(|entry| wanted(entry)).map(range).max().unwrap_or(0)
        };
        let live = end(|entry| entry.spec.role.is_parameter(), |entry| entry.range.end);
        let statistics = end(|entry| !entry.spec.role.is_parameter(), |entry| entry.range.end);
        let dead = end(|_| true, |entry| entry.dead.end);
        let zeros = |len: usize, device| Tensor::f_zeros([len as i64], (Kind::Float, device));

        let mut flat = Self {
            parameters: zeros(live, device)?,
            grads: shared_f32(live, device, communicator)?,
            buffers: zeros(statistics, device)?,
            dead: zeros(dead, Device::Cpu)?,
            batches_tracked: 0,
            rounded: None,
            is_deferred: false,
            by_name: HashMap::new(),
            entries: Vec::new(),
        };
        for (index, mut entry) in entries.into_iter().enumerate() {
            entry.view = flat.view_of(&entry)?;
            flat.by_name.insert(entry.spec.name.clone(), index);
            flat.entries.push(entry);
        }
        Ok(flat)
    }

    fn view_of(&self, entry: &Entry) -> Result<Option<Tensor>> {
        let Entry { spec, range, .. } = entry;
        Ok(match spec.role {
            Role::BatchesTracked => None,
            Role::RunningMean | Role::RunningVar | Role::Fixed => {
                Some(view(&self.buffers, range, &spec.shape))
            }
            _ => {
                let shape = spec.live_shape();
                let parameter = view(&self.parameters, range, &shape);
                let parameter = parameter.detach().set_requires_grad(true);
                torch_ext::set_grad(&parameter, &self.grad_of(entry))?;
                Some(parameter)
            }
        })
    }

    /// From now on, and before layers are made, backward leaves a gradient where it makes it, and
    /// [`Self::ungathered`] says where gradients belong; and layers find weights rounded to `kind` already,
    /// where they compute in that. Batch norm computes in f32 whatever the precision.
    ///
    /// One kernel rounds all weights and one moves all gradients, where each tensor would need two or three:
    /// on a GPU a step of small kernels takes as long as there are kernels. On the CPU convolutions make gradients
    /// where they belong, see [`Self::grad_place`]. What is computed is the same.
    pub fn defer_gradients(&mut self, kind: Option<Kind>) {
        self.is_deferred = true;
        self.rounded = kind.map(|kind| self.parameters.to_kind(kind));
        for entry in self.entries.iter_mut().filter(|entry| entry.spec.role.is_parameter()) {
            let is_norm = matches!(entry.spec.role, Role::NormWeight | Role::NormBias);
            let source = self.rounded.as_ref().filter(|_| !is_norm).unwrap_or(&self.parameters);
            let parameter = view(source, &entry.range, &entry.spec.live_shape());
            entry.view = Some(parameter.detach().set_requires_grad(true));
        }
    }

    /// Has layers read what `parameters` are now.
    pub fn refresh(&self) {
        if let Some(rounded) = &self.rounded {
            tch::no_grad(|| rounded.shallow_clone().copy_(&self.parameters));
        }
    }

    /// Prepares for the gradients of a step: where backward adds them up, they begin at zero.
    pub fn clear_gradients(&self) {
        if !self.is_deferred {
            let _ = self.grads.shallow_clone().zero_();
        }
    }

    /// Of each parameter, in the order of the flat buffer, where backward leaves its gradient and the part
    /// of `grads` that it belongs in; none where it adds to `grads` itself.
    pub fn ungathered(&self) -> Vec<(Tensor, Tensor)> {
        if !self.is_deferred {
            return Vec::new();
        }
        let pairs = self
            .in_flat_order()
            .into_iter()
            .filter_map(|entry| Some((entry.view.as_ref()?.shallow_clone(), self.grad_of(entry))));
        pairs.collect()
    }

    fn grad_of(&self, Entry { spec, range, .. }: &Entry) -> Tensor {
        view(&self.grads, range, &spec.live_shape())
    }

    /// The part of `grads` in which a convolution on the CPU can make the gradient of this kernel, so that nobody
    /// has to move it; none where backward adds to it, or layers read rounded weights.
    pub fn grad_place(&self, name: &str) -> Option<Tensor> {
        let can_be_made_there =
            self.is_deferred && self.rounded.is_none() && self.grads.device() == Device::Cpu;
        let entry = self.entry(name);
        (can_be_made_there && entry.spec.role.is_parameter()).then(|| self.grad_of(entry))
    }

    /// The padding with which the live part of a kernel does what the whole one would do with
    /// `padding`.
    pub fn padding(&self, name: &str, padding: usize) -> usize {
        padding - self.entry(name).spec.live.as_ref().map_or(0, |taps| taps.rows.start)
    }

    fn entry(&self, name: &str) -> &Entry {
        match self.by_name.get(name) {
            Some(&index) => &self.entries[index],
            None => panic!("the network has no tensor {name}"),
        }
    }

    /// The tensor of this name, as a layer uses it: of a kernel, the live part.
    ///
    /// # Panics
    /// When the network has no such tensor: its description and its layers disagree.
    pub fn tensor(&self, name: &str) -> Tensor {
        match &self.entry(name).view {
            Some(view) => view.shallow_clone(),
            None => panic!("{name} is a counter"),
        }
    }

    /// The parameters as layers use them, in the order of the flat buffer.
    pub fn parameters_in_flat_order(&self) -> impl Iterator<Item = &Tensor> {
        self.in_flat_order().into_iter().filter_map(|entry| entry.view.as_ref())
    }

    /// Where the parameters lie, in the order of the flat buffer.
    pub fn extents(&self) -> Vec<Extent<'_>> {
        let extents = self.in_flat_order().into_iter();
        let extents = extents.map(|Entry { spec, range, dead, .. }| Extent {
            spec,
            live: range.clone(),
            dead: dead.clone(),
        });
        extents.collect()
    }

    fn in_flat_order(&self) -> Vec<&Entry> {
        let mut parameters: Vec<_> = self.parameters_of().collect();
        parameters.sort_by_key(|entry| entry.range.start);
        parameters
    }

    fn parameters_of(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|entry| entry.spec.role.is_parameter())
    }

    /// Description of every tensor of the state dict, in its order.
    pub fn specs(&self) -> impl Iterator<Item = &TensorSpec> {
        self.entries.iter().map(|entry| &entry.spec)
    }

    /// The network's numbers, in the same memory.
    pub fn storage(&self) -> Storage {
        Storage {
            parameters: self.parameters.detach(),
            buffers: self.buffers.shallow_clone(),
            dead: self.dead.shallow_clone(),
        }
    }
}
