//! The configuration reference and the README's exit codes agree with the program.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;

use job::ExitCode;
use job::config::{self, Config};
use serde_yaml::{Mapping, Value};

/// The optimizers and schedules, each with the overrides that select it and that bring in its optional keys.
const CHOICES: [(&str, &[&str]); 12] = [
    ("adamw", &["optimizer.name=adamw"]),
    ("adamw", &["optimizer.lr_scaling=linear", "optimizer.lookahead_steps=5"]),
    ("sgd", &["optimizer.name=sgd"]),
    ("lars", &["optimizer.name=lars"]),
    ("lamb", &["optimizer.name=lamb"]),
    ("muon", &["optimizer.name=muon"]),
    ("muon", &["optimizer.name=muon", "optimizer.aux=sgd"]),
    ("step", &["schedule.name=step", "schedule.step_size=30"]),
    ("multistep", &["schedule.name=multistep", "schedule.milestones=[60, 120]"]),
    ("cosine", &["schedule.name=cosine"]),
    ("one_cycle", &["schedule.name=one_cycle"]),
    ("polynomial", &["schedule.name=polynomial"]),
];

fn read(document: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(document);
    std::fs::read_to_string(path).unwrap()
}

fn reference() -> String {
    let page = read("docs/configuration.md");
    page.split("```yaml").nth(1).and_then(|text| text.split("```").next()).unwrap().to_owned()
}

fn load(text: &str, overrides: &[&str]) -> Config {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("reference.yaml");
    std::fs::write(&path, text).unwrap();
    let overrides: Vec<_> = overrides.iter().map(ToString::to_string).collect();
    config::load(&path, &overrides).unwrap()
}

/// A key of the reference, commented out or not, with its value and remark.
struct Documented {
    value: Value,
    remark: String,
}

impl Documented {
    /// Returns the default for `choice`: the value in parentheses after that name in the remark, as in `lars
    /// (there 0.9)`, or else the key's value.
    fn default_of(&self, choice: &str) -> Value {
        let mut names = self.remark.split_inclusive([',', ' ']).scan(0, |at, word| {
            *at += word.len();
            Some((word.trim_end_matches([',', ' ']), &self.remark[*at..]))
        });
        let behind = names.find(|(word, _)| *word == choice).map_or("", |(_, rest)| rest);
        let other = behind.strip_prefix('(').and_then(|rest| rest.split(')').next());
        other.map_or(self.value.clone(), |other| {
            serde_yaml::from_str(other.trim_start_matches("there ")).unwrap()
        })
    }
}

/// Returns the keys of the reference, by `section.key`, or by name for a key without a section.
fn documented(reference: &str) -> BTreeMap<String, Documented> {
    let mut section = String::new();
    let mut keys = BTreeMap::new();
    for line in reference.lines() {
        let is_within = line.starts_with("  ");
        // Continuations of a key's remark are indented further.
        let text = line.trim_start_matches("  # ").trim_start_matches("  ");
        let Some((name, rest)) = text.split_once(':') else { continue };
        let is_key = name.chars().all(|it| it.is_ascii_alphanumeric() || it == '_');
        if line.starts_with("   ") || !is_key {
            continue;
        }
        let (value, remark) = rest.split_once('#').unwrap_or((rest, ""));
        if !is_within {
            section = name.to_owned();
            if value.trim().is_empty() {
                continue;
            }
        }
        let key = if is_within { format!("{section}.{name}") } else { name.to_owned() };
        let value = serde_yaml::from_str(value).unwrap();
        let twice = keys.insert(key, Documented { value, remark: remark.trim().to_owned() });
        assert!(twice.is_none(), "{line}");
    }
    keys
}

/// Returns all keys of a configuration, by `section.key`.
fn keys_of(config: &Config) -> BTreeMap<String, Value> {
    let all: Mapping = serde_yaml::from_str(&config::to_yaml(config)).unwrap();
    let mut keys = BTreeMap::new();
    for (section, value) in all {
        let section = section.as_str().unwrap().to_owned();
        match value {
            Value::Mapping(inner) => keys.extend(
                inner
                    .into_iter()
                    .map(|(key, it)| (format!("{section}.{}", key.as_str().unwrap()), it)),
            ),
            other => _ = keys.insert(section, other),
        }
    }
    keys
}

#[test]
fn the_readme_has_every_exit_code_with_its_meaning() {
    let readme = read("README.md");
    let table = readme.split("| code | meaning |\n|---|---|\n").nth(1).unwrap();
    let rows: Vec<_> = table.lines().take_while(|line| line.starts_with('|')).collect();
    assert_eq!(rows.len(), ExitCode::ALL.len());
    for (row, code) in rows.iter().zip(ExitCode::ALL) {
        let expected = format!("| {} | {}", code as u8, code.meaning());
        assert!(row.starts_with(&expected), "{row}: not {expected}");
    }
}

#[test]
fn the_reference_is_the_default_configuration() {
    assert_eq!(load(&reference(), &[]), Config::default());
}

#[test]
fn the_reference_has_every_key_with_its_default() {
    let documented = documented(&reference());
    let mut seen = BTreeMap::new();
    for (choice, overrides) in CHOICES {
        for (key, default) in keys_of(&load("", overrides)) {
            let line = documented
                .get(&key)
                .unwrap_or_else(|| panic!("{key} is not in docs/configuration.md"));
            seen.insert(key.clone(), ());
            let is_set = overrides.iter().any(|it| it.split('=').next() == Some(key.as_str()));
            if !is_set {
                assert_eq!(line.default_of(choice), default, "{key} of {choice}");
            }
        }
    }
    for key in documented.keys() {
        assert!(seen.contains_key(key), "{key} is in docs/configuration.md, and nothing has it");
    }
}

#[test]
fn defaults_of_some_are_read_from_what_is_said_of_a_key() {
    let keys = documented(
        "optimizer:\n  # momentum: 0.0   # sgd, lars (there 0.9) and muon (0.95) only\n",
    );
    let momentum = &keys["optimizer.momentum"];
    let of = |choice| momentum.default_of(choice).as_f64().unwrap();
    assert_eq!(["sgd", "lars", "muon"].map(of), [0.0, 0.9, 0.95]);
}
