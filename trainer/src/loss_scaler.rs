//! Dynamic loss scaling, so that small gradients do not underflow in half precision.
//!
//! The scale doubles after 2,000 consecutive steps without overflow, and halves when a gradient overflows;
//! that step is skipped. All of it happens on the device, so the host does not wait. Ranks see the same sum
//! of gradients, so they agree without communication.

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};
use torch_ext::unscale;

use crate::Result;

const INITIAL_SCALE: f32 = 65536.0;
const GROWTH_FACTOR: f64 = 2.0;
const BACKOFF_FACTOR: f64 = 0.5;
const GROWTH_INTERVAL: i64 = 2000;

/// The smallest useful scale, which is the smallest positive number of half precision. Gradients that
/// overflow at a smaller scale are not finite without scaling either.
pub const MIN_SCALE: f64 = 1.0 / (1 << 24) as f64;

/// The state of a [`LossScaler`], as saved in checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossScalerState {
    /// The factor by which losses are multiplied.
    pub scale: f32,
    /// Number of consecutive steps without overflow since the scale last changed.
    pub growth_tracker: i32,
}

impl Default for LossScalerState {
    fn default() -> Self {
        Self { scale: INITIAL_SCALE, growth_tracker: 0 }
    }
}

/// Scales losses, and detects gradients that overflow.
///
/// Source: Micikevicius et al., Mixed Precision Training, ICLR 2018; the numbers are those of
/// `torch.amp.GradScaler`.
pub struct LossScaler {
    /// 0-d f32.
    scale: Tensor,
    /// 0-d i32.
    growth_tracker: Tensor,
    /// 0-d f32: 1 when the last gradients were not finite, else 0.
    found_inf: Tensor,
}

impl LossScaler {
    /// Creates a scaler on `device` that continues from `state`.
    pub fn new(state: LossScalerState, device: Device) -> Self {
        let number = |value: f64, kind| Tensor::full([0i64; 0], value, (kind, device));
        Self {
            scale: number(state.scale.into(), Kind::Float),
            growth_tracker: number(state.growth_tracker.into(), Kind::Int),
            found_inf: number(0.0, Kind::Float),
        }
    }

    /// Returns `loss` times the scale.
    pub fn scale(&self, loss: &Tensor) -> Tensor {
        loss * &self.scale
    }

    /// Divides `grads`, `[n]` f32, by the scale, in place. Returns a 0-d f32 tensor, 1 if an element is not
    /// finite and else 0, which the next call overwrites.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn unscale(&mut self, grads: &Tensor) -> Result<&Tensor> {
        let _ = self.found_inf.zero_();
        unscale(grads, &self.found_inf, &self.scale.reciprocal())?;
        Ok(&self.found_inf)
    }

    /// Returns a copy of the flag that [`Self::unscale`] returned last.
    pub fn found_inf(&self) -> Tensor {
        self.found_inf.copy()
    }

    /// Adapts the scale to the flag that [`Self::unscale`] returned last.
    pub fn update(&mut self) {
        let Self { scale, growth_tracker, found_inf } = self;
        let (growth, backoff) = (GROWTH_FACTOR, BACKOFF_FACTOR);
        let _ = scale.internal_amp_update_scale_(
            growth_tracker,
            found_inf,
            growth,
            backoff,
            GROWTH_INTERVAL,
        );
    }

    /// Returns the current state. Waits for the device.
    pub fn state(&self) -> LossScalerState {
        LossScalerState {
            scale: self.scale.double_value(&[]) as f32,
            growth_tracker: self.growth_tracker.int64_value(&[]) as i32,
        }
    }
}
