//! The learning rate of a step: a pure function.

use job::config::{Optimizer, Schedule, ScheduleName};

/// The learning rate of step `step` (from 0), before which `progress` of the run, a fraction, is
/// done. The shape follows the progress, so that it goes on where it was when a run is resumed on
/// another number of ranks, whose steps are longer or shorter.
pub fn learning_rate(optimizer: &Optimizer, schedule: &Schedule, step: u64, progress: f64) -> f64 {
    let warmup = (step + 1) as f64 / (schedule.warmup_steps + 1) as f64;
    let shape = match schedule.name {
        ScheduleName::Constant => 1.0,
        ScheduleName::Cosine => (1.0 + (std::f64::consts::PI * progress.min(1.0)).cos()) / 2.0,
    };
    optimizer.lr * warmup.min(1.0) * shape
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(name: ScheduleName, warmup_steps: u64, total_steps: u64) -> Vec<f64> {
        let optimizer = Optimizer { lr: 1.0, ..Optimizer::default() };
        let schedule = Schedule { name, warmup_steps };
        (0..total_steps)
            .map(|step| {
                learning_rate(&optimizer, &schedule, step, step as f64 / total_steps as f64)
            })
            .collect()
    }

    #[test]
    fn constant_stays() {
        assert_eq!(rates(ScheduleName::Constant, 0, 3), [1.0; 3]);
    }

    #[test]
    fn warmup_rises_linearly_to_the_rate_of_the_schedule() {
        assert_eq!(rates(ScheduleName::Constant, 3, 5), [0.25, 0.5, 0.75, 1.0, 1.0]);
    }

    #[test]
    fn cosine_falls_from_the_rate_to_near_0() {
        let rates = rates(ScheduleName::Cosine, 0, 4);
        let expected = [1.0, 0.853_553_390_6, 0.5, 0.146_446_609_4];
        for (rate, expected) in rates.iter().zip(expected) {
            assert!((rate - expected).abs() < 1e-9, "{rates:?}");
        }
    }
}
