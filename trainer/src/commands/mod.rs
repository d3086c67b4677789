//! What the trainer does besides training.

pub mod export;
pub mod models;
pub mod summary;
mod table;

/// `value` in one line, with a line break.
fn json(value: &impl serde::Serialize) -> String {
    let mut text = serde_json::to_string(value).unwrap_or_else(|error| {
        unreachable!("plain data has a JSON form: {error}");
    });
    text.push('\n');
    text
}
