//! `sluice check`: everything that is wrong with a configuration, at once.

#![forbid(unsafe_code)]

use super::{exit, print};
use crate::machine;
use crate::recipe::Recipe;
use crate::runtime_dir::RuntimeDir;

/// Tests what `recipe` says, and prints it with all defaults if `prints`. Messages go to standard error.
pub(crate) fn run(recipe: &Recipe, prints: bool, quiet: bool) -> u8 {
    let name = recipe.name();
    let failed = |text: &str| {
        eprintln!("{text}\nsluice: configuration file {name} test failed");
        exit::FAILED
    };
    let loaded = match recipe.load() {
        Ok(loaded) => loaded,
        Err(problems) => return failed(problems.to_string().trim_end()),
    };
    for warning in &loaded.warnings {
        eprintln!("{warning}");
    }
    if let Some(warning) = RuntimeDir::of(&loaded.config).warning() {
        eprintln!("sluice: warning: {warning}");
    }
    let (lacks, of_others) = machine::of_others(machine::problems(&loaded));
    for warning in of_others {
        eprintln!("{warning}");
    }
    if !lacks.0.is_empty() {
        return failed(&lacks.to_string());
    }
    if let Err(reason) = worker::check(&loaded.config) {
        return failed(&format!("sluice: {reason}"));
    }
    if prints {
        print(loaded.text.trim_end());
    }
    if !quiet {
        eprintln!("sluice: configuration file {name} test is successful");
    }
    exit::DONE
}
