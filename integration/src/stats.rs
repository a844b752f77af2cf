//! What `sluice stats --json` says.

use serde_json::Value;

/// One snapshot.
#[derive(Debug)]
pub struct Stats(pub Value);

impl Stats {
    #[track_caller]
    pub(crate) fn parse(text: &str) -> Stats {
        Stats(serde_json::from_str(text).unwrap_or_else(|e| panic!("{e} in {text}")))
    }

    /// The sum of a figure that each process keeps, such as `descriptors`; counters of the dead count.
    #[track_caller]
    pub fn total(&self, name: &str) -> u64 {
        self.0["totals"][name].as_u64().unwrap_or_else(|| panic!("no total of {name} in {}", self.0))
    }

    /// What the proxy is doing: `running`, `stopped` and the like.
    pub fn condition(&self) -> &str {
        self.0["condition"].as_str().unwrap_or("")
    }

    /// What is known of a listener, a route or an upstream: `kind` is the plural.
    #[track_caller]
    pub fn named(&self, kind: &str, name: &str) -> &Value {
        let objects = self.0[kind].as_array().unwrap_or_else(|| panic!("no {kind} in {}", self.0));
        let found = objects.iter().find(|object| object["name"] == name);
        found.unwrap_or_else(|| panic!("no {name} among the {kind} of {}", self.0))
    }
}
