//! Conversion of tensor names to and from torchvision's.
//!
//! The notes' module says `shortcut` and `linear` where torchvision says `downsample` and `fc`; all
//! other names are the same.

/// Parts of names that differ: the notes' module's, and torchvision's.
const PAIRS: [(&str, &str); 2] = [("shortcut", "downsample"), ("linear", "fc")];

/// Converts a tensor name of this project to torchvision's.
pub fn to_torchvision(name: &str) -> String {
    translate(name, |part| PAIRS.iter().find(|(ours, _)| *ours == part).map(|(_, theirs)| *theirs))
}

/// Converts a tensor name of torchvision's to this project's.
pub fn from_torchvision(name: &str) -> String {
    translate(name, |part| PAIRS.iter().find(|(_, theirs)| *theirs == part).map(|(ours, _)| *ours))
}

fn translate(name: &str, other: impl Fn(&str) -> Option<&'static str>) -> String {
    let parts: Vec<&str> = name.split('.').map(|part| other(part).unwrap_or(part)).collect();
    parts.join(".")
}
