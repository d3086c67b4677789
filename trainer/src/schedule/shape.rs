//! What a schedule does between warm-up and end.

use job::config::{Schedule, ScheduleName, Unit};

/// What shapes depend on.
pub(super) struct Input {
    /// Steps taken.
    pub steps: u64,
    /// Whole passes done.
    pub epochs: u64,
    /// How much of what follows the warm-up is done, a fraction.
    pub progress: f64,
}

/// The rate at `input` where the schedule starts from `base`, or, in one cycle, rises to it.
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
