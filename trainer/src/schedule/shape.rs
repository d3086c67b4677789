//! The shape of a schedule, without its warm-up.

use job::config::{Schedule, ScheduleName, Unit};

/// The position on which a shape depends.
pub(super) struct Input {
    /// Number of steps taken.
    pub steps: u64,
    /// Number of completed epochs.
    pub epochs: u64,
    /// Fraction of the run after the warm-up that is done.
    pub progress: f64,
}

/// Returns the learning rate at `input` of a schedule that starts at `base`, or for `one_cycle` rises to
/// `base`.
///
/// Source: PyTorch's `StepLR`, `MultiStepLR`, `CosineAnnealingLR`, `PolynomialLR`, and `OneCycleLR` with
/// linear annealing.
pub(super) fn rate(schedule: &Schedule, base: f64, input: Input) -> f64 {
    let Input { steps, epochs, progress } = input;
    let count = if schedule.unit() == Unit::Steps { steps } else { epochs };
    let decayed = |times: u64| base * schedule.gamma().powi(times as i32);
    let min_lr = schedule.min_lr();
    match schedule.name {
        ScheduleName::Constant => base,
        ScheduleName::Step => decayed(count / schedule.step_size.unwrap_or(1)),
        ScheduleName::Multistep => {
            let milestones = schedule.milestones.iter().flatten();
            decayed(milestones.filter(|at| **at <= count).count() as u64)
        }
        ScheduleName::Cosine => {
            min_lr + (base - min_lr) * (1.0 + (std::f64::consts::PI * progress).cos()) / 2.0
        }
        ScheduleName::Polynomial => {
            min_lr + (base - min_lr) * (1.0 - progress).powf(schedule.power())
        }
        ScheduleName::OneCycle => base * triangle(schedule, progress),
    }
}

fn triangle(schedule: &Schedule, progress: f64) -> f64 {
    let peak = schedule.pct_start();
    let between = |from: f64, to: f64, done: f64| from + (to - from) * done;
    if progress < peak {
        return between(schedule.start_factor(), 1.0, progress / peak);
    }
    let down = if peak < 1.0 { (progress - peak) / (1.0 - peak) } else { 0.0 };
    between(1.0, schedule.end_factor(), down)
}
