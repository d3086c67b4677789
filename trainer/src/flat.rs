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

use std::collections::HashMap;
use std::ops::Range;

use comm::Communicator;
use job::network::{Role, Taps, TensorSpec};
use tch::{Device, Kind, Tensor};

use crate::{Result, TrainError};

/// Elements of f32 in 64 bytes, which are a cache line and the longest vector.
const ALIGNED_LEN: usize = 16;

/// A network's numbers.
pub struct Flat {
    /// `[live]` f32, on the device: the parameters that see pixels.
    pub parameters: Tensor,
    /// `[live]` f32: where backward adds gradients. In memory that the communicator can
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

/// Where a parameter lies.
pub struct Place<'a> {
    /// What it is.
    pub spec: &'a TensorSpec,
    /// In `parameters` and whatever is laid out like it.
    pub live: Range<usize>,
    /// In `dead`; empty where all taps live.
    pub dead: Range<usize>,
}

struct Entry {
    spec: TensorSpec,
    /// In `parameters` or `buffers`, by the role.
    range: Range<usize>,
    /// In `dead`; empty where all taps live.
    dead: Range<usize>,
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

    fn view_of(&self, Entry { spec, range, .. }: &Entry) -> Result<Option<Tensor>> {
        Ok(match spec.role {
            Role::BatchesTracked => None,
            Role::RunningMean | Role::RunningVar | Role::Fixed => {
                Some(view(&self.buffers, range, &spec.shape))
            }
            _ => {
                let shape = spec.live_shape();
                let parameter = view(&self.parameters, range, &shape);
                let parameter = parameter.detach().set_requires_grad(true);
                torch_ext::set_grad(&parameter, &view(&self.grads, range, &shape))?;
                Some(parameter)
            }
        })
    }

    /// From now on, and before layers are made, backward leaves a gradient where it makes it, and
    /// [`Self::ungathered`] says where gradients belong; and layers find weights rounded to `kind` already,
    /// where they compute in that. Batch norm computes in f32 whatever the precision.
    ///
    /// One kernel rounds all weights and one moves all gradients, where each tensor would need two or three:
    /// on a GPU a step of small kernels takes as long as there are kernels. What is computed is the same.
    pub fn defer_gradients(&mut self, kind: Option<Kind>) {
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

    /// Of each parameter, in the order of the flat buffer, where backward leaves its gradient and the part
    /// of `grads` that it belongs in; none where it adds to `grads` itself.
    pub fn ungathered(&self) -> Vec<(Tensor, Tensor)> {
        let pairs = self.in_flat_order().into_iter().filter_map(|entry| {
            let leaf = entry.view.as_ref().filter(|leaf| !leaf.grad().defined())?;
            Some((leaf.shallow_clone(), view(&self.grads, &entry.range, &entry.spec.live_shape())))
        });
        pairs.collect()
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
    pub fn places(&self) -> Vec<Place<'_>> {
        let places = self.in_flat_order().into_iter();
        let places = places.map(|Entry { spec, range, dead, .. }| Place {
            spec,
            live: range.clone(),
            dead: dead.clone(),
        });
        places.collect()
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

    /// The whole state dict on the CPU, in the usual order of elements: PyTorch's keys and shapes.
    pub fn state_dict(&self) -> Vec<(String, Tensor)> {
        self.state_dict_of(&self.storage())
    }

    /// The state dict that `storage` is.
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

    /// Takes over a state dict. Every tensor must be there, with its shape, and no other.
    ///
    /// # Errors
    /// Names every tensor that is missing, unknown or of another shape.
    pub fn load_state_dict(
        &mut self,
        tensors: Vec<(String, Tensor)>,
    ) -> std::result::Result<(), String> {
        self.batches_tracked = self.load_state_dict_into(&self.storage(), tensors)?;
        Ok(())
    }

    /// Fills `storage` with a state dict, as [`Self::load_state_dict`] does, and returns its count of
    /// batches.
    ///
    /// # Errors
    /// Those of [`Self::load_state_dict`].
    pub fn load_state_dict_into(
        &self,
        storage: &Storage,
        tensors: Vec<(String, Tensor)>,
    ) -> std::result::Result<i64, String> {
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
                    problems.push(format!("{name} is {found:?} instead of {wanted:?}"));
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

    /// Of a pair of buffers laid out like `parameters` and `dead`, the tensor of each parameter, on
    /// the CPU. Without `dead`, dead taps are zero.
    pub fn assemble(&self, live: &Tensor, dead: Option<&Tensor>) -> Vec<(String, Tensor)> {
        let named =
            self.parameters_of().map(|entry| (entry.spec.name.clone(), entry.assemble(live, dead)));
        named.collect()
    }

    /// The opposite of [`Self::assemble`]: fills the buffers with `tensor(name)` of each parameter.
    ///
    /// # Errors
    /// Names the first parameter whose tensor is missing or of another shape, or is not zero in dead
    /// taps where there is no `dead` to keep them.
    pub fn scatter(
        &self,
        live: &Tensor,
        dead: Option<&Tensor>,
        mut tensor: impl FnMut(&str) -> Option<Tensor>,
    ) -> std::result::Result<(), String> {
        for entry in self.parameters_of() {
            let name = &entry.spec.name;
            let given = tensor(name).ok_or_else(|| format!("{name} is missing"))?;
            if given.size() != entry.size() {
                return Err(format!("{name} is {:?}", given.size()));
            }
            match dead {
                Some(dead) => entry.scatter(&given, live, dead),
                None if entry.dead_taps_are_zero(&given) => entry.scatter_live(&given, live),
                None => return Err(format!("{name} is not zero where no pixel is ever seen")),
            }
        }
        Ok(())
    }
}

impl Entry {
    fn unplaced(spec: TensorSpec) -> Self {
        Self { spec, range: 0..0, dead: 0..0, view: None }
    }

    fn size(&self) -> Vec<i64> {
        self.spec.shape.iter().map(|&size| size as i64).collect()
    }

    fn has_dead_taps(&self) -> bool {
        !self.dead.is_empty()
    }

    /// A contiguous CPU tensor of its own, in the usual order of elements.
    fn assemble(&self, live: &Tensor, dead: Option<&Tensor>) -> Tensor {
        tch::no_grad(|| {
            let live = view(live, &self.range, &self.spec.live_shape()).to_device(Device::Cpu);
            if !self.has_dead_taps() {
                return live.contiguous().copy();
            }
            let full = match dead {
                Some(dead) => view(dead, &self.dead, &self.spec.shape).contiguous().copy(),
                None => Tensor::zeros(self.size(), (Kind::Float, Device::Cpu)),
            };
            self.live_part(&full).copy_(&live);
            full
        })
    }

    /// Puts a tensor where [`Self::assemble`] finds it.
    fn scatter(&self, full: &Tensor, live: &Tensor, dead: &Tensor) {
        self.scatter_live(full, live);
        if self.has_dead_taps() {
            tch::no_grad(|| view(dead, &self.dead, &self.spec.shape).copy_(full));
        }
    }

    fn scatter_live(&self, full: &Tensor, live: &Tensor) {
        let mut target = view(live, &self.range, &self.spec.live_shape());
        tch::no_grad(|| target.copy_(&self.live_part(full)));
    }

    fn dead_taps_are_zero(&self, full: &Tensor) -> bool {
        let rest = full.copy();
        let _ = self.live_part(&rest).zero_();
        rest.count_nonzero(None::<i64>).int64_value(&[]) == 0
    }

    fn live_part(&self, full: &Tensor) -> Tensor {
        match &self.spec.live {
            None => full.shallow_clone(),
            Some(Taps { rows, columns }) => full
                .narrow(2, rows.start as i64, rows.len() as i64)
                .narrow(3, columns.start as i64, columns.len() as i64),
        }
    }
}

/// Gives every tensor its place: from the last to the first, in `entries` as they came, which is the
/// state dict's order.
fn lay_out(tensors: Vec<TensorSpec>) -> Vec<Entry> {
    let (mut parameters, mut buffers, mut dead) = (0, 0, 0);
    let take = |next: &mut usize, len: usize| {
        *next += len;
        *next - len..*next
    };
    let mut order: Vec<usize> = (0..tensors.len()).rev().collect();
    order.sort_by_key(|&index| alignment_loss(&tensors[index]));
    let mut entries: Vec<_> = tensors.into_iter().map(Entry::unplaced).collect();
    for index in order {
        let entry = &mut entries[index];
        let spec = &entry.spec;
        entry.range = match spec.role {
            Role::BatchesTracked => 0..0,
            Role::RunningMean | Role::RunningVar | Role::Fixed => take(&mut buffers, spec.len()),
            _ => take(&mut parameters, spec.live_len()),
        };
        entry.dead = take(&mut dead, if spec.live.is_some() { spec.len() } else { 0 });
    }
    entries
}

/// By how many halvings a tensor would misalign those behind it: such tensors come last, so that vector
/// loads can reach all others, and cuDNN takes them, which refuses what does not start at 16 bytes.
fn alignment_loss(spec: &TensorSpec) -> u32 {
    let len = if spec.role.is_parameter() { spec.live_len() } else { spec.len() };
    ALIGNED_LEN.trailing_zeros().saturating_sub(len.trailing_zeros())
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

/// `[len]` f32 zeros on the device, in memory that the communicator can reduce without a copy, where
/// it has such memory. Collective.
pub(crate) fn shared_f32(
    len: usize,
    device: Device,
    communicator: &dyn Communicator,
) -> Result<Tensor> {
    if device == Device::Cpu
        && let Some(memory) = communicator.alloc_shared(len * size_of::<f32>())?
    {
        return Ok(torch_ext::tensor_in_shared_memory(memory, len)?);
    }
    Tensor::f_zeros([len as i64], (Kind::Float, device)).map_err(TrainError::from)
}

/// `[len]` bf16, likewise. Collective.
pub(crate) fn shared_bf16(
    len: usize,
    device: Device,
    communicator: &dyn Communicator,
) -> Result<Tensor> {
    let memory = shared_f32(len.div_ceil(2), device, communicator)?;
    Ok(memory.f_view_dtype(Kind::BFloat16)?.narrow(0, 0, len as i64))
}
