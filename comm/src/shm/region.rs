//! Allocations of shared memory in which collectives reach the buffers of all ranks directly.

use std::ptr::NonNull;
use std::sync::atomic::Ordering::*;
use std::sync::{Arc, Weak};

use super::engine::ShmEngine;
use super::memory::{self, Locator, Mapping};
use super::rounds::At;
use super::segment::SharedPlace;
use crate::{CommError, RawBuffer, Result, SharedMemory};

/// One allocation: one part per rank, all of them mapped by every rank.
#[derive(Debug)]
pub(super) struct Region {
    mapping: Mapping,
    rank: usize,
    part_bytes: usize,
}

impl Region {
    /// Allocates `len_bytes` for each rank. Collective. The outer result is a failure of the group; the inner
    /// one is an allocation that failed on some rank, which all ranks learn and survive.
    pub(super) fn allocate(engine: &ShmEngine, len_bytes: usize, at: At) -> Result<Result<Self>> {
        let segment = engine.rounds.segment();
        let (rank, header) = (engine.rounds.rank(), segment.header());
        let part_bytes = len_bytes.max(1).next_multiple_of(4096);
        let total_bytes = part_bytes.saturating_mul(segment.world_size());
        let created = (rank == 0).then(|| memory::create(total_bytes));
        if let Some(created) = &created {
            let locator = created.as_ref().ok().map(|(_, locator, _)| *locator);
            offer(&header.offered, locator);
        }
        engine.enter(at, None)?;
        // The file stays open until every rank has mapped it.
        let (_file, mapped) = match created {
            Some(Ok((file, _, mapping))) => (Some(file), Ok(mapping)),
            Some(Err(error)) => (None, Err(error)),
            None => (None, take(engine, total_bytes)),
        };
        let own_slot = &segment.slots()[rank];
        own_slot.map_failed.store(mapped.is_err().into(), Release);
        engine.meet(at)?;
        let failed: Vec<_> = segment.slots().iter().map(|s| s.map_failed.load(Acquire)).collect();
        let reason = match mapped {
            Ok(mapping) => match failed.iter().position(|&failed| failed != 0) {
                None => {
                    mapping.advise_huge_pages();
                    return Ok(Ok(Self { mapping, rank, part_bytes }));
                }
                Some(peer) => allocation_failed(engine, peer),
            },
            Err(error) => error.to_string(),
        };
        Ok(Err(CommError::Collective {
            op: at.call.name(),
            sequence: at.sequence,
            rank: engine.rounds.name(rank),
            reason,
        }))
    }

    /// Returns the first byte of `rank`'s part.
    pub(super) fn part(&self, rank: usize) -> *mut u8 {
        let offset = rank * self.part_bytes;
        assert!(offset < self.mapping.len_bytes());
        // SAFETY: just checked.
        unsafe { self.mapping.start().as_ptr().add(offset) }
    }

    fn offset_of(&self, buffer: &RawBuffer) -> Option<usize> {
        let offset = (buffer.ptr.as_ptr() as usize).checked_sub(self.part(self.rank) as usize)?;
        (offset + buffer.size_bytes() <= self.part_bytes).then_some(offset)
    }
}

fn allocation_failed(engine: &ShmEngine, slot: usize) -> String {
    format!("rank {} could not create or map the shared buffer", engine.rounds.name(slot))
}

type Offered = [std::sync::atomic::AtomicU64; 3];

fn offer(offered: &Offered, locator: Option<Locator>) {
    offered[2].store(locator.is_some().into(), Relaxed);
    if let Some(Locator { pid, fd }) = locator {
        offered[0].store(pid.into(), Relaxed);
        offered[1].store(fd as u64, Relaxed);
    }
}

fn take(engine: &ShmEngine, total_bytes: usize) -> std::io::Result<Mapping> {
    let offered = &engine.rounds.segment().header().offered;
    if offered[2].load(Relaxed) == 0 {
        return Err(std::io::Error::other(allocation_failed(engine, 0)));
    }
    let (pid, fd) = (offered[0].load(Relaxed) as u32, offered[1].load(Relaxed) as i32);
    memory::open(Locator { pid, fd }, total_bytes)
}

/// All allocations of a group. Their indices are the same on every rank, since every rank takes part in each
/// allocation.
#[derive(Default)]
pub(super) struct Regions(Vec<Weak<Region>>);

impl Regions {
    pub(super) fn add(&mut self, region: Region) -> SharedMemory {
        let region = Arc::new(region);
        self.0.push(Arc::downgrade(&region));
        // Never null: the part lies in the mapping.
        let ptr = NonNull::new(region.part(region.rank)).unwrap_or(region.mapping.start());
        SharedMemory { ptr, len_bytes: region.part_bytes, owner: region }
    }

    pub(super) fn locate(&self, buffer: &RawBuffer) -> Option<(Arc<Region>, SharedPlace)> {
        self.0.iter().enumerate().find_map(|(number, region)| {
            let region = region.upgrade()?;
            let offset_bytes = region.offset_of(buffer)? as u64;
            Some((region, SharedPlace { memory: number as u64, offset_bytes }))
        })
    }
}
