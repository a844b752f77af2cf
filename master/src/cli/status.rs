//! `sluice status`: what is served since when, by whom, and whether the file still says so.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io;

use clap::Args;
use conf::diff;
use serde_json::{Value, json};
use shared::ident::Generation;
use shared::stats::{Process, Snapshot};
use shared::zone::ZoneError;

use super::stats::quantity::age;
use super::stats::table::head;
use super::{complain, exit, print};
use crate::committed::{Committed, hash};
use crate::recipe::Recipe;
use crate::runtime_dir::RuntimeDir;

/// What `sluice status` is asked for.
#[derive(Debug, Clone, Args)]
pub(crate) struct StatusArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Tells how the proxy of `dir` is. `recipe` is where its next configuration would come from.
pub(crate) fn run(args: &StatusArgs, dir: &RuntimeDir, recipe: &Recipe) -> u8 {
    let now = match Snapshot::read(&dir.zone()) {
        Ok(now) => now,
        Err(error @ ZoneError::Absent(_)) => {
            complain(&format!("no proxy runs in {}: {error}", dir.path().display()));
            return exit::ABSENT;
        }
        Err(error) => return complain(&error.to_string()),
    };
    let served = Committed::read(&dir.committed(), recipe);
    let drift = served.as_ref().map_err(ToString::to_string).and_then(|(_, served)| {
        let file = recipe.load().map_err(|problems| format!("{} problems in it", problems.0.len()))?;
        Ok(diff::changes(served, &file.config).len())
    });
    let status = Status { cohorts: cohorts(&now), now, hash: served.map(|(text, _)| hash(&text)), drift, recipe };
    print(if args.json { status.json().to_string() } else { status.table() }.trim_end())
}

struct Status<'r> {
    now: Snapshot,
    hash: io::Result<String>,
    /// In how many settings the file differs from what is served, or why that can't be told.
    drift: Result<usize, String>,
    cohorts: BTreeMap<Generation, Vec<Process>>,
    recipe: &'r Recipe,
}

/// The living workers by the configuration that they serve.
fn cohorts(now: &Snapshot) -> BTreeMap<Generation, Vec<Process>> {
    let mut cohorts: BTreeMap<_, Vec<Process>> = BTreeMap::new();
    for worker in now.workers().filter(|worker| worker.is_alive) {
        cohorts.entry(worker.generation).or_default().push(worker.clone());
    }
    cohorts
}

impl Status<'_> {
    fn table(&self) -> String {
        let mut lines = vec![head(&self.now).trim_end().to_owned()];
        let configuration = match &self.hash {
            Ok(hash) => format!(
                "configuration {hash}{}",
                self.since().map_or(String::new(), |age| format!(", served for {age}"))
            ),
            Err(error) => format!("configuration unknown: {error}"),
        };
        lines.push(configuration);
        let file = self.recipe.name();
        lines.push(match &self.drift {
            Ok(0) => format!("{file} says the same"),
            Ok(count) => format!("{file} has drifted: {count} settings differ (`sluice plan` shows them)"),
            Err(reason) => format!("{file} cannot be compared: {reason}"),
        });
        for (generation, workers) in &self.cohorts {
            let workers: Vec<_> =
                workers.iter().map(|worker| format!("{} {}", worker.id.pid, self.now.status(worker))).collect();
            lines.push(format!("generation {generation}: {}", workers.join(", ")));
        }
        for banned in &self.now.quarantined {
            lines.push(super::quarantine::line(banned, self.now.taken_ns));
        }
        lines.join("\n")
    }

    /// How long the configuration has been served, if the last attempt to change it was the one that brought it.
    fn since(&self) -> Option<String> {
        let verdict = self.now.verdict.as_ref().filter(|verdict| verdict.is_accepted)?;
        Some(age(self.now.taken_ns.saturating_sub(verdict.at_ns)))
    }

    fn json(&self) -> Value {
        let cohorts: Vec<_> = self
            .cohorts
            .iter()
            .map(|(generation, workers)| {
                let workers: Vec<_> = workers
                    .iter()
                    .map(|worker| json!({"pid": worker.id.pid, "state": self.now.status(worker)}))
                    .collect();
                json!({"generation": generation.0, "workers": workers})
            })
            .collect();
        let verdict = self.now.verdict.as_ref().map(|verdict| {
            let age = self.now.taken_ns.saturating_sub(verdict.at_ns);
            json!({
                "generation": verdict.generation.0,
                "accepted": verdict.is_accepted,
                "age_seconds": age / shared::clock::SECOND_NS,
                "text": verdict.text,
            })
        });
        let quarantine = self.now.quarantined.iter().map(|banned| {
            json!({
                "fingerprint": format!("{:016x}", banned.fingerprint),
                "route": banned.route,
                "method": banned.method,
                "path": banned.path,
                "cut": banned.is_cut,
                "seconds_left": banned.until_ns.saturating_sub(self.now.taken_ns) / shared::clock::SECOND_NS,
            })
        });
        let quarantine: Vec<Value> = quarantine.collect();
        json!({
            "condition": self.now.condition().name(),
            "generation": self.now.generation.0,
            "configuration": self.hash.as_ref().ok(),
            "file": self.recipe.name(),
            "drift": self.drift.as_ref().ok(),
            "drift_unknown": self.drift.as_ref().err(),
            "verdict": verdict,
            "cohorts": cohorts,
            "quarantine": quarantine,
        })
    }
}
