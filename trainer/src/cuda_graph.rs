//! One CUDA graph for a whole step: captured once, replayed with a single launch.
//!
//! At small batches a GPU waits for the host, which launches a thousand kernels a step. A graph holds all
//! of them: clearing gradients, forward, backward, all-reduce, optimizer. What changes from step to step,
//! images, labels, learning rate and count of steps, lies in memory that stays where it is.
//!
//! Whether a step can be captured is decided by a pure function, [`decide`].

use job::config;
use tch::Device;
use torch_ext::CudaGraph;
use tracing::{info, warn};

use crate::step::{Microbatch, Phases, Replica, StepParts, queue_step, train_step};
use crate::{Result, TrainError, caught};

/// Whole batches before the capture: cuDNN has then measured its kernels, and libtorch and NCCL have made
/// what they make when first used.
const WARMUP_STEPS: usize = 3;

/// How steps are executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Execution {
    /// Whole batches by a graph, after a warm-up; others kernel by kernel.
    Graph,
    /// Kernel by kernel, because.
    Eager(&'static str),
}

/// What decides it.
#[derive(Debug, Clone, Copy)]
pub struct Circumstances {
    /// Of the configuration.
    pub cuda_graph: config::CudaGraph,
    /// Where the replica is.
    pub device: Device,
    /// Whether steps draw random numbers: a replay would draw the same ones.
    pub is_random: bool,
    /// Whether ranks exchange batch norm's sums while they compute.
    pub sync_batch_norm: bool,
}

/// How steps are executed, and why not by a graph.
///
/// # Errors
/// [`TrainError::Setup`] when a graph is asked for and cannot be.
pub fn decide(circumstances: Circumstances) -> Result<Execution> {
    let Circumstances { cuda_graph, device, is_random, sync_batch_norm } = circumstances;
    let obstacle = if cuda_graph == config::CudaGraph::Off {
        Some("performance.cuda_graph is off")
    } else if !device.is_cuda() {
        Some("the CPU has no CUDA graphs")
    } else if is_random {
        Some("model.dropout and model.stochastic_depth draw anew in each step")
    } else if sync_batch_norm {
        Some("train.sync_batch_norm communicates within layers")
    } else {
        None
    };
    match (obstacle, cuda_graph) {
        (None, _) => Ok(Execution::Graph),
        (Some(reason), config::CudaGraph::On) => Err(TrainError::Setup(format!(
            "performance.cuda_graph: on cannot be: {reason}; leave it at auto"
        ))),
        (Some(reason), _) => Ok(Execution::Eager(reason)),
    }
}

/// Executes steps, by a graph where that can be.
pub struct StepGraph {
    /// Whether a step that cannot be captured ends the run.
    is_required: bool,
    /// Whether all steps are eager.
    is_eager: bool,
    /// Images of a whole batch over all ranks.
    whole_batch: usize,
    /// Whole batches still to come before the capture.
    warmup: usize,
    captured: Option<Captured>,
}

struct Captured {
    graph: CudaGraph,
    /// What the graph reads: each step's images and targets are copied here.
    inputs: Vec<Microbatch>,
}

impl StepGraph {
    /// For steps of `whole_batch` images over all ranks. On a GPU, says why there is no graph.
    ///
    /// # Errors
    /// Those of [`decide`].
    pub fn new(circumstances: Circumstances, whole_batch: usize) -> Result<Self> {
        let execution = decide(circumstances)?;
        if let (Execution::Eager(reason), Device::Cuda(_)) = (execution, circumstances.device) {
            info!("steps run without a CUDA graph: {reason}");
        }
        Ok(Self {
            is_required: circumstances.cuda_graph == config::CudaGraph::On,
            is_eager: execution != Execution::Graph,
            whole_batch,
            warmup: WARMUP_STEPS,
            captured: None,
        })
    }

    /// As [`train_step`].
    ///
    /// # Errors
    /// Those of [`train_step`]; where `performance.cuda_graph: on`, also when a step cannot be captured.
    pub fn step(
        &mut self,
        replica: &mut Replica,
        parts: StepParts<'_>,
        microbatches: impl ExactSizeIterator<Item = Microbatch>,
        global_batch_size: usize,
        lr: f64,
    ) -> Result<Phases> {
        let is_whole = self.whole_batch == global_batch_size;
        // cuDNN's trials take seconds for each shape: more than the last batch of every epoch, and
        // evaluation, could make up for.
        tch::Cuda::cudnn_set_benchmark(is_whole);
        let phases = if self.is_eager || !is_whole || self.warmup > 0 {
            self.warmup = self.warmup.saturating_sub(usize::from(is_whole));
            train_step(replica, parts, microbatches, global_batch_size, lr)
        } else {
            self.graph_step(replica, parts, microbatches, lr)
        };
        tch::Cuda::cudnn_set_benchmark(false);
        phases
    }

    fn graph_step(
        &mut self,
        replica: &mut Replica,
        mut parts: StepParts<'_>,
        microbatches: impl ExactSizeIterator<Item = Microbatch>,
        lr: f64,
    ) -> Result<Phases> {
        let microbatches: Vec<_> = microbatches.collect();
        let captured = match self.captured.take() {
            Some(captured) => captured,
            None => match Captured::new(replica, &mut parts, &microbatches, self.whole_batch) {
                Ok(captured) => captured,
                Err(error) if self.is_required => return Err(error),
                Err(error) => {
                    warn!("steps run without a CUDA graph, which cannot be captured: {error}");
                    self.is_eager = true;
                    let microbatches = microbatches.into_iter();
                    return train_step(replica, parts, microbatches, self.whole_batch, lr);
                }
            },
        };
        let captured = self.captured.insert(captured);
        captured.replay(replica, parts, &microbatches, lr)
    }

    /// Frees the graph. Before the communicator ends: NCCL waits for graphs that have its kernels.
    pub fn release(&mut self) {
        self.captured = None;
        self.is_eager = true;
    }
}

impl Captured {
    fn new(
        replica: &mut Replica,
        parts: &mut StepParts<'_>,
        like: &[Microbatch],
        global_batch_size: usize,
    ) -> Result<Self> {
        let inputs: Vec<_> = like.iter().map(Microbatch::copy).collect();
        let capture =
            || CudaGraph::capture(|| queue_step(replica, parts, inputs.iter(), global_batch_size));
        // libtorch's errors are panics where `tch` has no result to give.
        let captured = caught(capture);
        let (graph, _) = captured?;
        Ok(Self { graph, inputs })
    }

    /// Does what [`train_step`] does, but for waiting for the images.
    fn replay(
        &mut self,
        replica: &mut Replica,
        parts: StepParts<'_>,
        microbatches: &[Microbatch],
        lr: f64,
    ) -> Result<Phases> {
        for (input, microbatch) in self.inputs.iter_mut().zip(microbatches) {
            input.batch.copy_from(&microbatch.batch);
        }
        parts.optimizer.begin_step(lr);
        self.graph.replay()?;
        parts.grad_sync.replayed(replica.device)?;
        replica.flat.batches_tracked += microbatches.len() as i64;
        parts.optimizer.end_step(&replica.flat);
        Ok(Phases::default())
    }
}

#[cfg(test)]
mod tests {
    use job::config::CudaGraph as Choice;

    use super::*;

    fn on_a_gpu(cuda_graph: Choice) -> Circumstances {
        let device = Device::Cuda(0);
        Circumstances { cuda_graph, device, is_random: false, sync_batch_norm: false }
    }

    #[test]
    fn a_graph_is_taken_on_a_gpu_unless_it_is_off() {
        assert_eq!(decide(on_a_gpu(Choice::Auto)).unwrap(), Execution::Graph);
        assert_eq!(decide(on_a_gpu(Choice::On)).unwrap(), Execution::Graph);
        assert!(matches!(decide(on_a_gpu(Choice::Off)).unwrap(), Execution::Eager(_)));
    }

    #[test]
    fn what_stands_in_the_way_is_a_reason_for_auto_and_an_error_for_on() {
        let with = |cuda_graph| {
            let clear = on_a_gpu(cuda_graph);
            [
                (Circumstances { device: Device::Cpu, ..clear }, "the CPU has no CUDA graphs"),
                (Circumstances { is_random: true, ..clear }, "model.dropout"),
                (Circumstances { sync_batch_norm: true, ..clear }, "train.sync_batch_norm"),
            ]
        };
        for ((auto, expected), (on, _)) in with(Choice::Auto).into_iter().zip(with(Choice::On)) {
            let Execution::Eager(reason) = decide(auto).unwrap() else {
                panic!("{expected} should stand in the way");
            };
            assert!(reason.starts_with(expected), "{reason}");
            let error = decide(on).unwrap_err();
            assert_eq!(error.exit_code(), job::ExitCode::Setup);
            assert!(error.to_string().contains(reason), "{error}");
        }
    }
}
