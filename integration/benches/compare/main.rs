//! Sluice beside its peers: CPU time a request, latency and memory, side by side in one run on one machine.
//!
//! Each peer is one worker on one CPU, the load and the origin are on another. Peers take turns, and another one goes
//! first in each round, so that a machine that drifts drifts for all. docs/performance.md has the method in full.

#![forbid(unsafe_code)]

mod floor;
mod load;
mod peer;
mod report;
mod results;
mod running;
mod scenario;
mod svg;
mod usage;

use std::fs::File;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use signal_hook::consts::{SIGINT, SIGTERM};

use peer::Peer;
use report::Machine;
use results::{Measure, Results, Sample};
use running::Running;
use scenario::{IDLE_CONNECTIONS, Scenario};

/// Compares Sluice with its peers.
#[derive(Parser)]
struct Options {
    /// What to measure; everything by default.
    #[arg(short, long, value_enum, value_delimiter = ',')]
    scenarios: Vec<Scenario>,
    /// Whom to measure; everyone by default.
    #[arg(short, long, value_enum, value_delimiter = ',')]
    peers: Vec<Peer>,
    /// How long each measured run puts load on a peer, in seconds.
    #[arg(short = 'd', long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// How often everything is measured; figures are medians.
    #[arg(short, long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=99))]
    rounds: u32,
    /// Where performance.md and performance.svg are brought up to date; only a whole comparison is worth that.
    #[arg(long)]
    docs: Option<PathBuf>,
    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Subcommand)]
enum Role {
    /// Be the blind relay that the others are measured against.
    #[command(hide = true)]
    Floor { listen: SocketAddr, origin: SocketAddr },
}

/// How long the memory of idle connections may settle before it is read.
const SETTLE: Duration = Duration::from_millis(500);
const WARM_UP_SECONDS: u32 = 1;
/// HAProxy wants two a connection, and half as many for pipes.
const DESCRIPTORS: u64 = 3 * IDLE_CONNECTIONS as u64;

fn main() -> ExitCode {
    let options = Options::parse();
    let done = match options.role {
        Some(Role::Floor { listen, origin }) => floor::run(listen, origin).map_err(Into::into),
        None => compare(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("compare: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn compare(options: &Options) -> Result<()> {
    let scenarios = chosen(&options.scenarios);
    let peers: Vec<Peer> = chosen(&options.peers);
    ensure!(
        options.docs.is_none() || options.scenarios.is_empty() && options.peers.is_empty(),
        "--docs is for a whole comparison: without -s and -p"
    );
    let lock = File::create(std::env::temp_dir().join("sluice-compare.lock"))?;
    lock.try_lock().context("another comparison is running")?;
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    raise_descriptors()?;
    let bench = Bench::new(options.seconds, &peers)?;
    let mut results = Results::default();
    for round in 0..options.rounds as usize {
        for &scenario in &scenarios {
            let mut turn: Vec<Peer> = scenario.peers().iter().copied().filter(|peer| peers.contains(peer)).collect();
            if !turn.is_empty() {
                let first = round % turn.len();
                turn.rotate_left(first);
            }
            for peer in turn {
                ensure!(!stop.load(Ordering::Relaxed), "stopped by a signal");
                let sample =
                    bench.measure(scenario, peer).with_context(|| format!("{scenario:?}, {}", peer.title()))?;
                eprintln!("round {} {}", round + 1, report::line(scenario, peer, &sample));
                results.add(scenario, peer, sample);
            }
        }
    }
    let figures = report::markdown(&results, &bench.machine, options.rounds, options.seconds);
    println!("{figures}");
    if let Some(docs) = &options.docs {
        report::publish(docs, &figures, &svg::chart(&results))?;
    }
    Ok(())
}

/// The machine with its origin running.
struct Bench {
    machine: Machine,
    proxy_cpu: usize,
    origin: Running,
    seconds: u32,
}

impl Bench {
    fn new(seconds: u32, peers: &[Peer]) -> Result<Self> {
        let machine = Machine::inspect(peers)?;
        if machine.load > 0.5 {
            eprintln!("note: the load average is {:.2}; this machine is not quiet", machine.load);
        }
        let (proxy_cpu, load_cpu) = running::two_cpus()?;
        running::stay_on(load_cpu)?;
        let origin = Running::start(load_cpu, Scenario::B1m.load(), peer::origin).context("origin")?;
        Ok(Bench { machine, proxy_cpu, origin, seconds })
    }

    /// One run of one peer, started for it and stopped after it.
    fn measure(&self, scenario: Scenario, peer: Peer) -> Result<Sample> {
        let load = scenario.load();
        let command = |dir: &_, port| peer.command(dir, port, self.origin.port());
        let proxy = Running::start(self.proxy_cpu, load, command)?;
        let sample = match scenario {
            Scenario::Idle => self.weigh(&proxy, load)?,
            _ => self.push(&proxy, load)?,
        };
        ensure!(usage::is_pinned(proxy.pid(), self.proxy_cpu), "it left its CPU");
        Ok(sample)
    }

    fn push(&self, proxy: &Running, load: scenario::Load) -> Result<Sample> {
        load::wrk(proxy.port(), load, WARM_UP_SECONDS)?;
        let (cpu, core, start) = (usage::cpu(proxy.pid()), usage::core_seconds(self.proxy_cpu), Instant::now());
        let answers = load::wrk(proxy.port(), load, self.seconds)?;
        let cpu = usage::cpu(proxy.pid()) - cpu;
        let core = usage::core_seconds(self.proxy_cpu) - core;
        let wall = start.elapsed().as_secs_f64();
        ensure!(answers.requests > 0, "no request was answered");
        let requests = answers.requests as f64;
        Ok(vec![
            (Measure::CpuMicros, cpu.seconds() * 1e6 / requests),
            (Measure::UserMicros, cpu.user_seconds() * 1e6 / requests),
            (Measure::RequestsPerSecond, requests / answers.seconds),
            (Measure::P50Millis, answers.p50_ms),
            (Measure::P99Millis, answers.p99_ms),
            (Measure::BusyPercent, 100.0 * cpu.seconds() / wall),
            (Measure::ForeignPercent, (100.0 * (core - cpu.seconds()) / wall).max(0.0)),
        ])
    }

    /// The probe that found it ready was its first request, so what is built once is not charged to the connections.
    fn weigh(&self, proxy: &Running, load: scenario::Load) -> Result<Sample> {
        sleep(SETTLE);
        let before = usage::private_kib(proxy.pid());
        let idle = load::idle(proxy.port(), load)?;
        sleep(SETTLE);
        let after = usage::private_kib(proxy.pid());
        Ok(vec![(Measure::IdleKib, after.saturating_sub(before) as f64 / idle.len() as f64)])
    }
}

fn chosen<T: clap::ValueEnum + Copy>(named: &[T]) -> Vec<T> {
    if named.is_empty() { T::value_variants().to_vec() } else { named.to_vec() }
}

/// Peers inherit the limit.
fn raise_descriptors() -> Result<()> {
    let (now, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    ensure!(most >= DESCRIPTORS, "the hard limit of open files is {most}; {DESCRIPTORS} are needed");
    Ok(setrlimit(Resource::RLIMIT_NOFILE, now.max(DESCRIPTORS), most)?)
}
