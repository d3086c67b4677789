//! The confusion matrix: how often each class was classified as which.

/// A confusion matrix of image counts. Rows are true classes, columns predicted classes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confusion {
    classes: usize,
    /// `[classes, classes]`, row by row.
    counts: Vec<u64>,
}

/// A cell off the diagonal: images of one class that were classified as another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mistake {
    /// The true class.
    pub class: usize,
    /// The predicted class.
    pub taken_for: usize,
    /// Number of images.
    pub images: u64,
}

impl Confusion {
    /// Creates a matrix from `counts`: `[classes, classes]`, row by row.
    ///
    /// # Panics
    /// When `counts` has another length.
    pub fn new(classes: usize, counts: Vec<u64>) -> Self {
        assert_eq!(counts.len(), classes * classes);
        Self { classes, counts }
    }

    /// Returns the rows of the matrix, one per true class.
    pub fn rows(&self) -> impl Iterator<Item = &[u64]> {
        self.counts.chunks_exact(self.classes.max(1))
    }

    /// Returns the number of images whose true class is `class`.
    pub fn images(&self, class: usize) -> u64 {
        self.row(class).iter().sum()
    }

    /// Returns the number of images of `class` that were classified correctly.
    pub fn correct(&self, class: usize) -> u64 {
        self.row(class)[class]
    }

    /// Returns the fraction of images of `class` that were classified correctly (its recall); `None` if
    /// there are none.
    pub fn accuracy(&self, class: usize) -> Option<f64> {
        self.fraction(class, class)
    }

    /// Returns the fraction of images of `class` that were classified as `other`; `None` if there are none.
    pub fn fraction(&self, class: usize, other: usize) -> Option<f64> {
        match self.images(class) {
            0 => None,
            images => Some(self.row(class)[other] as f64 / images as f64),
        }
    }

    /// Returns all mistakes that occurred, the most frequent first.
    pub fn mistakes(&self) -> Vec<Mistake> {
        let mistakes = self.rows().enumerate().flat_map(|(class, row)| {
            let others = row.iter().enumerate().filter(move |(other, _)| *other != class);
            others.map(move |(taken_for, &images)| Mistake { class, taken_for, images })
        });
        let mut mistakes: Vec<_> = mistakes.filter(|mistake| mistake.images > 0).collect();
        mistakes.sort_by_key(|mistake| std::cmp::Reverse(mistake.images));
        mistakes
    }

    /// Returns the most frequent mistake with images of `class`; `None` if there is none.
    pub fn most_frequent_mistake(&self, class: usize) -> Option<Mistake> {
        let others = self.row(class).iter().enumerate().filter(|(other, _)| *other != class);
        let mistakes = others.map(|(taken_for, &images)| Mistake { class, taken_for, images });
        let most = mistakes.min_by_key(|mistake| std::cmp::Reverse(mistake.images));
        most.filter(|mistake| mistake.images > 0)
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
        let least = Mistake { class: 0, taken_for: 1, images: 1 };
        assert_eq!(confusion.mistakes(), [most, least]);
        let of_classes = [0, 1, 2].map(|class| confusion.most_frequent_mistake(class));
        assert_eq!(of_classes, [Some(least), None, Some(most)]);
    }
}
