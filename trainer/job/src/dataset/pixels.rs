//! Bytes of images: in memory, or in a mapped file.

use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;

use memmap2::Mmap;

/// Bytes of images. If they are mapped, clones are cheap and the ranks of a machine share the memory.
#[derive(Clone)]
pub struct Pixels(Storage);

#[derive(Clone)]
enum Storage {
    Owned(Vec<u8>),
    Mapped { file: Arc<Mmap>, range: Range<usize> },
}

impl Pixels {
    /// Returns the bytes `range` of a mapped file.
    ///
    /// # Panics
    /// When the file is shorter than that.
    pub(super) fn mapped(file: Arc<Mmap>, range: Range<usize>) -> Self {
        assert!(range.end <= file.len(), "{range:?} of {} bytes", file.len());
        Self(Storage::Mapped { file, range })
    }
}

impl From<Vec<u8>> for Pixels {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Storage::Owned(bytes))
    }
}

impl Deref for Pixels {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Storage::Owned(bytes) => bytes,
            Storage::Mapped { file, range } => &file[range.clone()],
        }
    }
}

impl PartialEq for Pixels {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Pixels {}

impl fmt::Debug for Pixels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.len())
    }
}
