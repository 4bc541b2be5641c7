//! What is generated is what is committed, and it is what the API server takes.

use std::{fs, path::Path};

use serde_json::Value;

// Cargo runs tests in the directory of their package.
fn chart_directory() -> &'static Path {
    Path::new("../charts/durable-server/files/crds")
}

#[test]
fn the_charts_definitions_are_not_stale() {
    let crds = crds::all().unwrap();
    for crd in &crds {
        let committed = fs::read_to_string(chart_directory().join(crds::file_name(crd))).unwrap_or_default();
        assert!(
            committed == crds::to_yaml(crd).unwrap(),
            "{} is stale: run `make generate` and commit the result",
            crds::file_name(crd)
        );
    }
    assert_eq!(fs::read_dir(chart_directory()).unwrap().count(), crds.len(), "a file too many");
}

#[test]
fn the_yaml_says_what_the_types_say() {
    for crd in crds::all().unwrap() {
        let read: Value = serde_yaml::from_str(&crds::to_yaml(&crd).unwrap()).unwrap();
        assert_eq!(read, serde_json::to_value(&crd).unwrap());
    }
}

/// Walks a schema with the names of the fields on the way.
fn walk(path: &str, node: &Value, visit: &mut impl FnMut(&str, &Value)) {
    visit(path, node);
    for (name, child) in node["properties"].as_object().into_iter().flatten() {
        walk(&format!("{path}.{name}"), child, visit);
    }
    if node["items"].is_object() {
        walk(&format!("{path}[]"), &node["items"], visit);
    }
}

#[test]
fn schemas_keep_to_the_house_rules() {
    for crd in crds::all().unwrap() {
        let name = crd.spec.names.kind.clone();
        let crd = serde_json::to_value(crd).unwrap();
        let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        assert!(crd["spec"]["versions"][0]["subresources"]["status"].is_object(), "{name} has no status subresource");
        walk(&name, schema, &mut |path, node| {
            assert!(node["default"].is_null(), "{path}: defaults live in settings.rs");
            let format = node["format"].as_str().unwrap_or_default();
            assert!(
                ["", "int32", "int64", "date-time"].contains(&format),
                "{path}: the API server warns about {format}"
            );
            for rule in node["x-kubernetes-validations"].as_array().into_iter().flatten() {
                assert!(rule["message"].is_string(), "{path}: {} has no sentence", rule["rule"]);
                let bounded = node["type"] != "string" || node["maxLength"].is_u64();
                assert!(bounded, "{path}: a rule on text of any length is over the API server's budget");
            }
            if path.ends_with(".conditions") {
                assert_eq!(node["x-kubernetes-list-map-keys"], serde_json::json!(["type"]), "{path}");
            }
        });
    }
}

#[test]
fn the_reference_names_every_field_of_a_spec() {
    let reference = fs::read_to_string("../docs/resources.md").unwrap();
    for crd in crds::all().unwrap() {
        let crd = serde_json::to_value(crd).unwrap();
        let spec = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
        walk("", spec, &mut |path, node| {
            let field = path.trim_start_matches('.');
            let name = field.rsplit('.').next().unwrap_or_default();
            let leaf = node["properties"].is_null() && node["items"].is_null();
            let named = reference.contains(&format!("`{field}`")) || reference.contains(&format!("`{name}`"));
            assert!(!leaf || named, "docs/resources.md does not name {field}");
        });
    }
}
