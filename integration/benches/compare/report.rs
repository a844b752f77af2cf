//! The figures as text: a line a run, and the tables that docs/performance.md shows.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::peer::Peer;
use crate::results::{Measure, NOISE_PERCENT, Results, Sample};
use crate::scenario::{BARS, Bar, Scenario};

const BEGIN: &str = "<!-- figures: begin (written by `make bench`) -->\n";
const END: &str = "<!-- figures: end -->";

/// Where and when the figures were taken.
pub(crate) struct Machine {
    /// The load average of the last minute, before anything was started.
    pub(crate) load: f64,
    description: String,
}

impl Machine {
    /// Looks at the machine and asks every peer for its version.
    ///
    /// # Errors
    /// When a peer is not there.
    pub(crate) fn inspect(peers: &[Peer]) -> Result<Self> {
        let load = fs::read_to_string("/proc/loadavg")?;
        let load = load.split_whitespace().next().and_then(|first| first.parse().ok()).context("/proc/loadavg")?;
        let info = fs::read_to_string("/proc/cpuinfo")?;
        let model = info.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown CPU");
        let model = model.trim_start_matches([' ', '\t', ':']);
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
        let kernel = kernel.trim().split('-').next().unwrap_or_default();
        let date = Command::new("date").args(["-u", "+%Y-%m-%d"]).output()?.stdout;
        let mut versions = Vec::new();
        for peer in peers {
            versions.extend(peer.version().with_context(|| format!("{} is missing", peer.title()))?);
        }
        versions.dedup_by(|later, earlier| later.split(' ').next_back() == earlier.split(' ').next_back());
        let date = String::from_utf8_lossy(&date);
        let description = format!("{}: {model}, Linux {kernel}; {}", date.trim(), versions.join(", "));
        Ok(Machine { load, description })
    }
}

/// One run, for whoever watches.
pub(crate) fn line(scenario: Scenario, peer: Peer, sample: &Sample) -> String {
    let figure = |measure| sample.iter().find(|figure| figure.0 == measure).map(|figure| figure.1);
    let head = format!("{:<8} {:<16}", key(scenario), peer.title());
    if let Some(kib) = figure(Measure::IdleKib) {
        return format!("{head}{kib:8.2} KiB a connection");
    }
    let of = |measure| figure(measure).unwrap_or(f64::NAN);
    let noise = of(Measure::ForeignPercent);
    let noise = if noise > NOISE_PERCENT { format!("  others on its CPU: {noise:.0} %") } else { String::new() };
    format!(
        "{head}{:8.2} µs a request {:9.0} requests/s  p99 {:.2} ms  {:.0} % of its CPU{noise}",
        of(Measure::CpuMicros),
        of(Measure::RequestsPerSecond),
        of(Measure::P99Millis),
        of(Measure::BusyPercent),
    )
}

/// All tables: the figures of every scenario, the memory, the bars.
pub(crate) fn markdown(results: &Results, machine: &Machine, rounds: u32, seconds: u32) -> String {
    let mut text = format!("{}. Medians of {rounds} rounds of {seconds} s.\n\n", machine.description);
    text += "| scenario | proxy | CPU µs a request | least to most | in user space | requests/s | p50 ms | p99 ms | CPU % |\n";
    text += "|---|---|--:|--:|--:|--:|--:|--:|--:|\n";
    for &scenario in Scenario::value_variants() {
        for &peer in scenario.peers() {
            text += &row(results, scenario, peer).unwrap_or_default();
        }
    }
    let weights: Vec<String> = Scenario::Idle.peers().iter().filter_map(|&peer| weight(results, peer)).collect();
    if !weights.is_empty() {
        text += "\n| proxy | private KiB an idle connection |\n|---|--:|\n";
        text += &weights.concat();
    }
    let bars: Vec<String> = BARS.iter().filter_map(|bar| verdict(results, bar)).collect();
    if !bars.is_empty() {
        text += "\n| bar | at most | measured | |\n|---|--:|--:|---|\n";
        text += &bars.concat();
    }
    if text.contains(NOISY) {
        text += "\n† something else ran on that CPU during the run: not a result.\n";
    }
    text
}

/// Puts the tables between their marks in performance.md, and the chart beside it.
///
/// # Errors
/// When the page is not there or has lost its marks.
pub(crate) fn publish(docs: &Path, figures: &str, chart: &str) -> Result<()> {
    let path = docs.join("performance.md");
    let page = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let page = insert(&page, figures).with_context(|| format!("{} has lost its marks", path.display()))?;
    fs::write(&path, page)?;
    fs::write(docs.join("performance.svg"), chart)?;
    Ok(())
}

const NOISY: &str = " †";

fn row(results: &Results, scenario: Scenario, peer: Peer) -> Option<String> {
    let of = |measure| results.median(scenario, peer, measure);
    let (least, most) = results.range(scenario, peer, Measure::CpuMicros)?;
    Some(format!(
        "| {} | {}{} | {:.2} | {least:.2} to {most:.2} | {:.2} | {:.0} | {:.2} | {:.2} | {:.0} |\n",
        key(scenario),
        peer.title(),
        if results.is_noisy(scenario, peer) { NOISY } else { "" },
        of(Measure::CpuMicros)?,
        of(Measure::UserMicros)?,
        of(Measure::RequestsPerSecond)?,
        of(Measure::P50Millis)?,
        of(Measure::P99Millis)?,
        of(Measure::BusyPercent)?,
    ))
}

fn weight(results: &Results, peer: Peer) -> Option<String> {
    let kib = results.median(Scenario::Idle, peer, Measure::IdleKib)?;
    Some(format!("| {} | {kib:.2} |\n", peer.title()))
}

fn verdict(results: &Results, bar: &Bar) -> Option<String> {
    let measured = bar.measured(results)?;
    let what = match bar.measure {
        Measure::P99Millis => ", p99",
        Measure::IdleKib => ", KiB a connection",
        _ => "",
    };
    let (most, measured_text) = match bar.yardstick {
        Some(peer) => (format!("{:.2} × {}", bar.most, peer.title()), format!("{measured:.2} ×")),
        None => (format!("{:.2}", bar.most), format!("{measured:.2}")),
    };
    let verdict = if measured <= bar.most { "PASS" } else { "MISS" };
    Some(format!("| {}{what} | {most} | {measured_text} | {verdict} |\n", key(bar.scenario)))
}

fn insert(page: &str, figures: &str) -> Option<String> {
    let (before, rest) = page.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n{figures}\n{END}{after}"))
}

/// The name that -s takes.
fn key(scenario: Scenario) -> String {
    scenario.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_replace_figures_and_leave_the_page_alone() {
        let page = format!("# Title\n{BEGIN}old\n{END}\nafter\n");
        let once = insert(&page, "new\n").unwrap();
        assert_eq!(once, format!("# Title\n{BEGIN}\nnew\n\n{END}\nafter\n"));
        assert_eq!(insert(&once, "new\n").unwrap(), once);
        assert_eq!(insert("# Title\n", "new\n"), None);
    }

    #[test]
    fn a_bar_passes_up_to_its_limit() {
        for (sluice, expected) in [(9.19, "| PASS |"), (9.3, "| MISS |")] {
            let mut results = Results::default();
            results.add(Scenario::K64, Peer::Nginx, vec![(Measure::CpuMicros, 10.0)]);
            results.add(Scenario::K64, Peer::Sluice, vec![(Measure::CpuMicros, sluice)]);
            let machine = Machine { load: 0.0, description: "here".into() };
            let text = markdown(&results, &machine, 1, 1);
            assert_eq!(text.matches("| PASS |").count() + text.matches("| MISS |").count(), 1, "{text}");
            assert!(text.contains(expected), "{text}");
        }
    }
}
