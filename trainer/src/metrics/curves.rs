//! The picture of accuracy and loss by epoch.

use figure::{Chart, Heading, Line, Panel, Picture, Point, Stroke, XAxis, YAxis, colour};

use job::metrics::EpochRecord;

/// Draws the curves of the run `name`. `epochs` must be in order and not empty.
pub(super) fn draw(name: &str, epochs: &[EpochRecord]) -> Picture {
    let line = |name: &str, index, value: fn(&EpochRecord) -> Option<f64>| Line {
        name: name.to_owned(),
        colour: colour(index),
        stroke: Stroke::Solid,
        points: epochs
            .iter()
            .filter_map(|it| Some(Point::exact(it.epoch as f64, value(it)?)))
            .collect(),
    };
    let panel = |title: &str, y, lines| Panel {
        title: title.to_owned(),
        x_label: "epoch".to_owned(),
        x: XAxis::Epochs,
        y,
        lines,
    };
    let accuracy = vec![
        line("train", 0, |epoch| Some(epoch.train_accuracy * 100.0)),
        line("test", 1, |epoch| Some(epoch.test?.test_accuracy * 100.0)),
    ];
    let loss = vec![
        line("train", 0, |epoch| Some(epoch.train_loss)),
        line("test", 1, |epoch| Some(epoch.test?.test_loss)),
    ];
    let chart = Chart {
        heading: Some(Heading { title: name.to_owned(), subtitle: headline(epochs) }),
        panels: vec![
            panel("Accuracy, %", YAxis::Tight { span: 10.0, limit: 100.0 }, accuracy),
            panel(
                "Cross-entropy loss, nats",
                YAxis::Tight { span: 0.4, limit: f64::INFINITY },
                loss,
            ),
        ],
        shares_y: false,
    };
    chart.draw()
}

/// Returns a one-line summary: the latest test accuracy, and the best if that is another one.
fn headline(epochs: &[EpochRecord]) -> String {
    let evaluated: Vec<(usize, f64)> =
        epochs.iter().filter_map(|it| Some((it.epoch, it.test?.test_accuracy))).collect();
    let after =
        |(epoch, accuracy): (usize, f64)| format!("{:.1} % after epoch {epoch}", accuracy * 100.0);
    let Some(&last) = evaluated.last() else {
        return format!("not evaluated before epoch {}", epochs[epochs.len() - 1].epoch + 1);
    };
    let now = format!("test accuracy {}", after(last));
    let best = evaluated.iter().filter(|(_, accuracy)| accuracy.is_finite()).copied();
    match best.rev().max_by(|a, b| a.1.total_cmp(&b.1)) {
        Some(best) if best.0 != last.0 => format!("{now}; best {}", after(best)),
        _ => now,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::samples::epoch;

    #[test]
    fn the_headline_names_the_best_epoch_where_it_is_not_the_last() {
        let records = [epoch(1, 0.5), epoch(2, 0.7), epoch(3, 0.6)];
        assert_eq!(
            headline(&records),
            "test accuracy 60.0 % after epoch 3; best 70.0 % after epoch 2"
        );
        assert_eq!(headline(&records[..2]), "test accuracy 70.0 % after epoch 2");
        let skipped = EpochRecord { test: None, ..epoch(4, 0.0) };
        let between = [records[0].clone(), records[1].clone(), skipped.clone()];
        assert_eq!(headline(&between), "test accuracy 70.0 % after epoch 2");
        assert_eq!(headline(&[skipped]), "not evaluated before epoch 5");
    }

    #[test]
    fn both_panels_and_both_series_are_named() {
        let svg = draw("resnet18-a<b>", &[epoch(1, 0.5), epoch(2, f64::NAN)]).to_svg();
        for text in ["resnet18-a&lt;b&gt;", "Accuracy", "loss", "epoch", ">train<", ">test<"] {
            assert!(svg.contains(text), "{text} is not in {svg}");
        }
    }

    #[test]
    fn a_run_without_a_number_has_a_picture_too() {
        draw("run", &[epoch(1, f64::NAN)]).to_png().unwrap();
    }
}
