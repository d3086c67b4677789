//! Draws the test accuracy by epoch of separate runs in one picture.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result, ensure};
use figure::{Chart, Line, Panel, Point, Stroke, XAxis, YAxis, colour};
use job::metrics::{self, Record};

use crate::peer::read_epochs;

/// The metrics file of a run, and the name of its line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedRun {
    name: String,
    path: PathBuf,
}

impl FromStr for NamedRun {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, path)) if !name.is_empty() && !path.is_empty() => {
                Ok(Self { name: name.to_owned(), path: path.into() })
            }
            _ => Err(format!("{text}: expected NAME=FILE")),
        }
    }
}

/// Draws one line per run.
///
/// # Errors
/// When a file cannot be read, or has no evaluated epoch.
pub fn draw(runs: &[NamedRun]) -> Result<figure::Picture> {
    let line = |(index, run): (usize, &NamedRun)| {
        let points = accuracies(run).with_context(|| run.path.display().to_string())?;
        ensure!(!points.is_empty(), "{}: no epoch with a test accuracy", run.path.display());
        let points = points.into_iter().map(|(epoch, it)| Point::exact(epoch as f64, it * 100.0));
        let (name, colour) = (run.name.clone(), colour(index));
        Ok(Line { name, colour, stroke: Stroke::Solid, points: points.collect() })
    };
    let panel = Panel {
        title: "Test accuracy, %".to_owned(),
        x_label: "epoch".to_owned(),
        x: XAxis::Epochs,
        y: YAxis::Tight { span: 10.0, limit: 100.0 },
        lines: runs.iter().enumerate().map(line).collect::<Result<_>>()?,
    };
    Ok(Chart { panels: vec![panel], ..Chart::default() }.draw())
}

/// Returns the evaluated epochs, each with its test accuracy as a fraction.
fn accuracies(run: &NamedRun) -> Result<Vec<(usize, f64)>> {
    if run.path.extension().is_none_or(|extension| extension != "jsonl") {
        let epochs = read_epochs(run.path.clone())?;
        return Ok(epochs.into_iter().map(|end| (end.epoch, end.test_accuracy)).collect());
    }
    ensure!(run.path.is_file(), "there is no such file");
    let epochs = metrics::read(&run.path)?.into_iter().filter_map(Record::into_epoch);
    Ok(epochs.filter_map(|it| Some((it.epoch, it.test?.test_accuracy))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str = r#"{"kind":"epoch","epoch":1,"train_loss":1.5,"train_accuracy":0.45,"seconds":1.0,"images_per_s":null}
{"kind":"epoch","epoch":2,"train_loss":1.5,"train_accuracy":0.45,"test_loss":1.4,"test_accuracy":0.5,"seconds":1.0,"images_per_s":null}
"#;
    const PEERS: &str = r#"{"epochs": [{"epoch": 1, "seconds": 2.5, "test_accuracy": 0.25}]}"#;

    #[test]
    fn runs_of_both_are_read_and_named() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            format!("{name}={}", path.display()).parse::<NamedRun>().unwrap()
        };
        let runs = [write("ours.jsonl", OURS), write("peer.json", PEERS)];
        assert_eq!(accuracies(&runs[0]).unwrap(), [(2, 0.5)]);
        assert_eq!(accuracies(&runs[1]).unwrap(), [(1, 0.25)]);
        let svg = draw(&runs).unwrap().to_svg();
        assert!(svg.contains(">ours.jsonl<") && svg.contains(">peer.json<"));
        let missing = "a=none.jsonl".parse().unwrap();
        assert!(draw(&[missing]).unwrap_err().to_string().contains("none.jsonl"));
        assert!("file.jsonl".parse::<NamedRun>().is_err());
    }
}
