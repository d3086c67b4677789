//! Numbers and shapes of the images of a study's runs. They are determined once and stored, so that the study
//! can be drawn without the images.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use job::config::Data;
use job::dataset::{self, DataError, Outline};
use job::files::write_atomically;
use serde::{Deserialize, Serialize};

/// Outlines of the data sets of a study.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct StudyImages(Vec<Entry>);

#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    data: Data,
    outline: Outline,
}

impl StudyImages {
    /// Reads the outlines that the study in `out` has stored; none if it has not.
    pub fn read(out: &Path) -> Self {
        let text = fs::read(path(out)).ok();
        text.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
    }

    /// Stores the outlines in `out`.
    ///
    /// # Errors
    /// Errors of the file system.
    pub fn write(&self, out: &Path) -> io::Result<()> {
        write_atomically(&path(out), format!("{:#}\n", serde_json::to_value(self)?).as_bytes())
    }

    /// Returns the outline of `data`. Examines the images if it is not known yet.
    ///
    /// # Errors
    /// [`DataError`] when the outline is not known yet and cannot be determined.
    pub fn outline(&mut self, data: &Data) -> Result<Outline, DataError> {
        if let Some(known) = self.0.iter().find(|known| known.data == *data) {
            return Ok(known.outline.clone());
        }
        let outline = dataset::outline(data)?;
        self.0.push(Entry { data: data.clone(), outline: outline.clone() });
        Ok(outline)
    }
}

fn path(out: &Path) -> PathBuf {
    out.join("images.json")
}
