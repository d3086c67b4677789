//! Reading YAML files with precise errors, which name file, line and key.

use std::fs;
use std::path::{Path, PathBuf};

use marked_yaml::Node;
use serde::de::DeserializeOwned;
use serde_path_to_error::Segment;
use serde_yaml::{Mapping, Value};

use super::error::{ConfigError, Location};
use super::keys::{locate_parts, nearest};
use super::marks::marks;

/// A YAML file that was read, for locating errors in it.
#[derive(Debug)]
pub struct Document {
    path: PathBuf,
    marks: Option<Node>,
}

impl Document {
    /// Reads the file at `path` as a `T`, whose types deny unknown fields. The returned document locates
    /// later errors.
    ///
    /// # Errors
    /// [`ConfigError`]: an unreadable file, invalid YAML, an unknown, repeated or missing key, or a wrong
    /// type.
    pub fn read<T: DeserializeOwned>(path: &Path) -> Result<(T, Self), ConfigError> {
        let text = fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_path_buf(), source })?;
        let document = Self { path: path.to_path_buf(), marks: marks(path, &text)? };
        let root = Value::Mapping(parse(path, &text)?);
        let read = serde_path_to_error::deserialize(root).map_err(|error| {
            let mut parts: Vec<String> = error.path().iter().filter_map(part).collect();
            let message = error.inner().to_string();
            let field = |start| after(&message, start, "`").map(|(name, _)| name.to_string());
            if let Some(missing) = field("missing field `") {
                parts.push(missing);
                return document.wrong(&parts, "missing".to_string());
            }
            let unknown = field("unknown field `");
            parts.extend(unknown.filter(|name| parts.last() != Some(name)));
            document.wrong(&parts, in_plain_words(&message))
        })?;
        Ok((read, document))
    }

    /// Returns an error about the key whose path from the root is `parts`: keys, and indices of lists.
    pub fn wrong(&self, parts: &[impl AsRef<str>], problem: String) -> ConfigError {
        let names = || parts.iter().map(AsRef::as_ref);
        let mut key = String::new();
        for name in names() {
            match name.parse::<usize>() {
                Ok(index) => key.push_str(&format!("[{index}]")),
                Err(_) if key.is_empty() => key.push_str(name),
                Err(_) => key.push_str(&format!(".{name}")),
            }
        }
        let at = locate_parts(self.marks.as_ref(), names(), true);
        ConfigError::Key { location: Location::in_file(&self.path, at), key, problem }
    }
}

fn part(segment: &Segment) -> Option<String> {
    match segment {
        Segment::Seq { index } => Some(index.to_string()),
        Segment::Map { key } => Some(key.clone()),
        Segment::Enum { .. } | Segment::Unknown => None,
    }
}

/// Parses the file into a mapping.
pub(super) fn parse(path: &Path, text: &str) -> Result<Mapping, ConfigError> {
    let value: Value = serde_yaml::from_str(text).map_err(|error| {
        let at = error.location().map(|at| (at.line(), at.column()));
        let suffix = at.map(|(line, column)| format!(" at line {line} column {column}"));
        let message = error.to_string();
        let problem = suffix.and_then(|s| message.strip_suffix(&s).map(str::to_string));
        ConfigError::Syntax {
            location: Location::in_file(path, at),
            problem: problem.unwrap_or(message),
        }
    })?;
    match value {
        Value::Null => Ok(Mapping::new()),
        Value::Mapping(mapping) => Ok(mapping),
        _ => Err(ConfigError::Syntax {
            location: Location::in_file(path, Some((1, 1))),
            problem: "expected sections and keys, as in `train: {epochs: 2}`".to_string(),
        }),
    }
}

/// Rewrites a message of serde's in a user's terms.
pub(super) fn in_plain_words(message: &str) -> String {
    let unknown = |what: &str| after(message, &format!("unknown {what} `"), "`, expected ");
    if let Some((given, expected)) = unknown("variant").or_else(|| unknown("field")) {
        let what = if message.starts_with("unknown field") { "key" } else { "value" };
        let expected = expected.trim_start_matches("one of ");
        let names = expected.split(['`', ',', ' ']).filter(|name| !name.is_empty());
        let hint = nearest(given, names).map(|near| format!("; did you mean `{near}`?"));
        return format!(
            "unknown {what} `{given}`, expected {expected}{}",
            hint.unwrap_or_default()
        );
    }
    let found = after(message, "invalid type: ", ", expected ")
        .or_else(|| after(message, "invalid value: ", ", expected "))
        .or_else(|| after(message, "invalid length ", ", expected "));
    let Some((found, expected)) = found else { return message.to_string() };
    let expected = match expected {
        "usize" | "u64" | "u32" => "a whole number, 0 or more",
        "f64" | "f32" => "a number",
        "a boolean" => "true or false",
        "path string" => "a path",
        "a sequence" => "a list, as in [a, b]",
        "an array of length 2" => "a list of two numbers",
        other if other.starts_with("struct ") => "keys with values, as in {key: value}",
        other => other,
    };
    let found = found.replace("unit value", "nothing").replace("floating point", "number");
    format!("expected {expected}, found {found}")
}

fn after<'a>(message: &'a str, start: &str, middle: &str) -> Option<(&'a str, &'a str)> {
    message.strip_prefix(start)?.split_once(middle)
}
