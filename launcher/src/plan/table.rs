//! The plan as `--dry-run` shows it.

use std::fmt;

use job::{counted, thousands};

use super::{Device, Plan};
use crate::topology::cpu_list;

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |name: &str, value: String| writeln!(f, "{name:<18}{value}");
        line("ranks", format!("{} on {}, over {}", self.world_size(), self.place(), self.backend))?;
        let nodes = self.layout.ranks_per_node.len();
        if nodes > 1 {
            let node = self.layout.node_rank;
            line(
                "nodes",
                format!("{nodes}, each assumed to have as many ranks; this is node {node}"),
            )?;
        }
        line("threads", format!("{} per rank", self.threads_per_rank))?;
        line(
            "batch",
            format!(
                "{} per rank{}, {} over all ranks",
                self.batch_size_per_rank,
                match self.grad_accum_steps {
                    1 => String::new(),
                    steps => format!(", {steps} microbatches a step"),
                },
                self.global_batch_size
            ),
        )?;
        line("images", format!("{} to train, {} to test", self.train_images, self.test_images))?;
        line("steps", self.steps())?;
        line("parameters", thousands(self.parameter_count as u64))?;
        line("memory", self.memory_parts())?;
        for warning in &self.warnings {
            line("warning", warning.to_string())?;
        }
        writeln!(f)?;
        self.rank_table(f)
    }
}

impl Plan {
    fn place(&self) -> String {
        match (self.device, self.world_size()) {
            (Device::Cpu, _) => "the CPU".to_owned(),
            (Device::Cuda, 1) => "1 GPU".to_owned(),
            (Device::Cuda, ranks) => format!("{ranks} GPUs"),
        }
    }

    fn steps(&self) -> String {
        let last = match self.last_batch_size {
            same if same == self.global_batch_size => String::new(),
            smaller => format!(" (the last of {smaller} images)"),
        };
        format!(
            "{} an epoch{last}, {}, {} in all",
            self.steps_per_epoch,
            counted(self.epochs, "epoch"),
            self.total_steps
        )
    }

    fn memory_parts(&self) -> String {
        let memory = &self.memory;
        format!(
            "about {} per rank, plus libtorch itself: parameters {}, gradients {}, \
             optimizer {}, activations {}, images {}",
            mib(memory.total_bytes()),
            mib(memory.parameter_bytes),
            mib(memory.gradient_bytes),
            mib(memory.optimizer_bytes),
            mib(memory.activation_bytes),
            mib(memory.image_bytes)
        )
    }

    fn rank_table(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "rank  device  threads  cpus          train images  test images")?;
        for rank in &self.ranks {
            let device = match self.device {
                Device::Cpu => "cpu".to_owned(),
                Device::Cuda => format!("cuda:{}", rank.world.local_rank),
            };
            let cpus = match rank.cpus.as_slice() {
                [] => "not pinned".to_owned(),
                cpus => cpu_list(cpus),
            };
            let (start, end) = (rank.test_images.start, rank.test_images.end);
            writeln!(
                f,
                "{:<4}  {device:<6}  {:<7}  {cpus:<12}  {:<12}  {} ({start}..{end})",
                rank.world.rank,
                self.threads_per_rank,
                rank.train_images,
                rank.test_images.len()
            )?;
        }
        Ok(())
    }
}

fn mib(bytes: usize) -> String {
    format!("{:.0} MiB", bytes as f64 / (1024.0 * 1024.0))
}
