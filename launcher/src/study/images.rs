//! How many images runs have, and of which shape: looked at once, and kept, so that a study can be drawn
//! where they are not.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use job::config::Data;
use job::dataset::{self, DataError, Outline};
use job::files::write_atomically;
use serde::{Deserialize, Serialize};

/// The images of a study.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct StudyImages(Vec<Entry>);

#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    data: Data,
    outline: Outline,
}

impl StudyImages {
    /// As the study in `out` has kept them; none where it has not.
    pub fn read(out: &Path) -> Self {
        let text = fs::read(path(out)).ok();
        text.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
    }

    /// Keeps them in `out`.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(&self, out: &Path) -> io::Result<()> {
        write_atomically(&path(out), format!("{:#}\n", serde_json::to_value(self)?).as_bytes())
    }

    /// What `data` comes to.
    ///
    /// # Errors
    /// [`DataError`] when that is not known yet and there are no such images.
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
