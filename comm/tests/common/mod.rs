//! What the tests of several backends share.
#![allow(dead_code, clippy::unwrap_used)]

pub mod processes;
pub mod table;

use std::collections::HashMap;
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use comm::bootstrap::Store;
use comm::{CommError, Result};

/// A store for ranks that are threads of one process.
#[derive(Default)]
pub struct MemoryStore {
    values: Mutex<HashMap<String, String>>,
    changed: Condvar,
}

impl Store for MemoryStore {
    fn put(&self, key: &str, value: &str) -> Result<()> {
        self.values.lock().unwrap().insert(key.to_owned(), value.to_owned());
        self.changed.notify_all();
        Ok(())
    }

    fn get(&self, key: &str, timeout: Duration) -> Result<String> {
        let values = self.values.lock().unwrap();
        let absent = |values: &mut HashMap<_, _>| !values.contains_key(key);
        let (values, _) = self.changed.wait_timeout_while(values, timeout, absent).unwrap();
        values.get(key).cloned().ok_or_else(|| CommError::Control(format!("nobody put {key}")))
    }
}
