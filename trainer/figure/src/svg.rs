//! Renders pictures as SVG documents.

use crate::picture::{Anchor, Colour, DASH, Picture, Place, Shape};

const FONTS: &str = "'Noto Sans', 'DejaVu Sans', 'Segoe UI', Helvetica, Arial, sans-serif";

pub(super) fn draw(Picture { width, height, shapes }: &Picture) -> String {
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"{FONTS}\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    for shape in shapes {
        svg.push_str(&element(shape));
        svg.push('\n');
    }
    svg.push_str("</svg>\n");
    svg
}

fn element(shape: &Shape) -> String {
    match shape {
        Shape::Line { points, width, colour } => polyline(points, *width, *colour, ""),
        Shape::Dashes { points, width, colour } => {
            let (dash, gap) = DASH;
            polyline(points, *width, *colour, &format!(" stroke-dasharray=\"{dash} {gap}\""))
        }
        Shape::Area { points, colour, opacity } => format!(
            "<polygon points=\"{}\" fill=\"{}\" fill-opacity=\"{opacity}\"/>",
            list(points),
            hex(*colour)
        ),
        Shape::Dot { at: (x, y), radius, colour } => format!(
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\" fill=\"{}\" stroke=\"#ffffff\" \
             stroke-width=\"1.2\"/>",
            hex(*colour)
        ),
        Shape::Rectangle { at: (x, y), size: (width, height), colour } => format!(
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" \
             fill=\"{}\"/>",
            hex(*colour)
        ),
        Shape::Image { at: (left, top), size: (width, height), columns, pixels } => {
            let rows = pixels.len() / columns;
            let (width, height) = (width / *columns as f32, height / rows as f32);
            let pixel = |(place, colour): (usize, &Colour)| {
                let x = left + (place % columns) as f32 * width;
                let y = top + (place / columns) as f32 * height;
                element(&Shape::Rectangle { at: (x, y), size: (width, height), colour: *colour })
            };
            pixels.iter().enumerate().map(pixel).collect()
        }
        Shape::Text { at: (x, y), text, size, bold, anchor, colour } => {
            let weight = if *bold { " font-weight=\"bold\"" } else { "" };
            let anchor = match anchor {
                Anchor::Start => "start",
                Anchor::Middle => "middle",
                Anchor::End => "end",
            };
            format!(
                "<text x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"{size}\"{weight} \
                 text-anchor=\"{anchor}\" fill=\"{}\">{}</text>",
                hex(*colour),
                escaped(text)
            )
        }
    }
}

fn polyline(points: &[Place], width: f32, colour: Colour, dashes: &str) -> String {
    format!(
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"{width}\"{dashes} \
         stroke-linejoin=\"round\"/>",
        list(points),
        hex(colour)
    )
}

fn list(points: &[Place]) -> String {
    let words: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    words.join(" ")
}

fn hex([red, green, blue]: Colour) -> String {
    format!("#{red:02x}{green:02x}{blue:02x}")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
