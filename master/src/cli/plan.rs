//! `sluice plan`: what a reload would do, before it does.

#![forbid(unsafe_code)]

use std::fmt::Write;
use std::io;
use std::path::{Path, PathBuf};

use clap::Args;
use conf::diff::{self, Effect};
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
    let plan = Plan {
        changes: diff::changes(&served, &loaded.config),
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
    now: Snapshot,
    hash: String,
}

impl Plan {
    /// What all of it takes; `None` when there is nothing to change.
    fn effect(&self) -> Option<Effect> {
        self.changes.iter().map(|change| change.effect).max()
    }

    /// How many connections there are that a change is about; `None` where that is not known before.
    fn connections(&self, change: &diff::Change) -> Option<u64> {
        if change.effect != Effect::Live {
            return Some(self.now.totals.connections_active + self.now.totals.connections_idle);
        }
        let (section, rest) = change.path.split_once(['.', '['])?;
        match section {
            "listeners" => {
                let listener = self.now.listeners.iter().find(|listener| is_named(rest, &listener.name, ']'))?;
                Some(listener.totals.active)
            }
            "upstreams" => {
                let upstream = self.now.upstreams.iter().find(|upstream| is_named(rest, &upstream.object.name, '.'))?;
                let below = rest.strip_prefix(&upstream.object.name)?;
                let server = below.strip_prefix(".servers[");
                let servers = upstream.servers.iter().map(|server| &server.object);
                let meant = servers.filter(|object| server.is_none_or(|server| is_named(server, &object.name, ']')));
                Some(meant.map(|object| object.totals.in_flight + object.totals.idle).sum())
            }
            _ => None,
        }
    }

    fn table(&self) -> String {
        let Some(effect) = self.effect() else { return "nothing would change".into() };
        let mut text = String::new();
        for change in &self.changes {
            let sign = match (change.from.as_str(), change.to.as_str()) {
                ("(none)", _) => '+',
                (_, "(none)") => '-',
                _ => '~',
            };
            let connections = self.connections(change).map_or(String::new(), |count| format!(", {count} connections"));
            // Writing to memory does not fail.
            let _ = writeln!(text, "{sign} {}  ({}{connections})", change.path, word(change.effect));
            let _ = match sign {
                '+' => writeln!(text, "    {}", change.to),
                '-' => writeln!(text, "    {}", change.from),
                _ => writeln!(text, "    {} -> {}", change.from, change.to),
            };
        }
        let open = self.now.totals.connections_active + self.now.totals.connections_idle;
        let count = self.changes.len();
        let consequence = match effect {
            Effect::Live => "the running workers take them over, and no connection is closed".to_owned(),
            Effect::NewWorkers => {
                format!("new workers replace the running ones, whose {open} connections end with their next answer")
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
                json!({
                    "path": change.path,
                    "effect": word(change.effect),
                    "from": change.from,
                    "to": change.to,
                    "connections": self.connections(change),
                })
            })
            .collect();
        json!({"configuration": self.hash, "effect": self.effect().map(word), "changes": changes}).to_string()
    }
}

/// Whether a path goes on with this name and ends there, or goes on behind it with `end`.
fn is_named(path: &str, name: &str, end: char) -> bool {
    path.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with(end))
}

fn word(effect: Effect) -> &'static str {
    match effect {
        Effect::Live => "live",
        Effect::NewWorkers => "new workers",
        Effect::Restart => "restart",
    }
}
