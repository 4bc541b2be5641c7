//! Amounts of bytes as people write them in resources.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// What a size must match, in the API server and here: the part of Kubernetes' quantities that makes sense for bytes.
pub(crate) const PATTERN: &str = "^[0-9]{1,9}(k|M|G|Ki|Mi|Gi)?$";
const MAX_DIGITS: usize = 9;
const UNITS: [(&str, u64); 7] =
    [("", 1), ("k", 1_000), ("M", 1_000_000), ("G", 1_000_000_000), ("Ki", 1 << 10), ("Mi", 1 << 20), ("Gi", 1 << 30)];

/// An amount of bytes as text, such as `512Ki` or `64Mi`; kept as written and read by [`ByteSize::to_bytes`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ByteSize(pub String);

/// The text is not an amount of bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a size: write a whole number of bytes with an optional unit, such as 512Ki or 64Mi")]
pub struct MalformedSize(pub String);

impl ByteSize {
    /// The number of bytes that the text says.
    pub fn to_bytes(&self) -> Result<u64, MalformedSize> {
        parse(&self.0).ok_or_else(|| MalformedSize(self.0.chars().take(32).collect()))
    }
}

fn parse(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    if digits == 0 || digits > MAX_DIGITS {
        return None;
    }
    let (number, unit) = text.split_at(digits);
    let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit)?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

impl JsonSchema for ByteSize {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "ByteSize".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "maxLength": 16,
            "x-kubernetes-validations": [{
                "rule": format!("self.matches('{PATTERN}')"),
                "message": "write a whole number of bytes with an optional unit, such as 512Ki or 64Mi",
            }],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_quantities_of_bytes() {
        for (text, bytes) in
            [("0", 0), ("512Ki", 512 << 10), ("64Mi", 64 << 20), ("1Gi", 1 << 30), ("3k", 3_000), ("2G", 2_000_000_000)]
        {
            assert_eq!(ByteSize(text.into()).to_bytes(), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn refuses_what_the_schema_refuses() {
        for text in ["", "Mi", "-1Mi", "1.5Mi", "64 Mi", "64MB", "64m", "1Ti", "1234567890"] {
            assert!(ByteSize(text.into()).to_bytes().is_err(), "{text}");
        }
    }
}
