//! The known keys, suggestions for misspelt ones, and the location of a key in a file.

use std::path::PathBuf;

use marked_yaml::{Node, types::MarkedScalarNode};
use serde_yaml::{Mapping, Value};

use super::{Config, Model, Optimizer, Schedule};

/// Returns a configuration in which every existing key is set: the list of known keys.
pub(super) fn schema() -> Mapping {
    let optimizer = Optimizer::with_every_key();
    let model =
        Model { dropout: Some(0.0), from_torchvision: Some(PathBuf::new()), ..Model::default() };
    let schedule = Schedule::with_every_key();
    let config = Config { model, optimizer, schedule, ..Config::default() };
    as_mapping(&config)
}

/// Converts `config` to a YAML mapping.
#[allow(clippy::expect_used)] // an invariant: nothing in a configuration can fail to serialise
pub(super) fn as_mapping(config: &Config) -> Mapping {
    match serde_yaml::to_value(config).expect("a configuration is plain data") {
        Value::Mapping(mapping) => mapping,
        other => unreachable!("a struct serialises to a mapping, not {other:?}"),
    }
}

/// Returns all values of `mapping` that are not sections, with their dotted paths, in order.
pub(super) fn leaves(mapping: &Mapping) -> Vec<(String, &Value)> {
    let mut found = Vec::new();
    for (key, value) in mapping {
        let key = key.as_str().unwrap_or_default();
        match value {
            Value::Mapping(section) => found
                .extend(leaves(section).into_iter().map(|(rest, v)| (format!("{key}.{rest}"), v))),
            leaf => found.push((key.to_string(), leaf)),
        }
    }
    found
}

/// Returns a message about an unknown key, with the key that was probably meant, or the keys of the same
/// section.
///
/// `key` is a dotted path that is not in `schema`.
pub(super) fn unknown(schema: &Mapping, key: &str) -> String {
    let all: Vec<String> = leaves(schema).into_iter().map(|(path, _)| path).collect();
    let (section, last) = key.rsplit_once('.').unwrap_or(("", key));
    let siblings = match section {
        "" => Some(schema),
        _ => {
            section.split('.').try_fold(schema, |at, part| at.get(part).and_then(Value::as_mapping))
        }
    };
    if let Some(whole) = value_above(schema, key) {
        return format!("unknown key; `{whole}` is set as a whole, as in {whole}=...");
    }
    let known: Vec<&str> = siblings.into_iter().flatten().filter_map(|(k, _)| k.as_str()).collect();
    if let Some(near) = nearest(last, known.iter().copied()) {
        let near = if section.is_empty() { near.to_string() } else { format!("{section}.{near}") };
        return format!("unknown key; did you mean `{near}`?");
    }
    let last_of = |path: &str| path.rsplit('.').next().unwrap_or_default().to_string();
    let lasts: Vec<String> = all.iter().map(|path| last_of(path)).collect();
    if let Some(near) = nearest(last, lasts.iter().map(String::as_str)) {
        let elsewhere = lasts.iter().position(|name| name == near).map_or(near, |at| &all[at]);
        return format!("unknown key; did you mean `{elsewhere}`?");
    }
    match known.is_empty() {
        true => format!("unknown key; sections and keys at the top level are {}", names(schema)),
        false => format!("unknown key; keys of this section are {}", known.join(", ")),
    }
}

/// Returns the part of the path `key` that is a key with a value, not a section.
fn value_above<'a>(schema: &Mapping, key: &'a str) -> Option<&'a str> {
    let mut section = schema;
    for (end, _) in key.match_indices('.') {
        let name = key[..end].rsplit('.').next()?;
        match section.get(name)? {
            Value::Mapping(inner) => section = inner,
            _ => return Some(&key[..end]),
        }
    }
    None
}

fn names(mapping: &Mapping) -> String {
    let names: Vec<&str> = mapping.keys().filter_map(Value::as_str).collect();
    names.join(", ")
}

/// Returns the candidate most similar to `given`, if any is similar enough to have been meant.
pub fn nearest<'a>(given: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .map(|candidate| (strsim::jaro_winkler(given, candidate), candidate))
        .filter(|(likeness, _)| *likeness > 0.82)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

/// Returns line and column of the value at the dotted path `key`, or of the innermost part of the path that
/// exists. With `on_key`, of the last key itself instead of its value.
pub(super) fn locate(root: Option<&Node>, key: &str, on_key: bool) -> Option<(usize, usize)> {
    let parts = key.split(['.', '[']).map(|part| part.trim_end_matches(']'));
    locate_parts(root, parts, on_key)
}

/// As [`locate`], with the path in parts, since keys may contain dots.
pub(super) fn locate_parts<'a>(
    root: Option<&Node>,
    parts: impl Iterator<Item = &'a str>,
    on_key: bool,
) -> Option<(usize, usize)> {
    let mut node = root?;
    let mut found = None;
    for part in parts {
        let (key_span, next) = match node {
            Node::Mapping(mapping) => {
                let Some((key, value)) =
                    mapping.iter().find(|(k, _): &(&MarkedScalarNode, _)| k.as_str() == part)
                else {
                    break;
                };
                (key.span().start(), value)
            }
            Node::Sequence(sequence) => {
                let Some(item) = part.parse().ok().and_then(|index| sequence.get_node(index))
                else {
                    break;
                };
                (item.span().start(), item)
            }
            Node::Scalar(_) => break,
        };
        // A block mapping starts at its first key, so the name of the mapping is the better location.
        let value_span =
            if on_key || next.as_mapping().is_some() { None } else { next.span().start() };
        found = value_span.or(key_span).map(|mark| (mark.line(), mark.column()));
        node = next;
    }
    found
}
