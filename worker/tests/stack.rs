//! A loop that stands still can be told where.

// What judges the loop is not part of it.
#![allow(clippy::disallowed_methods)]

use std::os::unix::thread::JoinHandleExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::pthread::pthread_kill;
use shared::channel::{Channel, Report};

static IS_OVER: AtomicBool = AtomicBool::new(false);
static ROUNDS: AtomicU64 = AtomicU64::new(0);

/// Never waits, and allocates without end.
#[inline(never)]
fn the_place_where_it_spins() {
    let mut kept = Vec::new();
    while !IS_OVER.load(Ordering::SeqCst) {
        kept.push(ROUNDS.fetch_add(1, Ordering::SeqCst).to_string());
        kept.truncate(64);
    }
}

#[test]
fn a_busy_loop_is_told_of_and_goes_on() {
    let (master, worker) = Channel::pair().unwrap();
    worker::stack::tell_by(&worker).unwrap();
    worker::stack::tell_by(&worker).unwrap();
    let spinning = thread::spawn(the_place_where_it_spins);
    while ROUNDS.load(Ordering::SeqCst) == 0 {
        thread::yield_now();
    }
    for _ in 0..200 {
        let before = ROUNDS.load(Ordering::SeqCst);
        pthread_kill(spinning.as_pthread_t(), worker::stack::ASK).unwrap();
        let addresses = loop {
            match master.recv_report() {
                Ok(Some(Report::Stack(addresses))) => break addresses,
                Ok(other) => panic!("{other:?}"),
                Err(_) => thread::sleep(Duration::from_millis(1)),
            }
        };
        let mut names = String::new();
        for address in addresses {
            let address = std::ptr::without_provenance_mut(usize::try_from(address).unwrap());
            backtrace::resolve(address, |symbol| names += &format!("{:?}\n", symbol.name()));
        }
        assert!(names.contains("the_place_where_it_spins"), "{names}");
        while ROUNDS.load(Ordering::SeqCst) <= before + 1 {
            thread::yield_now();
        }
    }
    IS_OVER.store(true, Ordering::SeqCst);
    spinning.join().unwrap();
}
