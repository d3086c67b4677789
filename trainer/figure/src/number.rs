//! Labels of axis marks.

/// Formats `value` with up to six decimals, or from ten thousand on with three digits and a unit, as in `64k`
/// and `11.2M`.
pub(crate) fn number(value: f64) -> String {
    let size = value.abs();
    match size {
        1e4.. => {
            let (unit, name) = match size {
                999_500_000.0.. => (1e9, "G"),
                999_500.0.. => (1e6, "M"),
                _ => (1e3, "k"),
            };
            let parts = size / unit;
            let decimals = if parts >= 99.95 {
                1.0
            } else if parts >= 9.995 {
                10.0
            } else {
                100.0
            };
            format!("{}{name}", (value / unit * decimals).round() / decimals)
        }
        _ => format!("{}", (value * 1e6).round() / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_numbers_have_three_digits_and_a_unit() {
        for (value, text) in [
            (0.0, "0"),
            (0.1 + 0.2, "0.3"),
            (9999.0, "9999"),
            (12_500.0, "12.5k"),
            (64_000.0, "64k"),
            (269_722.0, "270k"),
            (999_700.0, "1M"),
            (11_173_962.0, "11.2M"),
            (1e9, "1G"),
        ] {
            assert_eq!(number(value), text);
        }
    }
}
