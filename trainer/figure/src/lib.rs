//! Figures as SVG and PNG: line charts over steps, epochs or rank counts, stacked bars, and pictures drawn
//! shape by shape.
//!
//! No font of the machine is used, and the same figure gives the same bytes everywhere. Does no I/O.

mod bars;
mod chart;
mod legend;
mod number;
mod picture;
mod png;
mod scale;
mod svg;

pub use bars::{Bar, stacked_bars};
pub use chart::{Chart, Heading, Line, Panel, Point, Stroke};
pub use picture::{Anchor, Colour, GRID, INK, MUTED, Picture, Place, Shape};
pub use scale::{XAxis, YAxis};

/// Colours that colour-blind readers can tell apart too.
///
/// Source: Okabe and Ito, Color Universal Design, 2008.
const COLOURS: [Colour; 8] = [
    [0, 114, 178],
    [213, 94, 0],
    [0, 158, 115],
    [204, 121, 167],
    [230, 159, 0],
    [86, 180, 233],
    [110, 110, 110],
    [190, 180, 40],
];

/// Returns the colour of data series `index`; colours repeat after eight.
pub const fn colour(index: usize) -> Colour {
    COLOURS[index % COLOURS.len()]
}
