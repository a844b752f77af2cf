//! Where a worker's loop was: the addresses that it sent, named in the error log.
//!
//! A worker is a fork of this process, so that its code lies where ours does. To read the names takes memory and time:
//! that is for a child. The addresses are what a worker says, and are looked up and nothing else.

#![forbid(unsafe_code)]

use std::os::fd::AsRawFd;
use std::path::Path;

use nix::unistd::alarm;
use slog::{Logger, error};

use crate::children::{Child, Role};
use crate::cycle::Master;
use crate::spawn::fork;

/// How many stacks are named at a time; of others nothing is told.
const SCRIBES_MAX: usize = 4;
/// How long naming the places of one stack may take, in seconds.
const NAMING_SECONDS_MAX: u32 = 20;

impl Master {
    /// A worker says where its loop is. One that was asked because it stands still has nothing left to say.
    pub(crate) fn told_where(&mut self, pid: i32, addresses: &[u64]) {
        if let Err(reason) = self.name(pid, addresses) {
            error!(self.log, "{}", reason; "worker" => pid);
        }
        if self.watchdog.answered(pid) {
            self.give_up(pid);
        }
    }

    /// Has a child write the names of these places to the error log.
    fn name(&mut self, pid: i32, addresses: &[u64]) -> Result<(), String> {
        let Some(serving) = &self.serving else { return Ok(()) };
        if self.children.iter().filter(|child| child.role == Role::Scribe).count() >= SCRIBES_MAX {
            return Err("too many workers say where they are: this one is not told".into());
        }
        let cannot = |error: &dyn std::fmt::Display| format!("cannot tell where a worker is: {error}");
        let (_, error_log) = serving.logs.share().map_err(|error| cannot(&error))?;
        let process = fork(c"sluice-scribe", &[error_log.as_raw_fd()], || {
            alarm::set(NAMING_SECONDS_MAX);
            let (_, log) = serving.logs.child_logger(error_log, "scribe");
            write(&log, pid, addresses);
            worker::exit::OK
        });
        self.children.add(Child::new(Role::Scribe, process.map_err(|error| cannot(&error))?, None));
        Ok(())
    }
}

/// A place in the program. What was inlined there makes several of one address.
struct Place {
    address: u64,
    /// `None` when the program does not say, as one without symbols.
    function: Option<String>,
    /// The source, and its line.
    line: Option<String>,
}

fn write(log: &Logger, pid: i32, addresses: &[u64]) {
    error!(log, "a worker is in these places, the innermost first"; "worker" => pid);
    // The outermost one ends the walk and is nowhere.
    let addresses = addresses.iter().filter(|address| **address != 0);
    let all = addresses.flat_map(|address| places(*address)).collect();
    for (number, Place { address, function, line }) in (0..).zip(of_the_loop(all)) {
        error!(log, "{:>3} {}", number, function.as_deref().unwrap_or("(no name)");
            "worker" => pid, "at" => line.as_deref().unwrap_or("unknown"), "address" => format!("{address:#x}"));
    }
}

/// Without those of the signal's handler and of what called that, and without those of the master, of which the worker
/// is a fork. The source tells them apart, as what was inlined has no full name; without sources, the name does.
fn of_the_loop(mut places: Vec<Place>) -> Vec<Place> {
    let is_of = |place: &Place, source: &str, name: &str| {
        let is_in = |text: &Option<String>, part| text.as_ref().is_some_and(|text| text.contains(part));
        is_in(&place.line, source) || is_in(&place.function, name)
    };
    if let Some(master) = places.iter().position(|place| is_of(place, "master/src/", "sluice::")) {
        places.truncate(master);
    }
    if let Some(last) = places.iter().rposition(|place| is_of(place, "worker/src/stack.rs", "worker::stack::")) {
        places.drain(..=last);
        let is_trampoline = |place: &Place| place.function.as_ref().is_none_or(|name| name.contains("restore_rt"));
        if places.first().is_some_and(is_trampoline) {
            places.remove(0);
        }
    }
    places
}

fn places(address: u64) -> Vec<Place> {
    let mut places = Vec::new();
    let pointer = std::ptr::without_provenance_mut(usize::try_from(address).unwrap_or(usize::MAX));
    backtrace::resolve(pointer, |symbol| {
        let line = symbol.filename().map(|file| line(file, symbol.lineno()));
        // Without the hash that tells versions of a crate apart.
        let function = symbol.name().map(|name| format!("{name:#}"));
        places.push(Place { address, function, line });
    });
    if places.is_empty() {
        places.push(Place { address, function: None, line: None });
    }
    places
}

/// The end of a source's path, which is enough to find it.
fn line(file: &Path, number: Option<u32>) -> String {
    const PARTS_MAX: usize = 4;
    let parts: Vec<_> = file.iter().map(|part| part.to_string_lossy()).collect();
    let end = parts[parts.len().saturating_sub(PARTS_MAX)..].join("/");
    number.map_or(end.clone(), |number| format!("{end}:{number}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_of_this_program_has_a_name_and_any_other_has_none() {
        let here = places as fn(u64) -> Vec<Place>;
        let found = places(here as usize as u64 + 1);
        let place = found.last().unwrap();
        assert!(place.function.as_ref().unwrap().contains("stack::places"), "{:?}", place.function);
        assert!(
            place.line.as_ref().unwrap().starts_with("master/src/stack.rs:")
                || place.line.as_ref().unwrap().contains("/src/stack.rs:"),
            "{:?}",
            place.line
        );
        for address in [0, 1, u64::MAX] {
            let found = places(address);
            assert_eq!((found.len(), found[0].function.as_ref()), (1, None), "{address}");
        }
    }

    #[test]
    fn neither_the_handler_nor_the_master_is_shown() {
        type Names<'a> = &'a [Option<&'a str>];
        let table: &[(Names<'_>, Names<'_>)] = &[
            (&[Some("trace"), Some("worker::stack::tell"), None, Some("a"), None], &[Some("a"), None]),
            (&[Some("worker::stack::tell"), Some("__restore_rt"), Some("a")], &[Some("a")]),
            (&[Some("worker::stack::tell"), Some("a")], &[Some("a")]),
            (&[None, Some("a")], &[None, Some("a")]),
            (&[Some("worker::stack::tell"), None, Some("a"), Some("sluice::spawn::fork"), Some("b")], &[Some("a")]),
            (
                &[Some("tell@worker/src/stack.rs:4"), Some("a"), Some("b@x/master/src/spawn.rs:1"), Some("c")],
                &[Some("a")],
            ),
            (&[], &[]),
        ];
        for (all, shown) in table {
            let places = all.iter().map(|name| {
                let (function, line) = name.map_or((None, None), |name| match name.split_once('@') {
                    Some((function, line)) => (Some(function.to_owned()), Some(line.to_owned())),
                    None => (Some(name.to_owned()), None),
                });
                Place { address: 0, function, line }
            });
            let left = of_the_loop(places.collect());
            assert_eq!(left.iter().map(|place| place.function.as_deref()).collect::<Vec<_>>(), *shown);
        }
    }
}
