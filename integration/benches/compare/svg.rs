//! The chart: CPU time a request, a group of bars a scenario.
//!
//! Groups differ by two orders of magnitude, so each has a scale of its own and every bar says its figure. The colours
//! can be read on a light and on a dark page.

use std::fmt::Write;

use crate::peer::Peer;
use crate::results::{Measure, Results};
use crate::scenario::Scenario;

const SCENARIOS: [Scenario; 4] = [Scenario::K64, Scenario::K512, Scenario::Close64, Scenario::B1m];
const INK: &str = "#768390";
const OURS: &str = "#2f81f7";
const THEIRS: &str = "#8b98a5";

const WIDTH: f64 = 860.0;
const MARGIN: f64 = 20.0;
const GROUP_WIDTH: f64 = 400.0;
const NAME_WIDTH: f64 = 72.0;
const FIGURE_WIDTH: f64 = 60.0;
const BAR_HEIGHT: f64 = 18.0;
const BAR_STEP: f64 = 26.0;
const HEAD_HEIGHT: f64 = 48.0;
const GROUP_HEAD: f64 = 30.0;

/// The whole picture; scenarios that were not measured leave no gap.
pub(crate) fn chart(results: &Results) -> String {
    let groups: Vec<(Scenario, Vec<(Peer, f64)>)> = SCENARIOS
        .iter()
        .map(|&scenario| (scenario, bars(results, scenario)))
        .filter(|group| !group.1.is_empty())
        .collect();
    let group_height = GROUP_HEAD + BAR_STEP * 4.0 + 16.0;
    let rows = groups.len().div_ceil(2);
    let height = HEAD_HEIGHT + group_height * rows as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" \
         aria-label=\"CPU microseconds a request\" font-family=\"system-ui, sans-serif\" font-size=\"13\" fill=\"{INK}\">\n"
    );
    text(&mut svg, MARGIN, 28.0, "start", "font-size=\"16\" font-weight=\"600\"", "CPU µs a request (less is better)");
    for (index, (scenario, bars)) in groups.iter().enumerate() {
        let left = MARGIN + (GROUP_WIDTH + MARGIN) * (index % 2) as f64;
        let top = HEAD_HEIGHT + group_height * (index / 2) as f64;
        group(&mut svg, left, top, scenario.title(), bars);
    }
    svg += "</svg>\n";
    svg
}

fn bars(results: &Results, scenario: Scenario) -> Vec<(Peer, f64)> {
    let figure = |peer: &Peer| Some((*peer, results.median(scenario, *peer, Measure::CpuMicros)?));
    scenario.peers().iter().filter_map(figure).collect()
}

fn group(svg: &mut String, left: f64, top: f64, title: &str, bars: &[(Peer, f64)]) {
    text(svg, left, top + 16.0, "start", "font-weight=\"600\"", title);
    let longest = bars.iter().map(|bar| bar.1).fold(f64::MIN_POSITIVE, f64::max);
    for (index, (peer, micros)) in bars.iter().enumerate() {
        let y = top + GROUP_HEAD + BAR_STEP * index as f64;
        let x = left + NAME_WIDTH;
        let width = (GROUP_WIDTH - NAME_WIDTH - FIGURE_WIDTH) * micros / longest;
        // The floor is no proxy: an outline sets it apart from those that are.
        let paint = match peer {
            Peer::Floor => format!("fill=\"none\" stroke=\"{THEIRS}\" stroke-dasharray=\"4 3\""),
            Peer::Sluice => format!("fill=\"{OURS}\""),
            _ => format!("fill=\"{THEIRS}\""),
        };
        let baseline = y + 13.5;
        text(svg, x - 8.0, baseline, "end", "", peer.title());
        let _ =
            writeln!(svg, "<rect x=\"{x}\" y=\"{y}\" width=\"{width:.1}\" height=\"{BAR_HEIGHT}\" rx=\"2\" {paint}/>");
        let decimals = if *micros < 100.0 { 1 } else { 0 };
        text(svg, x + width + 6.0, baseline, "start", "", &format!("{micros:.decimals$}"));
    }
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, style: &str, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" {style}>{words}</text>");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_each_and_none_for_what_was_not_measured() {
        let mut results = Results::default();
        for (peer, micros) in [(Peer::Floor, 10.0), (Peer::Nginx, 12.5), (Peer::Sluice, 11.0)] {
            results.add(Scenario::K64, peer, vec![(Measure::CpuMicros, micros)]);
        }
        let svg = chart(&results);
        assert_eq!(svg.matches("<rect").count(), 3);
        assert!(svg.contains(">12.5<") && svg.contains(Scenario::K64.title()) && !svg.contains(Scenario::B1m.title()));
        assert_eq!(svg.matches("<text").count(), 1 + 1 + 3 * 2);
        assert!(svg.ends_with("</svg>\n"));
    }
}
