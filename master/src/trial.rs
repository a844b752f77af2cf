//! The rule by which the first worker of another binary is judged: it is compared with the workers that serve beside it.

#![forbid(unsafe_code)]

use shared::ident::Slot;
use shared::stats::{Distribution, Snapshot};

/// This many failed exchanges more than others would have had are a verdict before the time is up.
const EARLY_ERRORS: u64 = 5;
/// A worker fails with this share of failed exchanges more than the others have.
const ERROR_SHARE_MAX: f64 = 0.01;
/// A worker fails whose 90th percentile is this many times that of the others...
const SLOWDOWN_MAX: u64 = 2;
/// ...and as many nanoseconds above it.
const SLOWDOWN_MIN_NS: u64 = 10_000_000;

/// What workers have done meanwhile.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Record {
    /// Exchanges that ended.
    pub(crate) requests: u64,
    /// Those that were answered with a status from 500 on.
    pub(crate) errors: u64,
    /// How long they took.
    pub(crate) latency: Distribution,
}

impl Record {
    /// Of the workers whose slot `counts`, from what has happened since a snapshot.
    pub(crate) fn of(change: &Snapshot, counts: impl Fn(Slot) -> bool) -> Record {
        let mut record = Record::default();
        for (_, totals) in change.routes.iter().flat_map(|route| &route.by_slot).filter(|(slot, _)| counts(*slot)) {
            record.requests += totals.requests;
            record.errors += totals.status[4];
            record.latency.add(&totals.latency);
        }
        record
    }

    #[expect(clippy::cast_precision_loss, reason = "a share of counts")]
    fn error_share(&self) -> f64 {
        if self.requests == 0 { 0.0 } else { self.errors as f64 / self.requests as f64 }
    }
}

/// What is found of a worker on trial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Finding {
    /// Nothing yet.
    Pending,
    /// It does as well as the others. A sentence.
    Sound(String),
    /// It does not, or has not shown it. A sentence.
    Unfit(String),
}

/// Judges a worker by its `own` record against the `others`'. `is_over` is whether its time is up, by when it must have
/// `requests_min`.
pub(crate) fn judge(own: &Record, others: &Record, requests_min: u64, is_over: bool) -> Finding {
    let (share, usual) = (own.error_share(), others.error_share());
    let fails = share > usual + ERROR_SHARE_MAX;
    let shown = || {
        format!(
            "{} of {} requests failed with the new binary, {} of {} with the old",
            own.errors, own.requests, others.errors, others.requests
        )
    };
    #[expect(clippy::cast_precision_loss, reason = "a count of errors")]
    let surplus = own.errors as f64 - usual * own.requests as f64;
    if fails && surplus >= EARLY_ERRORS as f64 {
        return Finding::Unfit(shown());
    }
    if !is_over {
        return Finding::Pending;
    }
    if own.requests < requests_min {
        return Finding::Unfit(format!(
            "undecided: the new binary answered {} requests, and a verdict takes {requests_min} (--min-requests; without traffic: --no-watch)",
            own.requests
        ));
    }
    if fails {
        return Finding::Unfit(shown());
    }
    let slow = |record: &Record| record.latency.quantile_ns(0.9).unwrap_or(0);
    let (its, theirs) = (slow(own), slow(others));
    let is_slow = its > theirs.saturating_mul(SLOWDOWN_MAX) && its - theirs > SLOWDOWN_MIN_NS;
    if is_slow && own.requests >= requests_min.max(1) && others.requests >= requests_min.max(1) {
        return Finding::Unfit(format!(
            "nine of ten requests took up to {} ms with the new binary, {} ms with the old",
            its / 1_000_000,
            theirs / 1_000_000
        ));
    }
    Finding::Sound(shown())
}

#[cfg(test)]
mod tests {
    use shared::ident::{Generation, ProcessId, Seat};
    use shared::zone::{Catalog, Maxima, Role, Zone};

    use super::*;

    const MS: u64 = 1_000_000;

    /// Two workers in a zone, which have answered so many requests, so many of them with 500, each in so many ms.
    fn records(own: (u64, u64, u64), others: (u64, u64, u64)) -> (Record, Record) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("zone");
        let maxima = Maxima { slots: 3, listeners: 1, routes: 2, upstreams: 1, servers: 1, flights: 1 };
        let zone = Zone::create(&path, maxima, ProcessId::current(0).unwrap()).unwrap();
        zone.publish(&Catalog { routes: vec!["r".into()], ..Catalog::default() }).unwrap();
        let slots = [own, others].map(|(requests, errors, millis)| {
            let slot = zone.claim_slot(Role::Worker, Some(Seat(0)), Generation(1)).unwrap();
            let route = zone.route(slot, "r").unwrap();
            route.requests.add(requests);
            route.status[4].add(errors);
            (0..requests).for_each(|_| route.latency.record(millis * MS));
            slot
        });
        let snapshot = Snapshot::read(&path).unwrap();
        let change = snapshot.since(&Snapshot::default());
        (Record::of(&change, |slot| slot == slots[0]), Record::of(&change, |slot| slot == slots[1]))
    }

    #[test]
    fn findings() {
        let good = (1000, 0, 5);
        for (own, others, minimum, is_over, expected, why) in [
            ((100, 0, 5), good, 20, true, "sound", "all is well"),
            ((100, 0, 5), good, 20, false, "pending", "its time is not up"),
            ((19, 0, 5), good, 20, true, "undecided", "too few requests"),
            ((0, 0, 0), (0, 0, 0), 0, true, "sound", "none are asked for"),
            ((100, 5, 5), good, 20, false, "unfit", "it fails, and that is enough"),
            ((100, 3, 5), good, 20, false, "pending", "it fails a little"),
            ((100, 3, 5), good, 20, true, "unfit", "it fails a little, to the end"),
            ((3, 3, 5), good, 20, true, "undecided", "it fails, but has shown too little"),
            ((100, 50, 5), (1000, 500, 5), 20, true, "sound", "so do the others"),
            ((100, 1, 5), good, 20, true, "sound", "one in a hundred is no more than chance"),
            ((100, 0, 16), good, 20, true, "unfit", "it is slow"),
            ((100, 0, 14), good, 20, true, "sound", "a little slower"),
            ((100, 0, 30), (1000, 0, 20), 20, true, "sound", "half as slow again"),
            ((100, 0, 50), (3, 0, 5), 20, true, "sound", "the others have shown too little"),
        ] {
            let (own, others) = records(own, others);
            let found = match judge(&own, &others, minimum, is_over) {
                Finding::Pending => "pending",
                Finding::Sound(_) => "sound",
                Finding::Unfit(reason) if reason.starts_with("undecided") => "undecided",
                Finding::Unfit(_) => "unfit",
            };
            assert_eq!(found, expected, "{why}");
        }
    }
}
