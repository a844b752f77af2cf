//! Who hands connections over to whom, when workers leave and others stay.
//!
//! The master only brings them together: what goes over is between the two (`shared/src/handover.rs`).

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;

use shared::channel::Command;
use shared::estate::{Link, Message};
use shared::handover::Handover;
use shared::ident::Generation;
use slog::warn;

use crate::children::{Child, Role};
use crate::cycle::Master;

impl Master {
    /// Has workers that `gives` selects, which are about to drain or do, hand over to those that serve and that `takes`
    /// selects.
    pub(crate) fn hand_over(&self, gives: impl Fn(&Child) -> bool, takes: impl Fn(&Child) -> bool) {
        let Some(serving) = &self.serving else { return };
        let is_taker =
            |child: &&Child| child.is_of(serving.generation) && child.is_ready && !child.is_leaving() && takes(child);
        let mut takers: Vec<&Child> = self.children.iter().filter(is_taker).collect();
        takers.sort_by_key(|child| child.seat());
        let mut cohorts: BTreeMap<Generation, Vec<&Child>> = BTreeMap::new();
        for child in self.children.iter().filter(|child| child.is_ready && gives(child)) {
            if let Role::Worker { generation, .. } = child.role
                && generation != serving.generation
            {
                cohorts.entry(generation).or_default().push(child);
            }
        }
        for givers in cohorts.values_mut() {
            givers.sort_by_key(|child| child.seat());
            for (giver, taker) in pairs(givers.len(), takers.len()) {
                let (giver, taker) = (givers[giver], takers[taker]);
                if let Err(error) = bring_together(giver, taker) {
                    warn!(self.log, "connections cannot be handed over: they end with their worker";
                        "from" => giver.pid(), "to" => taker.pid(), "reason" => %error);
                }
            }
        }
    }

    /// Has workers that are about to drain hand over to those of another master, which is at the other end of `link`.
    pub(crate) fn hand_over_across(&self, link: &Link) {
        for giver in self.children.iter().filter(|child| child.is_worker() && child.is_ready) {
            let offered = Handover::pair().map_err(io::Error::from).and_then(|(to, from)| {
                link.send(&Message::Connections(from.into_fd()))?;
                giver.ask(&Command::HandOver { to: to.into_fd() })
            });
            if let Err(error) = offered {
                warn!(self.log, "connections cannot be handed over: they end with their worker";
                    "from" => giver.pid(), "reason" => %error);
            }
        }
    }

    /// Has one of the workers that serve, another one each time, take what a worker of another master offers.
    pub(crate) fn take_over(&mut self, from: OwnedFd) {
        let Some(serving) = &self.serving else { return };
        let serves = |child: &&Child| child.is_of(serving.generation) && child.is_ready && !child.is_leaving();
        let takers: Vec<&Child> = self.children.iter().filter(serves).collect();
        let Some(taker) = takers.get(self.taken_over % takers.len().max(1)) else { return };
        if let Err(error) = taker.ask(&Command::TakeOver { from }) {
            warn!(self.log, "connections cannot be taken over"; "to" => taker.pid(), "reason" => %error);
        }
        self.taken_over += 1;
    }

    /// A worker that serves has become ready: workers that drain may have lost the one that they gave to.
    pub(crate) fn hand_over_to(&self, pid: i32) {
        self.hand_over(Child::is_draining, |child| child.pid() == pid);
    }
}

/// Gives each of two workers an end. One that hears of it alone finds that the other end is closed.
fn bring_together(giver: &Child, taker: &Child) -> io::Result<()> {
    let (to, from) = Handover::pair()?;
    taker.ask(&Command::TakeOver { from: from.into_fd() })?;
    giver.ask(&Command::HandOver { to: to.into_fd() })
}

/// So that each gives and each takes, as evenly as their numbers allow, seat to seat where there are as many.
fn pairs(givers: usize, takers: usize) -> impl Iterator<Item = (usize, usize)> {
    let count = if givers == 0 || takers == 0 { 0 } else { givers.max(takers) };
    (0..count).map(move |pair| (pair % givers, pair % takers))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_gives_and_each_takes() {
        for (givers, takers, expected) in [
            (2, 2, &[(0, 0), (1, 1)][..]),
            (3, 2, &[(0, 0), (1, 1), (2, 0)]),
            (1, 3, &[(0, 0), (0, 1), (0, 2)]),
            (0, 2, &[]),
            (2, 0, &[]),
        ] {
            assert_eq!(pairs(givers, takers).collect::<Vec<_>>(), expected);
        }
    }
}
