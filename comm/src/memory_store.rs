//! A [`Store`] in memory.

use std::collections::HashMap;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::Result;
use crate::bootstrap::Store;

/// A [`Store`] for ranks that are threads of one process.
#[derive(Debug, Default)]
pub struct MemoryStore {
    values: Mutex<HashMap<String, String>>,
    changed: Condvar,
}

impl Store for MemoryStore {
    fn put(&self, key: &str, value: &str) -> Result<()> {
        let mut values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        values.insert(key.to_owned(), value.to_owned());
        self.changed.notify_all();
        Ok(())
    }

    fn get(&self, key: &str, timeout: Duration) -> Result<Option<String>> {
        let values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        let (values, _) = self
            .changed
            .wait_timeout_while(values, timeout, |values| !values.contains_key(key))
            .unwrap_or_else(PoisonError::into_inner);
        Ok(values.get(key).cloned())
    }
}
