//! The layout of the segment that the ranks of one group share.
//!
//! ```text
//! Header | Slot of rank 0 | .. | Slot of rank N-1 | inputs: N x DEPTH pieces | results: DEPTH pieces
//! ```

use std::io;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::*};

use super::memory::Mapping;
use crate::blame::{self, Blame};
use crate::{Collective, CommError, DType, RawBuffer, ReduceOp};

/// Bytes of one staging piece: several of them fit in a core's level-2 cache.
pub(super) const PIECE_BYTES: usize = 256 * 1024;

/// Staging pieces of a rank that may be in use at once; see [`super::rounds`].
pub(super) const DEPTH: u64 = 3;

/// Limit on the ranks of a group: enough for one per core of any machine, while a rank's share of a piece
/// stays long enough for vector code.
pub(crate) const MAX_RANKS: usize = 256;

const MAGIC: u64 = 0x4c4f_434b_5354_0002;
const REASON_BYTES: usize = 1024;

/// State of the whole group.
#[repr(C, align(128))]
pub(super) struct Header {
    pub(super) magic: AtomicU64,
    pub(super) nonce: AtomicU64,
    pub(super) world_size: AtomicU64,
    /// Location of the memory of the `alloc_shared` under way: process id, file descriptor, and 1 if there is
    /// any.
    pub(super) offered: [AtomicU64; 3],
    pub(super) bell: Bell,
    pub(super) failure: FailureRecord,
}

/// The futex that ranks sleep on.
#[repr(C, align(128))]
pub(super) struct Bell {
    /// Last round that all ranks have posted, truncated to 32 bits.
    pub(super) round: AtomicU32,
    /// Number of ranks that may sleep on `round`.
    pub(super) sleepers: AtomicU32,
}

/// The first failure of the group.
#[repr(C, align(128))]
pub(super) struct FailureRecord {
    /// 0: no failure; 1: being written; 2: ready to be read.
    pub(super) state: AtomicU32,
    pub(super) by: AtomicU32,
    pub(super) kind: AtomicU32,
    len_bytes: AtomicU32,
    packed: [AtomicU8; REASON_BYTES],
}

impl FailureRecord {
    /// Writes the record, unless another failure was recorded before.
    pub(super) fn publish(&self, by: usize, kind: u32, reason: &str, blame: &Blame) {
        let packed = blame::pack(reason, blame, REASON_BYTES);
        if self.state.compare_exchange(0, 1, AcqRel, Acquire).is_err() {
            return;
        }
        for (to, from) in self.packed.iter().zip(&packed) {
            to.store(*from, Relaxed);
        }
        self.len_bytes.store(u32::try_from(packed.len()).unwrap_or(0), Relaxed);
        self.by.store(u32::try_from(by).unwrap_or(u32::MAX), Relaxed);
        self.kind.store(kind, Relaxed);
        self.state.store(2, SeqCst);
    }

    /// Returns the recorded failure, if any.
    pub(super) fn read(&self) -> Option<Failure> {
        if self.state.load(SeqCst) != 2 {
            return None;
        }
        let len_bytes = (self.len_bytes.load(Relaxed) as usize).min(REASON_BYTES);
        let packed: Vec<_> =
            self.packed[..len_bytes].iter().map(|byte| byte.load(Relaxed)).collect();
        let (reason, blame) = blame::unpack(&packed);
        let (by, kind) = (self.by.load(Relaxed) as usize, self.kind.load(Relaxed));
        Some(Failure { by, kind, reason, blame })
    }
}

/// A [`FailureRecord`]'s content.
pub(super) struct Failure {
    pub(super) by: usize,
    pub(super) kind: u32,
    reason: String,
    blame: Blame,
}

impl Failure {
    /// Converts the record into the error that the other ranks return.
    pub(super) fn into_error(self) -> CommError {
        let Self { by, reason, blame, .. } = self;
        CommError::Aborted { by, reason, blame }
    }
}

/// State of one rank, written by it and read by its peers.
#[repr(C, align(128))]
pub(super) struct Slot {
    /// Last round that this rank has posted, truncated to 32 bits.
    pub(super) posted: AtomicU32,
    pub(super) pid: AtomicU32,
    /// Number of collectives that this rank has joined.
    pub(super) joined: AtomicU64,
    /// Time of this rank's last [`super::Shm::sign_of_life`], in nanoseconds of the machine's monotonic
    /// clock.
    pub(super) alive_at: AtomicU64,
    /// 1 when this rank could not map the memory that was offered.
    pub(super) map_failed: AtomicU32,
    /// Calls of this rank, by the parity of the sequence number: an entry is overwritten two collectives
    /// later, when no peer can still be comparing it.
    pub(super) calls: [CallRecord; 2],
}

/// Arguments of a rank's call, which its peers compare with their own.
#[repr(C)]
pub(super) struct CallRecord {
    call: AtomicU64,
    len: AtomicU64,
    /// 0 for ordinary memory, otherwise 1 plus the index of the shared allocation in which the buffer lies.
    memory: AtomicU64,
    offset: AtomicU64,
}

/// The part of a [`CallRecord`] in which all ranks must agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Call {
    code: u64,
    len: u64,
}

/// Location of a buffer in shared memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SharedPlace {
    pub(super) memory: u64,
    pub(super) offset_bytes: u64,
}

impl CallRecord {
    pub(super) fn write(&self, call: Call, place: Option<SharedPlace>) {
        self.call.store(call.code, Relaxed);
        self.len.store(call.len, Relaxed);
        self.memory.store(place.map_or(0, |place| place.memory + 1), Relaxed);
        self.offset.store(place.map_or(0, |place| place.offset_bytes), Relaxed);
    }

    pub(super) fn call(&self) -> Call {
        Call { code: self.call.load(Relaxed), len: self.len.load(Relaxed) }
    }

    pub(super) fn place(&self) -> Option<SharedPlace> {
        let memory = self.memory.load(Relaxed).checked_sub(1)?;
        Some(SharedPlace { memory, offset_bytes: self.offset.load(Relaxed) })
    }
}

const ALLOC_SHARED: u64 = 6;
const FINALIZE: u64 = 7;
const CONNECT: u64 = 8;

impl Call {
    pub(super) fn collective(collective: Collective, buffer: &RawBuffer) -> Self {
        let dtype = (buffer.dtype as u64) << 16;
        let code = match collective {
            Collective::AllReduce(op) => 1 | (op as u64) << 8 | dtype,
            Collective::Broadcast { root } => 2 | (root as u64) << 32 | dtype,
            Collective::ReduceScatter(op) => 3 | (op as u64) << 8 | dtype,
            Collective::AllGather => 4 | dtype,
            Collective::Barrier => 5,
        };
        let len = if collective == Collective::Barrier { 0 } else { buffer.len as u64 };
        Self { code, len }
    }

    pub(super) fn alloc_shared(len_bytes: usize) -> Self {
        Self { code: ALLOC_SHARED, len: len_bytes as u64 }
    }

    pub(super) const FINALIZE: Self = Self { code: FINALIZE, len: 0 };
    pub(super) const CONNECT: Self = Self { code: CONNECT, len: 0 };

    /// The name used in errors.
    pub(super) fn name(self) -> &'static str {
        match self.code & 0xff {
            1 => "all_reduce",
            2 => "broadcast",
            3 => "reduce_scatter",
            4 => "all_gather",
            5 => "barrier",
            ALLOC_SHARED => "alloc_shared",
            FINALIZE => "finalize",
            _ => "connect",
        }
    }

    /// Returns the call as text, such as `all_reduce(sum) of 1000 x f32`.
    pub(super) fn describe(self) -> String {
        let op = ["sum", "mean", "max", "min"][(self.code >> 8 & 3) as usize];
        let dtype = ["f32", "f64", "bf16", "i64"][(self.code >> 16 & 3) as usize];
        let (name, len) = (self.name(), self.len);
        match self.code & 0xff {
            1 | 3 => format!("{name}({op}) of {len} x {dtype}"),
            2 => format!("{name}(from rank {}) of {len} x {dtype}", self.code >> 32),
            4 => format!("{name} of {len} x {dtype}"),
            ALLOC_SHARED => format!("{name} of {len} bytes"),
            _ => name.to_owned(),
        }
    }
}

// `collective` and `describe` rely on the values of these enums.
const _: () = assert!(ReduceOp::Min as u64 == 3 && DType::I64 as u64 == 3);

/// A rank's view of the segment.
#[derive(Debug)]
pub(super) struct Segment {
    mapping: Mapping,
    world_size: usize,
}

impl Segment {
    /// Returns the length in bytes of the segment of `world_size` ranks.
    pub(super) fn size_bytes(world_size: usize) -> usize {
        Self::inputs_offset(world_size) + (world_size + 1) * DEPTH as usize * PIECE_BYTES
    }

    fn inputs_offset(world_size: usize) -> usize {
        let records = size_of::<Header>() + world_size * size_of::<Slot>();
        records.next_multiple_of(4096)
    }

    /// Initialises a segment in zeroed memory, as rank 0.
    pub(super) fn initialise(mapping: Mapping, world_size: usize, nonce: u64) -> Self {
        let segment = Self { mapping, world_size };
        let header = segment.header();
        header.nonce.store(nonce, Relaxed);
        header.world_size.store(world_size as u64, Relaxed);
        header.magic.store(MAGIC, Release);
        segment
    }

    /// Attaches to the segment that rank 0 has initialised, and checks that it is this group's.
    pub(super) fn attach(mapping: Mapping, world_size: usize, nonce: u64) -> io::Result<Self> {
        let segment = Self { mapping, world_size };
        let header = segment.header();
        let found = (header.magic.load(Acquire), header.nonce.load(Relaxed));
        if found != (MAGIC, nonce) || header.world_size.load(Relaxed) != world_size as u64 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "this is another group's memory, or another version's",
            ));
        }
        Ok(segment)
    }

    pub(super) fn world_size(&self) -> usize {
        self.world_size
    }

    pub(super) fn header(&self) -> &Header {
        debug_assert!(self.mapping.len_bytes() >= Self::size_bytes(self.world_size));
        // SAFETY: the mapping is page-aligned, long enough and initially zeroed, and all of `Header` is
        // atomics, for which any bytes are valid.
        unsafe { self.mapping.start().cast::<Header>().as_ref() }
    }

    pub(super) fn slots(&self) -> &[Slot] {
        // SAFETY: as for the header; `Header`'s size is a multiple of its alignment, which is
        // `Slot`'s, and the mapping holds `world_size` slots behind it.
        unsafe {
            let first = self.mapping.start().add(size_of::<Header>()).cast::<Slot>();
            std::slice::from_raw_parts(first.as_ptr(), self.world_size)
        }
    }

    /// Returns the staging piece for the data of `rank` in `round`.
    pub(super) fn input(&self, rank: usize, round: u64) -> *mut u8 {
        assert!(rank < self.world_size);
        self.piece(rank * DEPTH as usize + (round % DEPTH) as usize)
    }

    /// Returns the staging piece for reduced data in `round`; each rank owns a share of it.
    pub(super) fn result(&self, round: u64) -> *mut u8 {
        self.piece(self.world_size * DEPTH as usize + (round % DEPTH) as usize)
    }

    fn piece(&self, index: usize) -> *mut u8 {
        let offset = Self::inputs_offset(self.world_size) + index * PIECE_BYTES;
        // SAFETY: `size_bytes` counts this piece.
        unsafe { self.mapping.start().as_ptr().add(offset) }
    }
}
