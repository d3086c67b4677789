//! The report of an evaluation, as text, JSON and CSV.

use std::fmt::Write;
use std::path::PathBuf;

use job::config::Dataset;
use job::thousands;
use serde_json::{Value, json};

use super::super::table::{Align, table};
use crate::confusion::{Confusion, Mistake};
use crate::tally::Tally;

/// Most classes for which text shows the whole matrix; with more, it would be wider than a terminal.
const MOST_CLASSES_IN_TEXT: usize = 12;
/// Number of most frequent mistakes that are listed instead of the matrix.
const MISTAKES_IN_TEXT: usize = 10;

/// Results of evaluating a checkpoint.
pub(super) struct Report {
    pub checkpoint: PathBuf,
    /// Number of optimizer steps that the network was trained for.
    pub step: u64,
    pub data_set: Dataset,
    pub split: &'static str,
    /// Names of the classes, by label.
    pub classes: Vec<String>,
    pub ranks: usize,
    /// Loss and accuracy over all images.
    pub tally: Tally,
    pub confusion: Confusion,
}

impl Report {
    pub(super) fn to_text(&self) -> String {
        let Tally { correct, images, .. } = self.tally;
        let (correct, images) = (thousands(correct as u64), thousands(images as u64));
        let mut text = format!(
            "checkpoint  {}, step {}\nimages      {images}, {} of {}\naccuracy    {:.4} ({correct} \
             correct)\nloss        {:.4}\n\n",
            self.checkpoint.display(),
            self.step,
            self.split,
            self.data_set,
            self.tally.accuracy(),
            self.tally.loss(),
        );
        text.push_str(&self.by_class());
        text.push('\n');
        text.push_str(&match self.classes.len() <= MOST_CLASSES_IN_TEXT {
            true => self.matrix(),
            false => self.mistakes(),
        });
        text
    }

    fn by_class(&self) -> String {
        let rows = self.classes.iter().enumerate().map(|(class, name)| {
            let most = self.confusion.most_frequent_mistake(class);
            let most = most.map_or(String::new(), |Mistake { taken_for, images, .. }| {
                format!("{} ({})", self.classes[taken_for], thousands(images))
            });
            [
                name.clone(),
                thousands(self.confusion.images(class)),
                self.confusion.accuracy(class).map_or("-".to_owned(), |a| format!("{a:.4}")),
                most,
            ]
        });
        let columns = [
            ("class", Align::Left),
            ("images", Align::Right),
            ("accuracy", Align::Right),
            ("most often mistaken for", Align::Left),
        ];
        table(columns, rows)
    }

    /// Formats the whole matrix.
    fn matrix(&self) -> String {
        let width = |text: &str| text.chars().count();
        let first = self.classes.iter().map(|name| width(name)).max().unwrap_or(0);
        let short: Vec<String> =
            self.classes.iter().map(|name| name.chars().take(8).collect()).collect();
        let most = self.confusion.rows().flatten().max().copied().unwrap_or(0);
        let column = short.iter().map(|name| width(name)).max().unwrap_or(0);
        let column = column.max(thousands(most).len());
        let mut text =
            "confusion matrix: rows are true classes, columns predicted ones\n".to_owned();
        let mut line = |name: &str, cells: &mut dyn Iterator<Item = String>| {
            let cells: String = cells.map(|cell| format!("  {cell:>column$}")).collect();
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{name:<first$}{cells}");
        };
        line("", &mut short.iter().cloned());
        for (name, row) in self.classes.iter().zip(self.confusion.rows()) {
            line(name, &mut row.iter().map(|count| thousands(*count)));
        }
        text
    }

    /// Formats the most frequent mistakes.
    fn mistakes(&self) -> String {
        let mistakes = self.confusion.mistakes().into_iter().take(MISTAKES_IN_TEXT);
        let rows = mistakes.map(|Mistake { class, taken_for, images }| {
            [self.classes[class].clone(), self.classes[taken_for].clone(), thousands(images)]
        });
        let columns =
            [("class", Align::Left), ("mistaken for", Align::Left), ("times", Align::Right)];
        format!("{}for the whole matrix: --out DIR, or --json\n", table(columns, rows))
    }

    pub(super) fn to_json(&self) -> Value {
        let classes = self.classes.iter().enumerate().map(|(class, name)| {
            json!({
                "name": name,
                "images": self.confusion.images(class),
                "correct": self.confusion.correct(class),
                "accuracy": self.confusion.accuracy(class),
            })
        });
        json!({
            "checkpoint": self.checkpoint,
            "step": self.step,
            "data_set": self.data_set,
            "split": self.split,
            "ranks": self.ranks,
            "images": self.tally.images as u64,
            "accuracy": self.tally.accuracy(),
            "loss": self.tally.loss(),
            "classes": classes.collect::<Vec<_>>(),
            "confusion": self.confusion.rows().collect::<Vec<_>>(),
        })
    }

    /// Returns the matrix as CSV, with names before rows and above columns.
    pub(super) fn to_csv(&self) -> String {
        let quoted = |name: &String| format!("\"{}\"", name.replace('"', "\"\""));
        let names: Vec<_> = self.classes.iter().map(quoted).collect();
        let mut text = format!("class,{}\n", names.join(","));
        for (name, row) in names.iter().zip(self.confusion.rows()) {
            let cells: Vec<_> = row.iter().map(u64::to_string).collect();
            text.push_str(&format!("{name},{}\n", cells.join(",")));
        }
        text
    }
}
