//! Parameters that are not trained.

use super::Optimizer;
use crate::config::validate::Invalid;
use crate::config::{Model, keys};
use crate::network::{Network, Role, TensorSpec};

/// The pattern that matches the scales of all batch norms.
const NORM_WEIGHTS: &str = "norm_weights";

impl Optimizer {
    /// Returns whether `parameter` is not trained.
    pub fn freezes(&self, parameter: &TensorSpec) -> bool {
        self.frozen.iter().any(|pattern| covers(pattern, parameter))
    }

    /// Checks that each pattern matches a parameter of `model`, and that some parameter is left to train.
    pub(super) fn validate_frozen(&self, model: &Model) -> Result<(), Invalid> {
        if self.frozen.is_empty() {
            return Ok(());
        }
        // The names of parameters do not depend on the images' shape.
        let tensors = Network::new(model, [3, 32, 32], 10).tensors(false);
        let parameters = || tensors.iter().filter(|tensor| tensor.role.is_parameter());
        for (index, pattern) in self.frozen.iter().enumerate() {
            if !parameters().any(|parameter| covers(pattern, parameter)) {
                let names = parameters().map(|parameter| parameter.name.as_str());
                let hint = match keys::nearest(pattern, names) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!(
                        "expected a parameter's name, a pattern with `*`, or {NORM_WEIGHTS}"
                    ),
                };
                let problem = format!("no parameter of {} matches `{pattern}`; {hint}", model.name);
                return Err(Invalid::new(&format!("optimizer.frozen[{index}]"), problem));
            }
        }
        if parameters().all(|parameter| self.freezes(parameter)) {
            return Err(Invalid::new(
                "optimizer.frozen",
                "all parameters are frozen; nothing is left to train",
            ));
        }
        Ok(())
    }
}

fn covers(pattern: &str, parameter: &TensorSpec) -> bool {
    match pattern {
        NORM_WEIGHTS => parameter.role == Role::NormWeight,
        _ => fits(pattern, &parameter.name),
    }
}

/// Returns whether `name` matches `pattern`, in which `*` matches any sequence of characters.
fn fits(pattern: &str, name: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(name) = name.strip_prefix(start) else { return false };
    let ends = name.char_indices().map(|(at, _)| at).chain([name.len()]);
    ends.into_iter().any(|at| fits(rest, &name[at..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_anything() {
        for (pattern, name) in [
            ("conv1.weight", "conv1.weight"),
            ("*", "conv1.weight"),
            ("layer1.*", "layer1.0.conv1.weight"),
            ("*.bn1.*", "layer1.0.bn1.bias"),
            ("layer*.0.*.weight", "layer1.0.bn1.weight"),
        ] {
            assert!(fits(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("conv1", "conv1.weight"),
            ("*conv1", "conv1.weight"),
            ("layer2.*", "layer1.0.conv1.weight"),
            ("", "conv1.weight"),
        ] {
            assert!(!fits(pattern, name), "{pattern} {name}");
        }
    }
}
