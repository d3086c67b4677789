//! A report as headings, paragraphs, tables and pictures, rendered as Markdown and as HTML. Pure.

use std::fmt::Write as _;

/// A part of a document.
pub enum Block {
    /// A heading and its level, from 1 for the title.
    Heading(usize, String),
    /// A paragraph.
    Text(String),
    /// Rows and columns.
    Table(Table),
    /// A picture.
    Picture(Picture),
}

/// A figure with a file name and a description.
pub struct Picture {
    /// File name, without an extension.
    pub name: String,
    /// Alternative text: what the figure shows.
    pub alt: String,
    /// The figure.
    pub drawn: figure::Picture,
}

/// Rows and columns of text.
pub struct Table {
    columns: Vec<(String, Align)>,
    rows: Vec<Vec<String>>,
}

/// Alignment of the text in a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// For words.
    Left,
    /// For numbers.
    Right,
}

impl Table {
    /// Creates a table without rows.
    pub fn new(columns: impl IntoIterator<Item = (impl Into<String>, Align)>) -> Self {
        let columns = columns.into_iter().map(|(name, align)| (name.into(), align)).collect();
        Self { columns, rows: Vec::new() }
    }

    /// Adds a row.
    ///
    /// # Panics
    /// When there are not as many cells as columns.
    pub fn row(&mut self, cells: Vec<String>) {
        assert_eq!(cells.len(), self.columns.len(), "{cells:?}");
        self.rows.push(cells);
    }

    /// Whether it has no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    fn to_markdown(&self) -> String {
        let mut text = String::from("|");
        self.columns.iter().for_each(|(name, _)| text.push_str(&format!(" {name} |")));
        text.push_str("\n|");
        for (_, align) in &self.columns {
            text.push_str(if *align == Align::Right { "--:|" } else { "---|" });
        }
        text.push('\n');
        for row in &self.rows {
            let _ = writeln!(text, "| {} |", row.join(" | "));
        }
        text
    }

    fn to_html(&self) -> String {
        let cell = |tag: &str, text: &str, align: Align| {
            let class = if align == Align::Right { " class=\"number\"" } else { "" };
            format!("<{tag}{class}>{}</{tag}>", escaped(text))
        };
        let aligns = || self.columns.iter().map(|(_, align)| *align);
        let mut text = String::from("<div class=\"wide\"><table>\n<thead><tr>");
        self.columns.iter().for_each(|(name, align)| text.push_str(&cell("th", name, *align)));
        text.push_str("</tr></thead>\n<tbody>\n");
        for row in &self.rows {
            let cells = row.iter().zip(aligns()).map(|(content, align)| cell("td", content, align));
            let _ = writeln!(text, "<tr>{}</tr>", cells.collect::<String>());
        }
        text + "</tbody></table></div>\n"
    }
}

/// Returns the pictures among `blocks`.
pub fn pictures(blocks: &[Block]) -> impl Iterator<Item = &Picture> {
    blocks.iter().filter_map(|block| match block {
        Block::Picture(picture) => Some(picture),
        _ => None,
    })
}

/// Renders as Markdown; pictures are links to their PNG files.
pub fn to_markdown(blocks: &[Block]) -> String {
    let mut text = String::new();
    for (index, block) in blocks.iter().enumerate() {
        if index > 0 {
            text.push('\n');
        }
        match block {
            Block::Heading(level, title) => {
                let _ = writeln!(text, "{} {title}", "#".repeat(*level));
            }
            Block::Text(paragraph) => {
                let _ = writeln!(text, "{paragraph}");
            }
            Block::Table(table) => text.push_str(&table.to_markdown()),
            Block::Picture(Picture { name, alt, .. }) => {
                let _ = writeln!(text, "![{alt}]({name}.png)");
            }
        }
    }
    text
}

/// Renders as one self-contained HTML file, with `records` at its end.
pub fn to_html(title: &str, blocks: &[Block], records: &str) -> String {
    let mut body = String::new();
    for block in blocks {
        match block {
            Block::Heading(level, text) => {
                let _ = writeln!(body, "<h{level}>{}</h{level}>", escaped(text));
            }
            Block::Text(text) => {
                let _ = writeln!(body, "<p>{}</p>", escaped(text));
            }
            Block::Table(table) => body.push_str(&table.to_html()),
            Block::Picture(Picture { alt, drawn, .. }) => {
                let _ = writeln!(
                    body,
                    "<figure role=\"img\" aria-label=\"{}\">{}</figure>",
                    escaped(alt),
                    drawn.to_svg()
                );
            }
        }
    }
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>{}</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n{body}<details>\n\
         <summary>All records, as JSON</summary>\n<pre>{}</pre>\n</details>\n</body>\n</html>\n",
        escaped(title),
        escaped(records)
    )
}

const STYLE: &str = "\
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2937; max-width: 72rem; margin: 2rem auto; \
padding: 0 1rem }
h1, h2, h3 { line-height: 1.2; margin: 2rem 0 .75rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: 13px }
th, td { padding: .3rem .6rem; border-bottom: 1px solid #e5e7eb; text-align: left }
th { vertical-align: bottom; color: #6b7280; font-weight: 600 }
.number { text-align: right; font-variant-numeric: tabular-nums }
td.number { white-space: nowrap }
figure { margin: 1rem 0 }
figure svg { max-width: 100%; height: auto }
pre { font-size: 11px; overflow-x: auto }
";

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks() -> Vec<Block> {
        let mut table = Table::new([("who", Align::Left), ("images/s", Align::Right)]);
        table.row(vec!["a < b".to_owned(), "7".to_owned()]);
        let drawn = figure::Picture::new(10.0, 10.0);
        let picture = Picture { name: "rates".to_owned(), alt: "Rates".to_owned(), drawn };
        vec![
            Block::Heading(1, "Title".to_owned()),
            Block::Text("Some text.".to_owned()),
            Block::Table(table),
            Block::Picture(picture),
        ]
    }

    #[test]
    fn markdown_links_pictures() {
        let expected = "# Title\n\nSome text.\n\n| who | images/s |\n|---|--:|\n| a < b | 7 |\n\n\
                        ![Rates](rates.png)\n";
        assert_eq!(to_markdown(&blocks()), expected);
    }

    #[test]
    fn html_holds_everything_and_escapes_it() {
        let html = to_html("T", &blocks(), r#"{"a": "</pre>"}"#);
        assert!(html.contains("<td>a &lt; b</td><td class=\"number\">7</td>"), "{html}");
        assert!(html.contains("aria-label=\"Rates\"><svg "), "{html}");
        assert!(html.contains("&lt;/pre&gt;") && !html.contains("src="), "{html}");
    }
}
