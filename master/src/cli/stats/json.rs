//! The snapshot as JSON (RFC 8259): names as in the zone, times in nanoseconds unless they say otherwise.

#![forbid(unsafe_code)]

use serde_json::{Map, Value as Json, json};
use shared::health;
use shared::ident::Slot;
use shared::stats::{Distribution, Object, Process, Snapshot, Totals, Value};

use super::{View, seconds};

/// One line.
pub(super) fn render(view: &View) -> String {
    let now = &view.now;
    let change = view.recent.as_ref().map(|recent| &recent.change);
    let writer = Writer { seconds: view.recent.as_ref().map(|recent| recent.seconds), by_worker: view.by_worker };
    let verdict = now.verdict.as_ref().map(|verdict| {
        json!({
            "generation": verdict.generation.0,
            "accepted": verdict.is_accepted,
            "age_seconds": seconds(now.taken_ns.saturating_sub(verdict.at_ns)),
            "text": verdict.text,
        })
    });
    let mut root = json!({
        "condition": now.condition().name(),
        "generation": now.generation.0,
        "verdict": verdict,
        "master": {"pid": now.master.pid, "alive": now.is_supervised},
        "uptime_seconds": seconds(now.taken_ns.saturating_sub(now.created_ns)),
        "zone_version": format!("{}.{}", shared::zone::major(), now.minor),
        "totals": writer.fields(&now.totals, change.map(|change| &change.totals)),
        "processes": writer.processes(now, change),
        "listeners": writer.objects(&now.listeners, change.map(|change| &change.listeners[..])),
        "routes": writer.objects(&now.routes, change.map(|change| &change.routes[..])),
        "upstreams": writer.upstreams(now, change),
    });
    if let (Some(seconds), Json::Object(root)) = (writer.seconds, &mut root) {
        root.insert("interval_seconds".into(), json!(seconds));
    }
    format!("{root}\n")
}

/// A snapshot and its change have the same objects in the same order.
struct Writer {
    seconds: Option<f64>,
    by_worker: bool,
}

impl Writer {
    /// The fields of a record, and what of them happens a second.
    fn fields<T: Totals>(&self, now: &T, change: Option<&T>) -> Map<String, Json> {
        let mut fields = Map::new();
        now.each(&mut |field| {
            fields.insert(field.name.into(), value(field.value, |count| json!(count)));
        });
        if let (Some(change), Some(seconds)) = (change, self.seconds) {
            let mut rates = Map::new();
            change.each(&mut |field| {
                if !matches!(field.value, Value::Gauge(_)) {
                    rates.insert(field.name.into(), value(field.value, |count| json!(rate(count, seconds))));
                }
            });
            fields.insert("per_second".into(), rates.into());
        }
        fields
    }

    fn processes(&self, now: &Snapshot, change: Option<&Snapshot>) -> Vec<Json> {
        let mut processes = Vec::new();
        for (index, process) in now.processes.iter().enumerate() {
            let change = change.and_then(|change| change.processes.get(index));
            let mut fields = self.fields(&process.totals, change.map(|process| &process.totals));
            fields.extend(identity(process, now.taken_ns));
            processes.push(fields.into());
        }
        processes
    }

    fn objects<T: Totals>(&self, now: &[Object<T>], change: Option<&[Object<T>]>) -> Vec<Json> {
        let change = |index| change.and_then(|change| change.get(index));
        now.iter().enumerate().map(|(index, object)| self.object(object, change(index)).into()).collect()
    }

    fn object<T: Totals>(&self, now: &Object<T>, change: Option<&Object<T>>) -> Map<String, Json> {
        let mut fields = self.fields(&now.totals, change.map(|change| &change.totals));
        fields.insert("name".into(), json!(now.name));
        if self.by_worker {
            let share = |(index, (Slot(slot), totals)): (usize, &(Slot, T))| {
                let change = change.and_then(|change| change.by_slot.get(index));
                let mut share = self.fields(totals, change.map(|(_, totals)| totals));
                share.insert("slot".into(), json!(slot));
                Json::from(share)
            };
            fields.insert("by_slot".into(), now.by_slot.iter().enumerate().map(share).collect());
        }
        fields
    }

    fn upstreams(&self, now: &Snapshot, change: Option<&Snapshot>) -> Vec<Json> {
        let mut upstreams = Vec::new();
        for (index, upstream) in now.upstreams.iter().enumerate() {
            let change = change.and_then(|change| change.upstreams.get(index));
            let mut fields = self.object(&upstream.object, change.map(|change| &change.object));
            let servers = upstream.servers.iter().enumerate().map(|(index, server)| {
                let change = change.and_then(|change| change.servers.get(index));
                let mut fields = self.object(&server.object, change.map(|change| &change.object));
                fields.insert("up".into(), json!(health::is_up(server.health)));
                Json::from(fields)
            });
            fields.insert("servers".into(), servers.collect());
            upstreams.push(fields.into());
        }
        upstreams
    }
}

fn identity(process: &Process, now_ns: u64) -> Map<String, Json> {
    let identity = json!({
        "slot": process.slot.0,
        "pid": process.id.pid,
        "alive": process.is_alive,
        "role": process.role.map(shared::zone::Role::name),
        "seat": process.seat.map(|seat| seat.0),
        "generation": process.generation.0,
        "state": process.state.map(shared::stats::State::name),
        "heartbeat_age_seconds": seconds(now_ns.saturating_sub(process.heartbeat_ns)),
    });
    if let Json::Object(fields) = identity { fields } else { Map::new() }
}

fn value(value: Value<'_>, count: impl Fn(u64) -> Json) -> Json {
    match value {
        Value::Counter(number) => count(number),
        Value::Gauge(number) => json!(number),
        Value::Classes([c1, c2, c3, c4, c5]) => json!({
            "1xx": count(*c1), "2xx": count(*c2), "3xx": count(*c3), "4xx": count(*c4), "5xx": count(*c5),
        }),
        Value::Latency(distribution) => latency(distribution),
    }
}

fn latency(distribution: &Distribution) -> Json {
    json!({
        "count": distribution.count(),
        "sum_ns": distribution.sum_ns(),
        "p50_ns": distribution.quantile_ns(0.5),
        "p90_ns": distribution.quantile_ns(0.9),
        "p99_ns": distribution.quantile_ns(0.99),
        "p999_ns": distribution.quantile_ns(0.999),
    })
}

#[expect(clippy::cast_precision_loss)]
fn rate(count: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { count as f64 / seconds } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use shared::ident::Generation;
    use shared::stats::{RouteTotals, Verdict};

    use super::super::Recent;
    use super::*;

    fn snapshot(requests: u64) -> Snapshot {
        let totals = RouteTotals { requests, status: [0, requests, 0, 0, 0], ..RouteTotals::default() };
        let by_slot = vec![(Slot(2), totals.clone())];
        let verdict = Verdict { generation: Generation(2), is_accepted: false, at_ns: 0, text: "no".into() };
        Snapshot {
            routes: vec![Object { name: "api".into(), totals, by_slot }],
            verdict: Some(verdict),
            ..Snapshot::default()
        }
    }

    #[test]
    fn totals_and_rates() {
        let recent = Some(Recent { change: snapshot(4), seconds: 2.0 });
        let text = render(&View { now: snapshot(10), recent, by_worker: true });
        let json: Json = serde_json::from_str(&text).unwrap();
        assert_eq!(text.lines().count(), 1);
        assert_eq!(json["condition"], "stopped");
        assert_eq!(json["verdict"]["accepted"], false);
        let route = &json["routes"][0];
        assert_eq!((&route["requests"], &route["status"]["2xx"]), (&json!(10), &json!(10)));
        assert_eq!(route["per_second"]["requests"], 2.0);
        assert_eq!(route["per_second"]["status"]["2xx"], 2.0);
        assert_eq!(
            (&route["by_slot"][0]["slot"], &route["by_slot"][0]["per_second"]["requests"]),
            (&json!(2), &json!(2.0))
        );
        assert_eq!(route["latency"]["p99_ns"], Json::Null);
    }

    #[test]
    fn without_an_interval_there_are_no_rates() {
        let json: Json =
            serde_json::from_str(&render(&View { now: snapshot(1), recent: None, by_worker: false })).unwrap();
        assert_eq!(json["routes"][0].get("per_second").or(json["routes"][0].get("by_slot")), None);
        assert_eq!(json.get("interval_seconds"), None);
    }
}
