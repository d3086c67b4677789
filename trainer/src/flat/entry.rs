//! The place of each tensor in the flat buffers, and conversion from and to whole tensors.

use std::ops::Range;

use job::network::{Role, Taps, TensorSpec};
use tch::{Device, Kind, Tensor};

/// Number of f32 elements in 64 bytes, the size of a cache line and of the longest vector register.
const ALIGNED_LEN: usize = 16;

/// The place of a parameter in the flat buffers.
pub struct Extent<'a> {
    /// The description of the parameter.
    pub spec: &'a TensorSpec,
    /// Its range in `parameters` and in buffers of the same layout.
    pub live: Range<usize>,
    /// Its range in `dead`; empty if it has no dead taps.
    pub dead: Range<usize>,
}

/// A tensor of the network and its place in the flat buffers.
pub(super) struct Entry {
    pub spec: TensorSpec,
    /// The tensor's range in `parameters` or `buffers`, depending on its role.
    pub range: Range<usize>,
    /// The tensor's range in `dead`; empty if it has no dead taps.
    pub dead: Range<usize>,
    /// The view that layers use; `None` for the counter of batches.
    pub view: Option<Tensor>,
}

impl Entry {
    fn unplaced(spec: TensorSpec) -> Self {
        Self { spec, range: 0..0, dead: 0..0, view: None }
    }

    pub fn size(&self) -> Vec<i64> {
        self.spec.shape.iter().map(|&size| size as i64).collect()
    }

    fn has_dead_taps(&self) -> bool {
        !self.dead.is_empty()
    }

    /// Returns the whole tensor as a contiguous copy on the CPU, in the usual order of elements. `live`: a
    /// buffer in the layout of `parameters` or `buffers`. Without `dead`, dead taps are zero.
    pub fn assemble(&self, live: &Tensor, dead: Option<&Tensor>) -> Tensor {
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

    /// Copies the whole tensor `full` into the buffers, from which [`Self::assemble`] returns it.
    pub fn scatter(&self, full: &Tensor, live: &Tensor, dead: &Tensor) {
        self.scatter_live(full, live);
        if self.has_dead_taps() {
            tch::no_grad(|| view(dead, &self.dead, &self.spec.shape).copy_(full));
        }
    }

    pub fn scatter_live(&self, full: &Tensor, live: &Tensor) {
        let mut target = view(live, &self.range, &self.spec.live_shape());
        tch::no_grad(|| target.copy_(&self.live_part(full)));
    }

    pub fn dead_taps_are_zero(&self, full: &Tensor) -> bool {
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

/// Assigns every tensor its ranges in the flat buffers, from the last tensor to the first, those that would
/// misalign others at the end. Returns the entries in the order of `tensors`, which is that of the state
/// dict.
pub(super) fn lay_out(tensors: Vec<TensorSpec>) -> Vec<Entry> {
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

/// Returns by how many factors of two a tensor's length reduces the 64-byte alignment of the tensors behind
/// it. Tensors with the largest loss come last, so that all others are aligned for vector loads and for
/// cuDNN, which rejects tensors that do not start at a multiple of 16 bytes.
fn alignment_loss(spec: &TensorSpec) -> u32 {
    let len = if spec.role.is_parameter() { spec.live_len() } else { spec.len() };
    ALIGNED_LEN.trailing_zeros().saturating_sub(len.trailing_zeros())
}

/// Returns `range` of a flat buffer as a view of the given shape. Four-dimensional tensors, the weights of
/// convolutions, are stored in channels-last order.
pub(super) fn view(flat: &Tensor, range: &Range<usize>, shape: &[usize]) -> Tensor {
    let part = flat.narrow(0, range.start as i64, range.len() as i64);
    match *shape {
        [out, inputs, height, width] => {
            let stored = [out, height, width, inputs].map(|size| size as i64);
            part.view(stored).permute([0, 3, 1, 2])
        }
        _ => part.view(shape.iter().map(|&size| size as i64).collect::<Vec<_>>().as_slice()),
    }
}
