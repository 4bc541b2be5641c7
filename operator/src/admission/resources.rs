//! The agent's requests and limits, from the chart or from a pod's annotation.

use std::{collections::BTreeMap, str::FromStr};

use serde::{Deserialize, Serialize};

/// Requests and limits, in Kubernetes' words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    /// What the scheduler sets aside.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub requests: BTreeMap<String, Quantity>,
    /// What the agent may not exceed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub limits: BTreeMap<String, Quantity>,
}

/// A number or a text, as in a manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Quantity {
    /// Such as `250m`.
    Text(String),
    /// Such as `1`.
    Number(serde_json::Number),
}

impl Eq for Quantity {}

impl Quantity {
    /// As in apimachinery's `resource.Quantity`, without a sign: a sign, digits, and a suffix.
    fn is_valid(&self) -> bool {
        let text = match self {
            Self::Text(text) => text.clone(),
            Self::Number(number) => number.to_string(),
        };
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, suffix) = text.split_at(digits);
        let exponent = suffix.strip_prefix(['e', 'E']).map(|rest| rest.strip_prefix(['+', '-']).unwrap_or(rest));
        number.bytes().any(|byte| byte.is_ascii_digit())
            && number.matches('.').count() <= 1
            && text.len() <= 32
            && (matches!(suffix, "" | "n" | "u" | "m" | "k" | "M" | "G" | "T" | "P" | "E")
                || matches!(suffix, "Ki" | "Mi" | "Gi" | "Ti" | "Pi" | "Ei")
                || exponent.is_some_and(|e| !e.is_empty() && e.len() <= 2 && e.bytes().all(|b| b.is_ascii_digit())))
    }
}

impl FromStr for Resources {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let resources: Self = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let all = resources.requests.iter().chain(&resources.limits);
        match all.into_iter().find(|(_, quantity)| !quantity.is_valid()) {
            Some((name, _)) => Err(format!("the amount of {name} is not a quantity")),
            None => Ok(resources),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_of_kubernetes_are_taken() {
        for good in [r#""250m""#, "1", "0.5", r#""64Mi""#, r#""1e3""#, r#""1E""#, r#""1E-3""#, r#"".5""#, r#""2k""#] {
            let text = format!(r#"{{"requests": {{"cpu": {good}}}}}"#);
            assert!(text.parse::<Resources>().is_ok(), "{good}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for bad in [r#""""#, r#""much""#, "-1", r#""1.2.3""#, r#""64MiB""#, r#""1 Gi""#, "true", "null", r#"".""#] {
            let text = format!(r#"{{"limits": {{"memory": {bad}}}}}"#);
            assert!(text.parse::<Resources>().is_err(), "{bad}");
        }
        for bad in ["", "7", "[]x", r#"{"request": {}}"#, r#"{"requests": 3}"#] {
            assert!(bad.parse::<Resources>().is_err(), "{bad}");
        }
    }
}
