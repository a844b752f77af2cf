//! The page, from top to bottom: how the proxy is, its traffic, its processes, its upstreams, the keys.

#![forbid(unsafe_code)]

use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Paragraph, Row as Cells, Sparkline, Table};
use shared::stats::{Condition, Distribution, Snapshot};

use super::super::stats::quantity::{age, bytes, count, latency, rate};
use super::super::stats::table::label;
use super::Top;
use super::rows::{self, Row};

const HELP: &str = "\
q, Esc     quit
p, Space   pause, go on
s, Tab     sort upstreams by name, requests, p99, faults
Up, Down   scroll upstreams
h, ?       this help

Counters are per second. Percentiles are of the last
interval: of whole exchanges at the top, of the time to
a server's response head below. gone: clients that left.";

/// Rows of the traffic part.
const TRAFFIC_ROWS: u16 = 7;
/// The widest traffic figures; the rest of the line is the curve's.
const FIGURES_COLUMNS: u16 = 45;
/// Process rows when the page is 24 rows high; a higher page gives them a quarter.
const PROCESS_ROWS_MIN: usize = 4;

pub(super) fn draw(top: &mut Top, frame: &mut Frame<'_>) {
    let processes = top.now.processes.len();
    let shown = processes.min(PROCESS_ROWS_MIN.max(usize::from(frame.area().height / 4)));
    let process_rows = u16::try_from(shown + 2 + usize::from(shown < processes)).unwrap_or(u16::MAX);
    let [head, traffic, process_area, upstreams, keys] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(TRAFFIC_ROWS),
        Constraint::Length(process_rows),
        Constraint::Fill(1),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    let [figures, curve] =
        Layout::horizontal([Constraint::Length(FIGURES_COLUMNS), Constraint::Fill(1)]).areas(traffic);

    frame.render_widget(title(&top.now), head);
    frame.render_widget(Paragraph::new(traffic_lines(top)), figures);
    draw_curve(top, frame, curve);
    draw_processes(top, shown, frame, process_area);
    draw_upstreams(top, frame, upstreams);
    frame.render_widget(footer(top), keys);
    if top.shows_help {
        draw_help(frame);
    }
}

fn title(now: &Snapshot) -> Line<'static> {
    let condition = now.condition();
    let color = match condition {
        Condition::Running => Color::Green,
        Condition::Unready | Condition::Orphaned => Color::Yellow,
        Condition::Retired | Condition::Stopped => Color::Red,
    };
    let (serving, workers) = (now.serving(), now.workers().filter(|worker| worker.is_alive));
    let up = age(now.taken_ns.saturating_sub(now.created_ns));
    Line::from(vec![
        Span::from(" sluice ").bold(),
        Span::from(format!(" {} ", condition.name())).fg(color).reversed(),
        Span::from(format!(
            "  generation {}   {serving}/{} workers   up {up}   master {}",
            now.generation,
            workers.count(),
            if now.is_supervised { now.master.pid.to_string() } else { "gone".into() },
        )),
    ])
}

fn traffic_lines(top: &Top) -> Vec<Line<'static>> {
    let now = &top.now.totals;
    let mut latency_of_all = Distribution::default();
    let mut status = [0u64; 5];
    let (mut gone, mut bytes_in, mut bytes_out) = (0u64, 0u64, 0u64);
    let (change, seconds) = top.recent.as_ref().map_or((None, 0.0), |(change, seconds)| (Some(change), *seconds));
    for route in change.iter().flat_map(|change| &change.routes) {
        latency_of_all.add(&route.totals.latency);
        for (sum, class) in status.iter_mut().zip(route.totals.status) {
            *sum = sum.saturating_add(class);
        }
        gone = gone.saturating_add(route.totals.aborted);
    }
    for listener in change.iter().flat_map(|change| &change.listeners) {
        bytes_in = bytes_in.saturating_add(listener.totals.bytes_in);
        bytes_out = bytes_out.saturating_add(listener.totals.bytes_out);
    }
    let per_second = |number: u64| change.map_or_else(|| "-".into(), |_| rate(number, seconds));
    let quantile = |share| latency(latency_of_all.quantile_ns(share));
    let [_, s2, s3, s4, s5] = status;
    let class = |name: &'static str, number: u64, color: Color| {
        let style = if number > 0 { Style::new().fg(color) } else { Style::new().dim() };
        [Span::from(format!("{name} ")).dim(), Span::styled(format!("{:<6} ", per_second(number)), style)]
    };
    let named =
        |name: &'static str, text: String| Line::from(vec![Span::from(format!(" {name:<9}")).dim(), text.into()]);
    let accepted = change.map_or(0, |change| change.totals.accepted);
    vec![
        Line::default(),
        Line::from(vec![
            Span::from(" requests ").dim(),
            Span::from(format!("{}/s", per_second(change.map_or(0, |change| change.totals.requests)))).bold(),
            Span::from(format!("   {} in flight", count(now.requests_active))),
        ]),
        named("latency", format!("p50 {:<7} p90 {:<7} p99 {}", quantile(0.5), quantile(0.9), quantile(0.99))),
        Line::from(
            [Span::from(" status   ").dim()]
                .into_iter()
                .chain(class("2xx", s2, Color::Green))
                .chain(class("3xx", s3, Color::Cyan))
                .chain(class("4xx", s4, Color::Yellow))
                .collect::<Vec<_>>(),
        ),
        Line::from(
            [Span::from("          ")]
                .into_iter()
                .chain(class("5xx", s5, Color::Red))
                .chain(class("gone", gone, Color::Yellow))
                .collect::<Vec<_>>(),
        ),
        named(
            "clients",
            format!(
                "{} active  {} idle  {} new/s",
                count(now.connections_active),
                count(now.connections_idle),
                per_second(accepted)
            ),
        ),
        named("bytes", format!("{}/s in   {}/s out", volume(bytes_in, seconds), volume(bytes_out, seconds))),
    ]
}

fn draw_curve(top: &Top, frame: &mut Frame<'_>, area: Rect) {
    let peak = top.history.peak();
    let block = Block::new().title(Line::from(format!("requests/s, peak {} ", count(peak))).dim());
    let inside = block.inner(area);
    let points = top.history.last(inside.width.into());
    frame.render_widget(block, area);
    frame.render_widget(Sparkline::default().data(points).max(peak.max(1)).fg(Color::Cyan), inside);
}

fn draw_processes(top: &Top, shown: usize, frame: &mut Frame<'_>, area: Rect) {
    let head = ["process", "pid", "state", "req/s", "active", "conns", "idle", "fds", "seen"];
    let rows = top.now.processes.iter().take(shown).map(|process| {
        let totals = &process.totals;
        let change = top.recent.as_ref().and_then(|(change, seconds)| {
            let changed = change.processes.iter().find(|changed| changed.slot == process.slot)?;
            Some(rate(changed.totals.requests, *seconds))
        });
        let style = if process.is_alive { Style::new() } else { Style::new().red() };
        cells([
            format!(" {}", label(process)),
            process.id.pid.to_string(),
            top.now.status(process).to_owned(),
            change.unwrap_or_else(|| "-".into()),
            count(totals.requests_active),
            count(totals.connections_active),
            count(totals.connections_idle),
            count(totals.descriptors),
            age(top.now.taken_ns.saturating_sub(process.heartbeat_ns)),
        ])
        .style(style)
    });
    let left = top.now.processes.len() - shown;
    let more = (left > 0).then(|| Cells::new([format!(" and {left} more")]).dim());
    let widths = [16, 8, 9, 7, 7, 6, 6, 6, 7].map(Constraint::Length);
    frame.render_widget(Table::new(rows.chain(more), widths).header(header(head)).column_spacing(1), area);
}

fn draw_upstreams(top: &mut Top, frame: &mut Frame<'_>, area: Rect) {
    let nothing = (top.now.since(&top.now), 0.0);
    let (change, seconds) = top.recent.as_ref().unwrap_or(&nothing);
    let rows = rows::rows(change, top.sort);
    let visible = usize::from(area.height.saturating_sub(2));
    top.scroll = top.scroll.min(rows.len().saturating_sub(visible));
    let head = ["upstream", "req/s", "active", "idle", "faults", "p50", "p99", "health"];
    let widths = [7, 6, 6, 6, 7, 7, 7];
    let room = usize::from(area.width.saturating_sub(widths.iter().map(|width| width + 1).sum()));
    let lines = rows.iter().skip(top.scroll).take(visible).map(|row| upstream_cells(row, *seconds, room));
    let widths = [Constraint::Fill(1)].into_iter().chain(widths.map(Constraint::Length));
    frame.render_widget(Table::new(lines, widths).header(header(head)).column_spacing(1), area);
}

fn upstream_cells(row: &Row, seconds: f64, room: usize) -> Cells<'static> {
    let quantile = |share| latency(row.latency.quantile_ns(share));
    let indent = if row.is_upstream { " " } else { "   " };
    let cells = cells([
        format!("{indent}{}", ending(&row.name, room.saturating_sub(indent.len()))),
        rate(row.requests, seconds),
        count(row.active),
        count(row.idle),
        rate(row.faults, seconds),
        quantile(0.5),
        quantile(0.99),
        row.health.clone(),
    ]);
    match row {
        Row { is_down: true, .. } => cells.red(),
        Row { is_upstream: true, .. } => cells.bold(),
        _ => cells,
    }
}

/// At most `room` characters of a name: addresses differ at their end.
fn ending(name: &str, room: usize) -> String {
    let excess = name.chars().count().saturating_sub(room);
    if excess == 0 { name.to_owned() } else { ['…'].into_iter().chain(name.chars().skip(excess + 1)).collect() }
}

/// A name to the left, numbers to the right.
fn cells<const N: usize>(texts: [String; N]) -> Cells<'static> {
    Cells::new(texts.into_iter().enumerate().map(|(index, text)| {
        let side = if index == 0 { Alignment::Left } else { Alignment::Right };
        Line::from(text).alignment(side)
    }))
}

fn header<const N: usize>(names: [&str; N]) -> Cells<'static> {
    let mut texts = names.map(str::to_owned);
    texts[0].insert(0, ' ');
    cells(texts).style(Style::new().dim().underlined()).top_margin(1)
}

fn footer(top: &Top) -> Line<'static> {
    if let Some(trouble) = &top.trouble {
        return Line::from(format!(" {trouble}")).red();
    }
    let mut line = Line::from(format!(" q quit   p pause   s sort: {}   h help", top.sort.name())).dim();
    if top.is_paused {
        line.push_span(Span::from("   PAUSED").yellow().bold());
    }
    line
}

fn draw_help(frame: &mut Frame<'_>) {
    let (columns, rows) = (58, 11);
    let area = frame.area();
    let area = Rect {
        x: area.width.saturating_sub(columns) / 2,
        y: area.height.saturating_sub(rows) / 2,
        width: columns.min(area.width),
        height: rows.min(area.height),
    };
    frame.render_widget(Clear, area);
    frame.render_widget(Paragraph::new(HELP).block(Block::bordered().title(" sluice top ")), area);
}

#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn volume(number: u64, seconds: f64) -> String {
    if seconds > 0.0 { bytes((number as f64 / seconds) as u64) } else { "-".into() }
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use shared::health;
    use shared::ident::{Generation, ProcessId, Seat, Slot};
    use shared::stats::{Object, Process, ProcessTotals, Server, ServerTotals, Upstream, UpstreamTotals};
    use shared::zone::Role;

    use super::super::history::History;
    use super::super::rows::Sort;
    use super::*;

    fn snapshot(requests: u64, workers: u32) -> Snapshot {
        let process = |seat| Process {
            slot: Slot(seat),
            id: ProcessId { pid: 100, start_time: 1, incarnation: 1 },
            is_alive: true,
            role: Some(Role::Worker),
            seat: Some(Seat(seat)),
            generation: Generation(1),
            state: Some(shared::stats::State::Serving),
            heartbeat_ns: 400_000_000_000_000,
            drain_due_ns: None,
            totals: ProcessTotals { requests, ..ProcessTotals::default() },
        };
        let totals = ServerTotals { requests, ..ServerTotals::default() };
        let server = Object { name: "unix:/run/with/a/very/long/name/app.sock".into(), totals, by_slot: vec![] };
        let upstream = Object { name: "app".into(), totals: UpstreamTotals::default(), by_slot: vec![] };
        Snapshot {
            is_supervised: true,
            processes: (0..workers).map(process).collect(),
            totals: ProcessTotals { requests, ..ProcessTotals::default() },
            upstreams: vec![Upstream {
                object: upstream,
                servers: vec![Server { object: server, health: health::INITIAL }],
            }],
            ..Snapshot::default()
        }
    }

    fn screen(columns: u16, rows: u16, workers: u32, shows_help: bool) -> String {
        let mut top = Top {
            zone: "zone".into(),
            now: snapshot(5_000, workers),
            recent: Some((snapshot(500, workers), 1.0)),
            history: History::default(),
            trouble: None,
            sort: Sort::Requests,
            is_paused: true,
            shows_help,
            scroll: 99,
        };
        top.history.add(500, 1.0);
        let mut terminal = Terminal::new(TestBackend::new(columns, rows)).unwrap();
        terminal.draw(|frame| draw(&mut top, frame)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn all_of_it_is_on_80_by_24() {
        let screen = screen(80, 24, 64, false);
        for text in [
            "running",
            "500/s",
            "worker 5",
            "and 58 more",
            " app ",
            "name/app.sock ",
            "1/1 up",
            "PAUSED",
            "sort: requests",
        ] {
            assert!(screen.contains(text), "{text} is not on\n{screen}");
        }
    }

    #[test]
    fn no_size_is_too_small() {
        for (columns, rows) in [(1, 1), (20, 3), (40, 10), (79, 12), (300, 100)] {
            screen(columns, rows, 3, true);
        }
    }
}
