//! What the trainer does besides training.

use job::ExitCode;

pub mod augment;
pub mod eval;
pub mod export;
pub mod models;
pub mod predict;
pub mod summary;
mod table;
mod trained;

/// What a command has to say, and how it ended.
pub struct Answer {
    /// For standard output.
    pub text: String,
    /// Not [`ExitCode::Done`] where the text is only a part of what was asked for.
    pub exit_code: ExitCode,
}

impl From<String> for Answer {
    fn from(text: String) -> Self {
        Self { text, exit_code: ExitCode::Done }
    }
}

/// `value` in one line, with a line break.
fn json(value: &impl serde::Serialize) -> String {
    let mut text = serde_json::to_string(value).unwrap_or_else(|error| {
        unreachable!("plain data has a JSON form: {error}");
    });
    text.push('\n');
    text
}
