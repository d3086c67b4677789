//! Line charts: panels side by side, with one legend below.

use crate::legend::{Entry, Legend};
use crate::picture::{Anchor, Colour, GRID, INK, MUTED, Picture, Place, Shape};
use crate::scale::{Scale, XAxis, YAxis};

/// Width and height of a panel, in pixels.
const PANEL: (f32, f32) = (540.0, 400.0);
const MARGIN: f32 = 32.0;
/// Font sizes of the heading, in pixels.
const TITLE: f32 = 19.0;
const SUBTITLE: f32 = 13.0;
/// The plotting area within a panel.
const LEFT: f32 = 72.0;
const RIGHT: f32 = PANEL.0 - 14.0;
const TOP: f32 = 42.0;
const BOTTOM: f32 = PANEL.1 - 58.0;
/// Most points of a line that are drawn as dots and error bars; with more, these would run into one another.
const MOST_DOTS: usize = 40;
/// Least distance between labels of the x axis, in pixels; marks in between have no label.
const MIN_LABEL_DISTANCE: f32 = 30.0;

/// A line chart of one or more panels.
#[derive(Debug, Default)]
pub struct Chart {
    /// Title above all panels, if any.
    pub heading: Option<Heading>,
    /// The panels, from left to right.
    pub panels: Vec<Panel>,
    /// Whether all panels share the y axis of the first panel, scaled to the values of all.
    pub shares_y: bool,
}

/// Title and subtitle above all panels.
#[derive(Debug)]
pub struct Heading {
    /// Title, in large bold letters; wrapped if too long.
    pub title: String,
    /// Subtitle below the title; wrapped if too long.
    pub subtitle: String,
}

/// One diagram of a chart.
#[derive(Debug)]
pub struct Panel {
    /// Title above the diagram.
    pub title: String,
    /// Label below the x axis.
    pub x_label: String,
    /// Kind of the x axis.
    pub x: XAxis,
    /// Kind of the y axis.
    pub y: YAxis,
    /// Lines of the diagram; later ones are drawn on top.
    pub lines: Vec<Line>,
}

/// One data series.
#[derive(Debug)]
pub struct Line {
    /// Name in the legend, which lists lines of the same name once.
    pub name: String,
    /// Colour of the line and of its spread.
    pub colour: Colour,
    /// Whether the line is solid or dashed.
    pub stroke: Stroke,
    /// Points in ascending order of `x`; points with a value that is not finite are left out.
    pub points: Vec<Point>,
}

/// The style in which a line is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stroke {
    /// A solid line, with a dot at each point if there are few.
    Solid,
    /// A thin dashed line, without dots and spread.
    Dashed,
}

/// A point of a line, with its spread.
#[derive(Debug, Clone, Copy)]
pub struct Point {
    /// Position on the x axis.
    pub x: f64,
    /// Value on the y axis.
    pub y: f64,
    /// Lower and upper end of the spread; both equal `y` if there is none.
    pub range: (f64, f64),
}

impl Point {
    /// Makes a point without a spread.
    pub const fn exact(x: f64, y: f64) -> Self {
        Self { x, y, range: (y, y) }
    }

    fn is_finite(&self) -> bool {
        [self.x, self.y, self.range.0, self.range.1].iter().all(|value| value.is_finite())
    }
}

impl Heading {
    /// Lays out the heading for a picture of this width: each line's text, its baseline's y, and whether it
    /// belongs to the title.
    fn lines(&self, width: f32) -> Vec<(String, f32, bool)> {
        let mut y = 14.0;
        let mut below = |distance| {
            y += distance;
            y
        };
        let titles = wrap(&self.title, TITLE, width - 2.0 * MARGIN).into_iter();
        let mut lines: Vec<_> = titles.map(|text| (text, below(24.0), true)).collect();
        let subtitles =
            wrap(&self.subtitle, SUBTITLE, width - 2.0 * MARGIN).into_iter().enumerate();
        lines.extend(
            subtitles
                .map(|(place, text)| (text, below(if place == 0 { 22.0 } else { 18.0 }), false)),
        );
        lines
    }
}

/// Breaks `text` between words into lines of at most `width` pixels. Letters are taken to be as wide as those
/// of bold text.
fn wrap(text: &str, size: f32, width: f32) -> Vec<String> {
    let most = (width / (0.54 * size)) as usize;
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= most => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

impl Chart {
    /// Draws the chart.
    pub fn draw(&self) -> Picture {
        let width = PANEL.0 * self.panels.len().max(1) as f32;
        let legend = Legend::new(self.legend(), width);
        let heading = self.heading.as_ref().map_or_else(Vec::new, |it| it.lines(width));
        let top = heading.last().map_or(0.0, |(_, y, _)| y + 12.0);
        let mut picture = Picture::new(width, top + PANEL.1 + legend.height());
        for (text, y, is_title) in heading {
            let (size, colour) = if is_title { (TITLE, INK) } else { (SUBTITLE, MUTED) };
            picture.text((MARGIN, y), &text, size, is_title, Anchor::Start, colour);
        }
        for (place, panel) in self.panels.iter().enumerate() {
            let (axis, values) = match self.shares_y {
                true => (self.panels[0].y, self.panels.iter().flat_map(Panel::ys).collect()),
                false => (panel.y, panel.ys()),
            };
            let corner = (PANEL.0 * place as f32, top);
            let y = axis.scale(&values, (corner.1 + BOTTOM, corner.1 + TOP));
            panel.draw(&mut picture, corner, &y);
        }
        legend.draw(&mut picture, top + PANEL.1);
        picture
    }

    fn legend(&self) -> Vec<Entry<'_>> {
        let mut entries: Vec<Entry<'_>> = Vec::new();
        for line in self.panels.iter().flat_map(|panel| &panel.lines) {
            let is_dashed = line.stroke == Stroke::Dashed;
            match entries.iter_mut().find(|entry| entry.name == line.name) {
                Some(entry) => entry.is_dashed &= is_dashed,
                None => entries.push(Entry { name: &line.name, colour: line.colour, is_dashed }),
            }
        }
        entries
    }
}

impl Panel {
    fn points(&self) -> impl Iterator<Item = &Point> {
        self.lines.iter().flat_map(|line| &line.points).filter(|point| point.is_finite())
    }

    fn ys(&self) -> Vec<f64> {
        self.points().flat_map(|point| [point.y, point.range.0, point.range.1]).collect()
    }

    fn draw(&self, picture: &mut Picture, (left, top): Place, y: &Scale) {
        let xs: Vec<f64> = self.points().map(|point| point.x).collect();
        let (first, last) = (left + LEFT, left + RIGHT);
        let (above, below) = (top + TOP, top + BOTTOM);
        let middle = (first + last) / 2.0;
        picture.text((middle, top + 26.0), &self.title, 15.0, false, Anchor::Middle, INK);
        let at = (middle, below + 42.0);
        picture.text(at, &self.x_label, 12.0, false, Anchor::Middle, MUTED);
        for (value, label) in &y.marks {
            let y = y.at(*value);
            picture.line(vec![(first, y), (last, y)], 1.0, GRID);
            picture.text((first - 8.0, y + 4.0), label, 12.0, false, Anchor::End, MUTED);
        }
        let x = (!xs.is_empty()).then(|| self.x.scale(&xs, (first, last)));
        let mut free_from = f32::NEG_INFINITY;
        for (value, label) in
            x.iter().flat_map(|x| x.marks.iter().map(|mark| (x.at(mark.0), &mark.1)))
        {
            picture.line(vec![(value, above), (value, below)], 1.0, GRID);
            picture.line(vec![(value, below), (value, below + 5.0)], 1.0, MUTED);
            if value >= free_from {
                let at = (value, below + 20.0);
                picture.text(at, label, 12.0, false, Anchor::Middle, MUTED);
                free_from = value + MIN_LABEL_DISTANCE;
            }
        }
        picture.line(vec![(first, above), (first, below), (last, below)], 1.0, MUTED);
        for line in &self.lines {
            if let Some(x) = &x {
                line.draw(picture, x, y);
            }
        }
    }
}

impl Line {
    fn draw(&self, picture: &mut Picture, x: &Scale, y: &Scale) {
        let finite: Vec<&Point> = self.points.iter().filter(|point| point.is_finite()).collect();
        let at = |value: fn(&Point) -> f64| -> Vec<Place> {
            finite.iter().map(|point| (x.at(point.x), y.at(value(point)))).collect()
        };
        let (points, colour) = (at(|point| point.y), self.colour);
        if self.stroke == Stroke::Dashed {
            return picture.shapes.push(Shape::Dashes { points, width: 1.2, colour });
        }
        let (low, high) = (at(|point| point.range.0), at(|point| point.range.1));
        let is_dense = points.len() > MOST_DOTS;
        if is_dense && low != high {
            let points = low.iter().chain(high.iter().rev()).copied().collect();
            picture.shapes.push(Shape::Area { points, colour, opacity: 0.2 });
        }
        if points.len() > 1 {
            picture.line(points.clone(), 2.0, colour);
        }
        let dots = if is_dense { points.len() - 1 } else { 0 };
        for (place, at) in points.iter().enumerate().skip(dots) {
            if !is_dense && low[place] != high[place] {
                picture.line(vec![low[place], high[place]], 1.0, colour);
            }
            picture.shapes.push(Shape::Dot { at: *at, radius: 4.0, colour });
        }
    }
}

#[cfg(test)]
mod tests;
