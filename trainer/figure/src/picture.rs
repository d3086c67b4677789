//! Shapes, and pictures made of them.

use crate::{png, svg};

/// Red, green and blue.
pub type Colour = [u8; 3];

/// Colour of primary text.
pub const INK: Colour = [31, 41, 55];
/// Colour of secondary text and of axes.
pub const MUTED: Colour = [107, 114, 128];
/// Colour of grid lines.
pub const GRID: Colour = [229, 231, 235];

/// Length of a dash and of the gap after it, in pixels.
pub(crate) const DASH: (f32, f32) = (6.0, 4.0);

/// A point `(x, y)`, in pixels from the top left corner.
pub type Place = (f32, f32);

/// The part of a text that is aligned with its x coordinate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Anchor {
    /// The left end.
    Start,
    /// The middle.
    Middle,
    /// The right end.
    End,
}

/// A drawing primitive.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // the fields are self-explanatory
pub enum Shape {
    /// Straight segments from point to point.
    Line { points: Vec<Place>, width: f32, colour: Colour },
    /// Straight segments from point to point, dashed.
    Dashes { points: Vec<Place>, width: f32, colour: Colour },
    /// A filled polygon; with an opacity below 1, shapes below it show through.
    Area { points: Vec<Place>, colour: Colour, opacity: f32 },
    /// A filled circle with a white rim.
    Dot { at: Place, radius: f32, colour: Colour },
    /// A filled rectangle; `at` is its top left corner.
    Rectangle { at: Place, size: (f32, f32), colour: Colour },
    /// A bitmap, row by row, scaled to `size`; `at` is its top left corner.
    Image { at: Place, size: (f32, f32), columns: usize, pixels: Vec<Colour> },
    /// One line of text; `at` is on its baseline.
    Text { at: Place, text: String, size: f32, bold: bool, anchor: Anchor, colour: Colour },
}

/// A drawing: shapes on white, later ones on top.
#[derive(Debug)]
pub struct Picture {
    /// Width in pixels of the SVG; the PNG has twice as many.
    pub width: f32,
    /// Height in pixels of the SVG; the PNG has twice as many.
    pub height: f32,
    /// The shapes, in drawing order.
    pub shapes: Vec<Shape>,
}

impl Picture {
    /// Makes an empty picture.
    pub fn new(width: f32, height: f32) -> Self {
        Self { width, height, shapes: Vec::new() }
    }

    /// Adds a line from point to point.
    pub fn line(&mut self, points: Vec<Place>, width: f32, colour: Colour) {
        self.shapes.push(Shape::Line { points, width, colour });
    }

    /// Adds a line of text.
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

    /// Renders the picture as an SVG document.
    pub fn to_svg(&self) -> String {
        svg::draw(self)
    }

    /// Renders the picture as a PNG file.
    ///
    /// # Errors
    /// When memory is short.
    pub fn to_png(&self) -> Result<Vec<u8>, String> {
        png::draw(self)
    }
}
