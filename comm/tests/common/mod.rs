//! Code shared by the tests of several backends.
#![allow(dead_code, clippy::unwrap_used)]

pub mod processes;
pub mod table;

pub use comm::bootstrap::MemoryStore;
