//! Flat storage: one buffer each for all parameters, all gradients and all running statistics.
//!
//! Each tensor of the network is a view into its buffer. Parameters lie in the order in which backward
//! computes their gradients, the last layer first, except that those whose odd lengths would misalign the
//! rest, such as the bias of ten classes, come at the end. So a bucket of gradients is a slice, an
//! optimizer step is one call, and a broadcast is one call. Convolution weights lie in channels-last order,
//! in which libtorch's convolutions are fastest; files have the usual order.
//!
//! Dead taps, those of a kernel that never see a pixel ([`job::network::Taps`]), are stored separately from
//! the live ones: they are neither convolved, communicated nor updated in a step. Weight decay changes them
//! nonetheless, and files contain them, so that a checkpoint is the same as if all taps were trained.

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

/// The parameters, gradients and running statistics of a network in flat buffers. In shapes, `live` is the
/// number of elements of parameters without dead taps.
pub struct Flat {
    /// `[live]` f32, on the device: the parameters without dead taps.
    pub parameters: Tensor,
    /// `[live]` f32, on the device: the gradients, which backward adds or writes here, or which are
    /// gathered here after it. In memory that the communicator can reduce without a copy, if it has such
    /// memory.
    pub grads: Tensor,
    /// `[buffers]` f32, on the device: running means and variances, and weights that are never trained.
    pub buffers: Tensor,
    /// `[dead]` f32, on the CPU: whole kernels, of those that have dead taps. Only the dead taps in them are
    /// meaningful.
    pub dead: Tensor,
    /// Number of training batches that batch norm has seen (`num_batches_tracked`).
    pub batches_tracked: i64,
    /// `[live]`: a copy of `parameters` in 16 bits that layers read; `None` if they read `parameters` itself.
    rounded: Option<Tensor>,
    /// Whether [`Self::defer_gradients`] was called.
    is_deferred: bool,
    entries: Vec<Entry>,
    by_name: HashMap<String, usize>,
}

/// Parameters and running statistics of a network, in the layout of a [`Flat`].
pub struct Storage {
    /// `[live]` f32, on the device.
    pub parameters: Tensor,
    /// `[buffers]` f32, on the device.
    pub buffers: Tensor,
    /// `[dead]` f32, on the CPU.
    pub dead: Tensor,
}

impl Storage {
    /// Returns a deep copy.
    pub fn copy(&self) -> Self {
        let Self { parameters, buffers, dead } = self;
        Self { parameters: parameters.copy(), buffers: buffers.copy(), dead: dead.copy() }
    }

    /// Copies the values of `other`, which must have the same layout.
    pub fn copy_from(&mut self, other: &Self) {
        self.parameters.copy_(&other.parameters);
        self.buffers.copy_(&other.buffers);
        self.dead.copy_(&other.dead);
    }
}

impl Flat {
    /// Allocates zeroed storage for `tensors` on `device`, with gradients attached to the parameters.
    /// `tensors` are in the order of the state dict. Collective.
    ///
    /// # Errors
    /// When memory is short, or a peer is gone or late.
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

    /// From now on, backward leaves each gradient at its parameter instead of adding it to `grads`, and
    /// [`Self::deferred_gradients`] returns where gradients are to be moved. With `kind`, layers also read
    /// weights that are already rounded to `kind`, except those of batch norm, which computes in f32 in any
    /// precision. To be called before layers are built.
    ///
    /// One kernel then rounds all weights and one moves all gradients, where each tensor would need two or
    /// three: the time of a GPU step of small kernels is proportional to their number. On the CPU
    /// convolutions write gradients directly into `grads`, see [`Self::grad_view`]. The results are the
    /// same.
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

    /// Updates the rounded copy that layers read from `parameters`, if there is one.
    pub fn refresh(&self) {
        if let Some(rounded) = &self.rounded {
            tch::no_grad(|| rounded.shallow_clone().copy_(&self.parameters));
        }
    }

    /// Sets the gradients to zero before a step, if backward accumulates them in `grads`.
    pub fn clear_gradients(&self) {
        if !self.is_deferred {
            let _ = self.grads.shallow_clone().zero_();
        }
    }

    /// Returns for each parameter, in the order of the flat buffer, the leaf tensor at which backward
    /// leaves the gradient and the view of `grads` to which it is to be moved. Empty if backward adds to
    /// `grads` itself.
    pub fn deferred_gradients(&self) -> Vec<(Tensor, Tensor)> {
        if !self.is_deferred {
            return Vec::new();
        }
        let pairs = self
            .parameter_entries_in_flat_order()
            .into_iter()
            .filter_map(|entry| Some((entry.view.as_ref()?.shallow_clone(), self.grad_of(entry))));
        pairs.collect()
    }

    fn grad_of(&self, Entry { spec, range, .. }: &Entry) -> Tensor {
        view(&self.grads, range, &spec.live_shape())
    }

    /// Returns the view of `grads` into which a convolution on the CPU can write the gradient of the kernel
    /// `name` directly, so that it need not be moved. Returns `None` on a GPU, if backward adds to `grads`,
    /// or if layers read rounded weights.
    pub fn grad_view(&self, name: &str) -> Option<Tensor> {
        let can_be_made_there =
            self.is_deferred && self.rounded.is_none() && self.grads.device() == Device::Cpu;
        let entry = self.entry(name);
        (can_be_made_there && entry.spec.role.is_parameter()).then(|| self.grad_of(entry))
    }

    /// Returns the padding with which the live part of the kernel `name` computes the same as the whole
    /// kernel with `padding`.
    pub fn padding(&self, name: &str, padding: usize) -> usize {
        padding - self.entry(name).spec.live.as_ref().map_or(0, |taps| taps.rows.start)
    }

    fn entry(&self, name: &str) -> &Entry {
        match self.by_name.get(name) {
            Some(&index) => &self.entries[index],
            None => panic!("the network has no tensor {name}"),
        }
    }

    /// Returns the tensor `name` as a layer uses it; for a kernel with dead taps, only the live part.
    ///
    /// # Panics
    /// When the network has no such tensor, so that its description and its layers disagree.
    pub fn tensor(&self, name: &str) -> Tensor {
        match &self.entry(name).view {
            Some(view) => view.shallow_clone(),
            None => panic!("{name} is a counter"),
        }
    }

    /// Returns the parameters as layers use them, in the order of the flat buffer.
    pub fn parameters_in_flat_order(&self) -> impl Iterator<Item = &Tensor> {
        self.parameter_entries_in_flat_order().into_iter().filter_map(|entry| entry.view.as_ref())
    }

    /// Returns the ranges of all parameters in the flat buffers, in the order of the flat buffer.
    pub fn extents(&self) -> Vec<Extent<'_>> {
        let extents = self.parameter_entries_in_flat_order().into_iter();
        let extents = extents.map(|Entry { spec, range, dead, .. }| Extent {
            spec,
            live: range.clone(),
            dead: dead.clone(),
        });
        extents.collect()
    }

    fn parameter_entries_in_flat_order(&self) -> Vec<&Entry> {
        let mut parameters: Vec<_> = self.parameter_entries().collect();
        parameters.sort_by_key(|entry| entry.range.start);
        parameters
    }

    fn parameter_entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|entry| entry.spec.role.is_parameter())
    }

    /// Returns the description of every tensor, in the order of the state dict.
    pub fn specs(&self) -> impl Iterator<Item = &TensorSpec> {
        self.entries.iter().map(|entry| &entry.spec)
    }

    /// Returns the parameters and running statistics, sharing the same memory.
    pub fn storage(&self) -> Storage {
        Storage {
            parameters: self.parameters.detach(),
            buffers: self.buffers.shallow_clone(),
            dead: self.dead.shallow_clone(),
        }
    }
}
