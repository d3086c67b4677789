//! Augmentation: random changes to training images.

use std::fmt;

use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};

use super::validate::{Invalid, within};

macro_rules! augmentations {
    ($($(#[$doc:meta])* $name:literal => $variant:ident,)*) => {
        /// An augmentation of training images: in a configuration a name, which takes the defaults, or a name
        /// with keys.
        ///
        /// Augmentations are applied in the order of the variants, whatever the order of the list.
        #[derive(Debug, Clone, Copy, PartialEq)]
        pub enum Augment {
            $($(#[$doc])* $variant($variant),)*
        }

        impl Augment {
            const NAMES: &[&str] = &[$($name),*];

            /// Returns the name of this augmentation in a configuration.
            pub const fn name(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => $name,)*
                }
            }

            /// Returns the augmentation called `name`, with its default keys.
            fn named<E: de::Error>(name: &str) -> Result<Self, E> {
                match name {
                    $($name => Ok(Self::$variant($variant::default())),)*
                    _ => Err(E::unknown_variant(name, Self::NAMES)),
                }
            }

            /// Returns the augmentation called `name`, with its keys read from the map's next value.
            fn with_keys<'de, A: MapAccess<'de>>(name: &str, map: &mut A) -> Result<Self, A::Error> {
                match name {
                    $($name => map.next_value().map(Self::$variant),)*
                    _ => Err(de::Error::unknown_variant(name, Self::NAMES)),
                }
            }
        }

        impl Serialize for Augment {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let mut map = serializer.serialize_map(Some(1))?;
                match self {
                    $(Self::$variant(keys) => map.serialize_entry($name, keys)?,)*
                }
                map.end()
            }
        }
    };
}

augmentations! {
    /// Crops the padded image to the image's size, at a random position.
    "crop" => Crop,
    /// Flips the image horizontally.
    "flip" => Flip,
    /// Applies random operations, drawn from a list, one after the other.
    "rand_augment" => RandAugment,
    /// Changes brightness, contrast, saturation and hue, in a random order.
    "color_jitter" => ColorJitter,
    /// Fills a square around a random pixel with the mean colour.
    "cutout" => Cutout,
    /// Blends two images, and their classes.
    "mixup" => Mixup,
    /// Pastes a rectangle of one image into another, and blends their classes.
    "cutmix" => Cutmix,
}

/// Crops the padded image to the image's size, at a random position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Crop {
    /// Pixels of padding on each side.
    pub padding: usize,
    /// What the padding is filled with.
    pub mode: Padding,
}

/// The fill beyond an image's border.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Padding {
    /// Zero bytes.
    Zero,
    /// The image, reflected at its outermost pixels, which are not repeated.
    Reflect,
}

/// Flips the image horizontally.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Flip {
    /// How flips are chosen.
    pub mode: FlipMode,
}

/// How flips are chosen, by image and epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FlipMode {
    /// In each epoch with probability 1/2.
    Random,
    /// In the first epoch with probability 1/2, and from then on in every second epoch.
    Alternating,
}

/// Applies random operations, drawn from a list, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RandAugment {
    /// Operations per image.
    pub num_ops: usize,
    /// Strength of the operations, 0 to 30.
    pub magnitude: usize,
}

/// Largest changes of colour, up or down.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ColorJitter {
    /// Largest deviation of the brightness factor from 1.
    pub brightness: f64,
    /// Largest deviation of the contrast factor from 1.
    pub contrast: f64,
    /// Largest deviation of the saturation factor from 1.
    pub saturation: f64,
    /// Largest shift of the hue as a fraction of the colour circle, at most 0.5.
    pub hue: f64,
}

/// Fills a square around a random pixel with the mean colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cutout {
    /// The side of the square, in pixels.
    pub size: usize,
}

/// Blends two images, and their classes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mixup {
    /// Parameter of the Beta(alpha, alpha) distribution of the blend's weight.
    pub alpha: f64,
}

/// Pastes a rectangle of one image into another, and blends their classes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cutmix {
    /// Parameter of the Beta(alpha, alpha) distribution of the rectangle's share of the image.
    pub alpha: f64,
}

impl Default for Crop {
    fn default() -> Self {
        Self { padding: 4, mode: Padding::Zero }
    }
}

impl Default for Flip {
    fn default() -> Self {
        Self { mode: FlipMode::Random }
    }
}

impl Default for RandAugment {
    fn default() -> Self {
        Self { num_ops: 2, magnitude: 9 }
    }
}

impl Default for ColorJitter {
    fn default() -> Self {
        Self { brightness: 0.4, contrast: 0.4, saturation: 0.4, hue: 0.1 }
    }
}

impl Default for Cutout {
    fn default() -> Self {
        Self { size: 16 }
    }
}

impl Default for Mixup {
    fn default() -> Self {
        Self { alpha: 0.2 }
    }
}

impl Default for Cutmix {
    fn default() -> Self {
        Self { alpha: 1.0 }
    }
}

impl Augment {
    /// Checks ranges, for images whose shorter side has `side` pixels. `path` is the dotted path of the list
    /// entry.
    pub(super) fn validate(&self, path: &str, side: usize) -> Result<(), Invalid> {
        let key = |key: &str| format!("{path}.{}.{key}", self.name());
        match *self {
            Self::Crop(Crop { padding, mode: Padding::Zero }) => {
                within(&key("padding"), padding, 1..=side)
            }
            Self::Crop(Crop { padding, mode: Padding::Reflect }) => {
                within(&key("padding"), padding, 1..=side - 1)
            }
            Self::Flip(_) => Ok(()),
            Self::RandAugment(RandAugment { num_ops, magnitude }) => {
                within(&key("num_ops"), num_ops, 1..=16)?;
                within(&key("magnitude"), magnitude, 0..=30)
            }
            Self::ColorJitter(ColorJitter { brightness, contrast, saturation, hue }) => {
                within(&key("brightness"), brightness, 0.0..=10.0)?;
                within(&key("contrast"), contrast, 0.0..=10.0)?;
                within(&key("saturation"), saturation, 0.0..=10.0)?;
                within(&key("hue"), hue, 0.0..=0.5)
            }
            Self::Cutout(Cutout { size }) => within(&key("size"), size, 1..=2 * side),
            Self::Mixup(Mixup { alpha }) | Self::Cutmix(Cutmix { alpha }) => {
                within(&key("alpha"), alpha, 0.001..=1000.0)
            }
        }
    }
}

impl<'de> Deserialize<'de> for Augment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entry;

        impl<'de> Visitor<'de> for Entry {
            type Value = Augment;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "a name, as in `crop`, or one with its keys, as in `crop: {padding: 4}`",
                )
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<Augment, E> {
                Augment::named(name)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Augment, A::Error> {
                let name: String = map
                    .next_key()?
                    .ok_or_else(|| de::Error::invalid_type(de::Unexpected::Map, &self))?;
                let entry = Augment::with_keys(&name, &mut map)?;
                match map.next_key::<String>()? {
                    None => Ok(entry),
                    Some(other) => Err(de::Error::custom(format!(
                        "an entry has one name, this one has `{name}` and `{other}`; keys of `{name}` are \
                         written `{name}: {{...}}`"
                    ))),
                }
            }
        }

        deserializer.deserialize_any(Entry)
    }
}
