//! Durations as people write them in resources.

use std::{borrow::Cow, fmt, time};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// What a duration must match, in the API server and here. Source: Gateway API, GEP-2257; four parts of five digits
/// cannot overflow the nanoseconds of Go's `time.Duration`.
pub(crate) const PATTERN: &str = "^([0-9]{1,5}(h|m|s|ms)){1,4}$";
const MAX_PARTS: usize = 4;
const MAX_DIGITS: usize = 5;
const UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// A duration as text, such as `500ms`, `30s` or `1m30s`. It is kept as written and read by [`Duration::to_std`], so
/// that one malformed value does not make the whole object unreadable.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Duration(pub String);

/// The text is not a duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a duration: write whole numbers with h, m, s or ms, such as 500ms, 30s or 1m30s")]
pub struct MalformedDuration(pub String);

impl Duration {
    /// The duration that the text says.
    pub fn to_std(&self) -> Result<time::Duration, MalformedDuration> {
        parse(&self.0).ok_or_else(|| MalformedDuration(self.0.chars().take(32).collect()))
    }
}

fn parse(text: &str) -> Option<time::Duration> {
    let (mut rest, mut millis) = (text, 0_u64);
    for _ in 0..MAX_PARTS {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        if digits == 0 || digits > MAX_DIGITS {
            return None;
        }
        let (number, tail) = rest.split_at(digits);
        let letters = tail.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, tail) = tail.split_at(letters);
        let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit)?;
        millis += number.parse::<u64>().ok()? * factor;
        rest = tail;
        if rest.is_empty() {
            return Some(time::Duration::from_millis(millis));
        }
    }
    None
}

fn part(number: u64, unit: &str) -> String {
    if number == 0 { String::new() } else { format!("{number}{unit}") }
}

/// Whole milliseconds; what is finer is cut off.
impl From<time::Duration> for Duration {
    fn from(duration: time::Duration) -> Self {
        let mut millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let mut text = String::new();
        for (unit, factor) in UNITS {
            text.push_str(&part(millis / factor, unit));
            millis %= factor;
        }
        Self(if text.is_empty() { "0s".into() } else { text })
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl JsonSchema for Duration {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "maxLength": 32,
            "x-kubernetes-validations": [{
                "rule": format!("self.matches('{PATTERN}')"),
                "message": "write a duration in whole numbers with h, m, s or ms, such as 500ms, 30s or 1m30s",
            }],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_kubernetes_users_write() {
        for (text, millis) in [("30s", 30_000), ("500ms", 500), ("1m30s", 90_000), ("0s", 0), ("1h1m1s1ms", 3_661_001)]
        {
            assert_eq!(Duration(text.into()).to_std(), Ok(time::Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn refuses_what_the_schema_refuses() {
        for text in ["", "30", "-1s", "1.5s", "s", "1d", "1 s", " 1s", "100000s", "1s1s1s1s1s", "1µs", "1S"] {
            assert!(Duration(text.into()).to_std().is_err(), "{text}");
        }
    }

    #[test]
    fn writes_what_it_reads() {
        for text in ["1h", "1m30s", "500ms", "0s", "24h", "2s50ms"] {
            let read = Duration(text.into()).to_std().unwrap();
            assert_eq!(Duration::from(read).0, text);
        }
    }
}
