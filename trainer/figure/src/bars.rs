//! Stacked bar charts.

use crate::colour;
use crate::legend::{Entry, Legend};
use crate::picture::{Anchor, GRID, INK, MUTED, Picture, Shape};
use crate::scale::YAxis;

const HEIGHT: f32 = 400.0;
const LEFT: f32 = 72.0;
const TOP: f32 = 42.0;
const BOTTOM: f32 = HEIGHT - 58.0;

/// A stacked bar.
#[derive(Debug)]
pub struct Bar {
    /// Label below the bar, of one or more lines.
    pub name: String,
    /// Heights of the parts from the bottom up, in the order of the parts' names; negative ones count as 0.
    pub parts: Vec<f64>,
}

/// Draws stacked bars side by side, with the names of the parts in a legend.
pub fn stacked_bars(title: &str, parts: &[&str], bars: &[Bar]) -> Picture {
    let width = f32::max(540.0, 120.0 + 110.0 * bars.len() as f32);
    let entry = |(index, name)| Entry { name, colour: colour(index), is_dashed: false };
    let legend = Legend::new(parts.iter().copied().enumerate().map(entry).collect(), width);
    let mut picture = Picture::new(width, HEIGHT + legend.height());
    let right = width - 14.0;
    let middle = (LEFT + right) / 2.0;
    picture.text((middle, 26.0), title, 15.0, false, Anchor::Middle, INK);
    let heights: Vec<f64> = bars.iter().map(|bar| bar.parts.iter().sum()).collect();
    let scale = YAxis::FromZero { to: None }.scale(&heights, (BOTTOM, TOP));
    for (value, label) in &scale.marks {
        let y = scale.at(*value);
        picture.line(vec![(LEFT, y), (right, y)], 1.0, GRID);
        picture.text((LEFT - 8.0, y + 4.0), label, 12.0, false, Anchor::End, MUTED);
    }
    let slot = (right - LEFT) / (bars.len() as f32 + 0.2);
    for (place, bar) in bars.iter().enumerate() {
        let middle = LEFT + (place as f32 + 0.6) * slot;
        let mut from = 0.0;
        for (index, part) in bar.parts.iter().enumerate() {
            let to = from + part.max(0.0);
            let (below, above) = (scale.at(from), scale.at(to));
            let (at, size) = ((middle - 0.32 * slot, above), (0.64 * slot, below - above));
            picture.shapes.push(Shape::Rectangle { at, size, colour: colour(index) });
            from = to;
        }
        for (line, text) in bar.name.lines().enumerate() {
            let at = (middle, BOTTOM + 20.0 + 15.0 * line as f32);
            picture.text(at, text, 12.0, false, Anchor::Middle, INK);
        }
    }
    picture.line(vec![(LEFT, TOP), (LEFT, BOTTOM), (right, BOTTOM)], 1.0, MUTED);
    legend.draw(&mut picture, HEIGHT);
    picture
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_as_high_as_its_parts() {
        let bars = [Bar { name: "2 ranks\nus".to_owned(), parts: vec![10.0, 30.0] }];
        let picture = stacked_bars("a step", &["forward", "backward"], &bars);
        let heights: Vec<f32> = picture
            .shapes
            .iter()
            .filter_map(|shape| match shape {
                Shape::Rectangle { size, .. } if size.1 > 20.0 => Some(size.1),
                _ => None,
            })
            .collect();
        assert_eq!(heights.len(), 2);
        assert!((heights[1] / heights[0] - 3.0).abs() < 0.01, "{heights:?}");
        let svg = picture.to_svg();
        assert!(["a step", "2 ranks", "us", "backward"].iter().all(|text| svg.contains(text)));
    }
}
