//! Checks that every backend must pass, against closed forms.

#![allow(clippy::unwrap_used)]

use comm::communicator::chunk_range;
use comm::{BufferMut, Collective, CommError, Communicator, Element, RawBuffer, ReduceOp};
use half::bf16;

/// Empty, short, not divisible by 2, 3 or 4, and longer than any staging piece.
const LENS: [usize; 6] = [0, 1, 7, 1001, 32 * 1024 + 5, 1_000_003];

const OPS: [ReduceOp; 4] = [ReduceOp::Sum, ReduceOp::Mean, ReduceOp::Max, ReduceOp::Min];

/// An element whose closed forms can be computed in f64.
pub trait Value: Element + PartialEq + std::fmt::Debug {
    const EPSILON: f64;
    fn new(value: f64) -> Self;
    fn value(self) -> f64;
    fn bits(self) -> u64;
}

impl Value for f32 {
    const EPSILON: f64 = f32::EPSILON as f64;
    fn new(value: f64) -> Self {
        value as f32
    }
    fn value(self) -> f64 {
        self.into()
    }
    fn bits(self) -> u64 {
        self.to_bits().into()
    }
}

impl Value for f64 {
    const EPSILON: f64 = f64::EPSILON;
    fn new(value: f64) -> Self {
        value
    }
    fn value(self) -> f64 {
        self
    }
    fn bits(self) -> u64 {
        self.to_bits()
    }
}

impl Value for bf16 {
    const EPSILON: f64 = 1.0 / 128.0;
    fn new(value: f64) -> Self {
        Self::from_f64(value)
    }
    fn value(self) -> f64 {
        self.into()
    }
    fn bits(self) -> u64 {
        self.to_bits().into()
    }
}

impl Value for i64 {
    const EPSILON: f64 = 0.0;
    fn new(value: f64) -> Self {
        (value * 1000.0) as i64
    }
    fn value(self) -> f64 {
        self as f64
    }
    fn bits(self) -> u64 {
        self as u64
    }
}

/// Returns the input of `rank` at `index`: signed, fractional, different on each rank.
fn element<T: Value>(rank: usize, index: usize) -> T {
    let hash = (index as u64 * 2_654_435_761 + rank as u64 * 40_503 + 1) % 100_003;
    T::new(hash as f64 / 7919.0 - 6.0)
}

fn filled<T: Value>(rank: usize, len: usize) -> Vec<T> {
    (0..len).map(|index| element(rank, index)).collect()
}

/// Returns the result by the closed form, and the tolerance for rounding.
fn expected<T: Value>(op: ReduceOp, world_size: usize, index: usize) -> (f64, f64) {
    let values = (0..world_size).map(|rank| element::<T>(rank, index).value());
    let magnitude: f64 = values.clone().map(f64::abs).sum();
    match op {
        ReduceOp::Sum => (values.sum(), magnitude * T::EPSILON),
        ReduceOp::Mean => (values.sum::<f64>() / world_size as f64, magnitude * T::EPSILON),
        ReduceOp::Max => (values.fold(f64::NEG_INFINITY, f64::max), 0.0),
        ReduceOp::Min => (values.fold(f64::INFINITY, f64::min), 0.0),
    }
}

/// The kinds of memory to test: ordinary memory, and memory of `alloc_shared`.
struct Buffers<'a> {
    comm: &'a dyn Communicator,
    shared: Option<comm::SharedMemory>,
}

impl Buffers<'_> {
    /// Runs a collective on `data`, in each kind of memory; the results must be the same.
    fn run<T: Value>(&self, collective: Collective, data: &[T]) -> Vec<T> {
        let mut ordinary = data.to_vec();
        call(self.comm, collective, BufferMut::host(&mut ordinary));
        if let Some(shared) = &self.shared {
            // An offset, since buckets are parts of the flat buffer.
            let offset = 64;
            assert!(offset + size_of_val(data) <= shared.len_bytes);
            // SAFETY: just checked; page-aligned plus 64 suits every element; nobody else on this
            // rank uses the memory.
            let slice = unsafe {
                let start = shared.ptr.add(offset).cast::<T>();
                std::slice::from_raw_parts_mut(start.as_ptr(), data.len())
            };
            slice.copy_from_slice(data);
            // Peers write into this memory as soon as they have entered the collective.
            self.comm.barrier().unwrap();
            call(self.comm, collective, BufferMut::host(slice));
            let defined = match collective {
                Collective::ReduceScatter(_) => {
                    chunk_range(data.len(), self.comm.rank(), self.comm.world_size())
                }
                _ => 0..data.len(),
            };
            for i in defined {
                assert_eq!(slice[i].bits(), ordinary[i].bits(), "{collective:?} shared, at {i}");
            }
        }
        ordinary
    }
}

fn call(comm: &dyn Communicator, collective: Collective, buffer: BufferMut<'_>) {
    let result = match collective {
        Collective::AllReduce(op) => comm.all_reduce(buffer, op),
        Collective::Broadcast { root } => comm.broadcast(buffer, root),
        Collective::ReduceScatter(op) => comm.reduce_scatter(buffer, op),
        Collective::AllGather => comm.all_gather(buffer),
        Collective::Barrier => comm.barrier(),
    };
    if let Err(error) = result {
        panic!("{collective:?}: {error}");
    }
}

/// Runs all checks. Every rank calls this.
pub fn check_all(comm: &dyn Communicator) {
    let longest = LENS[LENS.len() - 1] * 8 + 64;
    let buffers = Buffers { comm, shared: comm.alloc_shared(longest).unwrap() };
    check_dtype::<f32>(&buffers);
    check_dtype::<f64>(&buffers);
    check_dtype::<bf16>(&buffers);
    check_dtype::<i64>(&buffers);
    a_mean_of_integers_is_refused(comm);
    a_root_outside_the_group_is_refused(comm);
    nan_reaches_every_rank(comm);
    works_end_in_any_order_of_waiting(comm);
    a_dropped_work_has_ended(comm);
    comm.barrier().unwrap();
}

fn check_dtype<T: Value>(buffers: &Buffers<'_>) {
    for len in LENS {
        for op in OPS {
            if !(T::EPSILON == 0.0 && op == ReduceOp::Mean) {
                all_reduce_agrees_and_is_right::<T>(buffers, op, len);
                reduce_scatter_is_right::<T>(buffers, op, len);
            }
        }
        broadcast_copies_the_root::<T>(buffers, len);
        all_gather_fills_every_chunk::<T>(buffers, len);
    }
}

fn all_reduce_agrees_and_is_right<T: Value>(buffers: &Buffers<'_>, op: ReduceOp, len: usize) {
    let comm = buffers.comm;
    let result = buffers.run(Collective::AllReduce(op), &filled::<T>(comm.rank(), len));
    let mut of_rank_0 = result.clone();
    comm.broadcast(BufferMut::host(&mut of_rank_0), 0).unwrap();
    for (i, (mine, first)) in result.iter().zip(&of_rank_0).enumerate() {
        assert_eq!(mine.bits(), first.bits(), "rank {} differs at {i} of {len}", comm.rank());
    }
    for (i, x) in result.iter().enumerate() {
        let (right, tolerance) = expected::<T>(op, comm.world_size(), i);
        assert!((x.value() - right).abs() <= tolerance, "{op:?} {len} at {i}: {x:?} for {right}");
    }
}

fn reduce_scatter_is_right<T: Value>(buffers: &Buffers<'_>, op: ReduceOp, len: usize) {
    let comm = buffers.comm;
    let result = buffers.run(Collective::ReduceScatter(op), &filled::<T>(comm.rank(), len));
    for i in chunk_range(len, comm.rank(), comm.world_size()) {
        let (right, tolerance) = expected::<T>(op, comm.world_size(), i);
        let x = result[i];
        assert!((x.value() - right).abs() <= tolerance, "{op:?} {len} at {i}: {x:?} for {right}");
    }
}

fn broadcast_copies_the_root<T: Value>(buffers: &Buffers<'_>, len: usize) {
    let comm = buffers.comm;
    for root in 0..comm.world_size() {
        let result = buffers.run(Collective::Broadcast { root }, &filled::<T>(comm.rank(), len));
        assert!(result == filled::<T>(root, len), "broadcast of {len} from {root}");
    }
}

fn all_gather_fills_every_chunk<T: Value>(buffers: &Buffers<'_>, len: usize) {
    let comm = buffers.comm;
    let result = buffers.run(Collective::AllGather, &filled::<T>(comm.rank(), len));
    for rank in 0..comm.world_size() {
        for i in chunk_range(len, rank, comm.world_size()) {
            assert_eq!(result[i], element::<T>(rank, i), "all_gather of {len} at {i}");
        }
    }
}

fn a_mean_of_integers_is_refused(comm: &dyn Communicator) {
    let result = comm.all_reduce(BufferMut::host(&mut [1_i64]), ReduceOp::Mean);
    assert!(matches!(result, Err(CommError::Unsupported { .. })), "{result:?}");
}

fn a_root_outside_the_group_is_refused(comm: &dyn Communicator) {
    let result = comm.broadcast(BufferMut::host(&mut [1_i64]), comm.world_size());
    assert!(matches!(result, Err(CommError::Unsupported { .. })), "{result:?}");
}

fn nan_reaches_every_rank(comm: &dyn Communicator) {
    // NCCL's maximum and minimum may lose NaN.
    let reduced = if comm.backend() == "nccl" { &OPS[..2] } else { &OPS };
    for &op in reduced {
        let last = comm.rank() + 1 == comm.world_size();
        let mut data = [if last { f32::NAN } else { 1.0 }; 3];
        comm.all_reduce(BufferMut::host(&mut data), op).unwrap();
        assert!(data.iter().all(|x| x.is_nan()), "{op:?} of NaN: {data:?}");
    }
}

/// Starts an all-reduce of `data`, which the caller must keep until the work has been waited for.
fn start(comm: &dyn Communicator, data: &mut [f32]) -> comm::Work {
    let buffer: RawBuffer = BufferMut::host(data).raw();
    // SAFETY: callers keep `data` and leave it alone until they have waited.
    unsafe { comm.start(Collective::AllReduce(ReduceOp::Sum), buffer) }.unwrap()
}

fn works_end_in_any_order_of_waiting(comm: &dyn Communicator) {
    let world_size = comm.world_size() as f32;
    let lens = [100_000, 3, 0, 50_000, 1, 20_000];
    let mut data: Vec<Vec<f32>> =
        lens.iter().enumerate().map(|(i, &n)| vec![i as f32; n]).collect();
    let mut works: Vec<_> = data.iter_mut().map(|data| start(comm, data)).collect();
    // A blocking call runs after what was started before, and ranks wait in different orders.
    comm.barrier().unwrap();
    if comm.rank().is_multiple_of(2) {
        works.reverse();
    }
    for work in works {
        work.wait().unwrap();
    }
    for (i, data) in data.iter().enumerate() {
        assert!(data.iter().all(|&x| x == i as f32 * world_size), "work {i}");
    }
}

fn a_dropped_work_has_ended(comm: &dyn Communicator) {
    let mut data = vec![1.0; 10_000];
    drop(start(comm, &mut data));
    assert!(data.iter().all(|&x| x == comm.world_size() as f32));
}
