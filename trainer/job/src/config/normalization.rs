//! Normalization of pixels.

use serde::{Deserialize, Serialize};

use super::validate::Invalid;

/// Mean and standard deviation of pixels by channel, with pixels as fractions of 255: the mean is subtracted,
/// then the result is divided by the standard deviation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Normalization {
    /// Mean, `[C]`.
    pub mean: Vec<f32>,
    /// Standard deviation, `[C]`, each above 0.
    pub std: Vec<f32>,
}

impl Normalization {
    pub(crate) fn new(mean: &[f32], std: &[f32]) -> Self {
        Self { mean: mean.to_vec(), std: std.to_vec() }
    }

    /// Checks lengths and ranges. `path` is the dotted path of the key.
    pub(super) fn validate(&self, path: &str, channels: usize) -> Result<(), Invalid> {
        let values = [("mean", &self.mean), ("std", &self.std)];
        for (key, values) in values {
            if values.len() != channels {
                let wanted = match channels {
                    1 => "a list of one number: the images are grey".to_owned(),
                    _ => format!("a list of {channels} numbers, of red, green and blue"),
                };
                let problem = format!("expected {wanted}; found {}", values.len());
                return Err(Invalid::new(&format!("{path}.{key}"), problem));
            }
        }
        let wrong = |key: &str, index: usize, value: f32, range: &str| {
            let problem = format!("{value} is out of range; expected a number {range}");
            Err(Invalid::new(&format!("{path}.{key}[{index}]"), problem))
        };
        for (index, (&mean, &std)) in self.mean.iter().zip(&self.std).enumerate() {
            if !(0.0..=1.0).contains(&mean) {
                return wrong(
                    "mean",
                    index,
                    mean,
                    "from 0 to 1: pixels are taken as fractions of 255",
                );
            }
            if !(std > 0.0 && std <= 1.0) {
                return wrong("std", index, std, "above 0, at most 1");
            }
        }
        Ok(())
    }
}
