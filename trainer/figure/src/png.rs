//! Renders pictures as PNG files, with a font that is part of the binary.

use tiny_skia::{
    FillRule, FilterQuality, IntSize, LineCap, LineJoin, Paint, Path, PathBuilder, Pixmap,
    PixmapPaint, Rect, Stroke, StrokeDash, Transform,
};
use ttf_parser::{Face, OutlineBuilder};

use crate::picture::{Anchor, Colour, DASH, Picture, Place, Shape};

/// Pixels of the PNG per pixel of the SVG.
const ZOOM: f32 = 2.0;

pub(super) fn draw(Picture { width, height, shapes }: &Picture) -> Result<Vec<u8>, String> {
    let fonts = Fonts {
        regular: Face::parse(notosans::REGULAR_TTF, 0).map_err(|error| error.to_string())?,
        bold: Face::parse(notosans::BOLD_TTF, 0).map_err(|error| error.to_string())?,
    };
    let mut pixmap = Pixmap::new((width * ZOOM) as u32, (height * ZOOM) as u32)
        .ok_or("no memory for the picture")?;
    pixmap.fill(tiny_skia::Color::WHITE);
    for shape in shapes {
        draw_shape(&mut pixmap, &fonts, shape);
    }
    pixmap.encode_png().map_err(|error| error.to_string())
}

struct Fonts {
    regular: Face<'static>,
    bold: Face<'static>,
}

fn draw_shape(pixmap: &mut Pixmap, fonts: &Fonts, shape: &Shape) {
    match shape {
        Shape::Line { points, width, colour } => {
            stroke(pixmap, polyline(points), *width, *colour, None);
        }
        Shape::Dashes { points, width, colour } => {
            let dash = StrokeDash::new(vec![DASH.0, DASH.1], 0.0);
            stroke(pixmap, polyline(points), *width, *colour, dash);
        }
        Shape::Area { points, colour, opacity } => {
            fill(pixmap, polyline(points), *colour, *opacity);
        }
        Shape::Dot { at: (x, y), radius, colour } => {
            let circle = PathBuilder::from_circle(*x, *y, *radius);
            fill(pixmap, circle.clone(), *colour, 1.0);
            stroke(pixmap, circle, 1.2, [255; 3], None);
        }
        Shape::Rectangle { at: (x, y), size: (width, height), colour } => {
            let rectangle = Rect::from_xywh(*x, *y, *width, *height);
            fill(pixmap, rectangle.map(PathBuilder::from_rect), *colour, 1.0);
        }
        Shape::Image { at, size, columns, pixels } => {
            draw_image(pixmap, *at, *size, *columns, pixels);
        }
        Shape::Text { at, text, size, bold, anchor, colour } => {
            let face = if *bold { &fonts.bold } else { &fonts.regular };
            fill(pixmap, outline(face, text, *size, *at, *anchor), *colour, 1.0);
        }
    }
}

/// Draws an image without smoothing: each of its pixels becomes a rectangle.
fn draw_image(
    pixmap: &mut Pixmap,
    (x, y): Place,
    (width, height): (f32, f32),
    columns: usize,
    pixels: &[Colour],
) {
    let bytes = pixels.iter().flat_map(|[red, green, blue]| [*red, *green, *blue, 255]).collect();
    let rows = pixels.len() / columns.max(1);
    let size = IntSize::from_wh(columns as u32, rows as u32);
    if let Some(image) = size.and_then(|size| Pixmap::from_vec(bytes, size)) {
        let (horizontal, vertical) = (width / columns as f32, height / rows as f32);
        let place = Transform::from_row(horizontal, 0.0, 0.0, vertical, x, y).post_concat(zoom());
        let paint = PixmapPaint { quality: FilterQuality::Nearest, ..PixmapPaint::default() };
        pixmap.draw_pixmap(0, 0, image.as_ref(), &paint, place, None);
    }
}

fn polyline(points: &[Place]) -> Option<Path> {
    let mut path = PathBuilder::new();
    for (index, (x, y)) in points.iter().enumerate() {
        match index {
            0 => path.move_to(*x, *y),
            _ => path.line_to(*x, *y),
        }
    }
    path.finish()
}

/// Fills a path; `None`, a path without extent, draws nothing.
fn fill(pixmap: &mut Pixmap, path: Option<Path>, colour: Colour, opacity: f32) {
    if let Some(path) = path {
        pixmap.fill_path(&path, &paint(colour, opacity), FillRule::Winding, zoom(), None);
    }
}

fn stroke(
    pixmap: &mut Pixmap,
    path: Option<Path>,
    width: f32,
    colour: Colour,
    dash: Option<StrokeDash>,
) {
    if let Some(path) = path {
        let (line_cap, line_join) = (LineCap::Butt, LineJoin::Round);
        let stroke = Stroke { width, line_cap, line_join, dash, ..Stroke::default() };
        pixmap.stroke_path(&path, &paint(colour, 1.0), &stroke, zoom(), None);
    }
}

fn zoom() -> Transform {
    Transform::from_scale(ZOOM, ZOOM)
}

fn paint([red, green, blue]: Colour, opacity: f32) -> Paint<'static> {
    let mut paint = Paint { anti_alias: true, ..Paint::default() };
    paint.set_color_rgba8(red, green, blue, (opacity * 255.0).round() as u8);
    paint
}

/// Returns the outline of a line of text. A letter that the font lacks is drawn as the font's box for missing
/// glyphs.
fn outline(face: &Face<'_>, text: &str, size: f32, at: Place, anchor: Anchor) -> Option<Path> {
    let scale = size / f32::from(face.units_per_em());
    let glyphs: Vec<_> =
        text.chars().map(|letter| face.glyph_index(letter).unwrap_or_default()).collect();
    let advance = |glyph| scale * f32::from(face.glyph_hor_advance(glyph).unwrap_or(0));
    let width: f32 = glyphs.iter().copied().map(advance).sum();
    let start = match anchor {
        Anchor::Start => at.0,
        Anchor::Middle => at.0 - width / 2.0,
        Anchor::End => at.0 - width,
    };
    let mut pen = Pen { path: PathBuilder::new(), x: start, y: at.1, scale };
    for glyph in glyphs {
        face.outline_glyph(glyph, &mut pen);
        pen.x += advance(glyph);
    }
    pen.path.finish()
}

/// Converts glyph outlines from font units, y upwards, to pixels, y downwards.
struct Pen {
    path: PathBuilder,
    x: f32,
    y: f32,
    scale: f32,
}

impl Pen {
    fn at(&self, x: f32, y: f32) -> Place {
        (self.x + x * self.scale, self.y - y * self.scale)
    }
}

impl OutlineBuilder for Pen {
    fn move_to(&mut self, x: f32, y: f32) {
        let (x, y) = self.at(x, y);
        self.path.move_to(x, y);
    }

    fn line_to(&mut self, x: f32, y: f32) {
        let (x, y) = self.at(x, y);
        self.path.line_to(x, y);
    }

    fn quad_to(&mut self, x1: f32, y1: f32, x: f32, y: f32) {
        let ((x1, y1), (x, y)) = (self.at(x1, y1), self.at(x, y));
        self.path.quad_to(x1, y1, x, y);
    }

    fn curve_to(&mut self, x1: f32, y1: f32, x2: f32, y2: f32, x: f32, y: f32) {
        let ((x1, y1), (x2, y2), (x, y)) = (self.at(x1, y1), self.at(x2, y2), self.at(x, y));
        self.path.cubic_to(x1, y1, x2, y2, x, y);
    }

    fn close(&mut self) {
        self.path.close();
    }
}
