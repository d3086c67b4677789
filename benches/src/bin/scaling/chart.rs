//! Pictures of results: lines over rank counts or time, and stacked bars.
//!
//! `plotters` draws SVG; the PNG is made from that, with a font that is part of the binary.

use std::sync::Arc;

use plotters::coord::Shift;
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint};
use plotters::prelude::*;
use resvg::tiny_skia::{Pixmap, Transform};
use resvg::usvg::{self, fontdb};

use crate::error::{BenchError, Result};

/// Pixels of a PNG a pixel of its SVG.
const ZOOM: f32 = 2.0;
const PANEL: (u32, u32) = (540, 400);

/// Told apart by the colour-blind too.
///
/// Source: Okabe and Ito, Color Universal Design, 2008.
const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(110, 110, 110),
    RGBColor(190, 180, 40),
];
const INK: RGBColor = RGBColor(31, 41, 55);
const QUIET: RGBColor = RGBColor(107, 114, 128);
const GRID: RGBColor = RGBColor(229, 231, 235);

/// Values of one contestant.
pub struct Line {
    /// For the legend.
    pub name: String,
    /// In order of `x`.
    pub points: Vec<Point>,
    /// Dashed: what would be ideal.
    pub is_ideal: bool,
}

/// A value with its spread.
#[derive(Debug, Clone, Copy)]
pub struct Point {
    /// Where.
    pub x: f64,
    /// The value.
    pub y: f64,
    /// The smallest and the largest of its runs.
    pub range: (f64, f64),
}

/// How an axis counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Axis {
    /// Evenly, from zero.
    Linear,
    /// In doublings, with a mark at each `x` there is.
    Doublings,
}

/// One diagram of lines.
pub struct Panel {
    /// Above it.
    pub title: String,
    /// Below it.
    pub x_label: &'static str,
    /// Both axes; doublings are for x, and for y where `y_max` is not given.
    pub axis: Axis,
    /// Where the y axis ends; `None`: above the largest value.
    pub y_max: Option<f64>,
    /// What it shows.
    pub lines: Vec<Line>,
}

/// A bar of several parts.
pub struct Bar {
    /// Below it.
    pub name: String,
    /// From below, one of each part's name.
    pub parts: Vec<f64>,
}

/// Panels side by side, with one legend below.
pub fn lines(panels: &[Panel]) -> Result<String> {
    let names: Vec<(&str, bool)> = panels
        .first()
        .map(|panel| panel.lines.iter().map(|line| (line.name.as_str(), line.is_ideal)).collect())
        .unwrap_or_default();
    let legend = Legend::new(names);
    let width = PANEL.0 * panels.len() as u32;
    picture((width, PANEL.1 + legend.height(width)), |root| {
        let (above, below) = root.split_vertically(PANEL.1);
        for (area, panel) in above.split_evenly((1, panels.len())).iter().zip(panels) {
            match panel.axis {
                Axis::Linear => draw_panel(area, panel, &Linear)?,
                Axis::Doublings => draw_panel(area, panel, &Doublings)?,
            }
        }
        legend.draw(&below)
    })
}

/// Bars side by side, with the parts' names in a legend.
pub fn stacked_bars(title: &str, y_label: &str, parts: &[&str], bars: &[Bar]) -> Result<String> {
    let names = parts.iter().map(|name| (*name, false)).collect();
    let legend = Legend::new(names);
    let width = PANEL.0.max(120 + 110 * bars.len() as u32);
    let top = bars.iter().map(|bar| bar.parts.iter().sum::<f64>()).fold(0.0, f64::max) * 1.08;
    picture((width, PANEL.1 + legend.height(width)), |root| {
        let (above, below) = root.split_vertically(PANEL.1);
        let mut chart = ChartBuilder::on(&above)
            .caption(title, font(15, INK))
            .margin(14)
            .x_label_area_size(44)
            .y_label_area_size(58)
            .build_cartesian_2d(-0.6..bars.len() as f64 - 0.4, 0.0..top.max(1e-9))?;
        chart
            .configure_mesh()
            .disable_x_axis()
            .disable_x_mesh()
            .y_desc(y_label)
            .y_label_formatter(&|value| number(*value))
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID)
            .axis_style(QUIET)
            .label_style(font(12, QUIET))
            .axis_desc_style(font(12, QUIET))
            .draw()?;
        for (place, bar) in bars.iter().enumerate() {
            let mut from = 0.0;
            for (colour, part) in COLOURS.iter().zip(&bar.parts) {
                let to = from + part.max(0.0);
                let (left, right) = (place as f64 - 0.32, place as f64 + 0.32);
                let corners = [(left, from), (right, to)];
                chart.draw_series([Rectangle::new(corners, colour.filled())])?;
                from = to;
            }
            let (x, y) = chart.backend_coord(&(place as f64, 0.0));
            let (left, top) = above.get_base_pixel();
            for (line, text) in bar.name.lines().enumerate() {
                let at = (x - left, y - top + 8 + 15 * line as i32);
                above.draw(&Text::new(text.to_owned(), at, centred(12)))?;
            }
        }
        legend.draw(&below)
    })
}

/// The same picture as PNG.
pub fn to_png(svg: &str) -> Result<Vec<u8>> {
    let failed = |problem: String| BenchError::Unexpected { what: "a picture", problem };
    let mut fonts = fontdb::Database::new();
    fonts.load_font_data(notosans::REGULAR_TTF.to_vec());
    fonts.set_sans_serif_family("Noto Sans");
    let options = usvg::Options { fontdb: Arc::new(fonts), ..usvg::Options::default() };
    let tree = usvg::Tree::from_str(svg, &options).map_err(|error| failed(error.to_string()))?;
    let size = tree.size().to_int_size().scale_by(ZOOM).ok_or_else(|| failed("is empty".into()))?;
    let mut pixmap =
        Pixmap::new(size.width(), size.height()).ok_or_else(|| failed("is too large".into()))?;
    resvg::render(&tree, Transform::from_scale(ZOOM, ZOOM), &mut pixmap.as_mut());
    pixmap.encode_png().map_err(|error| failed(error.to_string()))
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = std::result::Result<(), Box<dyn std::error::Error>>;

fn picture(size: (u32, u32), draw: impl FnOnce(&Area<'_>) -> Drawn) -> Result<String> {
    let mut svg = String::new();
    let failed = |error: Box<dyn std::error::Error>| BenchError::Unexpected {
        what: "a picture",
        problem: error.to_string(),
    };
    {
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        root.fill(&WHITE).map_err(|error| failed(error.into()))?;
        draw(&root).map_err(failed)?;
        root.present().map_err(|error| failed(error.into()))?;
    }
    Ok(svg)
}

/// From values to places on an axis, and back.
trait Measure {
    fn place(&self, value: f64) -> f64;
    fn value(&self, place: f64) -> f64;
    /// Where the x axis starts.
    fn x_start(&self, first: f64) -> f64;
    /// The y axis: from, to.
    fn y_range(&self, low: f64, high: f64) -> (f64, f64);
    /// Where the x axis has its marks.
    fn x_marks(&self, xs: &[f64]) -> Vec<f64>;
    /// Where the y axis has its marks.
    fn y_marks(&self, from: f64, to: f64) -> Vec<f64>;
}

struct Linear;

impl Measure for Linear {
    fn place(&self, value: f64) -> f64 {
        value
    }

    fn value(&self, place: f64) -> f64 {
        place
    }

    fn x_start(&self, _: f64) -> f64 {
        0.0
    }

    fn y_range(&self, _: f64, high: f64) -> (f64, f64) {
        (0.0, high * 1.08)
    }

    fn x_marks(&self, xs: &[f64]) -> Vec<f64> {
        round_marks(0.0, xs.iter().copied().fold(0.0, f64::max))
    }

    fn y_marks(&self, from: f64, to: f64) -> Vec<f64> {
        round_marks(from, to)
    }
}

struct Doublings;

impl Measure for Doublings {
    fn place(&self, value: f64) -> f64 {
        value.max(f64::MIN_POSITIVE).log2()
    }

    fn value(&self, place: f64) -> f64 {
        place.exp2()
    }

    fn x_start(&self, first: f64) -> f64 {
        first
    }

    fn y_range(&self, low: f64, high: f64) -> (f64, f64) {
        (low / 1.4, high * 1.4)
    }

    fn x_marks(&self, xs: &[f64]) -> Vec<f64> {
        xs.to_vec()
    }

    /// 1, 2 and 5 of each power of ten, or fewer.
    fn y_marks(&self, from: f64, to: f64) -> Vec<f64> {
        let powers = (from.log10().floor() as i32)..=(to.log10().ceil() as i32);
        let digits: &[f64] = if powers.clone().count() > 3 { &[1.0] } else { &[1.0, 2.0, 5.0] };
        powers
            .flat_map(|power| digits.iter().map(move |digit| digit * 10f64.powi(power)))
            .filter(|mark| (from..=to).contains(mark))
            .collect()
    }
}

/// An axis with its marks.
#[derive(Clone)]
struct Marked {
    range: std::ops::Range<f64>,
    marks: Vec<f64>,
}

impl Ranged for Marked {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, place: &f64, (from, to): (i32, i32)) -> i32 {
        let part = (place - self.range.start) / (self.range.end - self.range.start);
        from + (part * f64::from(to - from)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.marks.clone()
    }

    fn range(&self) -> std::ops::Range<f64> {
        self.range.clone()
    }
}

/// About five round values.
fn round_marks(from: f64, to: f64) -> Vec<f64> {
    let rough = (to - from).max(f64::MIN_POSITIVE) / 5.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0]
        .map(|digit| digit * power)
        .into_iter()
        .find(|step| *step >= rough * 0.999)
        .unwrap_or(rough);
    ((from / step).ceil() as i64..=(to / step).floor() as i64)
        .map(|tick| tick as f64 * step)
        .collect()
}

fn draw_panel(area: &Area<'_>, panel: &Panel, x_axis: &dyn Measure) -> Drawn {
    let y_axis: &dyn Measure = if panel.y_max.is_some() { &Linear } else { x_axis };
    let points = || panel.lines.iter().flat_map(|line| &line.points);
    let mut xs: Vec<f64> = points().map(|point| point.x).collect();
    xs.sort_by(f64::total_cmp);
    xs.dedup();
    let (Some(&first), Some(&last)) = (xs.first(), xs.last()) else { return Ok(()) };
    let low = points().map(|point| point.range.0.min(point.y)).fold(f64::INFINITY, f64::min);
    let high = points().map(|point| point.range.1.max(point.y)).fold(0.0, f64::max);
    let (y_from, y_to) = panel.y_max.map_or_else(|| y_axis.y_range(low, high), |max| (0.0, max));
    let (x_from, x_to) = (x_axis.place(x_axis.x_start(first)), x_axis.place(last));
    let pad = ((x_to - x_from) * 0.06).max(0.3);
    let places = |marks: Vec<f64>, axis: &dyn Measure| -> Vec<f64> {
        marks.into_iter().map(|mark| axis.place(mark)).collect()
    };
    let mut chart = ChartBuilder::on(area)
        .caption(&panel.title, font(15, INK))
        .margin(14)
        .x_label_area_size(44)
        .y_label_area_size(58)
        .build_cartesian_2d(
            Marked { range: x_from - pad..x_to + pad, marks: places(x_axis.x_marks(&xs), x_axis) },
            Marked {
                range: y_axis.place(y_from)..y_axis.place(y_to),
                marks: places(y_axis.y_marks(y_from, y_to), y_axis),
            },
        )?;
    chart
        .configure_mesh()
        .x_desc(panel.x_label)
        .x_label_formatter(&|place| number(x_axis.value(*place)))
        .y_label_formatter(&|place| number(y_axis.value(*place)))
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(QUIET)
        .label_style(font(12, QUIET))
        .axis_desc_style(font(12, QUIET))
        .draw()?;
    for (line, colour) in panel.lines.iter().zip(colours(&panel.lines)) {
        let at = |point: &Point, y: f64| (x_axis.place(point.x), y_axis.place(y));
        let places: Vec<_> = line.points.iter().map(|point| at(point, point.y)).collect();
        if line.is_ideal {
            chart.draw_series(DashedLineSeries::new(places, 6, 5, colour.stroke_width(1)))?;
            continue;
        }
        chart.draw_series(LineSeries::new(places.clone(), colour.stroke_width(2)))?;
        chart.draw_series(line.points.iter().map(|point| {
            let ends = vec![at(point, point.range.0), at(point, point.range.1)];
            PathElement::new(ends, colour.stroke_width(1))
        }))?;
        chart
            .draw_series(places.into_iter().map(|place| Circle::new(place, 4, colour.filled())))?;
    }
    Ok(())
}

/// The ideal is no contestant, and has no colour of its own.
fn colours(lines: &[Line]) -> Vec<RGBColor> {
    let mut next = COLOURS.iter().cycle();
    let mut colour = |line: &Line| match line.is_ideal {
        true => QUIET,
        false => *next.next().unwrap_or(&INK),
    };
    lines.iter().map(&mut colour).collect()
}

/// Names beside their colours, in rows.
struct Legend<'a> {
    entries: Vec<(&'a str, bool)>,
}

impl<'a> Legend<'a> {
    const ROW: u32 = 22;
    const PAD: u32 = 10;
    const SWATCH: i32 = 22;

    const fn new(entries: Vec<(&'a str, bool)>) -> Self {
        Self { entries }
    }

    /// Letters are about this wide.
    fn entry_width(&self) -> u32 {
        let longest = self.entries.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        Self::SWATCH as u32 + 24 + 7 * longest as u32
    }

    fn columns(&self, width: u32) -> u32 {
        ((width - 60) / self.entry_width()).max(1)
    }

    fn height(&self, width: u32) -> u32 {
        (self.entries.len() as u32).div_ceil(self.columns(width)) * Self::ROW + Self::PAD
    }

    fn draw(&self, area: &Area<'_>) -> Drawn {
        let columns = self.columns(area.dim_in_pixel().0) as usize;
        let mut colour = COLOURS.iter().cycle();
        for (index, (name, is_ideal)) in self.entries.iter().enumerate() {
            let x = 58 + (index % columns) as i32 * self.entry_width() as i32;
            let y = 4 + (index / columns) as i32 * Self::ROW as i32;
            if *is_ideal {
                for dash in [0, 8, 16] {
                    let ends = vec![(x + dash, y + 7), (x + dash + 5, y + 7)];
                    area.draw(&PathElement::new(ends, QUIET.stroke_width(1)))?;
                }
            } else {
                let corners = [(x, y + 2), (x + Self::SWATCH - 4, y + 12)];
                area.draw(&Rectangle::new(corners, colour.next().unwrap_or(&INK).filled()))?;
            }
            area.draw(&Text::new((*name).to_owned(), (x + Self::SWATCH + 4, y), font(12, INK)))?;
        }
        Ok(())
    }
}

fn font(size: u32, colour: RGBColor) -> TextStyle<'static> {
    let mut style = TextStyle::from(("sans-serif", size).into_font());
    style.color = colour.to_backend_color();
    style
}

fn centred(size: u32) -> TextStyle<'static> {
    use plotters::style::text_anchor::{HPos, Pos, VPos};
    font(size, INK).pos(Pos::new(HPos::Center, VPos::Top))
}

/// With as many digits as tell marks apart.
fn number(value: f64) -> String {
    let rounded = (value * 1e6).round() / 1e6;
    match rounded.abs() {
        size if size >= 1e6 => format!("{}M", rounded / 1e6),
        size if size >= 1e4 => format!("{}k", rounded / 1e3),
        _ => format!("{rounded}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panel(axis: Axis, y_max: Option<f64>) -> Panel {
        let point = |x: f64, y: f64| Point { x, y, range: (y * 0.9, y * 1.1) };
        let line = |name: &str, is_ideal, points| Line { name: name.to_owned(), points, is_ideal };
        Panel {
            title: "a title".to_owned(),
            x_label: "ranks",
            axis,
            y_max,
            lines: vec![
                line("ideal", true, vec![point(1.0, 100.0), point(8.0, 800.0)]),
                line("us & them", false, vec![point(1.0, 100.0), point(8.0, 700.0)]),
            ],
        }
    }

    #[test]
    fn every_line_its_name_and_its_marks_are_drawn() {
        for (axis, y_max) in
            [(Axis::Linear, None), (Axis::Doublings, None), (Axis::Linear, Some(900.0))]
        {
            let svg = lines(&[panel(axis, y_max), panel(axis, y_max)]).unwrap();
            for text in ["a title", "ranks", "ideal", "us &amp; them", "\n8\n", "#0072B2"] {
                assert!(svg.contains(text), "{text}: {svg}");
            }
            assert!(!svg.contains("NaN"));
        }
    }

    #[test]
    fn a_single_point_has_a_picture_too() {
        let mut panel = panel(Axis::Doublings, None);
        panel.lines.iter_mut().for_each(|line| line.points.truncate(1));
        lines(&[panel]).unwrap();
    }

    #[test]
    fn a_bar_is_as_high_as_its_parts() {
        let bars = [Bar { name: "2 ranks\nus".to_owned(), parts: vec![10.0, 30.0] }];
        let svg = stacked_bars("a step", "ms", &["forward", "backward"], &bars).unwrap();
        let heights: Vec<f64> = svg
            .lines()
            .filter(|line| line.starts_with("<rect") && line.contains("width=\"2"))
            .filter_map(|line| line.split("height=\"").nth(1)?.split('"').next()?.parse().ok())
            .filter(|height| *height > 20.0)
            .collect();
        assert_eq!(heights.len(), 2, "{svg}");
        assert!((heights[1] / heights[0] - 3.0).abs() < 0.1, "{heights:?}");
    }

    #[test]
    fn the_bitmap_is_the_picture_twice_as_large() {
        let png = to_png(&lines(&[panel(Axis::Linear, None)]).unwrap()).unwrap();
        let pixmap = Pixmap::decode_png(&png).unwrap();
        assert_eq!(pixmap.width(), 2 * PANEL.0);
        let blue = pixmap.pixels().iter().filter(|pixel| (pixel.red(), pixel.blue()) == (0, 178));
        assert!(blue.count() > 1000);
    }
}
