//! Which class was taken for which, how often.

/// A matrix of counts: a row is a class, a column is what it was taken for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confusion {
    classes: usize,
    /// Row by row.
    counts: Vec<u64>,
}

/// A class that was taken for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mistake {
    /// What it is.
    pub class: usize,
    /// What it was taken for.
    pub taken_for: usize,
    /// How often.
    pub images: u64,
}

impl Confusion {
    /// `counts`: `[classes, classes]`, row by row.
    ///
    /// # Panics
    /// When there are more or fewer.
    pub fn new(classes: usize, counts: Vec<u64>) -> Self {
        assert_eq!(counts.len(), classes * classes);
        Self { classes, counts }
    }

    /// Row by row; none without classes.
    pub fn rows(&self) -> impl Iterator<Item = &[u64]> {
        self.counts.chunks_exact(self.classes.max(1))
    }

    /// Images of `class`.
    pub fn images(&self, class: usize) -> u64 {
        self.row(class).iter().sum()
    }

    /// Images of `class` that were taken for it.
    pub fn correct(&self, class: usize) -> u64 {
        self.row(class)[class]
    }

    /// The fraction of them; `None` without images.
    pub fn accuracy(&self, class: usize) -> Option<f64> {
        self.fraction(class, class)
    }

    /// The fraction of images of `class` that were taken for `other`; `None` without images.
    pub fn fraction(&self, class: usize, other: usize) -> Option<f64> {
        match self.images(class) {
            0 => None,
            images => Some(self.row(class)[other] as f64 / images as f64),
        }
    }

    /// Mistakes that were made, the most frequent ones first.
    pub fn mistakes(&self) -> Vec<Mistake> {
        let mistakes = self.rows().enumerate().flat_map(|(class, row)| {
            let others = row.iter().enumerate().filter(move |(other, _)| *other != class);
            others.map(move |(taken_for, &images)| Mistake { class, taken_for, images })
        });
        let mut mistakes: Vec<_> = mistakes.filter(|mistake| mistake.images > 0).collect();
        mistakes.sort_by_key(|mistake| std::cmp::Reverse(mistake.images));
        mistakes
    }

    fn row(&self, class: usize) -> &[u64] {
        &self.counts[class * self.classes..][..self.classes]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_what_an_image_is_and_columns_what_it_was_taken_for() {
        let confusion = Confusion::new(3, vec![3, 1, 0, 0, 0, 0, 2, 0, 6]);
        assert_eq!([0, 1, 2].map(|class| confusion.images(class)), [4, 0, 8]);
        assert_eq!(
            [0, 1, 2].map(|class| confusion.accuracy(class)),
            [Some(0.75), None, Some(0.75)]
        );
        assert_eq!(confusion.fraction(2, 0), Some(0.25));
        let most = Mistake { class: 2, taken_for: 0, images: 2 };
        assert_eq!(confusion.mistakes(), [most, Mistake { class: 0, taken_for: 1, images: 1 }]);
    }
}
