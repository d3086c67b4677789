//! One rank's copy of the network.

use std::rc::Rc;

use tch::Device;
use torch_ext::{AutocastDtype, ConvTable};

use crate::Result;
use crate::arithmetic::Arithmetic;
use crate::flat::Flat;
use crate::model::{Mode, Module};

/// A network's tensors and the layers over them.
pub struct Replica {
    /// Parameters, gradients and running statistics.
    pub flat: Flat,
    /// The layers, whose tensors are views into `flat`.
    pub model: Module,
    /// The device of the tensors.
    pub device: Device,
    /// The arithmetic in which layers compute.
    pub arithmetic: Arithmetic,
    /// The methods by which convolutions are computed on the CPU.
    pub convolutions: Rc<ConvTable>,
    /// The mode of training steps; [`Mode::TrainFrozenNorm`] freezes batch norm's statistics.
    pub mode: Mode,
    /// Whether batch norm computes its training statistics over the images of all ranks.
    pub sync_batch_norm: bool,
}

impl Replica {
    /// Creates a replica for training, in which batch norm's statistics are those of this rank's images,
    /// and convolutions are libtorch's.
    pub fn new(flat: Flat, model: Module, arithmetic: Arithmetic) -> Self {
        Self {
            device: flat.parameters.device(),
            flat,
            model,
            arithmetic,
            convolutions: Rc::default(),
            mode: Mode::Train,
            sync_batch_norm: false,
        }
    }

    /// Runs `body`, which calls the layers, in the replica's arithmetic and with its methods of convolution.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn in_precision<T>(&self, body: impl FnOnce(&Module) -> T) -> Result<T> {
        self.flat.refresh();
        self.convolutions.with_table(|| {
            Ok(match self.arithmetic {
                Arithmetic::Fp32 => body(&self.model),
                Arithmetic::Bf16 => self.autocast(AutocastDtype::Bf16, body)?,
                Arithmetic::Fp16 => self.autocast(AutocastDtype::Fp16, body)?,
            })
        })
    }

    fn autocast<T>(&self, dtype: AutocastDtype, body: impl FnOnce(&Module) -> T) -> Result<T> {
        Ok(torch_ext::autocast(self.device, dtype, || body(&self.model))?)
    }
}
