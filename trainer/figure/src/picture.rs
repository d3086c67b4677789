//! Shapes, and pictures made of them.

use crate::{png, svg};

/// Red, green and blue.
pub type Colour = [u8; 3];

/// Of text that is read.
pub const INK: Colour = [31, 41, 55];
/// Of text beside that.
pub const QUIET: Colour = [107, 114, 128];
/// Of lines behind what is shown.
pub const GRID: Colour = [229, 231, 235];

/// What is drawn of dashes and what is not, in pixels.
pub(crate) const DASH: (f32, f32) = (6.0, 4.0);

/// A place, in pixels from the top left.
pub type Place = (f32, f32);

/// Which part of a text is at its place.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Anchor {
    /// Its left end.
    Start,
    /// Its middle.
    Middle,
    /// Its right end.
    End,
}

/// Something to draw.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // the fields say it
pub enum Shape {
    /// Straight from point to point.
    Line { points: Vec<Place>, width: f32, colour: Colour },
    /// Likewise, with gaps.
    Dashes { points: Vec<Place>, width: f32, colour: Colour },
    /// Within the points; what is below it can be seen.
    Area { points: Vec<Place>, colour: Colour, opacity: f32 },
    /// A filled circle with a white rim.
    Dot { at: Place, radius: f32, colour: Colour },
    /// A filled one, from its top left corner.
    Rectangle { at: Place, size: (f32, f32), colour: Colour },
    /// Pixels of their own, row by row, from the top left corner.
    Image { at: Place, size: (f32, f32), columns: usize, pixels: Vec<Colour> },
    /// One line of text on its baseline.
    Text { at: Place, text: String, size: f32, bold: bool, anchor: Anchor, colour: Colour },
}

/// Shapes on white, the later ones on top.
#[derive(Debug)]
pub struct Picture {
    /// In pixels of the SVG; the PNG has twice as many.
    pub width: f32,
    /// Likewise.
    pub height: f32,
    /// What is drawn.
    pub shapes: Vec<Shape>,
}

impl Picture {
    /// With nothing on it.
    pub fn new(width: f32, height: f32) -> Self {
        Self { width, height, shapes: Vec::new() }
    }

    /// Draws a line.
    pub fn line(&mut self, points: Vec<Place>, width: f32, colour: Colour) {
        self.shapes.push(Shape::Line { points, width, colour });
    }

    /// Draws a line of text.
    pub fn text(
        &mut self,
        at: Place,
        text: &str,
        size: f32,
        bold: bool,
        anchor: Anchor,
        colour: Colour,
    ) {
        let text = text.to_string();
        self.shapes.push(Shape::Text { at, text, size, bold, anchor, colour });
    }

    /// The picture as an SVG document.
    pub fn to_svg(&self) -> String {
        svg::draw(self)
    }

    /// The picture as a PNG file.
    ///
    /// # Errors
    /// When memory is short.
    pub fn to_png(&self) -> Result<Vec<u8>, String> {
        png::draw(self)
    }
}
