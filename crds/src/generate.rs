//! The definitions as the API server wants them, and as YAML that every parser reads alike.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::Value;

use crate::{DurableServer, DurableServerPool, Handoff};

/// The definitions of all resources.
pub fn all() -> anyhow::Result<Vec<CustomResourceDefinition>> {
    [DurableServerPool::crd(), DurableServer::crd(), Handoff::crd()]
        .into_iter()
        .map(|crd| {
            let mut crd = serde_json::to_value(crd)?;
            tidy(&mut crd);
            Ok(serde_json::from_value(crd)?)
        })
        .collect()
}

/// The file that a definition is written to.
#[must_use]
pub fn file_name(crd: &CustomResourceDefinition) -> String {
    format!("{}.yaml", crd.spec.names.plural)
}

/// Removes what the API server warns about (formats it does not know) or would act on against our will (`default`,
/// which it writes into objects for ever).
fn tidy(value: &mut Value) {
    match value {
        Value::Object(map) => {
            let unknown = matches!(map.get("format").and_then(Value::as_str), Some(f) if f.starts_with("uint"));
            if unknown {
                map.remove("format");
            }
            if map.contains_key("type") {
                map.remove("default");
            }
            map.values_mut().for_each(tidy);
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
        _ => {}
    }
}

/// Writes YAML 1.2 and refuses strings that Kubernetes' parser, which reads YAML 1.1, would take for something else.
pub fn to_yaml(crd: &CustomResourceDefinition) -> anyhow::Result<String> {
    let value = serde_json::to_value(crd)?;
    refuse_ambiguous(&value)?;
    Ok(format!("# Generated from crds/ by `make generate`.\n{}", serde_yaml::to_string(&value)?))
}

fn refuse_ambiguous(value: &Value) -> anyhow::Result<()> {
    match value {
        Value::String(text) => {
            anyhow::ensure!(!ambiguous(text), "`{text}` is not a string in YAML 1.1: use another word");
        }
        Value::Array(items) => items.iter().try_for_each(refuse_ambiguous)?,
        Value::Object(map) => {
            for (key, value) in map {
                anyhow::ensure!(!ambiguous(key), "the key `{key}` is not a string in YAML 1.1: use another word");
                refuse_ambiguous(value)?;
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
    Ok(())
}

/// Whether YAML 1.1 reads the plain text as a boolean, a merge key, or a number in a notation that 1.2 has dropped.
fn ambiguous(text: &str) -> bool {
    let word = matches!(text.to_ascii_lowercase().as_str(), "y" | "n" | "yes" | "no" | "on" | "off" | "<<" | "=");
    let digits = text.trim_start_matches(['+', '-']);
    let number = digits.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && digits
            .chars()
            .all(|c| c.is_ascii_hexdigit() || matches!(c, '_' | ':' | '.' | '-' | '+' | 'x' | 'o' | 'b' | 'T' | 'Z'));
    word || number
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_what_yaml_1_1_reads_differently() {
        for text in ["y", "No", "on", "OFF", "12:30", "1_000", "0b1", "0o17", "010", "2001-01-01", "1e3", "+1"] {
            assert!(ambiguous(text), "{text}");
        }
        for text in ["yes please", "Pending", "v1alpha1", "durableserver.io", "1 second", "", "-----BEGIN"] {
            assert!(!ambiguous(text), "{text}");
        }
    }
}
