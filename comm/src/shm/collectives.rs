//! How collectives move data: short buffers in one round, buffers in shared allocations in place, and all
//! others through staging pieces.

use super::engine::{Entered, ShmEngine};
use super::region::Region;
use super::rounds::At;
use super::segment::{Call, DEPTH, PIECE_BYTES};
use crate::communicator::chunk_range;
use crate::executor::Job;
use crate::reduce::reduce;
use crate::{Collective, RawBuffer, Result};

/// Longest buffer that is staged whole and reduced by every rank itself: one round instead of several.
const SHORT_BYTES: usize = 32 * 1024;

/// Chunk boundaries inside a collective are multiples of this many elements, so that no cache line has two
/// writers.
const LINE_ELEMENTS: usize = 64;

impl ShmEngine {
    pub(super) fn collective(&self, job: &Job) -> Result<()> {
        let at = At { call: Call::collective(job.collective, &job.buffer), sequence: job.sequence };
        if job.collective == Collective::Barrier || job.buffer.len == 0 {
            return self.enter(at, None).map(|_| ());
        }
        if job.buffer.size_bytes() <= SHORT_BYTES {
            return self.short(job, at);
        }
        let located = self.locate(job);
        let entered = self.enter(at, located.as_ref().map(|(_, place)| *place))?;
        if let (Some(place), Some((region, _))) = (entered.place, located) {
            self.in_place(job, &region, place.offset_bytes as usize);
            return self.meet(at);
        }
        self.staged(job, at)
    }

    fn world_size(&self) -> usize {
        self.rounds.segment().world_size()
    }

    /// Runs a collective on a short buffer in one round: every rank stages its data, then reads all it needs.
    fn short(&self, job: &Job, at: At) -> Result<()> {
        let (rank, buffer) = (self.rounds.rank(), Buffer(job.buffer));
        let segment = self.rounds.segment();
        let mine = segment.input(rank, self.rounds.next());
        let sends = match job.collective {
            Collective::Broadcast { root } if root != rank => 0..0,
            Collective::AllGather => buffer.chunk(rank, self.world_size()),
            _ => 0..buffer.0.len,
        };
        // SAFETY: short buffers fit in a staging piece, and this rank's piece is its own until it
        // posts the round.
        unsafe { buffer.copy_out(sends.clone(), mine.add(buffer.bytes(sends.start))) };
        let Entered { round, .. } = self.enter(at, None)?;
        // SAFETY: what peers staged for `round` stays until this rank has posted two more rounds.
        unsafe {
            match job.collective {
                Collective::AllReduce(op) => {
                    let sources = self.inputs(round);
                    reduce(buffer.0.dtype, op, &sources, &[buffer.at(0)], buffer.0.len);
                }
                Collective::ReduceScatter(op) => {
                    let chunk = buffer.chunk(rank, self.world_size());
                    let start = buffer.bytes(chunk.start);
                    let sources: Vec<_> = self.inputs(round).iter().map(|i| i.add(start)).collect();
                    let target = buffer.at(chunk.start);
                    reduce(buffer.0.dtype, op, &sources, &[target], chunk.len());
                }
                Collective::Broadcast { root } if root != rank => {
                    buffer.copy_in(0..buffer.0.len, segment.input(root, round));
                }
                Collective::AllGather => {
                    for peer in self.peers() {
                        let chunk = buffer.chunk(peer, self.world_size());
                        let from = segment.input(peer, round).add(buffer.bytes(chunk.start));
                        buffer.copy_in(chunk, from);
                    }
                }
                Collective::Broadcast { .. } | Collective::Barrier => {}
            }
        }
        Ok(())
    }

    fn inputs(&self, round: u64) -> Vec<*const u8> {
        let segment = self.rounds.segment();
        (0..self.world_size()).map(|rank| segment.input(rank, round).cast_const()).collect()
    }

    fn peers(&self) -> impl Iterator<Item = usize> {
        let rank = self.rounds.rank();
        (0..self.world_size()).filter(move |&peer| peer != rank)
    }

    /// Runs a collective directly on the buffers of all ranks, each of which lies at `offset` of its rank's
    /// part of `region`. All ranks must have entered; the caller waits for them afterwards.
    fn in_place(&self, job: &Job, region: &Region, offset: usize) {
        let (rank, world_size, buffer) =
            (self.rounds.rank(), self.world_size(), Buffer(job.buffer));
        // SAFETY: `enter` has seen that all ranks have this length at this offset, so the parts
        // hold it; between entering and meeting, each element is touched by the one rank that is
        // responsible for it, or read only.
        let all = |chunk_start: usize| -> Vec<*mut u8> {
            let offset = offset + buffer.bytes(chunk_start);
            (0..world_size).map(|peer| region.part(peer).wrapping_add(offset)).collect()
        };
        let constant = |pointers: &[*mut u8]| -> Vec<*const u8> {
            pointers.iter().map(|pointer| pointer.cast_const()).collect()
        };
        // SAFETY: as above.
        unsafe {
            match job.collective {
                Collective::AllReduce(op) => {
                    let chunk = aligned_chunk(buffer.0.len, rank, world_size);
                    let targets = all(chunk.start);
                    reduce(buffer.0.dtype, op, &constant(&targets), &targets, chunk.len());
                }
                Collective::ReduceScatter(op) => {
                    let chunk = buffer.chunk(rank, world_size);
                    let target = buffer.at(chunk.start);
                    let sources = constant(&all(chunk.start));
                    reduce(buffer.0.dtype, op, &sources, &[target], chunk.len());
                }
                Collective::Broadcast { root } if root != rank => {
                    buffer.copy_in(0..buffer.0.len, all(0)[root]);
                }
                Collective::AllGather => {
                    for peer in self.peers() {
                        let chunk = buffer.chunk(peer, world_size);
                        let from = all(chunk.start)[peer];
                        buffer.copy_in(chunk, from);
                    }
                }
                Collective::Broadcast { .. } | Collective::Barrier => {}
            }
        }
    }

    fn staged(&self, job: &Job, at: At) -> Result<()> {
        match job.collective {
            Collective::AllReduce(_) if self.world_size() == 2 => self.all_reduce_of_two(job, at),
            Collective::AllReduce(_) | Collective::ReduceScatter(_) => self.reduce_chunks(job, at),
            Collective::AllGather => self.gather_chunks(job, at),
            Collective::Broadcast { root } => self.broadcast_pieces(job, root, at),
            Collective::Barrier => Ok(()),
        }
    }

    /// All-reduce of two ranks: each stages all of its buffer and reduces all of it, so a byte is copied once
    /// and reduced once. Exchanging reduced halves would cost another copy and another round.
    fn all_reduce_of_two(&self, job: &Job, at: At) -> Result<()> {
        let Collective::AllReduce(op) = job.collective else { return Ok(()) };
        let (rank, buffer, segment) =
            (self.rounds.rank(), Buffer(job.buffer), self.rounds.segment());
        let step = PIECE_BYTES / buffer.0.dtype.size_bytes();
        let mut before = None;
        for start in (0..buffer.0.len).step_by(step) {
            let piece = start..buffer.0.len.min(start + step);
            // SAFETY: the elements fit in the staging piece, which is this rank's own until it posts.
            unsafe { buffer.copy_out(piece.clone(), segment.input(rank, self.rounds.next())) };
            let round = self.rounds.post();
            self.reduce_whole(&buffer, op, before.replace((piece, round)));
            self.rounds.wait(round, at)?;
        }
        self.reduce_whole(&buffer, op, before);
        Ok(())
    }

    /// Reduces a piece that both ranks have staged, in a round that this rank has waited for.
    fn reduce_whole(&self, buffer: &Buffer, op: crate::ReduceOp, piece: Option<Piece>) {
        let Some((piece, round)) = piece else { return };
        let rank = self.rounds.rank();
        let target = buffer.at(piece.start);
        let mut sources = self.inputs(round);
        sources[rank] = target.cast_const();
        // SAFETY: peers' inputs stay until this rank has posted two more rounds; the target is a source.
        unsafe { reduce(buffer.0.dtype, op, &sources, &[target], piece.len()) };
    }

    /// Runs `reduce_scatter`, or `all_reduce` as `reduce_scatter` plus gathering the results, as a pipeline
    /// of pieces: while piece `i` is staged, piece `i - 1` is reduced and piece `i - 2` gathered.
    fn reduce_chunks(&self, job: &Job, at: At) -> Result<()> {
        let (op, gathers) = match job.collective {
            Collective::AllReduce(op) => (op, true),
            Collective::ReduceScatter(op) => (op, false),
            _ => return Ok(()),
        };
        let (rank, buffer) = (self.rounds.rank(), Buffer(job.buffer));
        let chunks = Chunks::new(&buffer, self.world_size());
        let ahead = if gathers { 2 } else { 1 };
        for i in 0..chunks.pieces() + ahead {
            let next = self.rounds.next();
            for peer in self.peers().filter(|_| i < chunks.pieces()) {
                let to = self.rounds.segment().input(rank, next).wrapping_add(chunks.share(peer));
                // SAFETY: a rank's share of a staging piece holds its part of piece `i`, and this
                // rank's staging piece is its own until it posts.
                unsafe { buffer.copy_out(chunks.piece(peer, i), to) };
            }
            if let Some(reduced) = i.checked_sub(1).filter(|&piece| piece < chunks.pieces()) {
                self.reduce_share(&buffer, op, &chunks, reduced, gathers);
            }
            if let Some(gathered) = i.checked_sub(2).filter(|_| gathers) {
                self.gather_shares(&buffer, &chunks, gathered);
            }
            if i + 1 < chunks.pieces() + ahead {
                self.meet(at)?;
            }
        }
        Ok(())
    }

    /// Reduces this rank's share of a piece that was staged in the previous round; if `gathers`, also stages
    /// the result for the other ranks.
    fn reduce_share(
        &self,
        buffer: &Buffer,
        op: crate::ReduceOp,
        chunks: &Chunks,
        piece: usize,
        gathers: bool,
    ) {
        let (rank, next) = (self.rounds.rank(), self.rounds.next());
        let range = chunks.piece(rank, piece);
        let own = buffer.at(range.start);
        let share = chunks.share(rank);
        let staged = self.inputs(next - 1);
        let mut sources: Vec<_> = staged.iter().map(|input| input.wrapping_add(share)).collect();
        sources[rank] = own.cast_const();
        let result = self.rounds.segment().result(next).wrapping_add(share);
        let targets = [own, result];
        let targets = if gathers { &targets[..] } else { &targets[..1] };
        // SAFETY: peers' inputs stay until this rank has posted two more rounds; its share of the
        // result's staging piece is its own until it posts.
        unsafe { reduce(buffer.0.dtype, op, &sources, targets, range.len()) };
    }

    /// Copies the shares of the other ranks, staged as results in the previous round, into the buffer.
    fn gather_shares(&self, buffer: &Buffer, chunks: &Chunks, piece: usize) {
        let results = self.rounds.segment().result(self.rounds.next() - 1);
        for peer in self.peers() {
            let from = results.wrapping_add(chunks.share(peer));
            // SAFETY: results stay until this rank has posted two more rounds.
            unsafe { buffer.copy_in(chunks.piece(peer, piece), from) };
        }
    }

    fn gather_chunks(&self, job: &Job, at: At) -> Result<()> {
        let (rank, buffer) = (self.rounds.rank(), Buffer(job.buffer));
        let chunks = Chunks::new(&buffer, self.world_size());
        for i in 0..=chunks.pieces() {
            if i < chunks.pieces() {
                let result = self.rounds.segment().result(self.rounds.next());
                let to = result.wrapping_add(chunks.share(rank));
                // SAFETY: this rank's share of the staging piece is its own until it posts.
                unsafe { buffer.copy_out(chunks.piece(rank, i), to) };
            }
            if let Some(gathered) = i.checked_sub(1) {
                self.gather_shares(&buffer, &chunks, gathered);
            }
            if i < chunks.pieces() {
                self.meet(at)?;
            }
        }
        Ok(())
    }

    fn broadcast_pieces(&self, job: &Job, root: usize, at: At) -> Result<()> {
        let (rank, buffer, segment) =
            (self.rounds.rank(), Buffer(job.buffer), self.rounds.segment());
        let step = PIECE_BYTES / buffer.0.dtype.size_bytes();
        let mut before: Option<Piece> = None;
        for start in (0..buffer.0.len).step_by(step) {
            let piece = start..buffer.0.len.min(start + step);
            if rank == root {
                // SAFETY: the elements fit in the staging piece, which is the root's own until it posts.
                unsafe { buffer.copy_out(piece.clone(), segment.input(root, self.rounds.next())) };
            }
            let round = self.rounds.post();
            if let Some((piece, round)) = before.replace((piece, round)).filter(|_| rank != root) {
                // SAFETY: the root's input stays until this rank has posted two more rounds.
                unsafe { buffer.copy_in(piece, segment.input(root, round)) };
            }
            self.rounds.wait(round, at)?;
        }
        if let Some((piece, round)) = before.filter(|_| rank != root) {
            // SAFETY: as above.
            unsafe { buffer.copy_in(piece, segment.input(root, round)) };
        }
        Ok(())
    }
}

/// Range of elements, and the round in which they were staged.
type Piece = (std::ops::Range<usize>, u64);

/// As [`chunk_range`], with boundaries at multiples of [`LINE_ELEMENTS`].
fn aligned_chunk(len: usize, rank: usize, world_size: usize) -> std::ops::Range<usize> {
    let lines = chunk_range(len.div_ceil(LINE_ELEMENTS), rank, world_size);
    (lines.start * LINE_ELEMENTS).min(len)..(lines.end * LINE_ELEMENTS).min(len)
}

/// Cuts the chunks of all ranks into pieces such that every piece has a share of each rank's chunk.
struct Chunks {
    len: usize,
    world_size: usize,
    /// Elements of each rank's chunk in one piece.
    step: usize,
    element_bytes: usize,
}

impl Chunks {
    fn new(buffer: &Buffer, world_size: usize) -> Self {
        let element_bytes = buffer.0.dtype.size_bytes();
        let step = PIECE_BYTES / element_bytes / world_size / LINE_ELEMENTS * LINE_ELEMENTS;
        Self { len: buffer.0.len, world_size, step, element_bytes }
    }

    fn pieces(&self) -> usize {
        self.len.div_ceil(self.world_size).div_ceil(self.step)
    }

    /// Returns the range of elements of `rank`'s chunk that belong to piece `i`.
    fn piece(&self, rank: usize, i: usize) -> std::ops::Range<usize> {
        let chunk = chunk_range(self.len, rank, self.world_size);
        (chunk.start + i * self.step).min(chunk.end)
            ..(chunk.start + (i + 1) * self.step).min(chunk.end)
    }

    /// Returns the offset in bytes of `rank`'s share in a staging piece.
    fn share(&self, rank: usize) -> usize {
        rank * self.step * self.element_bytes
    }
}

/// A host buffer, addressed by element.
struct Buffer(RawBuffer);

impl Buffer {
    fn bytes(&self, elements: usize) -> usize {
        elements * self.0.dtype.size_bytes()
    }

    fn at(&self, element: usize) -> *mut u8 {
        assert!(element <= self.0.len);
        self.0.ptr.as_ptr().wrapping_add(self.bytes(element))
    }

    fn chunk(&self, rank: usize, world_size: usize) -> std::ops::Range<usize> {
        chunk_range(self.0.len, rank, world_size)
    }

    /// # Safety
    /// `range` lies in the buffer, and `to` is writable for as many bytes.
    unsafe fn copy_out(&self, range: std::ops::Range<usize>, to: *mut u8) {
        // SAFETY: the caller's promise; staging memory and buffers do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(self.at(range.start), to, self.bytes(range.len())) };
    }

    /// # Safety
    /// `range` lies in the buffer, and `from` is readable for as many bytes.
    unsafe fn copy_in(&self, range: std::ops::Range<usize>, from: *const u8) {
        // SAFETY: the caller's promise; staging memory and buffers do not overlap.
        unsafe {
            std::ptr::copy_nonoverlapping(from, self.at(range.start), self.bytes(range.len()))
        };
    }
}

const _: () = assert!(SHORT_BYTES <= PIECE_BYTES && DEPTH == 3);
