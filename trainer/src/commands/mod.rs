//! The commands of the trainer besides training.

use job::ExitCode;

pub mod augment;
pub mod eval;
pub mod export;
pub mod models;
pub mod predict;
pub mod summary;
mod table;
mod trained;

/// The output of a command, and its exit code.
pub struct Answer {
    /// Text for standard output.
    pub text: String,
    /// Exit code; not [`ExitCode::Done`] if the text is only a part of what was asked for.
    pub exit_code: ExitCode,
}

impl From<String> for Answer {
    fn from(text: String) -> Self {
        Self { text, exit_code: ExitCode::Done }
    }
}

/// Formats `value` as JSON on one line, with a line break at the end.
fn json(value: &impl serde::Serialize) -> String {
    let mut text = serde_json::to_string(value).unwrap_or_else(|error| {
        unreachable!("plain data has a JSON form: {error}");
    });
    text.push('\n');
    text
}
