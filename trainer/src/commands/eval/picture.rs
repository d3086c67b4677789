//! Draws the confusion matrix.

use super::report::Report;
use figure::{Anchor, Colour, GRID, INK, MUTED, Picture, Shape};
use job::thousands;

const MARGIN: f32 = 32.0;
const TITLE_HEIGHT: f32 = 84.0;
/// Approximate side of the matrix, without names, in pixels.
const MATRIX_SIDE: f32 = 640.0;
/// Smallest side of a cell that has its number in it, in pixels.
const SMALLEST_CELL_WITH_NUMBER: f32 = 34.0;
const LARGEST_CELL: f32 = 64.0;
/// Width of a letter as a fraction of the font size, an upper estimate for most letters.
const LETTER_WIDTH: f32 = 0.58;
/// Most characters of a name before a row; longer names are shortened.
const LONGEST_NAME: usize = 32;
const NO_IMAGES: Colour = [255, 255, 255];
const ALL_IMAGES: Colour = [30, 64, 175];

/// Draws the confusion matrix. The darker a cell, the larger its fraction of the row's images.
pub(super) fn draw(report: &Report) -> Picture {
    let names = shortened(&report.classes, LONGEST_NAME);
    let cell = (MATRIX_SIDE / names.len() as f32).min(LARGEST_CELL);
    let size = (cell * 0.7).clamp(5.0, 13.0);
    let longest = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
    let names_width = longest as f32 * LETTER_WIDTH * size;
    // Room for the names of columns, which are in one line above the matrix.
    let (left, top) = (MARGIN + names_width + 40.0, TITLE_HEIGHT + 46.0);
    let side = cell * names.len() as f32;
    let numbered = cell >= SMALLEST_CELL_WITH_NUMBER;
    let letters = (cell / ((size - 2.0) * LETTER_WIDTH)) as usize;
    let column_names = if numbered { shortened(&names, letters) } else { Vec::new() };
    let width = (left + side + MARGIN).max(520.0);
    let mut picture = Picture::new(width, top + side + MARGIN);
    title(&mut picture, report);

    let middle = left + side / 2.0;
    picture.text((middle, top - 28.0), "predicted", 12.0, false, Anchor::Middle, MUTED);
    for (column, name) in column_names.iter().enumerate() {
        let x = left + (column as f32 + 0.5) * cell;
        picture.text((x, top - 9.0), name, size - 2.0, false, Anchor::Middle, INK);
    }
    for (row, (name, counts)) in names.iter().zip(report.confusion.rows()).enumerate() {
        let y = top + row as f32 * cell;
        let baseline = y + cell / 2.0 + size * 0.36;
        picture.text((left - 10.0, baseline), name, size, false, Anchor::End, INK);
        for (column, count) in counts.iter().enumerate() {
            let fraction = report.confusion.fraction(row, column).unwrap_or(0.0) as f32;
            let x = left + column as f32 * cell;
            let colour = shade(fraction);
            picture.shapes.push(Shape::Rectangle { at: (x, y), size: (cell, cell), colour });
            if numbered && *count > 0 {
                let ink = if fraction > 0.3 { NO_IMAGES } else { INK };
                let at = (x + cell / 2.0, baseline);
                picture.text(at, &count.to_string(), 12.0, false, Anchor::Middle, ink);
            }
        }
    }
    grid(&mut picture, (left, top), side, cell, names.len());
    picture
}

fn title(picture: &mut Picture, report: &Report) {
    let heading = format!(
        "{:.2} % correct: {} of {}",
        report.tally.accuracy() * 100.0,
        report.split,
        report.data_set
    );
    picture.text((MARGIN, 38.0), &heading, 19.0, true, Anchor::Start, INK);
    let below = format!(
        "{} images, loss {:.4}. The darker a cell, the larger its share of the row.",
        thousands(report.tally.images as u64),
        report.tally.loss()
    );
    picture.text((MARGIN, 60.0), &below, 13.0, false, Anchor::Start, MUTED);
}

/// Shortens names to at most `most` characters; a full stop marks those that were longer.
fn shortened(names: &[String], most: usize) -> Vec<String> {
    let cut = |name: &String| match name.chars().count() > most {
        true => name.chars().take(most.saturating_sub(1)).chain(['.']).collect(),
        false => name.clone(),
    };
    names.iter().map(cut).collect()
}

fn grid(picture: &mut Picture, (left, top): (f32, f32), side: f32, cell: f32, classes: usize) {
    let lines = if cell < 10.0 { vec![0, classes] } else { (0..=classes).collect() };
    for line in lines {
        let offset = line as f32 * cell;
        picture.line(vec![(left + offset, top), (left + offset, top + side)], 1.0, GRID);
        picture.line(vec![(left, top + offset), (left + side, top + offset)], 1.0, GRID);
    }
}

/// Returns the colour of a cell. Small fractions, which matter most to a reader, differ more than large ones.
fn shade(fraction: f32) -> Colour {
    let weight = fraction.clamp(0.0, 1.0).powf(0.6);
    std::array::from_fn(|channel| {
        let (light, dark) = (f32::from(NO_IMAGES[channel]), f32::from(ALL_IMAGES[channel]));
        (light + (dark - light) * weight).round() as u8
    })
}
