//! Whether a run may go on with a changed configuration.

use std::collections::BTreeMap;
use std::fmt;

use serde_yaml::Value;

use super::keys::{as_mapping, leaves};
use super::{CommBackend, Config, Data, to_yaml};

/// Keys that say where images are: machines of one job may each have their own.
pub const PER_MACHINE: [&str; 2] = ["data.root", "data.download"];

/// `config` as YAML without what may differ between the machines of a job ([`PER_MACHINE`]).
pub fn common_to_machines(config: &Config) -> String {
    let Data { root, download, .. } = Data::default();
    let data = Data { root, download, ..config.data.clone() };
    to_yaml(&Config { data, ..config.clone() })
}

/// A key whose value differs between two configurations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Its dotted path.
    pub path: String,
    /// The value before; `unset` where there was none.
    pub old: String,
    /// The value now; `unset` where there is none.
    pub new: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} before, {} now", self.path, self.old, self.new)
    }
}

/// What differs and shapes training, so that a run of `old` cannot go on as `new`.
///
/// Where files lie, when the run is saved, what is recorded and how ranks talk may change, but not
/// whether they do and how they round; where neither the learning rate nor look-ahead depends on it also how
/// long it trains. Ordered by path.
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

/// A value as it can stand in `--set KEY=VALUE`.
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
