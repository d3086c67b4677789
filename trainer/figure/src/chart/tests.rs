use super::*;
use crate::colour;

fn line(name: &str, index: usize, points: usize) -> Line {
    let point = |place: usize| {
        let (x, y) = ((place + 1) as f64, 100.0 / (place + 1) as f64);
        Point { x, y, range: (y * 0.9, y * 1.1) }
    };
    let points = (0..points).map(point).collect();
    Line { name: name.to_owned(), colour: colour(index), stroke: Stroke::Solid, points }
}

fn panel(x: XAxis, y: YAxis, points: usize) -> Panel {
    let dashed = Line { stroke: Stroke::Dashed, ..line("ideal", 6, points) };
    let lines = vec![dashed, line("us & them", 0, points), line("a<b>", 1, points)];
    Panel { title: "a title".to_owned(), x_label: "ranks".to_owned(), x, y, lines }
}

fn axes() -> impl Iterator<Item = (XAxis, YAxis)> {
    let ys = [
        YAxis::FromZero { to: None },
        YAxis::FromZero { to: Some(120.0) },
        YAxis::Tight { span: 1.0, limit: f64::INFINITY },
        YAxis::Log,
    ];
    let xs = [XAxis::FromZero, XAxis::Epochs, XAxis::Log2];
    xs.into_iter().flat_map(move |x| ys.map(|y| (x, y)))
}

fn heading() -> Heading {
    Heading { title: "all".to_owned(), subtitle: "of it".to_owned() }
}

#[test]
fn everything_lies_within_the_picture() {
    for (x, y) in axes() {
        for points in [0, 1, 2, 40, 41, 1000] {
            let panels = vec![panel(x, y, points), panel(x, y, points)];
            let picture = Chart { heading: Some(heading()), panels, shares_y: true }.draw();
            let inside = |(x, y): &Place| {
                (0.0..=picture.width).contains(x) && (0.0..=picture.height).contains(y)
            };
            for shape in &picture.shapes {
                let within = match shape {
                    Shape::Line { points, .. }
                    | Shape::Dashes { points, .. }
                    | Shape::Area { points, .. } => points.iter().all(inside),
                    Shape::Dot { at, .. } | Shape::Text { at, .. } | Shape::Image { at, .. } => {
                        inside(at)
                    }
                    Shape::Rectangle { at, size, .. } => {
                        inside(at) && inside(&(at.0 + size.0, at.1 + size.1))
                    }
                };
                assert!(within, "{x:?} {y:?} {points}: {shape:?}");
            }
        }
    }
}

#[test]
fn a_long_heading_is_broken_between_words_and_makes_the_picture_higher() {
    let title =
        "Test accuracy against the global batch, for each rule of scaling the learning rate";
    let heading = Heading { title: title.to_owned(), subtitle: "of it".to_owned() };
    let chart = |heading| Chart { heading, panels: Vec::new(), shares_y: true };
    let picture = chart(Some(heading)).draw();
    let texts = picture.shapes.iter().filter_map(|shape| match shape {
        Shape::Text { text, at, .. } => Some((text.as_str(), at.1)),
        _ => None,
    });
    let (lines, ys): (Vec<_>, Vec<_>) = texts.unzip();
    assert_eq!(lines[..2].join(" "), title, "{lines:?}");
    assert_eq!((lines[2], ys), ("of it", vec![38.0, 62.0, 84.0]));
    assert_eq!(picture.height, chart(None).draw().height + 96.0);
}

#[test]
fn every_line_its_name_and_its_marks_are_drawn() {
    let panels = vec![panel(XAxis::Log2, YAxis::Log, 8)];
    let svg = Chart { heading: Some(heading()), panels, shares_y: false }.draw().to_svg();
    for text in ["all", "of it", "a title", "ranks", "ideal", "us &amp; them", ">4<", "#0072b2"] {
        assert!(svg.contains(text), "{text}: {svg}");
    }
    assert!(svg.contains("a&lt;b&gt;") && svg.ends_with("</svg>\n"));
}

fn count(picture: &Picture, is: impl Fn(&Shape) -> bool) -> usize {
    picture.shapes.iter().filter(|shape| is(shape)).count()
}

#[test]
fn few_points_have_dots_and_bars_and_many_a_band() {
    let drawn = |points| {
        let panels = vec![panel(XAxis::FromZero, YAxis::FromZero { to: None }, points)];
        let picture = Chart { panels, ..Chart::default() }.draw();
        let dots = count(&picture, |shape| matches!(shape, Shape::Dot { .. }));
        let bands = count(&picture, |shape| matches!(shape, Shape::Area { .. }));
        let is_ours = |colour: &Colour| *colour == colour_of_us();
        let bars = count(
            &picture,
            |shape| matches!(shape, Shape::Line { width: 1.0, colour, .. } if is_ours(colour)),
        );
        (dots, bands, bars)
    };
    assert_eq!(drawn(1), (2, 0, 1));
    assert_eq!(drawn(40), (80, 0, 40));
    assert_eq!(drawn(41), (2, 2, 0));
}

fn colour_of_us() -> Colour {
    colour(0)
}

#[test]
fn values_that_are_no_numbers_are_left_out() {
    let mut panel = panel(XAxis::Epochs, YAxis::Tight { span: 1.0, limit: 100.0 }, 3);
    panel.lines[1].points[1].y = f64::NAN;
    panel.lines[2].points.iter_mut().for_each(|point| point.x = f64::INFINITY);
    let svg = Chart { panels: vec![panel], ..Chart::default() }.draw().to_svg();
    assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
}

#[test]
fn panels_that_share_an_axis_show_equal_values_equally_high() {
    let of = |height: f64| Panel {
        lines: vec![Line {
            points: vec![Point::exact(1.0, height), Point::exact(2.0, 5.0)],
            ..line("a", 0, 0)
        }],
        ..panel(XAxis::FromZero, YAxis::FromZero { to: None }, 0)
    };
    let last_dots = |shares_y| {
        let picture = Chart { panels: vec![of(10.0), of(80.0)], shares_y, heading: None }.draw();
        let dots = picture.shapes.iter().filter_map(|shape| match shape {
            Shape::Dot { at, .. } => Some(at.1),
            _ => None,
        });
        let heights: Vec<f32> = dots.collect();
        (heights[1], heights[3])
    };
    let (left, right) = last_dots(true);
    assert_eq!(left, right);
    let (left, right) = last_dots(false);
    assert!(left < right);
}

#[test]
fn the_bitmap_is_the_picture_twice_as_large() {
    let panels = vec![panel(XAxis::FromZero, YAxis::FromZero { to: None }, 50)];
    let picture = Chart { panels, ..Chart::default() }.draw();
    let pixmap = tiny_skia::Pixmap::decode_png(&picture.to_png().unwrap()).unwrap();
    assert_eq!((pixmap.width() as f32, pixmap.height() as f32), (1080.0, picture.height * 2.0));
    let orange = pixmap.pixels().iter().filter(|pixel| (pixel.red(), pixel.blue()) == (213, 0));
    assert!(orange.count() > 1000);
}
