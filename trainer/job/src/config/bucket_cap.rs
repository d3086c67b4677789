//! The key `comm.bucket_cap_mib`: a number or `auto`.

use std::fmt;

use serde::de::{Error, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Largest size of a gradient bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BucketCap {
    /// Chosen by the time of an all-reduce, measured before the first step. If gradients are not reduced
    /// during backward, all of them are one bucket.
    Auto,
    /// This many MiB.
    Mib(usize),
}

const AUTO: &str = "auto";

impl Serialize for BucketCap {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str(AUTO),
            Self::Mib(mib) => serializer.serialize_u64(*mib as u64),
        }
    }
}

impl<'de> Deserialize<'de> for BucketCap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NumberOrAuto)
    }
}

struct NumberOrAuto;

impl Visitor<'_> for NumberOrAuto {
    type Value = BucketCap;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("auto or a whole number of MiB")
    }

    fn visit_u64<E: Error>(self, mib: u64) -> Result<BucketCap, E> {
        let wrong = |_| E::invalid_value(Unexpected::Unsigned(mib), &self);
        usize::try_from(mib).map(BucketCap::Mib).map_err(wrong)
    }

    /// An override of a key whose default is a string arrives as a string, even if it is a number.
    fn visit_str<E: Error>(self, text: &str) -> Result<BucketCap, E> {
        let number = || text.parse().ok().map(BucketCap::Mib);
        let cap = if text == AUTO { Some(BucketCap::Auto) } else { number() };
        cap.ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
    }
}
