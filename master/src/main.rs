//! `sluice`: the command line, and the master, which supervises the workers and never touches traffic.
//!
//! The way in is `cli`; what runs from then on is the loop in `cycle`. `LIFECYCLE.md` has the states, the signals and
//! the exit codes.

#![deny(unsafe_code)]

mod activation;
mod ballot;
mod black_box;
mod children;
mod cli;
mod cohort;
mod committed;
mod control;
mod cycle;
#[allow(unsafe_code, reason = "fork(2) twice")]
mod daemon;
mod ending;
mod handover;
mod identity;
mod inheritance;
mod listeners;
mod lock;
mod logs;
mod machine;
mod orders;
mod orphans;
mod passage;
mod quarantine;
mod recipe;
mod reload;
mod requests;
mod rights;
mod runtime_dir;
mod service;
mod signals;
#[cfg(test)]
mod simulation;
#[allow(unsafe_code, reason = "fork(2) and the descriptors around it")]
mod spawn;
mod stack;
mod succession;
mod successor;
mod supervisor;
mod swap;
mod trial;
mod upgrade;
mod watchdog;

fn main() -> std::process::ExitCode {
    cli::main()
}
