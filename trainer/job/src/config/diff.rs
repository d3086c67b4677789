//! Whether a run may be resumed with a changed configuration.

use std::collections::BTreeMap;
use std::fmt;

use serde_yaml::Value;

use super::keys::{as_mapping, leaves};
use super::{CommBackend, Config, Data, to_yaml};

/// Keys that say where images are: they may differ between the machines of one job.
pub const PER_MACHINE: [&str; 2] = ["data.root", "data.download"];

/// Returns `config` as YAML, with the keys that may differ between the machines of a job ([`PER_MACHINE`]) at
/// their defaults.
pub fn common_to_machines(config: &Config) -> String {
    let Data { root, download, .. } = Data::default();
    let data = Data { root, download, ..config.data.clone() };
    to_yaml(&Config { data, ..config.clone() })
}

/// A key whose value differs between two configurations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Dotted path of the key.
    pub path: String,
    /// Old value; `unset` if there was none.
    pub old: String,
    /// New value; `unset` if there is none.
    pub new: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} before, {} now", self.path, self.old, self.new)
    }
}

/// Returns the differences that affect training, so that a run of `old` cannot be resumed as `new`, ordered
/// by path.
///
/// Paths of files and the keys of evaluation intervals, checkpoints, metrics, performance and communication
/// may change, except for `comm.backend: none` and `comm.wire_dtype`, which change results. The length of the
/// training may change unless the learning rate or look-ahead depends on it.
pub fn differences_in_training(old: &Config, new: &Config) -> Vec<Difference> {
    let fixed_length = [old, new].iter().any(|config| {
        config.schedule.depends_on_length() || config.optimizer.lookahead_depends_on_length()
    });
    let diverges = [old, new].iter().any(|config| config.comm.backend == CommBackend::None);
    let shapes_training = |path: &str| match path {
        _ if PER_MACHINE.contains(&path) => false,
        "eval.every_epochs" => false,
        "train.epochs" | "train.max_steps" => fixed_length,
        "comm.backend" => diverges,
        "comm.wire_dtype" => true,
        _ => !["checkpoint.", "metrics.", "comm.", "performance."]
            .iter()
            .any(|section| path.starts_with(section)),
    };
    let (old, new) = (flat(old), flat(new));
    let paths: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let value = |of: &BTreeMap<String, String>, path: &String| {
        of.get(path).cloned().unwrap_or_else(|| "unset".to_string())
    };
    paths
        .into_iter()
        .filter(|path| shapes_training(path))
        .map(|path| Difference {
            path: path.clone(),
            old: value(&old, path),
            new: value(&new, path),
        })
        .filter(|difference| difference.old != difference.new)
        .collect()
}

fn flat(config: &Config) -> BTreeMap<String, String> {
    let mut config = config.clone();
    config.fill_in();
    let mapping = as_mapping(&config);
    leaves(&mapping).into_iter().map(|(path, value)| (path, in_one_line(value))).collect()
}

/// Formats a value on one line, as it can be written in `--set KEY=VALUE`.
pub fn in_one_line(value: &Value) -> String {
    match value {
        Value::Sequence(items) => {
            let items: Vec<String> = items.iter().map(in_one_line).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Mapping(keys) => {
            let keys: Vec<String> = keys
                .iter()
                .map(|(key, value)| format!("{}: {}", in_one_line(key), in_one_line(value)))
                .collect();
            format!("{{{}}}", keys.join(", "))
        }
        other => serde_yaml::to_string(other).unwrap_or_default().trim().to_string(),
    }
}
