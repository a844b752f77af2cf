//! `sluice plan`: what a reload would do, before it does.

#![forbid(unsafe_code)]

use std::fmt::Write;
use std::io;
use std::path::{Path, PathBuf};

use clap::Args;
use conf::diff::{self, Effect, Kind, Place};
use conf::shadow::{Shadow, shadows};
use serde_json::json;
use shared::stats::Snapshot;

use super::{complain, exit, print, recipe};
use crate::committed::{Committed, hash};
use crate::machine;
use crate::recipe::Recipe;
use crate::runtime_dir::RuntimeDir;

/// What `sluice plan` is asked for.
#[derive(Debug, Clone, Args)]
pub(crate) struct PlanArgs {
    /// The configuration that would be served, if it is not the one that -c names
    file: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Compares what is served with what would be. The proxy is found by `running`.
pub(crate) fn run(args: &PlanArgs, running: &Recipe, prefix: Option<&Path>, quiet: bool) -> u8 {
    let planned = match &args.file {
        None => running.clone(),
        Some(file) => match recipe(Some(file), prefix) {
            Ok(recipe) => recipe,
            Err(error) => return complain(&format!("cannot tell where {} is: {error}", file.display())),
        },
    };
    let loaded = match planned.load() {
        Ok(loaded) => loaded,
        Err(problems) => return complain(&format!("a reload would be refused\n{problems}")),
    };
    let (lacks, _) = machine::of_others(machine::problems(&loaded));
    if !lacks.0.is_empty() {
        return complain(&format!("a reload would be refused\n{lacks}"));
    }
    // Without -c it is the planned file that says where its proxy is.
    let dir = match (running, &args.file) {
        (Recipe::BuiltIn, Some(_)) => RuntimeDir::of(&loaded.config),
        _ => match running.whereabouts() {
            Ok((dir, _)) => dir,
            Err(problems) => return complain(&format!("it is not said which proxy is meant:\n{problems}")),
        },
    };
    let served = match Committed::read(&dir.committed(), &planned) {
        Ok((_, served)) => served,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            complain(&format!("no proxy runs in {}: there is nothing to compare with", dir.path().display()));
            return exit::ABSENT;
        }
        Err(error) => return complain(&format!("cannot read what is served: {error}")),
    };
    let known = shadows(&served.routes);
    let plan = Plan {
        changes: diff::changes(&served, &loaded.config),
        shadows: shadows(&loaded.config.routes).into_iter().filter(|shadow| !known.contains(shadow)).collect(),
        now: Snapshot::read(&dir.zone()).unwrap_or_default(),
        hash: hash(&loaded.text),
    };
    if !quiet || args.json {
        print(if args.json { plan.json() } else { plan.table() }.trim_end());
    }
    match plan.effect() {
        None => exit::DONE,
        Some(Effect::Restart) => exit::FAILED,
        Some(Effect::Live | Effect::NewWorkers) => exit::CHANGES,
    }
}

struct Plan {
    changes: Vec<diff::Change>,
    /// Routes that would lose requests to others before them, and do not yet.
    shadows: Vec<Shadow>,
    now: Snapshot,
    hash: String,
}

impl Plan {
    /// What all of it takes; `None` when there is nothing to change.
    fn effect(&self) -> Option<Effect> {
        self.changes.iter().map(|change| change.effect).max()
    }

    /// How many connections are open now that a change is about: of a listener its clients', of an upstream or a server
    /// those to it, of what holds for every client all of them. `None` where that is not known before, as it is of a
    /// route, and where a change is about none.
    fn connections(&self, change: &diff::Change) -> Option<u64> {
        let clients = self.now.totals.connections_active + self.now.totals.connections_idle;
        if change.effect != Effect::Live {
            return Some(clients);
        }
        match change.steps()[..] {
            ["listeners", address, ..] => {
                let listener = self.now.listeners.iter().find(|listener| listener.name == address)?;
                Some(listener.totals.active)
            }
            ["upstreams", name, ref below @ ..] => {
                let upstream = self.now.upstreams.iter().find(|upstream| upstream.object.name == name)?;
                let server = if let ["servers", server, ..] = below { Some(*server) } else { None };
                let servers = upstream.servers.iter().map(|server| &server.object);
                let meant: Vec<_> = servers.filter(|object| server.is_none_or(|name| name == object.name)).collect();
                let count = meant.iter().map(|object| object.totals.in_flight + object.totals.idle).sum();
                (!meant.is_empty()).then_some(count)
            }
            ["timeouts" | "limits" | "trusted_proxies" | "access_log", ..] => Some(clients),
            _ => None,
        }
    }

    fn table(&self) -> String {
        let Some(effect) = self.effect() else { return "nothing would change".into() };
        let mut text = String::new();
        for change in &self.changes {
            let (sign, place) = match &change.kind {
                Kind::Added(Some(Place::First)) => ('+', ", before all others".to_owned()),
                Kind::Added(Some(Place::After(other))) => ('+', format!(", after {other}")),
                Kind::Added(None) => ('+', String::new()),
                Kind::Removed => ('-', String::new()),
                Kind::Changed | Kind::Reordered => ('~', String::new()),
            };
            let connections = self.connections(change).map_or(String::new(), |count| format!(", {count} connections"));
            // Writing to memory does not fail.
            let _ = writeln!(text, "{sign} {}  ({}{place}{connections})", change.path, word(change.effect));
            let _ = match sign {
                '+' => writeln!(text, "    {}", change.to),
                '-' => writeln!(text, "    {}", change.from),
                _ => writeln!(text, "    {} -> {}", change.from, change.to),
            };
        }
        for shadow in &self.shadows {
            let _ = writeln!(text, "! routes[{}]  (shadowed)\n    {shadow}", shadow.route);
        }
        let open = self.now.totals.connections_active + self.now.totals.connections_idle;
        let count = self.changes.len();
        let consequence = match effect {
            Effect::Live => "the running workers take them over, and no connection is closed".to_owned(),
            Effect::NewWorkers => {
                format!(
                    "new workers replace the running ones; of {open} connections those with an exchange under way end with \
                     its answer, the others move"
                )
            }
            Effect::Restart => "a reload would be refused, as some of them need a restart".to_owned(),
        };
        let _ = writeln!(text, "{count} changes: {consequence}");
        text
    }

    fn json(&self) -> String {
        let changes: Vec<_> = self
            .changes
            .iter()
            .map(|change| {
                let (from, to) = change.values();
                let (kind, after) = match &change.kind {
                    Kind::Added(Some(Place::After(other))) => ("added", Some(other)),
                    Kind::Added(_) => ("added", None),
                    Kind::Removed => ("removed", None),
                    Kind::Changed => ("changed", None),
                    Kind::Reordered => ("reordered", None),
                };
                json!({
                    "path": change.path,
                    "kind": kind,
                    "after": after,
                    "effect": word(change.effect),
                    "from": from,
                    "to": to,
                    "connections": self.connections(change),
                })
            })
            .collect();
        let shadows = self.shadows.iter().map(|shadow| {
            let hosts: Vec<_> = shadow.taken.iter().flat_map(|(host, _)| host).map(ToString::to_string).collect();
            json!({"route": shadow.route, "whole": shadow.is_whole, "hosts": hosts, "by": shadow.by()})
        });
        json!({
            "configuration": self.hash,
            "effect": self.effect().map(word),
            "changes": changes,
            "shadowed": shadows.collect::<Vec<_>>(),
        })
        .to_string()
    }
}

fn word(effect: Effect) -> &'static str {
    match effect {
        Effect::Live => "live",
        Effect::NewWorkers => "new workers",
        Effect::Restart => "restart",
    }
}
