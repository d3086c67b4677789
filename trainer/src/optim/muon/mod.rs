//! Muon: orthogonalized momentum for weight matrices, and another optimizer for all other parameters.

mod plan;

use std::ops::Range;
use std::sync::Arc;

use comm::Communicator;
use job::config::{AdjustLr, AuxOptimizer};
use job::network::{Role, TensorSpec};
use tch::{Kind, Tensor};

use super::adamw::{self, AdamW};
use super::groups::{Group, slice};
use super::rule::{Rule, StateBuffer, StepInputs};
use super::sgd::Sgd;
use crate::Result;
use crate::arithmetic::Arithmetic;
use crate::flat::{Flat, shared_bf16};
use plan::Plan;

/// Muon, and the auxiliary optimizer of the other parameters.
pub(super) struct Muon {
    momentum: f64,
    nesterov: bool,
    ns_steps: i64,
    arithmetic: Arithmetic,
    normalize_weights: bool,
    weight_decay: f64,
    matrices: Vec<Matrix>,
    /// The groups of the matrices, for the weight decay of their dead taps.
    groups: Vec<Group>,
    buffer: Tensor,
    plan: Plan,
    /// `[plan.len()]` bf16: the orthogonalized updates, at the ranges in the plan.
    updates: Tensor,
    communicator: Option<Arc<dyn Communicator>>,
    aux: Box<dyn Rule>,
    /// Factor of the learning rate for `aux`.
    aux_lr: f64,
}

/// The weight of a convolution or linear layer, seen as a matrix `[outputs, inputs * live taps]`.
struct Matrix {
    range: Range<usize>,
    rows: usize,
    /// Factor of the learning rate.
    lr: f64,
}

impl Muon {
    /// Creates Muon with zero state. Its matrices are the weights of convolutions and linear layers except
    /// the classifier's.
    pub fn new(config: &job::config::Optimizer, flat: &Flat) -> Self {
        let classifier = flat.specs().filter(|spec| spec.role == Role::Weight).last();
        let classifier = classifier.map_or("", |spec| spec.name.as_str());
        let is_matrix = |spec: &TensorSpec| spec.role == Role::Weight && spec.name != classifier;
        let adjust = config.adjust_lr();
        let extents = flat.extents().into_iter();
        let matrices =
            extents.filter(|extent| is_matrix(extent.spec) && !config.freezes(extent.spec));
        let matrices = matrices.map(|extent| Matrix {
            range: extent.live,
            rows: extent.spec.shape[0],
            lr: rate_of_shape(adjust, extent.spec),
        });
        let matrices: Vec<_> = matrices.collect();
        let plan = Plan::new(&matrices.iter().map(Matrix::shape).collect::<Vec<_>>(), 1);
        let aux_decay = config.aux_weight_decay();
        let others = Group::all(config, aux_decay, flat, |spec| !is_matrix(spec));
        let aux: Box<dyn Rule> = match config.aux() {
            AuxOptimizer::Adamw => Box::new(AdamW::new(config, others, flat)),
            AuxOptimizer::Sgd => Box::new(Sgd::new(config.aux_momentum(), true, others, flat)),
        };
        Self {
            momentum: config.momentum(),
            nesterov: config.nesterov(),
            ns_steps: config.ns_steps(),
            arithmetic: Arithmetic::Bf16,
            normalize_weights: config.normalize_weights(),
            weight_decay: config.weight_decay,
            groups: Group::all(config, config.weight_decay, flat, is_matrix),
            matrices,
            buffer: flat.parameters.zeros_like(),
            updates: Tensor::zeros([plan.len() as i64], (Kind::BFloat16, flat.parameters.device())),
            plan,
            communicator: None,
            aux,
            aux_lr: config.aux_lr() / config.lr,
        }
    }

    /// Updates the momentum, and fills `updates` with the orthogonalized directions: computes those of this
    /// rank's matrices, and gathers those of all ranks.
    fn orthogonalize(&mut self, grads: &Tensor) -> Result<()> {
        let rank = self.communicator.as_ref().map_or(0, |communicator| communicator.rank());
        for (index, matrix) in self.matrices.iter().enumerate() {
            let (grad, mut buffer) =
                (slice(grads, &matrix.range), slice(&self.buffer, &matrix.range));
            let _ = buffer.lerp_(&grad, 1.0 - self.momentum);
            if self.plan.owner(index) != rank {
                continue;
            }
            let direction = if self.nesterov { grad.lerp(&buffer, self.momentum) } else { buffer };
            let out = slice(&self.updates, &self.plan.range(index));
            let shape = matrix.shape().map(|size| size as i64);
            let is_bf16 = self.arithmetic == Arithmetic::Bf16;
            let (direction, out) = (direction.view(shape), out.view(shape));
            torch_ext::newton_schulz(&direction, &out, self.ns_steps, is_bf16)?;
        }
        if let Some(communicator) = &self.communicator {
            torch_ext::collective::all_gather(&**communicator, &mut self.updates)?;
        }
        Ok(())
    }
}

impl Matrix {
    fn shape(&self) -> [usize; 2] {
        [self.rows, self.range.len() / self.rows.max(1)]
    }
}

/// Returns the factor of the learning rate for a tensor, seen as a matrix that includes dead taps.
fn rate_of_shape(adjust: AdjustLr, spec: &TensorSpec) -> f64 {
    let rows = spec.shape[0] as f64;
    let columns = spec.len() as f64 / rows;
    match adjust {
        AdjustLr::None => 1.0,
        AdjustLr::Original => (rows / columns).max(1.0).sqrt(),
        AdjustLr::MatchRmsAdamw => 0.2 * rows.max(columns).sqrt(),
    }
}

impl Rule for Muon {
    /// Source: Jordan et al., Muon, 2024; conventions are those of PyTorch's `torch.optim.Muon`, and with
    /// `normalize_weights` those of airbench.
    fn step(&mut self, flat: &Flat, inputs: &StepInputs<'_>) -> Result<()> {
        self.orthogonalize(&inputs.scaled_grads(flat))?;
        for (index, matrix) in self.matrices.iter().enumerate() {
            let mut weights = slice(&flat.parameters, &matrix.range);
            if self.normalize_weights {
                let _ = weights.g_mul_(&((matrix.rows as f64).sqrt() / weights.norm()));
            }
            if self.weight_decay > 0.0 {
                let _ = match inputs.device_inputs.lr {
                    Some(lr) => weights.g_mul_(&(1.0 - lr * self.weight_decay)),
                    None => weights.g_mul_scalar_(1.0 - inputs.lr * self.weight_decay),
                };
            }
            let update = slice(&self.updates, &self.plan.range(index)).to_kind(Kind::Float);
            let _ = weights.g_sub_(&inputs.times_lr(&update, matrix.lr));
        }
        inputs.at_rate(self.aux_lr, |inputs| self.aux.step(flat, inputs))
    }

    fn replay(&mut self, dead: &Tensor, lrs: &[f64]) {
        if self.normalize_weights {
            assert_eq!(dead.numel(), 0, "normalized weights need whole tensors");
        }
        adamw::decay(&self.groups, dead, lrs);
        let lrs: Vec<_> = lrs.iter().map(|lr| lr * self.aux_lr).collect();
        self.aux.replay(dead, &lrs);
    }

    fn compute_in(&mut self, arithmetic: Arithmetic) {
        self.arithmetic = arithmetic;
    }

    fn share_work(&mut self, communicator: &Arc<dyn Communicator>) -> Result<()> {
        let shapes: Vec<_> = self.matrices.iter().map(Matrix::shape).collect();
        self.plan = Plan::new(&shapes, communicator.world_size());
        self.updates = shared_bf16(self.plan.len(), self.buffer.device(), &**communicator)?;
        self.communicator = Some(Arc::clone(communicator));
        Ok(())
    }

    fn state(&self) -> Vec<StateBuffer<'_>> {
        let mut state =
            vec![StateBuffer { name: "muon_momentum_buffer", live: &self.buffer, dead: None }];
        state.extend(self.aux.state());
        state
    }
}
