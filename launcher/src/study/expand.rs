//! Expands a study into its runs. Pure.

use std::collections::HashSet;
use std::path::PathBuf;

use job::config::in_one_line;
use serde_yaml::{Mapping, Value};

use super::file::{RunEntry, StudyFile};

/// The key that `seeds` sets.
const SEED: &str = "train.seed";

/// A run of a study.
#[derive(Debug, Clone)]
pub struct RunSpec {
    /// Name of the run directory.
    pub name: String,
    /// Name without the seed: the same for runs that differ in the seed only.
    pub group: String,
    /// Seed of weights, order of samples, and augmentation.
    pub seed: u64,
    /// Path of the configuration that the run starts from.
    pub config: PathBuf,
    /// Changes to that configuration. Of several for one key, the last one counts.
    pub overrides: Vec<Override>,
}

impl RunSpec {
    /// Returns the value that the run sets `key` to, if it does.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.overrides.iter().rfind(|it| it.key == key).map(|it| &it.value)
    }
}

/// A key of the configuration and its value.
#[derive(Debug, Clone, PartialEq)]
pub struct Override {
    /// The dotted key.
    pub key: String,
    /// The value of the key.
    pub value: Value,
    /// Path to the override within the study file.
    pub place: Vec<String>,
}

impl Override {
    /// Returns the argument for `--set`.
    pub fn argument(&self) -> String {
        format!("{}={}", self.key, in_one_line(&self.value))
    }
}

/// An error in a study file.
#[derive(Debug, PartialEq)]
pub struct Invalid {
    /// Path to the key within the study file.
    pub place: Vec<String>,
    /// What is wrong, and what would be right.
    pub problem: String,
}

impl Invalid {
    /// Creates an error about the key at `place`.
    pub fn new(place: &[&str], problem: impl Into<String>) -> Self {
        let place = place.iter().map(|&part| part.to_owned()).collect();
        Self { place, problem: problem.into() }
    }
}

/// The runs of a study, in full or reduced size.
#[derive(Debug)]
pub struct Expanded {
    /// Number of ranks of each run.
    pub ranks: usize,
    /// All runs: all with the first seed, then all with the second, so that a study that is stopped has
    /// something to show.
    pub runs: Vec<RunSpec>,
}

/// Returns the runs of `study`, in full or `reduced` size.
///
/// # Errors
/// [`Invalid`] when a key or value has the wrong form, two runs have the same name, or nothing is left to
/// run.
pub fn expand(study: &StudyFile, reduced: bool) -> Result<Expanded, Invalid> {
    let small = reduced.then_some(&study.reduced);
    let ranks = small.and_then(|small| small.ranks).unwrap_or(study.ranks);
    let seeds = small.and_then(|small| small.seeds.as_ref()).unwrap_or(&study.seeds);
    for (what, is_empty) in [("ranks", ranks == 0), ("seeds", seeds.is_empty())] {
        if is_empty {
            return Err(Invalid::new(&[what], "expected at least one"));
        }
    }
    let mut common = overrides(&study.set, &["set"])?;
    let mut axes = axes(&study.grid, &["grid"])?;
    if let Some(small) = small {
        common.extend(overrides(&small.set, &["reduced", "set"])?);
        for axis in self::axes(&small.grid, &["reduced", "grid"])? {
            axes.retain(|before| before[0].key != axis[0].key);
            axes.push(axis);
        }
    }
    let (runs, place) = match small.and_then(|small| small.runs.as_ref()) {
        Some(runs) => (runs, &["reduced", "runs"][..]),
        None => (&study.runs, &["runs"][..]),
    };
    let unnamed = [RunEntry { name: String::new(), config: None, set: Mapping::new() }];
    let is_listed = !runs.is_empty();
    let runs = if is_listed { runs.as_slice() } else { &unnamed };
    let mut groups = Vec::new();
    for (index, run) in runs.iter().enumerate() {
        let index = index.to_string();
        let own = overrides(&run.set, &[place, &[&index, "set"]].concat())?;
        for chosen in combinations(&axes) {
            groups.push((run, own.clone(), chosen));
        }
    }
    let mut runs = Vec::new();
    for seed in seeds {
        for (run, own, chosen) in &groups {
            runs.push(run_spec(study, run, &common, own, chosen, *seed));
        }
    }
    let mut names = HashSet::new();
    if let Some(twice) = runs.iter().find(|spec| !names.insert(&spec.name)) {
        let place = if is_listed { place[0] } else { "grid" };
        return Err(Invalid::new(&[place], format!("two runs are called {}", twice.name)));
    }
    Ok(Expanded { ranks, runs })
}

fn run_spec(
    study: &StudyFile,
    run: &RunEntry,
    common: &[Override],
    own: &[Override],
    chosen: &[Override],
    seed: u64,
) -> RunSpec {
    let words =
        std::iter::once(run.name.clone()).chain(chosen.iter().map(|it| label(&it.key, &it.value)));
    let words: Vec<String> =
        words.filter(|word| !word.is_empty()).map(|word| file_name_part(&word)).collect();
    let group = if words.is_empty() { "run".to_owned() } else { words.join("-") };
    let place = vec!["seeds".to_owned()];
    let seeded = Override { key: SEED.to_owned(), value: seed.into(), place };
    RunSpec {
        name: format!("{group}-seed{seed}"),
        seed,
        config: run.config.clone().unwrap_or_else(|| study.config.clone()),
        overrides: [common, own, chosen, &[seeded]].concat(),
        group,
    }
}

/// Returns how a value appears in the name of a run: a word alone says what it is, anything else follows its
/// key.
pub fn label(key: &str, value: &Value) -> String {
    let key = key.rsplit('.').next().unwrap_or_default();
    match value {
        Value::String(word) => word.clone(),
        value => format!("{key}{}", in_one_line(value)),
    }
}

/// Returns `word` without characters that make awkward names of folders.
fn file_name_part(word: &str) -> String {
    let letters = word.chars().filter(|c| !"[] ".contains(*c));
    letters.map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' }).collect()
}

/// Returns every choice of one value of each axis; the last axis changes fastest.
fn combinations(axes: &[Vec<Override>]) -> Vec<Vec<Override>> {
    axes.iter().fold(vec![Vec::new()], |chosen, axis| {
        let extended = |before: &Vec<Override>| {
            let before = before.clone();
            axis.iter().map(move |it| [before.as_slice(), std::slice::from_ref(it)].concat())
        };
        chosen.iter().flat_map(|before| extended(before).collect::<Vec<_>>()).collect()
    })
}

fn axes(grid: &Mapping, place: &[&str]) -> Result<Vec<Vec<Override>>, Invalid> {
    let axis = |(key, values): (&Value, &Value)| {
        let key = dotted(key, place)?;
        let place = [place, &[&key]].concat();
        let Value::Sequence(values) = values else {
            return Err(Invalid::new(&place, "expected a list of values, as in [a, b]"));
        };
        if values.is_empty() {
            return Err(Invalid::new(&place, "an empty list leaves nothing to run"));
        }
        let one =
            |(index, value)| single(&key, value, &[&place[..], &[&format!("{index}")]].concat());
        values.iter().enumerate().map(one).collect()
    };
    grid.iter().map(axis).collect()
}

fn overrides(set: &Mapping, place: &[&str]) -> Result<Vec<Override>, Invalid> {
    let one = |(key, value)| {
        let key = dotted(key, place)?;
        single(&key, value, &[place, &[&key]].concat())
    };
    set.iter().map(one).collect()
}

fn dotted(key: &Value, place: &[&str]) -> Result<String, Invalid> {
    let name = in_one_line(key);
    match key {
        Value::String(_) if name == SEED => Err(Invalid::new(
            &[place, &[&name]].concat(),
            "set by the study's `seeds`; remove it here",
        )),
        Value::String(_) => Ok(name),
        _ => Err(Invalid::new(place, format!("{name}: expected a dotted key, as in train.epochs"))),
    }
}

fn single(key: &str, value: &Value, place: &[&str]) -> Result<Override, Invalid> {
    if value.is_mapping() {
        let problem =
            format!("expected a value, not a section; use dotted keys, as in {key}.KEY: VALUE");
        return Err(Invalid::new(place, problem));
    }
    let place = place.iter().map(|&part| part.to_owned()).collect();
    Ok(Override { key: key.to_owned(), value: value.clone(), place })
}

#[cfg(test)]
mod tests;
