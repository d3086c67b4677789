use job::config::{CommBackend, CudaGraph};
use job::dataset::outline;

use super::*;

fn machine(cores: usize) -> Topology {
    // CPU n and CPU n + cores are hyperthreads of core n.
    Topology { cores: (0..cores).map(|core| vec![core, core + cores]).collect(), quota: None }
}

fn plan(
    config: &Config,
    request: Request,
    visible_gpus: usize,
    topology: &Topology,
) -> Result<Plan, PlanError> {
    let (device, ranks) = devices(request, visible_gpus, false, topology)?;
    laid_out(config, device, Layout::single(ranks), topology)
}

fn laid_out(
    config: &Config,
    device: Device,
    layout: Layout,
    topology: &Topology,
) -> Result<Plan, PlanError> {
    Plan::new(config, &outline(&config.data).unwrap(), device, layout, topology)
}

fn cpu_plan(ranks: usize, topology: &Topology) -> Plan {
    plan(&Config::default(), Request::Cpu { ranks }, 0, topology).unwrap()
}

#[test]
fn cores_are_divided_among_ranks_hyperthreads_and_all() {
    let plan = cpu_plan(2, &machine(5));
    assert_eq!(plan.threads_per_rank, 2);
    let cpus: Vec<_> = plan.ranks.iter().map(|rank| rank.cpus.clone()).collect();
    assert_eq!(cpus, [vec![0, 5, 1, 6], vec![2, 7, 3, 8]]);
    assert_eq!(plan.warnings, []);
}

#[test]
fn more_ranks_than_cores_take_turns_and_a_warning_says_so() {
    let plan = cpu_plan(3, &machine(2));
    assert_eq!(plan.threads_per_rank, 1);
    let cpus: Vec<_> = plan.ranks.iter().map(|rank| rank.cpus.clone()).collect();
    assert_eq!(cpus, [vec![0, 2], vec![1, 3], vec![0, 2]]);
    let [warning] = plan.warnings[..] else { panic!("{:?}", plan.warnings) };
    let text = "3 ranks share 2 cores: each step takes longer than with fewer ranks";
    assert_eq!(warning.to_string(), text);
}

#[test]
fn a_quota_limits_threads_and_pins_nobody() {
    let plan = cpu_plan(2, &Topology { quota: Some(4), ..machine(16) });
    assert_eq!(plan.threads_per_rank, 2);
    assert!(plan.ranks.iter().all(|rank| rank.cpus.is_empty()));
}

#[test]
fn each_image_is_trained_on_once_an_epoch_and_tested_once() {
    for ranks in 1..=5 {
        let plan = cpu_plan(ranks, &machine(8));
        assert_eq!(plan.ranks.iter().map(|rank| rank.train_images).sum::<usize>(), 50_000);
        let tested: Vec<_> = plan.ranks.iter().flat_map(|rank| rank.test_images.clone()).collect();
        assert_eq!(tested, (0..10_000).collect::<Vec<_>>());
    }
}

#[test]
fn steps_count_the_last_smaller_batch() {
    let plan = cpu_plan(2, &machine(2));
    // 50,000 = 390 * 128 + 80
    assert_eq!((plan.steps_per_epoch, plan.last_batch_size, plan.total_steps), (391, 80, 7820));
    assert_eq!((plan.global_batch_size, plan.batch_size_per_rank), (128, 64));
}

#[test]
fn the_configuration_limits_images_and_steps() {
    let mut config = Config::default();
    config.data.train_images = Some(100);
    config.data.test_images = Some(20_000);
    config.train.max_steps = Some(3);
    let plan = plan(&config, Request::Cpu { ranks: 2 }, 0, &machine(2)).unwrap();
    assert_eq!((plan.train_images, plan.test_images), (100, 10_000));
    assert_eq!((plan.steps_per_epoch, plan.last_batch_size, plan.total_steps), (1, 100, 3));
    assert!(plan.warnings[0].to_string().starts_with("the global batch of 128 is larger"));
}

#[test]
fn gpus_that_are_not_there_are_named_and_cpu_is_offered() {
    let plan = |request, visible| plan(&Config::default(), request, visible, &machine(2));
    let error = plan(Request::Gpus { ranks: 4 }, 0).unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Setup);
    let text = "--gpus 4, but no GPU is visible here; ask for at most that many, or train on the \
                CPU with --cpu 4";
    assert_eq!(error.to_string(), text);
    let error = plan(Request::Gpus { ranks: 4 }, 2).unwrap_err().to_string();
    assert!(error.contains("2 GPUs are visible"), "{error}");
    let error = plan(Request::AllGpus, 0).unwrap_err();
    assert_eq!(error, PlanError::NoGpu { cores: 2 });
    assert!(error.to_string().contains("--cpu N"), "{error}");
    let all = plan(Request::AllGpus, 3).unwrap();
    assert_eq!((all.device, all.world_size(), all.backend), (Device::Cuda, 3, "nccl"));
    assert_eq!(plan(Request::Gpus { ranks: 2 }, 3).unwrap().world_size(), 2);
}

#[test]
fn ranks_share_a_gpu_only_where_nccl_has_been_told_so() {
    let shared = |visible| devices(Request::Gpus { ranks: 4 }, visible, true, &machine(2));
    assert_eq!(shared(1).unwrap(), (Device::Cuda, 4));
    assert_eq!(shared(0).unwrap_err(), PlanError::TooFewGpus { asked: 4, visible: 0 });
}

#[test]
fn a_backend_that_does_not_serve_the_device_is_a_usage_error() {
    for (backend, request, named) in [
        (CommBackend::Nccl, Request::Cpu { ranks: 1 }, "comm.backend: nccl is for GPUs"),
        (CommBackend::Shm, Request::AllGpus, "comm.backend: shm is for the CPU"),
        (CommBackend::Mpi, Request::AllGpus, "comm.backend: mpi is for the CPU"),
    ] {
        let mut config = Config::default();
        config.comm.backend = backend;
        let error = plan(&config, request, 1, &machine(2)).unwrap_err();
        assert_eq!(error.exit_code(), ExitCode::Usage);
        assert!(error.to_string().contains(named), "{error}");
    }
}

#[test]
fn a_cuda_graph_is_refused_on_the_cpu() {
    let mut config = Config::default();
    config.performance.cuda_graph = CudaGraph::On;
    let error = plan(&config, Request::Cpu { ranks: 1 }, 1, &machine(2)).unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Usage);
    assert!(error.to_string().starts_with("performance.cuda_graph: on is for GPUs"), "{error}");
    assert!(plan(&config, Request::AllGpus, 1, &machine(2)).is_ok());
}

#[test]
fn memory_counts_parameters_optimizer_activations_and_images() {
    let memory = cpu_plan(1, &machine(1)).memory;
    assert_eq!(memory.parameter_bytes, 4 * 11_173_962);
    assert_eq!(memory.optimizer_bytes, 2 * memory.parameter_bytes);
    assert_eq!(memory.image_bytes, 60_000 * 3072);
    assert!(memory.activation_bytes > 0);
    assert!(memory.total_bytes() > memory.image_bytes + 4 * memory.parameter_bytes);
}

#[test]
fn the_table_shows_every_rank() {
    let text = cpu_plan(2, &machine(2)).to_string();
    for shown in [
        "ranks             2 on the CPU, over shm",
        "steps             391 an epoch (the last of 80 images), 20 epochs, 7820 in all",
        "parameters        11,173,962",
        "0     cpu     1        0,2           25000         5000 (0..5000)",
        "1     cpu     1        1,3           25000         5000 (5000..10000)",
    ] {
        assert!(text.contains(shown), "{shown:?} in\n{text}");
    }
}

#[test]
fn ranks_of_several_nodes_follow_each_other_and_talk_over_mpi() {
    let layout = Layout { node_rank: 1, ranks_per_node: vec![3, 2, 1] };
    let plan = laid_out(&Config::default(), Device::Cpu, layout, &machine(4)).unwrap();
    assert_eq!((plan.world_size(), plan.backend, plan.threads_per_rank), (6, "mpi", 2));
    let worlds: Vec<_> = plan
        .ranks
        .iter()
        .map(|it| (it.world.rank, it.world.local_rank, it.world.local_world_size))
        .collect();
    assert_eq!(worlds, [(3, 0, 2), (4, 1, 2)]);
    assert_eq!(plan.ranks[1].cpus, [2, 6, 3, 7]);

    let mut config = Config::default();
    config.comm.backend = CommBackend::Shm;
    let layout = Layout { node_rank: 0, ranks_per_node: vec![1, 1] };
    let error = laid_out(&config, Device::Cpu, layout.clone(), &machine(4)).unwrap_err();
    let error = error.to_string();
    assert!(error.contains("shm is for one machine"), "{error}");

    config.comm.backend = CommBackend::None;
    let plan = laid_out(&config, Device::Cpu, layout, &machine(4)).unwrap();
    assert_eq!(plan.backend, "mpi");
}
