//! The JSON Schema of a configuration, for editors.

use schemars::generate::SchemaSettings;
use serde_json::Value;

use crate::raw::File;

/// The JSON Schema (draft 7, which every editor knows) of a configuration file. It describes form: names that must
/// exist elsewhere in the file, and the like, are for `sluice check`.
pub fn schema() -> Value {
    let mut schema = SchemaSettings::draft07().into_generator().into_root_schema_for::<File>().to_value();
    one_line_descriptions(&mut schema);
    schema
}

/// A doc comment is broken into lines to fit the source: only its paragraphs mean something.
pub(crate) fn one_line_descriptions(value: &mut Value) {
    match value {
        Value::Object(entries) => {
            for (key, value) in entries {
                match value {
                    Value::String(text) if key == "description" => *text = joined(text),
                    value => one_line_descriptions(value),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(one_line_descriptions),
        _ => {}
    }
}

fn joined(text: &str) -> String {
    let paragraphs = text.split("\n\n").map(|paragraph| paragraph.split_whitespace().collect::<Vec<_>>().join(" "));
    paragraphs.collect::<Vec<_>>().join("\n\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_file_is_fresh() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/schema.json");
        let file = std::fs::read_to_string(path).unwrap_or_default();
        let is_fresh = serde_json::from_str::<Value>(&file).is_ok_and(|value| value == schema());
        assert!(is_fresh, "stale: `make docs`, or `sluice schema > docs/schema.json`");
    }

    /// The keys of a mapping that have a default, with it.
    fn defaults(mapping: &Value) -> Value {
        let properties = mapping["properties"].as_object().unwrap().iter();
        properties.filter_map(|(key, property)| Some((key.clone(), property.get("default")?.clone()))).collect()
    }

    /// A good configuration that says `said`, and no more than it must otherwise.
    fn config(said: impl Fn(&str) -> Value) -> crate::model::Config {
        let with = |name: &str, mut rest: Value| {
            let entries = rest.as_object_mut().unwrap();
            entries.extend(said(name).as_object().unwrap().clone());
            rest
        };
        let whole = with(
            "",
            json!({
                "listeners": [with("Listener", json!({"address": "127.0.0.1:80"}))],
                "upstreams": {"app": {
                    "servers": [with("Server", json!({"address": "10.0.0.1:80"}))],
                    "keep_alive": said("KeepAlive"),
                }},
                "routes": [
                    {"match": {"path": "/"}, "upstream": "app"},
                    {"match": {"path": "/a"}, "respond": said("Respond")},
                    {"match": {"path": "/b"}, "redirect": with("Redirect", json!({"location": "/"}))},
                ],
                "timeouts": said("Timeouts"),
                "limits": said("Limits"),
            }),
        );
        crate::parse(&whole.to_string(), "test").unwrap().config
    }

    #[test]
    fn a_default_that_is_spelt_out_changes_nothing() {
        let schema = schema();
        let all = |name: &str| defaults(if name.is_empty() { &schema } else { &schema["definitions"][name] });
        assert!(all("").as_object().unwrap().len() > 5);
        assert_eq!(config(all), config(|_| json!({})));
    }
}
