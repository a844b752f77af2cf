//! `sluice top`: a page that shows the proxy at work.

#![forbid(unsafe_code)]

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use shared::stats::Snapshot;
use shared::zone::ZoneError;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};

use super::exit;
use super::interval::Interval;

mod history;
mod page;
mod rows;

use history::History;
use rows::Sort;

/// The longest time until a signal is obeyed.
const ATTENTION: Duration = Duration::from_millis(100);

/// What `sluice top` is asked for.
#[derive(Debug, Clone, Args)]
pub(crate) struct TopArgs {
    /// Look again after this long
    #[arg(long, value_name = "TIME", default_value = "1s")]
    interval: Interval,
}

/// All that the page shows.
struct Top {
    zone: PathBuf,
    now: Snapshot,
    /// What has happened in the last interval, and how many seconds that was.
    recent: Option<(Snapshot, f64)>,
    history: History,
    /// Why `now` is out of date.
    trouble: Option<ZoneError>,
    sort: Sort,
    is_paused: bool,
    shows_help: bool,
    /// The first row of the lower table that is shown.
    scroll: usize,
}

/// Shows the proxy with runtime directory `dir` until `q`, or a signal.
pub(crate) fn run(args: TopArgs, dir: &Path) -> i32 {
    let zone = dir.join("zone");
    let now = match Snapshot::read(&zone) {
        Ok(now) => now,
        Err(error) => {
            eprintln!("sluice: {error}");
            return if matches!(error, ZoneError::Absent(_)) { exit::ABSENT.into() } else { exit::FAILED.into() };
        }
    };
    if !(io::stdin().is_terminal() && io::stdout().is_terminal()) {
        eprintln!("sluice: top needs a terminal; `sluice stats --interval 1s` does not");
        return exit::FAILED.into();
    }
    let mut top = Top {
        zone,
        now,
        recent: None,
        history: History::default(),
        trouble: None,
        sort: Sort::Name,
        is_paused: false,
        shows_help: false,
        scroll: 0,
    };
    // Restores the terminal on a panic too.
    let shown = ratatui::try_init().and_then(|mut terminal| top.show(&mut terminal, args.interval.0));
    ratatui::restore();
    match shown {
        Ok(()) => exit::DONE.into(),
        Err(error) => {
            eprintln!("sluice: {error}");
            exit::FAILED.into()
        }
    }
}

impl Top {
    fn show(&mut self, terminal: &mut DefaultTerminal, interval: Duration) -> io::Result<()> {
        let ended = Arc::new(AtomicBool::new(false));
        for signal in [SIGTERM, SIGINT, SIGHUP, SIGQUIT] {
            signal_hook::flag::register(signal, Arc::clone(&ended))?;
        }
        let mut due = Instant::now() + interval;
        terminal.draw(|frame| page::draw(self, frame))?;
        while !ended.load(Ordering::Relaxed) {
            let wait = due.saturating_duration_since(Instant::now());
            let mut changed = false;
            if event::poll(wait.min(ATTENTION))? {
                match event::read()? {
                    Event::Key(key) if key.kind == KeyEventKind::Press => {
                        if !self.obey(key) {
                            return Ok(());
                        }
                        changed = true;
                    }
                    Event::Resize(..) => changed = true,
                    _ => {}
                }
            }
            if Instant::now() >= due {
                due = Instant::now() + interval;
                if !self.is_paused {
                    self.look();
                    changed = true;
                }
            }
            if changed {
                terminal.draw(|frame| page::draw(self, frame))?;
            }
        }
        Ok(())
    }

    fn look(&mut self) {
        match Snapshot::read(&self.zone) {
            Ok(now) => {
                let seconds = Duration::from_nanos(now.taken_ns - self.now.taken_ns).as_secs_f64();
                let change = now.since(&self.now);
                self.history.add(change.totals.requests, seconds);
                self.recent = Some((change, seconds));
                self.now = now;
                self.trouble = None;
            }
            Err(error) => self.trouble = Some(error),
        }
    }

    /// What a key does; false ends the page.
    fn obey(&mut self, key: KeyEvent) -> bool {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('c' | 'd') if control => return false,
            KeyCode::Char('q') => return false,
            KeyCode::Esc if !self.shows_help => return false,
            KeyCode::Char('h' | '?') => self.shows_help = !self.shows_help,
            KeyCode::Esc => self.shows_help = false,
            KeyCode::Char('p' | ' ') => self.is_paused = !self.is_paused,
            KeyCode::Char('s') | KeyCode::Tab => self.sort = self.sort.next(),
            KeyCode::Down | KeyCode::Char('j') => self.scroll += 1,
            KeyCode::Up | KeyCode::Char('k') => self.scroll = self.scroll.saturating_sub(1),
            _ => {}
        }
        true
    }
}
