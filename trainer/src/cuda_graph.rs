//! One CUDA graph for a whole step: captured once, replayed with a single launch.
//!
//! At small batches a GPU waits for the host, which launches a thousand kernels a step. A graph holds all
//! of them: forward, backward, all-reduce, optimizer. The inputs that change from step to step, which are
//! images, labels, learning rate and step count, lie at fixed addresses in memory.
//!
//! A pure function, [`decide`], decides whether steps are to be captured. Either all ranks replay a graph
//! or none does: NCCL requires that all ranks of a collective have captured it, or none.

use comm::{Blame, CommError, Communicator, ReduceOp};
use job::{ExitCode, config};
use tch::Device;
use torch_ext::CudaGraph;
use tracing::{info, warn};

use crate::collective::reduce_values;
use crate::replica::Replica;
use crate::step::{Microbatch, Phases, StepParts, queue_step, train_step};
use crate::{Result, TrainError, caught};

/// Number of eager steps on whole batches before the capture. In these cuDNN benchmarks its kernels, and
/// libtorch and NCCL do the initialization of their first use.
const STEPS_BEFORE_CAPTURE: usize = 3;

/// How steps are executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Execution {
    /// By a graph for whole batches, after a warm-up; kernel by kernel for others.
    Graph,
    /// Kernel by kernel, with the reason why not by a graph.
    Eager(&'static str),
}

/// The inputs of [`decide`].
#[derive(Debug, Clone, Copy)]
pub struct Circumstances {
    /// The key `performance.cuda_graph` of the configuration.
    pub cuda_graph: config::CudaGraph,
    /// The device of the replica.
    pub device: Device,
    /// Whether steps draw random numbers, of which a replay would draw the same ones again.
    pub is_random: bool,
    /// Whether batch norm layers exchange statistics between ranks.
    pub sync_batch_norm: bool,
}

/// Decides how steps are executed.
///
/// # Errors
/// [`TrainError::Usage`] with `performance.cuda_graph: on` when a graph is impossible.
pub fn decide(circumstances: Circumstances) -> Result<Execution> {
    let Circumstances { cuda_graph, device, is_random, sync_batch_norm } = circumstances;
    let obstacle = if cuda_graph == config::CudaGraph::Off {
        Some("performance.cuda_graph is off")
    } else if !device.is_cuda() {
        Some("the CPU has no CUDA graphs")
    } else if is_random {
        Some("model.dropout and model.stochastic_depth need new random numbers in each step")
    } else if sync_batch_norm {
        Some("train.sync_batch_norm communicates within layers")
    } else {
        None
    };
    match (obstacle, cuda_graph) {
        (None, _) => Ok(Execution::Graph),
        (Some(reason), config::CudaGraph::On) => Err(TrainError::Usage(format!(
            "performance.cuda_graph: on is not possible: {reason}; leave it at auto"
        ))),
        (Some(reason), _) => Ok(Execution::Eager(reason)),
    }
}

/// Executes steps, by a CUDA graph where possible.
pub struct StepGraph {
    /// Whether a failed capture ends the run.
    is_required: bool,
    /// Whether all steps are eager.
    is_eager: bool,
    /// Number of images of a whole batch over all ranks.
    whole_batch: usize,
    /// Number of eager steps on whole batches that remain before the capture.
    warmup: usize,
    captured: Option<Captured>,
}

struct Captured {
    graph: CudaGraph,
    /// The memory that the graph reads; the images and targets of each step are copied into it.
    inputs: Vec<Microbatch>,
}

impl StepGraph {
    /// Creates an executor of steps of `whole_batch` images over all ranks. On a GPU, logs why steps run
    /// without a graph.
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
            warmup: STEPS_BEFORE_CAPTURE,
            captured: None,
        })
    }

    /// Takes one step as [`train_step`] does, by a CUDA graph where possible. Collective.
    ///
    /// # Errors
    /// Those of [`train_step`]; with `performance.cuda_graph: on`, also when any rank fails to capture a
    /// step.
    pub fn step(
        &mut self,
        replica: &mut Replica,
        parts: StepParts<'_>,
        microbatches: impl ExactSizeIterator<Item = Microbatch>,
        global_batch_size: usize,
        lr: f64,
    ) -> Result<Phases> {
        let is_whole = self.whole_batch == global_batch_size;
        // Only for whole batches: cuDNN's benchmark takes seconds for each shape, which faster kernels for
        // the last batch of an epoch or for evaluation would not make up for.
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
            Some(captured) => Some(captured),
            None => self.capture(replica, &mut parts, &microbatches)?,
        };
        match captured {
            Some(captured) => {
                let captured = self.captured.insert(captured);
                captured.replay(replica, parts, &microbatches, lr)
            }
            None => {
                self.is_eager = true;
                let microbatches = microbatches.into_iter();
                train_step(replica, parts, microbatches, self.whole_batch, lr)
            }
        }
    }

    /// Captures a step on this rank, and returns the graph if every rank has captured one. Otherwise logs
    /// the reason, restores the state before the capture and returns `None`. Collective.
    fn capture(
        &self,
        replica: &mut Replica,
        parts: &mut StepParts<'_>,
        microbatches: &[Microbatch],
    ) -> Result<Option<Captured>> {
        let captured = Captured::new(replica, parts, microbatches, self.whole_batch);
        if let Err(error) = &captured {
            // Logged before the collective, which fails if NCCL has failed.
            warn!("a step cannot be captured into a CUDA graph: {}", reason(error));
        }
        let communicator = parts.grad_sync.communicator();
        let without = first_without(communicator, replica.device, captured.is_ok())?;
        let Some(by) = without else { return captured.map(Some) };
        if self.is_required {
            let reason =
                "it cannot capture a step, which performance.cuda_graph: on requires".to_owned();
            return captured
                .and(Err(CommError::Aborted { by, reason, blame: Blame::Nobody }.into()));
        }
        info!("steps run without a CUDA graph: rank {by} cannot capture one");
        parts.grad_sync.discard_gradients()?;
        Ok(None)
    }

    /// Frees the graph; later steps are eager. To be called before the communicator is finalized or
    /// aborted, since NCCL waits until graphs with its kernels are freed.
    pub fn release(&mut self) {
        self.captured = None;
        self.is_eager = true;
    }
}

/// Returns the lowest rank that has failed to capture its step, if there is one. Collective; waits for the
/// device.
fn first_without(
    communicator: &dyn Communicator,
    device: Device,
    has_captured: bool,
) -> Result<Option<usize>> {
    let (rank, world_size) = (communicator.rank(), communicator.world_size());
    let mine = if has_captured { world_size } else { rank };
    let first = reduce_values(communicator, device, &[mine as f64], ReduceOp::Min)?;
    Ok(first.first().map(|first| *first as usize).filter(|first| *first < world_size))
}

fn reason(error: &TrainError) -> String {
    match error.exit_code() {
        ExitCode::OutOfMemory => format!(
            "the GPU's memory is too small for a graph, which keeps memory of its own: {error}; a \
             smaller train.batch_size_per_rank or performance.cuda_graph: off may help"
        ),
        _ => error.to_string(),
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
        // libtorch's errors become panics in functions of `tch` that return no `Result`.
        let captured = caught(capture);
        let (graph, _) = captured?;
        Ok(Self { graph, inputs })
    }

    /// Takes the step that [`train_step`] would take, by replaying the graph on copies of the microbatches.
    /// Returns no times of phases, which are not observable from the host.
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
        parts.grad_sync.watch_replay(replica.device)?;
        replica.flat.batches_tracked += microbatches.len() as i64;
        parts.optimizer.end_step(&replica.flat);
        Ok(Phases::default())
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;
    use std::sync::Arc;
    use std::time::Duration;

    use comm::bootstrap::MemoryStore;
    use comm::single::Single;
    use job::config::{BucketCap, Config, CudaGraph as Choice, WireDtype};
    use job::network::Network;
    use tch::{Kind, Tensor};

    use super::*;
    use crate::arithmetic::Arithmetic;
    use crate::data::Batch;
    use crate::flat::Flat;
    use crate::grad_sync::{GradSync, Options, Timing};
    use crate::loss::Targets;
    use crate::model::{Mode, Module};
    use crate::optim::Optimizer;
    use crate::tally::Counter;

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
            assert_eq!(error.exit_code(), ExitCode::Usage);
            assert!(error.to_string().contains(reason), "{error}");
        }
    }

    #[test]
    fn ranks_go_on_without_a_graph_when_one_of_them_has_none() {
        let firsts = |captured: [bool; 3]| {
            let (store, timeout) = (MemoryStore::default(), Duration::from_secs(60));
            std::thread::scope(|scope| {
                let ranks = captured.into_iter().enumerate().map(|(rank, captured)| {
                    let store = &store;
                    scope.spawn(move || {
                        let shm = comm::shm::connect(rank, 0..3, store, "test", timeout).unwrap();
                        first_without(&shm, Device::Cpu, captured).unwrap()
                    })
                });
                let ranks: Vec<_> = ranks.collect();
                ranks.into_iter().map(|rank| rank.join().unwrap()).collect::<Vec<_>>()
            })
        };
        assert_eq!(firsts([true, true, true]), [None; 3]);
        assert_eq!(firsts([true, false, true]), [Some(1); 3]);
        assert_eq!(firsts([false, true, false]), [Some(0); 3]);
    }

    /// Executes one step with `graph`, with `grad` already present at each leaf, and returns the weights
    /// afterwards.
    fn step_with(graph: &mut StepGraph, grad: Option<f64>) -> Result<Tensor> {
        let (alone, config) = (Arc::new(Single::default()), Config::default());
        let network = Network::new(&config.model, [3, 32, 32], 10);
        let mut flat = Flat::new(network.tensors(true), Device::Cpu, &*alone)?;
        crate::init::initialize(&mut flat, 0);
        flat.defer_gradients(None);
        let mut replica = Replica {
            model: Module::new(&network, &flat),
            flat,
            device: Device::Cpu,
            arithmetic: Arithmetic::Fp32,
            convolutions: Rc::default(),
            mode: Mode::Train,
            sync_batch_norm: false,
        };
        let (timing, bucket_cap) = (Timing::Never, BucketCap::Mib(1));
        let options = Options { timing, bucket_cap, wire_dtype: WireDtype::Fp32 };
        let grad_sync = GradSync::new(&replica.flat, alone, options)?;
        for (leaf, grad) in replica.flat.parameters_in_flat_order().zip(grad.into_iter().cycle()) {
            torch_ext::set_grad(leaf, &leaf.detach().full_like(grad))?;
        }
        let images = Tensor::arange(4 * 3 * 32 * 32, (Kind::Float, Device::Cpu)).sin();
        let targets = Targets::certain(Tensor::from_slice(&[0i64, 1, 2, 3]));
        let batch = Batch { images: images.view([4, 3, 32, 32]), targets };
        let parts = StepParts {
            optimizer: &mut Optimizer::new(&config.optimizer, &replica.flat),
            grad_sync: &grad_sync,
            counter: &mut Counter::new(Device::Cpu),
        };
        let microbatches = [Microbatch { batch, global_len: 4 }].into_iter();
        graph.step(&mut replica, parts, microbatches, 4, 0.001)?;
        Ok(replica.flat.parameters.copy())
    }

    #[test]
    fn a_failed_capture_leaves_no_gradient_behind() {
        if std::path::Path::new("/dev/nvidiactl").exists() {
            return println!("skipped: there is a GPU, and the capture would not fail");
        }
        let graph = |is_eager, is_required| StepGraph {
            is_required,
            is_eager,
            whole_batch: 4,
            warmup: 0,
            captured: None,
        };
        let expected = step_with(&mut graph(true, false), None).unwrap();
        let mut fails = graph(false, false);
        assert_eq!(step_with(&mut fails, Some(f64::NAN)).unwrap(), expected);
        assert!(fails.is_eager, "it would be tried again");
        step_with(&mut graph(false, true), None).unwrap_err();
    }
}
