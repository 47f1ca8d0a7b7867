//! docs/audit-record.schema.json, to which every record that a test reads is held.

use std::collections::HashMap;
use std::sync::OnceLock;

use jsonschema::Validator;
use serde_json::{Value, json};

/// One for each type of record: the schema is one of them all.
fn validators() -> &'static HashMap<String, Validator> {
    static VALIDATORS: OnceLock<HashMap<String, Validator>> = OnceLock::new();
    VALIDATORS.get_or_init(|| {
        let text = include_str!("../../docs/audit-record.schema.json");
        let schema: Value = serde_json::from_str(text).unwrap();
        let validator = |record: &Value| {
            let kind = record["properties"]["type"]["const"].as_str().unwrap().to_owned();
            let whole = json!({ "$defs": schema["$defs"], "allOf": [record] });
            (kind, jsonschema::validator_for(&whole).unwrap())
        };
        schema["oneOf"].as_array().unwrap().iter().map(validator).collect()
    })
}

/// Panics unless the record is one that the schema knows.
pub fn check_record(record: &Value) {
    let kind = record["type"].as_str().unwrap_or_else(|| panic!("no type: {record}"));
    let validator = validators().get(kind);
    let validator = validator.unwrap_or_else(|| panic!("the schema has no `{kind}`"));
    if let Err(error) = validator.validate(record) {
        panic!("not as the schema says: {error} ({}): {record}", error.instance_path());
    }
}
