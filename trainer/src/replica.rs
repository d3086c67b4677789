//! One rank's copy of the network.

use std::rc::Rc;

use tch::Device;
use torch_ext::{AutocastDtype, ConvTable};

use crate::Result;
use crate::arithmetic::Arithmetic;
use crate::flat::Flat;
use crate::model::{Mode, Module};

/// The numbers and the layers over them.
pub struct Replica {
    /// Its numbers.
    pub flat: Flat,
    /// Its layers.
    pub model: Module,
    /// Where both are.
    pub device: Device,
    /// What the layers compute in.
    pub arithmetic: Arithmetic,
    /// How its convolutions are computed.
    pub convolutions: Rc<ConvTable>,
    /// Of training steps: [`Mode::TrainFrozenNorm`] freezes batch norm's statistics.
    pub mode: Mode,
    /// Whether batch norm's statistics are those of all ranks' images.
    pub sync_batch_norm: bool,
}

impl Replica {
    /// The layers over `flat`, computed in `arithmetic`: for training, each rank with statistics of its own
    /// images, and libtorch's convolutions.
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

    /// Runs `body`, which calls the layers, in its arithmetic.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn in_precision<T>(&self, body: impl FnOnce(&Module) -> T) -> Result<T> {
        self.flat.refresh();
        self.convolutions.in_use(|| {
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
