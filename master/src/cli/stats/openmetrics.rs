//! The snapshot as OpenMetrics 1.0 text: each family once, its samples together, `# EOF` at the end.

#![forbid(unsafe_code)]

use std::fmt::Write;

use shared::health;
use shared::stats::{Distribution, Object, Process, Snapshot, Totals, Value};

use super::{View, seconds};

/// Upper bounds of the histograms' buckets, in microseconds. A value up to 6.25 % below a bound may count as above it.
const BOUNDS_US: [u64; 17] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000, 60_000_000,
];

/// The whole exposition.
pub(super) fn render(view: &View) -> String {
    let mut families = Families { by_worker: view.by_worker, list: Vec::new() };
    families.proxy(&view.now);
    families.processes(&view.now);
    for listener in &view.now.listeners {
        families.object("listener", &[("listener", &listener.name)], listener);
    }
    for route in &view.now.routes {
        families.object("route", &[("route", &route.name)], route);
    }
    for upstream in &view.now.upstreams {
        families.object("upstream", &[("upstream", &upstream.object.name)], &upstream.object);
        for server in &upstream.servers {
            let labels = [("upstream", &*upstream.object.name), ("server", &*server.object.name)];
            families.object("server", &labels, &server.object);
            let up = u64::from(health::is_up(server.health));
            families.gauge("sluice_server_up", "Whether the server may be sent requests.", &labels, up);
        }
    }
    let mut text = String::new();
    for family in families.list {
        text.push_str(&family.head);
        text.push_str(&family.samples);
    }
    text + "# EOF\n"
}

type Labels<'l> = [(&'l str, &'l str)];

struct Families {
    by_worker: bool,
    list: Vec<Family>,
}

struct Family {
    name: String,
    head: String,
    samples: String,
}

impl Families {
    fn proxy(&mut self, now: &Snapshot) {
        let serving = now.workers().filter(|worker| worker.is_alive).count() as u64;
        let condition = [("condition", now.condition().name())];
        self.gauge("sluice_condition", "The state of the proxy as a whole.", &condition, 1);
        self.gauge("sluice_generation", "Number of the configuration in effect.", &[], now.generation.0);
        self.gauge("sluice_workers", "Living worker processes.", &[], serving);
        let name = "sluice_uptime_seconds";
        let uptime = seconds(now.taken_ns.saturating_sub(now.created_ns));
        self.sample(name, "gauge", "Age of the zone.", "", &[], &format!("{uptime:?}"));
    }

    fn processes(&mut self, now: &Snapshot) {
        if !self.by_worker {
            return self.totals("process", &[], &now.totals);
        }
        for process in &now.processes {
            let slot = process.slot.to_string();
            let labels = [("slot", &*slot), ("role", role(process))];
            self.totals("process", &labels, &process.totals);
            self.gauge("sluice_process_up", "Whether the process runs.", &labels, process.is_alive.into());
        }
    }

    fn object<T: Totals>(&mut self, kind: &str, labels: &Labels<'_>, object: &Object<T>) {
        if !self.by_worker {
            return self.totals(kind, labels, &object.totals);
        }
        for (slot, totals) in &object.by_slot {
            let slot = slot.to_string();
            self.totals(kind, &[labels, &[("slot", &slot)]].concat(), totals);
        }
    }

    fn totals<T: Totals>(&mut self, kind: &str, labels: &Labels<'_>, totals: &T) {
        totals.each(&mut |field| {
            let name = format!("sluice_{kind}_{}", with_unit(field.name));
            match field.value {
                Value::Gauge(value) => self.gauge(&name, field.help, labels, value),
                Value::Counter(value) => {
                    self.sample(&name, "counter", field.help, "_total", labels, &value.to_string());
                }
                Value::Classes(classes) => {
                    for (class, value) in ["1xx", "2xx", "3xx", "4xx", "5xx"].into_iter().zip(classes) {
                        let labels = [labels, &[("class", class)]].concat();
                        self.sample(&name, "counter", field.help, "_total", &labels, &value.to_string());
                    }
                }
                Value::Latency(distribution) => self.histogram(&name, field.help, labels, distribution),
            }
        });
    }

    fn gauge(&mut self, name: &str, help: &str, labels: &Labels<'_>, value: u64) {
        self.sample(name, "gauge", help, "", labels, &value.to_string());
    }

    fn histogram(&mut self, name: &str, help: &str, labels: &Labels<'_>, distribution: &Distribution) {
        for bound in BOUNDS_US {
            let le = format!("{:?}", seconds(bound * 1_000));
            let labels = [labels, &[("le", &*le)]].concat();
            let below = distribution.at_most(bound * 1_000);
            self.sample(name, "histogram", help, "_bucket", &labels, &below.to_string());
        }
        let count = distribution.count().to_string();
        let all = [labels, &[("le", "+Inf")]].concat();
        self.sample(name, "histogram", help, "_bucket", &all, &count);
        self.sample(name, "histogram", help, "_count", labels, &count);
        let sum = format!("{:?}", seconds(distribution.sum_ns()));
        self.sample(name, "histogram", help, "_sum", labels, &sum);
    }

    fn sample(&mut self, name: &str, kind: &str, help: &str, suffix: &str, labels: &Labels<'_>, value: &str) {
        let index = self.list.iter().position(|family| family.name == name).unwrap_or_else(|| {
            self.list.push(Family::new(name, kind, help));
            self.list.len() - 1
        });
        let samples = &mut self.list[index].samples;
        samples.extend([name, suffix]);
        for (index, (label, value)) in labels.iter().enumerate() {
            samples.extend([if index == 0 { "{" } else { "," }, label, "=\"", &escaped(value), "\""]);
        }
        samples.extend([if labels.is_empty() { " " } else { "} " }, value, "\n"]);
    }
}

impl Family {
    fn new(name: &str, kind: &str, help: &str) -> Family {
        let mut head = format!("# TYPE {name} {kind}\n");
        if let Some(unit) = ["seconds", "bytes"].into_iter().find(|unit| name.ends_with(unit)) {
            // Writing to a String does not fail.
            let _ = writeln!(head, "# UNIT {name} {unit}");
        }
        let _ = writeln!(head, "# HELP {name} {}", escaped(help));
        Family { name: name.into(), head, samples: String::new() }
    }
}

/// A unit is the last word of a name.
fn with_unit(field: &str) -> String {
    match field.strip_prefix("bytes_") {
        Some(direction) => format!("{direction}_bytes"),
        None if field == "latency" => "latency_seconds".into(),
        None => field.into(),
    }
}

fn role(process: &Process) -> &'static str {
    process.role.map_or("unknown", shared::zone::Role::name)
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use shared::stats::{RouteTotals, Server, ServerTotals, Upstream, UpstreamTotals};

    use super::*;

    fn exposition(by_worker: bool) -> String {
        let route = RouteTotals { requests: 3, status: [0, 1, 0, 2, 0], bytes_in: 7, ..RouteTotals::default() };
        let by_slot = vec![(shared::ident::Slot(4), route.clone())];
        let server = Object { name: "10.0.0.1:1".into(), totals: ServerTotals::default(), by_slot: vec![] };
        let upstream = Object { name: "app".into(), totals: UpstreamTotals::default(), by_slot: vec![] };
        let now = Snapshot {
            routes: vec![
                Object { name: "a\"\\b".into(), totals: route, by_slot },
                Object { name: "(none)".into(), totals: RouteTotals::default(), by_slot: vec![] },
            ],
            upstreams: vec![Upstream { object: upstream, servers: vec![Server { object: server, health: 1 }] }],
            ..Snapshot::default()
        };
        render(&View { now, recent: None, by_worker })
    }

    #[test]
    fn samples() {
        let text = exposition(false);
        for line in [
            "# TYPE sluice_route_in_bytes counter\n# UNIT sluice_route_in_bytes bytes\n",
            "sluice_route_in_bytes_total{route=\"a\\\"\\\\b\"} 7\n",
            "sluice_route_status_total{route=\"a\\\"\\\\b\",class=\"4xx\"} 2\n",
            "sluice_route_latency_seconds_bucket{route=\"(none)\",le=\"0.00025\"} 0\n",
            "sluice_route_latency_seconds_bucket{route=\"(none)\",le=\"1.0\"} 0\n",
            "sluice_route_latency_seconds_bucket{route=\"(none)\",le=\"+Inf\"} 0\n",
            "sluice_route_latency_seconds_sum{route=\"(none)\"} 0.0\n",
            "sluice_server_up{upstream=\"app\",server=\"10.0.0.1:1\"} 0\n",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert!(text.ends_with("\n# EOF\n"));
        assert!(exposition(true).contains("sluice_route_requests_total{route=\"a\\\"\\\\b\",slot=\"4\"} 3\n"));
    }

    #[test]
    fn a_family_is_in_one_piece() {
        let text = exposition(false);
        let heads: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
        let mut names: Vec<&str> = heads.iter().filter_map(|head| head.split(' ').next()).collect();
        let mut current = "";
        for line in text.lines() {
            match line.strip_prefix("# TYPE ").and_then(|head| head.split(' ').next()) {
                Some(name) => current = name,
                None => assert!(line.starts_with('#') || line.starts_with(current), "{line} after {current}"),
            }
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), heads.len());
    }
}
