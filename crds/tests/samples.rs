//! The samples that the real API server is tried with: the good ones mean what they say, and what is expected of the
//! bad ones is still in the schemas.

use std::{collections::BTreeMap, fs, path::Path};

use crds::{DurableServer, DurableServerPool, settings};
use serde_json::Value;

fn samples(kind: &str) -> anyhow::Result<BTreeMap<String, String>> {
    let directory = Path::new("tests/samples").join(kind);
    let mut samples = BTreeMap::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        samples.insert(path.display().to_string(), fs::read_to_string(&path)?);
    }
    Ok(samples)
}

#[test]
fn good_samples_resolve() {
    let mut pools = Vec::new();
    let mut servers = Vec::new();
    for (name, text) in samples("good").unwrap() {
        let value: Value = serde_yaml::from_str(&text).unwrap();
        match value["kind"].as_str() {
            Some("DurableServerPool") => {
                let pool: DurableServerPool = serde_json::from_value(value).unwrap();
                settings::pool(&pool.spec).unwrap_or_else(|invalid| panic!("{name}: {invalid}"));
                pools.push(pool);
            }
            Some("DurableServer") => servers.push((name, serde_json::from_value::<DurableServer>(value).unwrap())),
            Some("Handoff") => drop(serde_json::from_value::<crds::Handoff>(value).unwrap()),
            other => panic!("{name}: {other:?}"),
        }
    }
    for (name, server) in servers {
        let pool = pools.iter().find(|pool| pool.metadata.name.as_ref() == Some(&server.spec.pool)).unwrap();
        settings::server(&pool.spec, &server.spec).unwrap_or_else(|invalid| panic!("{name}: {invalid}"));
    }
}

#[test]
fn what_bad_samples_expect_is_in_the_schemas() {
    let schemas = serde_json::to_string(&crds::all().unwrap()).unwrap();
    let samples = samples("bad").unwrap();
    assert!(samples.len() >= 20);
    for (name, text) in samples {
        let expected = text.lines().next().and_then(|line| line.strip_prefix("# expect: ")).unwrap_or_default();
        assert!(!expected.is_empty(), "{name}: the first line must be `# expect: ` and the message");
        // What the API server says by itself about types, enums and ranges is not written in a schema.
        let own_words = ["should be", "Unsupported value", "Too long", "must be of type", "Required value"];
        assert!(
            schemas.contains(expected) || own_words.iter().any(|words| expected.contains(words)),
            "{name}: no schema says `{expected}` any more"
        );
    }
}
