//! Loading a configuration: the file, then overrides, then checks.

use std::fs;
use std::path::Path;

use marked_yaml::Node;
use serde_path_to_error::Segment;
use serde_yaml::{Mapping, Value};

use super::Config;
use super::document::{in_plain_words, parse};
use super::error::{ConfigError, Location};
use super::keys::{as_mapping, leaves, locate, schema, unknown};
use super::marks::marks;
use super::validate::{Invalid, validate};

/// Reads the configuration at `path` and applies `overrides`, each `key=value` with a dotted key and a YAML
/// value; of two for the same key the later one wins.
///
/// An empty file gives all defaults. Keys of the chosen optimizer and schedule that are not given are set to
/// their defaults.
///
/// # Errors
/// [`ConfigError`]: an unreadable file, invalid YAML, an unknown or repeated key, a wrong type, or a value
/// out of range. It names file and line, or the override, the dotted path, and what would be right.
pub fn load(path: &Path, overrides: &[String]) -> Result<Config, ConfigError> {
    let text = fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_path_buf(), source })?;
    let overrides = overrides.iter().map(|text| parse_override(text)).collect::<Result<_, _>>()?;
    let given = Given { path, marks: marks(path, &text)?, overrides };
    let mut root = parse(path, &text)?;
    let schema = schema();
    given.check_keys(&root, &schema, "")?;
    for change in &given.overrides {
        apply(&mut root, &schema, change)?;
    }
    let mut config = given.deserialize(root)?;
    validate(&config).map_err(|invalid| given.wrong(&invalid.path, invalid.problem))?;
    config.fill_in();
    Ok(config)
}

/// Converts `invalid`, the reason why the configuration that [`load`] has read from the same arguments does
/// not fit the ranks, to an error with the location of the value.
pub fn refused(path: &Path, overrides: &[String], invalid: Invalid) -> ConfigError {
    let overrides = overrides.iter().filter_map(|text| parse_override(text).ok()).collect();
    let text = fs::read_to_string(path).unwrap_or_default();
    // If the file has changed since it was loaded, the location may be missing.
    let given = Given { path, marks: marks(path, &text).unwrap_or_default(), overrides };
    given.wrong(&invalid.path, invalid.problem)
}

/// Returns all keys of `config` as YAML that [`load`] reads back as an equal configuration.
pub fn to_yaml(config: &Config) -> String {
    let mut config = config.clone();
    config.fill_in();
    #[allow(clippy::expect_used)] // an invariant: a mapping of plain values
    serde_yaml::to_string(&as_mapping(&config)).expect("a configuration is plain data")
}

/// A parsed override.
struct Override<'a> {
    text: &'a str,
    key: &'a str,
    raw: &'a str,
    value: Value,
}

fn parse_override(text: &str) -> Result<Override<'_>, ConfigError> {
    let Some((key, raw)) = text.split_once('=') else {
        return Err(ConfigError::Override {
            text: text.to_string(),
            problem: "expected key=value with a dotted key, as in train.epochs=2".to_string(),
        });
    };
    let (key, raw) = (key.trim(), raw.trim());
    let value = serde_yaml::from_str(raw).map_err(|error| ConfigError::Syntax {
        location: Location::Override { text: text.to_string() },
        problem: error.to_string(),
    })?;
    Ok(Override { text, key, raw, value })
}

/// The file and the overrides, for locating errors.
struct Given<'a> {
    path: &'a Path,
    marks: Option<Node>,
    overrides: Vec<Override<'a>>,
}

impl Given<'_> {
    fn wrong(&self, key: &str, problem: String) -> ConfigError {
        let covers = |change: &&Override<'_>| {
            key.strip_prefix(change.key)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('['))
        };
        let location = match self.overrides.iter().rev().find(covers) {
            Some(change) => Location::Override { text: change.text.to_string() },
            None => Location::in_file(self.path, locate(self.marks.as_ref(), key, false)),
        };
        ConfigError::Key { location, key: key.to_string(), problem }
    }

    /// Checks that all keys of the file are known.
    fn check_keys(
        &self,
        given: &Mapping,
        known: &Mapping,
        section: &str,
    ) -> Result<(), ConfigError> {
        for (key, value) in given {
            let name = match key {
                Value::String(name) => name.clone(),
                other => serde_yaml::to_string(other).unwrap_or_default().trim().to_string(),
            };
            let path = if section.is_empty() { name } else { format!("{section}.{name}") };
            let expected = known.get(key).ok_or_else(|| ConfigError::Key {
                location: Location::in_file(self.path, locate(self.marks.as_ref(), &path, true)),
                key: path.clone(),
                problem: unknown(&schema(), &path),
            })?;
            if let Value::Mapping(inner) = expected {
                match value {
                    Value::Mapping(value) => self.check_keys(value, inner, &path)?,
                    Value::Null => {} // `data:` with nothing below it
                    _ => {
                        let keys: Vec<&str> = inner.keys().filter_map(Value::as_str).collect();
                        let problem = format!("expected a section with keys {}", keys.join(", "));
                        return Err(self.wrong(&path, problem));
                    }
                }
            }
        }
        Ok(())
    }

    fn deserialize(&self, mut root: Mapping) -> Result<Config, ConfigError> {
        let known = schema();
        let is_section = |key: &Value| known.get(key).is_some_and(Value::is_mapping);
        root.retain(|key, value| !(value.is_null() && is_section(key)));
        let mut root = Value::Mapping(root);
        match serde_path_to_error::deserialize(&root) {
            // Taken for a word, it is refused with the list of words.
            Err(error) if is_no_word(error.inner()) && make_word(&mut root, error.path()) => {
                serde_path_to_error::deserialize(&root)
            }
            ended => ended,
        }
        .map_err(|error| {
            let path = error.path().to_string();
            self.wrong(&path, in_plain_words(&error.into_inner().to_string()))
        })
    }
}

/// Returns whether a value that is no string was given for one of several words.
fn is_no_word(error: &serde_yaml::Error) -> bool {
    error.to_string().ends_with("expected a Value::Tagged enum")
}

/// Makes the value at `path` a string, and returns whether there is one.
fn make_word(root: &mut Value, path: &serde_path_to_error::Path) -> bool {
    let found = path.iter().try_fold(root, |value, segment| match segment {
        Segment::Seq { index } => value.get_mut(*index),
        Segment::Map { key } | Segment::Enum { variant: key } => value.get_mut(key.as_str()),
        Segment::Unknown => None,
    });
    let Some(value) = found else { return false };
    *value = Value::String(match &*value {
        Value::Sequence(_) => "[...]".to_owned(),
        Value::Mapping(_) => "{...}".to_owned(),
        scalar => serde_yaml::to_string(scalar).unwrap_or_default().trim().to_owned(),
    });
    true
}

/// Applies one override to `root`, which has known keys only.
fn apply(root: &mut Mapping, schema: &Mapping, change: &Override<'_>) -> Result<(), ConfigError> {
    let wrong = |problem: String| ConfigError::Key {
        location: Location::Override { text: change.text.to_string() },
        key: change.key.to_string(),
        problem,
    };
    let mut expected = None;
    let mut known = Some(schema);
    for part in change.key.split('.') {
        expected = known.and_then(|known| known.get(part));
        known = expected.and_then(Value::as_mapping);
    }
    let expected = expected.ok_or_else(|| wrong(unknown(schema, change.key)))?;
    if let Value::Mapping(section) = expected {
        let example = leaves(section).into_iter().next().map_or(String::new(), |(key, _)| key);
        return Err(wrong(format!(
            "a section, not a key; set its keys one by one, as in {}.{example}=...",
            change.key
        )));
    }
    // A string such as a folder called 2024 must not become a number.
    let value = match (&change.value, expected) {
        (Value::Number(_) | Value::Bool(_), Value::String(_)) => Value::String(change.raw.into()),
        (value, _) => value.clone(),
    };
    let mut at = root;
    let mut parts: Vec<&str> = change.key.split('.').collect();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        let slot = at.entry(part.into()).or_insert(Value::Null);
        if slot.is_null() {
            *slot = Value::Mapping(Mapping::new());
        }
        let Value::Mapping(section) = slot else {
            return Err(wrong(format!("`{part}` is not a section in the file")));
        };
        at = section;
    }
    at.insert(last.into(), value);
    Ok(())
}
