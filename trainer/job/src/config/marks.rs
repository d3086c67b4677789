//! Locations of keys and values in a YAML file.

use std::path::Path;

use marked_yaml::types::MarkedScalarNode;
use marked_yaml::{LoadError, LoaderOptions, Node};

use super::error::{ConfigError, Location};

/// Returns the keys and values of the file with their locations; `None` if they cannot be determined.
pub(super) fn marks(path: &Path, text: &str) -> Result<Option<Node>, ConfigError> {
    let read = |text: &str| {
        let options = LoaderOptions::default().error_on_duplicate_keys(true);
        marked_yaml::parse_yaml_with_options(0, text, options)
    };
    let mut text = masked(text, Lists::Stay);
    let mut found = read(&text);
    if let Err(LoadError::ScanError(..)) = found {
        // The parser rejects `[crop: {padding: 4}]`, pairs in a list without braces. Then lists are masked;
        // the location of the list as a whole suffices.
        text = masked(&text, Lists::AreWords);
        found = read(&text);
    }
    let text = &text;
    match found {
        Ok(node) => Ok(Some(node)),
        Err(LoadError::DuplicateKey(twice)) => {
            let at = twice.key.span().start().map(|mark| (mark.line(), mark.column()));
            let first = twice.prev_key.span().start().map_or(0, |mark| mark.line());
            Err(ConfigError::Key {
                location: Location::in_file(path, at),
                key: path_of(text, &twice.prev_key).unwrap_or(twice.key.as_str().to_string()),
                problem: format!("given twice, first on line {first}; keep one"),
            })
        }
        Err(_) => Ok(None),
    }
}

/// Returns the dotted path of the first occurrence of a repeated key.
fn path_of(text: &str, key: &MarkedScalarNode) -> Option<String> {
    fn search(node: &Node, key: &MarkedScalarNode) -> Option<String> {
        node.as_mapping()?.iter().find_map(|(name, value)| {
            if name.span() == key.span() {
                return Some(name.as_str().to_string());
            }
            search(value, key).map(|rest| format!("{}.{rest}", name.as_str()))
        })
    }
    search(&marked_yaml::parse_yaml(0, text).ok()?, key)
}

/// The syntactic element that a character of YAML belongs to.
#[derive(Clone, Copy)]
enum Within {
    Plain,
    /// A quoted string, up to the next quote of the same kind.
    Quotes(char),
    /// The character after a backslash in double quotes.
    Escape,
    Comment,
    /// An anchor, a tag or an alias, with the character that replaces its characters.
    Reference(char),
}

/// How [`masked`] treats lists in brackets.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lists {
    Stay,
    AreWords,
}

/// Returns `text` with anchors and tags replaced by blanks and aliases by a word, none of which the parser of
/// locations accepts. Everything else keeps its position.
fn masked(text: &str, lists: Lists) -> String {
    let (mut within, mut before, mut depth) = (Within::Plain, '\n', 0);
    let masked = text.chars().map(|character| {
        let begins = before.is_whitespace() || "[{,".contains(before);
        within = match (within, character) {
            (Within::Reference(_), ',' | ']' | '}') => Within::Plain,
            (Within::Reference(_), space) if space.is_whitespace() => Within::Plain,
            (Within::Comment, '\n') => Within::Plain,
            (Within::Quotes(quote), end) if quote == end => Within::Plain,
            (Within::Quotes('"'), '\\') => Within::Escape,
            (Within::Escape, _) => Within::Quotes('"'),
            (Within::Plain, '&' | '!') if begins => Within::Reference(' '),
            (Within::Plain, '*') if begins => Within::Reference('x'),
            (Within::Plain, '#') if begins => Within::Comment,
            (Within::Plain, quote @ ('"' | '\'')) if begins => Within::Quotes(quote),
            // A doubled quote does not end the string.
            (Within::Plain, '\'') if before == '\'' => Within::Quotes('\''),
            (as_before, _) => as_before,
        };
        before = character;
        let is_plain = matches!(within, Within::Plain);
        depth += usize::from(is_plain && character == '[');
        let in_list = lists == Lists::AreWords && depth > 0;
        depth -= usize::from(is_plain && character == ']' && depth > 0);
        match within {
            _ if in_list && character.is_whitespace() => character,
            Within::Comment if in_list => ' ',
            _ if in_list => 'x',
            Within::Reference(shown) => shown,
            _ => character,
        }
    });
    masked.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_blanked_and_all_else_stays_where_it_is() {
        for (text, expected) in [
            ("a: &b 1 # &c", "a:    1 # &c"),
            ("a: !!int 1", "a:       1"),
            ("a: [&b 1, *b]", "a: [   1, xx]"),
            ("a: {<<: *b, c: d}", "a: {<<: xx, c: d}"),
            (r#"a: "x \" &b" &c"#, r#"a: "x \" &b"   "#),
            ("a: 'it''s &b'\nb: R&D", "a: 'it''s &b'\nb: R&D"),
            ("frozen: ['*.bias', \"*\"]", "frozen: ['*.bias', \"*\"]"),
        ] {
            assert_eq!(masked(text, Lists::Stay), expected);
        }
    }

    #[test]
    fn a_list_becomes_words_where_it_is() {
        let text = "a: [b: {c: ']'}, # d\n  [e]]\nf: 1 # [g]";
        let expected = "a: xxx xxx xxxxx    \n  xxxx\nf: 1 # [g]";
        assert_eq!(masked(text, Lists::AreWords), expected);
    }
}
