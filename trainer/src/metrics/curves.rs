//! Accuracy and loss by epoch, as a picture.

use figure::{Chart, Heading, Line, Panel, Picture, Point, Stroke, XAxis, YAxis, colour};

use job::metrics::EpochRecord;

/// Draws the run `name` after `epochs`, which are in order and at least one.
pub(super) fn draw(name: &str, epochs: &[EpochRecord]) -> Picture {
    let line = |name: &str, index, value: fn(&EpochRecord) -> f64| Line {
        name: name.to_owned(),
        colour: colour(index),
        stroke: Stroke::Solid,
        points: epochs.iter().map(|it| Point::exact(it.epoch as f64, value(it))).collect(),
    };
    let panel = |title: &str, y, lines| Panel {
        title: title.to_owned(),
        x_label: "epoch".to_owned(),
        x: XAxis::Epochs,
        y,
        lines,
    };
    let accuracy = vec![
        line("train", 0, |epoch| epoch.train_accuracy * 100.0),
        line("test", 1, |epoch| epoch.test_accuracy * 100.0),
    ];
    let loss =
        vec![line("train", 0, |epoch| epoch.train_loss), line("test", 1, |epoch| epoch.test_loss)];
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

/// What there is to say in a line.
fn headline(epochs: &[EpochRecord]) -> String {
    let by_accuracy = |a: &&EpochRecord, b: &&EpochRecord| {
        a.test_accuracy.total_cmp(&b.test_accuracy).then(b.epoch.cmp(&a.epoch))
    };
    let last = &epochs[epochs.len() - 1];
    let percent = |fraction: f64| format!("{:.1} %", fraction * 100.0);
    let now = format!("test accuracy {} after epoch {}", percent(last.test_accuracy), last.epoch);
    match epochs.iter().filter(|epoch| epoch.test_accuracy.is_finite()).max_by(by_accuracy) {
        Some(best) if best.epoch != last.epoch => {
            format!("{now}; best {} after epoch {}", percent(best.test_accuracy), best.epoch)
        }
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
