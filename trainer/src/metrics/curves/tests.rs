use super::*;
use crate::metrics::records::tests::epoch;

/// A run that learns, and overfits later.
fn run(epochs: usize) -> Vec<EpochRecord> {
    let records = (1..=epochs).map(|number| {
        let at = number as f64;
        EpochRecord {
            train_loss: 1.5 * (-at / 6.0).exp() + 0.02 * (at * 7.0).sin().abs(),
            train_accuracy: 1.0 - 0.55 * (-at / 5.0).exp(),
            test_loss: 0.9 + 0.35 * (-at / 2.0).exp() + 0.02 * at.min(40.0),
            test_accuracy: 0.74 - 0.25 * (-at / 2.5).exp() + 0.01 * (at * 3.0).sin(),
            ..epoch(number, 0.0)
        }
    });
    records.collect()
}

fn texts(chart: &Chart) -> Vec<&str> {
    let mut texts = Vec::new();
    for shape in &chart.picture.shapes {
        if let Shape::Text { text, .. } = shape {
            texts.push(text.as_str());
        }
    }
    texts
}

#[test]
fn everything_lies_within_the_picture() {
    for epochs in [1, 2, 5, 20, 200, 1000] {
        let chart = Chart::new("run", &run(epochs));
        let inside = |(x, y): &Point| (0.0..=WIDTH).contains(x) && (0.0..=HEIGHT).contains(y);
        for shape in &chart.picture.shapes {
            let within = match shape {
                Shape::Line { points, .. } => points.iter().all(inside),
                Shape::Dot { at, .. }
                | Shape::Text { at, .. }
                | Shape::Rectangle { at, .. }
                | Shape::Image { at, .. } => inside(at),
            };
            assert!(within, "{shape:?}");
        }
    }
}

#[test]
fn axes_titles_and_legends_say_what_is_shown() {
    let chart = Chart::new("resnet18-a", &run(5));
    let texts = texts(&chart);
    for text in
        ["resnet18-a", "Accuracy (%)", "Cross-entropy loss (nats)", "Epoch", "train", "test"]
    {
        assert!(texts.contains(&text), "{text} is not in {texts:?}");
    }
}

#[test]
fn a_single_epoch_is_shown_as_points() {
    let chart = Chart::new("run", &run(1));
    let count =
        |is: fn(&Shape) -> bool| chart.picture.shapes.iter().filter(|shape| is(shape)).count();
    let legend = 4;
    assert_eq!(count(|shape| matches!(shape, Shape::Dot { .. })), legend + 4);
    assert_eq!(count(|shape| matches!(shape, Shape::Line { width: 2.0, .. })), legend);
}

#[test]
fn the_headline_names_the_best_epoch_where_it_is_not_the_last() {
    let records = [epoch(1, 0.5), epoch(2, 0.7), epoch(3, 0.6)];
    assert_eq!(headline(&records), "test accuracy 60.0 % after epoch 3; best 70.0 % after epoch 2");
    assert_eq!(headline(&records[..2]), "test accuracy 70.0 % after epoch 2");
}

#[test]
fn a_name_cannot_break_the_document() {
    let svg = Chart::new("a<b>&c", &run(2)).to_svg();
    assert!(svg.contains("a&lt;b&gt;&amp;c"));
    assert!(svg.ends_with("</svg>\n"));
}

#[test]
fn values_that_are_no_numbers_are_left_out() {
    let records = [epoch(1, 0.5), epoch(2, f64::NAN), epoch(3, 0.6)];
    let svg = Chart::new("run", &records).to_svg();
    assert!(!svg.contains("NaN"), "{svg}");
    Chart::new("run", &[epoch(1, f64::NAN)]).to_png().unwrap();
}

#[test]
fn the_bitmap_shows_both_series() {
    let png = Chart::new("run", &run(5)).to_png().unwrap();
    let pixmap = tiny_skia::Pixmap::decode_png(&png).unwrap();
    assert_eq!((pixmap.width() as f32, pixmap.height() as f32), (WIDTH * 2.0, HEIGHT * 2.0));
    for colour in [TRAIN, TEST] {
        let is_colour = |pixel: &&tiny_skia::PremultipliedColorU8| {
            [pixel.red(), pixel.green(), pixel.blue()] == colour
        };
        assert!(pixmap.pixels().iter().filter(is_colour).count() > 1000);
    }
}
