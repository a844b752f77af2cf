//! The reference page of the configuration, made from the schema and so from the doc comments of the raw types.

use std::fmt::Write;

use schemars::schema_for;
use serde_json::{Map, Value};

use crate::schema::{one_line_descriptions, schema};
use crate::template::Variable;

/// What a configuration looks like; a test keeps it good.
pub(crate) const EXAMPLE: &str = "\
worker_processes: auto
user: www-data
access_log: {path: /var/log/sluice/access.log, format: json}

listeners:
  - address: 0.0.0.0:8080
  - address: '[::]:8080'

upstreams:
  app:
    servers:
      - {address: 10.0.0.1:3000, weight: 3}
      - 10.0.0.2:3000
    keep_alive: {idle_timeout: 30s}

routes:
  - name: api
    match: {hosts: ['*.example.com'], path: {prefix: /v1/}}
    upstream: app
    timeouts: {upstream_read: 5m}
  - match: {path: {exact: /old}}
    redirect: {status: 308, location: 'https://$host/new'}
  - match: {path: /}
    respond: {status: 404, body: \"no such place\\n\"}
";

const FORMS: &str = "\
## Forms

- A **duration** is a whole number with a unit, `500ms`, `30s`, `5m`, `1h`, `1d`, or several, largest first: `1h30m`. From 1 ms to
  365 days. A number without a unit is refused.
- A **size** is a number of bytes, or one with a unit: `16KiB`, `10MiB`, `1GiB`, `1TiB`, powers of 1024.
- An **address** is `127.0.0.1:8080`, `[::1]:8080` or `unix:/run/app.sock`. Host names are not looked up.
- A **network** is `10.0.0.0/8`, `2001:db8::/32`, a single address, or `unix:` for the peers of unix sockets.
- `on` and `off` are as good as `true` and `false`.
- Anchors, aliases and merge keys (`<<`) of YAML work. A key that is given twice is an error.
- A relative path starts from the directory of the main file. `-p` names another, though not for `include`.
";

/// The reference page, in Markdown.
pub fn reference() -> String {
    let schema = schema();
    let mut page = Page { definitions: &schema["definitions"], text: String::new() };
    page.text.push_str(
        "# Configuration\n\n<!-- Made by `sluice reference`: change the doc comments in conf/src/raw instead. -->\n\n",
    );
    page.paragraphs(&schema);
    let _ = write!(page.text, "```yaml\n{EXAMPLE}```\n\n{FORMS}\n## Top level\n\n");
    page.keys(&schema, "");
    page.variables();
    page.text
}

/// The page as far as it is written. Writing to a string cannot fail.
struct Page<'a> {
    definitions: &'a Value,
    text: String,
}

impl<'a> Page<'a> {
    fn paragraphs(&mut self, schema: &Value) {
        if let Some(description) = schema["description"].as_str() {
            let _ = write!(self.text, "{description}\n\n");
        }
    }

    /// The keys of a mapping, then a section for each that is a mapping itself.
    fn keys(&mut self, schema: &'a Value, path: &str) {
        let Some(properties) = schema["properties"].as_object() else { return };
        let is_required = |key: &str| schema["required"].as_array().is_some_and(|keys| keys.contains(&key.into()));
        for (key, property) in properties {
            self.key(key, property, is_required(key));
        }
        self.text.push('\n');
        for (key, property) in properties {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            let (path, mapping) = self.mapping(path, property);
            if let Some(mapping) = mapping {
                let _ = write!(self.text, "## `{path}`\n\n");
                self.paragraphs(mapping);
                self.keys(mapping, &path);
            }
        }
    }

    fn key(&mut self, key: &str, property: &'a Value, is_required: bool) {
        let _ = write!(self.text, "- **`{key}`**: {}", self.phrase(property));
        match property.get("default") {
            Some(default) => drop(write!(self.text, "; default {}", code(default))),
            None if is_required => self.text.push_str("; required"),
            None => {}
        }
        let description = property["description"].as_str().unwrap_or_default();
        let _ = writeln!(self.text, ".\n  {}", description.replace("\n\n", "\n\n  "));
    }

    /// The mapping with named keys that a value is or holds, and its path.
    fn mapping(&self, path: String, schema: &'a Value) -> (String, Option<&'a Value>) {
        let schema = self.resolve(schema);
        if schema.get("properties").is_some() {
            return (path, Some(schema));
        }
        if let Some(items) = schema.get("items") {
            return self.mapping(format!("{path}[]"), items);
        }
        if let Some(values @ Value::Object(_)) = schema.get("additionalProperties") {
            return self.mapping(format!("{path}.NAME"), values);
        }
        for form in schema["anyOf"].as_array().into_iter().flatten() {
            if let (path, Some(mapping)) = self.mapping(path.clone(), form) {
                return (path, Some(mapping));
            }
        }
        (path, None)
    }

    /// A reference's definition. Draft 7 wraps a reference that has siblings in `allOf`.
    fn resolve(&self, schema: &'a Value) -> &'a Value {
        let reference = schema.get("$ref").or_else(|| schema.get("allOf")?.get(0)?.get("$ref"));
        let name = reference.and_then(Value::as_str).and_then(|path| path.rsplit('/').next());
        name.and_then(|name| self.definitions.get(name)).map_or(schema, |definition| self.resolve(definition))
    }

    /// What a value is, in words.
    fn phrase(&self, schema: &'a Value) -> String {
        let schema = self.resolve(schema);
        let bounds = (schema["minimum"].as_u64(), schema["maximum"].as_u64());
        match (schema.as_object().map(Kind::of), bounds) {
            (Some(Kind::Words(words)), _) => words.iter().map(code).collect::<Vec<_>>().join(", "),
            (Some(Kind::Forms(forms)), _) => {
                let are_words = forms.iter().all(|form| form.get("const").is_some());
                let phrases: Vec<String> = forms.iter().map(|form| self.phrase(form)).collect();
                phrases.join(if are_words { ", " } else { ", or " })
            }
            (Some(Kind::Title(title)), (Some(min), Some(max))) => format!("{title} from {min} to {max}"),
            (Some(Kind::Title(title)), _) => without_example(title),
            (Some(Kind::Constant(value)), _) => code(value),
            (Some(Kind::List(items)), _) => format!("a list, each {}", self.phrase(items)),
            (Some(Kind::Names(values)), _) => format!("a mapping from names, each to {}", self.phrase(values)),
            (Some(Kind::Mapping), _) => "a mapping".to_string(),
            (Some(Kind::Text) | None, _) => "text".to_string(),
        }
    }

    fn variables(&mut self) {
        self.text.push_str("## Variables\n\nIn `access_log.format`, `respond` and `redirect`: `$name`, or `${name}` where a letter follows. ");
        self.text.push_str(
            "A dollar sign by itself is written `$$`. A variable without a value is empty, `-` in a log.\n\n",
        );
        let mut schema = schema_for!(Variable).to_value();
        one_line_descriptions(&mut schema);
        for variant in schema["oneOf"].as_array().into_iter().flatten() {
            let _ = writeln!(self.text, "- {}", variant["description"].as_str().unwrap_or_default());
        }
    }
}

/// What the page makes of a schema.
enum Kind<'a> {
    Title(&'a str),
    Words(&'a [Value]),
    Constant(&'a Value),
    Forms(&'a [Value]),
    List(&'a Value),
    Names(&'a Value),
    Mapping,
    Text,
}

impl<'a> Kind<'a> {
    fn of(schema: &'a Map<String, Value>) -> Kind<'a> {
        let forms = |key: &str| schema.get(key).and_then(Value::as_array);
        if let Some(words) = forms("enum").filter(|words| !words.contains(&Value::Bool(false))) {
            return Kind::Words(words);
        }
        if let Some(title) = schema.get("title").and_then(Value::as_str) {
            return Kind::Title(title);
        }
        match (
            schema.get("const"),
            forms("anyOf"),
            forms("oneOf"),
            schema.get("items"),
            schema.get("additionalProperties"),
        ) {
            (Some(value), ..) => Kind::Constant(value),
            (_, Some(forms), ..) => Kind::Forms(forms),
            _ if schema.contains_key("properties") => Kind::Mapping,
            (_, _, Some(forms), ..) => Kind::Forms(forms),
            (.., Some(items), _) => Kind::List(items),
            (.., Some(values @ Value::Object(_))) => Kind::Names(values),
            _ => Kind::Text,
        }
    }
}

/// Examples serve in a message; on the page they are in the section on forms.
fn without_example(title: &str) -> String {
    let Some((form, rest)) = title.split_once(", such as ") else { return title.to_string() };
    format!("{form}{}", rest.find(',').map_or("", |comma| &rest[comma..]))
}

fn code(value: &Value) -> String {
    match value {
        Value::String(text) => format!("`{text}`"),
        other => format!("`{other}`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_is_good() {
        assert_eq!(crate::parse(EXAMPLE, "example").unwrap().warnings, []);
    }

    #[test]
    fn the_page_is_fresh() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md");
        let page = std::fs::read_to_string(path).unwrap_or_default();
        assert!(page == reference(), "stale: `make docs`, or `sluice reference > docs/configuration.md`");
    }
}
