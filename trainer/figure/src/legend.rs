//! The legend of a figure: names beside their colours, in rows.

use crate::picture::{Anchor, Colour, INK, Picture, Place, Shape};

const ROW: f32 = 22.0;
const PAD: f32 = 12.0;
const INDENT: f32 = 58.0;
const SWATCH: f32 = 18.0;
/// Approximate width of a letter, in pixels.
const LETTER: f32 = 7.0;

/// A name of the legend with its colour.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry<'a> {
    pub(crate) name: &'a str,
    pub(crate) colour: Colour,
    pub(crate) is_dashed: bool,
}

/// The legend, laid out in columns of equal width.
pub(crate) struct Legend<'a> {
    entries: Vec<Entry<'a>>,
    columns: usize,
    entry_width: f32,
}

impl<'a> Legend<'a> {
    /// Lays out the legend for a figure of this width.
    pub(crate) fn new(entries: Vec<Entry<'a>>, width: f32) -> Self {
        let letters = entries.iter().map(|entry| entry.name.chars().count()).max().unwrap_or(0);
        let entry_width = SWATCH + 28.0 + LETTER * letters as f32;
        let columns = (((width - INDENT) / entry_width) as usize).max(1);
        Self { entries, columns, entry_width }
    }

    pub(crate) fn height(&self) -> f32 {
        self.entries.len().div_ceil(self.columns) as f32 * ROW + PAD
    }

    /// Draws the legend with its upper edge at `top`.
    pub(crate) fn draw(&self, picture: &mut Picture, top: f32) {
        for (index, entry) in self.entries.iter().enumerate() {
            let x = INDENT + (index % self.columns) as f32 * self.entry_width;
            let y = top + (index / self.columns) as f32 * ROW;
            let Entry { name, colour, is_dashed } = *entry;
            picture.shapes.push(swatch((x, y), colour, is_dashed));
            let at = (x + SWATCH + 8.0, y + 11.0);
            picture.text(at, name, 12.0, false, Anchor::Start, INK);
        }
    }
}

fn swatch((x, y): Place, colour: Colour, is_dashed: bool) -> Shape {
    match is_dashed {
        true => {
            let points = vec![(x, y + 7.0), (x + SWATCH, y + 7.0)];
            Shape::Dashes { points, width: 1.2, colour }
        }
        false => Shape::Rectangle { at: (x, y + 2.0), size: (SWATCH, 10.0), colour },
    }
}
