//! Formatting of numbers for people.

/// Formats `11173962` as `11,173,962`.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `count` things that are called `noun` in the singular: "1 rank", "2 ranks".
pub fn counted(count: usize, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        let shown = [0, 999, 1000, 11_173_962].map(thousands);
        assert_eq!(shown, ["0", "999", "1,000", "11,173,962"]);
    }

    #[test]
    fn one_is_singular() {
        let shown = [0, 1, 2].map(|count| counted(count, "rank"));
        assert_eq!(shown, ["0 ranks", "1 rank", "2 ranks"]);
    }
}
