//! Draws rows of images, each with a label.

use job::config::Augment;
use tch::Tensor;

use figure::{Anchor, INK, MUTED, Picture, Shape};

const MARGIN: f32 = 24.0;
const TITLE_HEIGHT: f32 = 60.0;
const LABEL_WIDTH: f32 = 190.0;
const GAP: f32 = 8.0;
/// Approximate side to which small images are enlarged, in pixels.
const SIDE: usize = 96;
const NARROWEST: f32 = 460.0;

/// A row of images that were augmented in the same way.
pub(super) struct Row {
    name: String,
    detail: String,
    /// Pixels, `[N, H, W, C]` u8.
    images: Tensor,
}

impl Row {
    /// `images`: `[N, H, W, C]` u8, with one channel or three.
    pub(super) fn new(name: &str, detail: &str, images: Tensor) -> Self {
        Self { name: name.to_owned(), detail: detail.to_owned(), images }
    }
}

/// Returns the keys of an augmentation, one per line, as they are written in a configuration.
pub(super) fn keys(augment: &Augment) -> String {
    let value = serde_json::to_value(augment).unwrap_or_default();
    let keys = value[augment.name()].as_object().cloned().unwrap_or_default();
    let pair = |(key, value): (&String, &serde_json::Value)| {
        format!("{key}: {}", value.to_string().trim_matches('"'))
    };
    keys.iter().map(pair).collect::<Vec<_>>().join("\n")
}

/// Draws rows of the same images, one below the other.
pub(super) fn draw(title: &str, rows: &[Row]) -> Picture {
    let size = rows.first().map_or_else(Vec::new, |row| row.images.size());
    let [count, height, width] = [0, 1, 2].map(|at| size.get(at).map_or(0, |&size| size as usize));
    let zoom = (SIDE / width.max(1)).max(1);
    let cell = ((width * zoom) as f32, (height * zoom) as f32);
    let row_height = cell.1 + GAP;
    let full_width = 2.0 * MARGIN + LABEL_WIDTH + count as f32 * (cell.0 + GAP);
    let full_height = TITLE_HEIGHT + rows.len() as f32 * row_height + MARGIN;
    let mut picture = Picture::new(full_width.max(NARROWEST), full_height);
    picture.text((MARGIN, 36.0), title, 15.0, true, Anchor::Start, INK);
    for (place, row) in rows.iter().enumerate() {
        let top = TITLE_HEIGHT + place as f32 * row_height;
        picture.text((MARGIN, top + 16.0), &row.name, 13.0, true, Anchor::Start, INK);
        for (line, text) in row.detail.lines().enumerate() {
            let at = (MARGIN, top + 33.0 + line as f32 * 15.0);
            picture.text(at, text, 11.0, false, Anchor::Start, MUTED);
        }
        for image in 0..count {
            let left = MARGIN + LABEL_WIDTH + image as f32 * (cell.0 + GAP);
            let pixels = colours(&row.images.get(image as i64));
            picture.shapes.push(Shape::Image {
                at: (left, top),
                size: cell,
                columns: width,
                pixels,
            });
        }
    }
    picture
}

/// Returns the pixels of a `[H, W, C]` u8 image, row by row.
fn colours(image: &Tensor) -> Vec<[u8; 3]> {
    let size = image.size();
    let image = image.expand([size[0], size[1], 3], false).contiguous();
    let bytes = Vec::<u8>::try_from(image.flatten(0, -1)).unwrap_or_default();
    bytes.chunks_exact(3).map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grey_and_coloured_images_become_pixels_row_by_row() {
        let image = Tensor::from_slice(&[1u8, 2, 3, 4, 5, 6]);
        assert_eq!(colours(&image.view([1, 2, 3])), [[1, 2, 3], [4, 5, 6]]);
        assert_eq!(colours(&image.view([3, 2, 1]))[3], [4; 3]);
    }
}
