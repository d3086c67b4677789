//! Where each tensor lies, and how it is taken out and put back.

use std::ops::Range;

use job::network::{Role, Taps, TensorSpec};
use tch::{Device, Kind, Tensor};

/// Elements of f32 in 64 bytes, which are a cache line and the longest vector.
const ALIGNED_LEN: usize = 16;

/// Where a parameter lies.
pub struct Extent<'a> {
    /// What it is.
    pub spec: &'a TensorSpec,
    /// In `parameters` and whatever is laid out like it.
    pub live: Range<usize>,
    /// In `dead`; empty where all taps live.
    pub dead: Range<usize>,
}

/// A tensor and its extents.
pub(super) struct Entry {
    pub spec: TensorSpec,
    /// In `parameters` or `buffers`, by the role.
    pub range: Range<usize>,
    /// In `dead`; empty where all taps live.
    pub dead: Range<usize>,
    /// The tensor that layers use; none for the counter of batches.
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

    /// A contiguous CPU tensor of its own, in the usual order of elements.
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

    /// Puts a tensor where [`Self::assemble`] finds it.
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

/// Gives every tensor its place: from the last to the first, in `entries` as they came, which is the
/// state dict's order.
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

/// By how many halvings a tensor would misalign those behind it: such tensors come last, so that vector
/// loads can reach all others, and cuDNN takes them, which refuses what does not start at 16 bytes.
fn alignment_loss(spec: &TensorSpec) -> u32 {
    let len = if spec.role.is_parameter() { spec.live_len() } else { spec.len() };
    ALIGNED_LEN.trailing_zeros().saturating_sub(len.trailing_zeros())
}

/// The part `range` of a flat buffer with a shape; a convolution's weight in channels-last order.
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
