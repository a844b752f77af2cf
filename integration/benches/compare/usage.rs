//! What a process and its descendants used, as /proc tells it.

use std::collections::HashSet;
use std::fs;
use std::ops::Sub;

use nix::unistd::{SysconfVar, sysconf};

/// One process of a tree. Its start time tells it from a later one with the same pid.
pub(crate) struct Process {
    pub(crate) pid: i32,
    parent: i32,
    started: u64,
    cpu: Cpu,
}

/// CPU time in clock ticks.
#[derive(Clone, Copy, Default, PartialEq, Debug)]
pub(crate) struct Cpu {
    user: u64,
    system: u64,
}

impl Cpu {
    /// All of it, in seconds.
    pub(crate) fn seconds(self) -> f64 {
        self.user_seconds() + seconds(self.system)
    }

    /// What was spent outside the kernel, in seconds.
    pub(crate) fn user_seconds(self) -> f64 {
        seconds(self.user)
    }
}

impl Sub for Cpu {
    type Output = Cpu;
    fn sub(self, earlier: Cpu) -> Cpu {
        Cpu { user: self.user.saturating_sub(earlier.user), system: self.system.saturating_sub(earlier.system) }
    }
}

impl Process {
    /// Whether it still runs; a zombie does not.
    pub(crate) fn is_alive(&self) -> bool {
        let Ok(text) = fs::read_to_string(format!("/proc/{}/stat", self.pid)) else { return false };
        parse(&text).is_some_and(|(now, state)| now.started == self.started && !matches!(state, 'Z' | 'X'))
    }
}

/// A process and all its living descendants.
pub(crate) fn tree(root: i32) -> Vec<Process> {
    let mut rest: Vec<Process> = numbered("/proc")
        .filter_map(|pid| Some(parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?.0))
        .collect();
    let mut family: Vec<Process> = rest.extract_if(.., |process| process.pid == root).collect();
    let mut members = HashSet::from([root]);
    loop {
        let before = family.len();
        family.extend(rest.extract_if(.., |process| members.contains(&process.parent)));
        if family.len() == before {
            return family;
        }
        members.extend(family[before..].iter().map(|process| process.pid));
    }
}

/// CPU time of the whole tree so far, children that it has reaped included.
pub(crate) fn cpu(root: i32) -> Cpu {
    tree(root).iter().fold(Cpu::default(), |sum, process| Cpu {
        user: sum.user + process.cpu.user,
        system: sum.system + process.cpu.system,
    })
}

/// Memory that the tree shares with nobody, in KiB.
pub(crate) fn private_kib(root: i32) -> u64 {
    let roll_up = |process: &Process| fs::read_to_string(format!("/proc/{}/smaps_rollup", process.pid));
    tree(root).iter().filter_map(|process| roll_up(process).ok()).map(|text| private_of(&text)).sum()
}

/// Whether every thread of the tree may run on that CPU only.
pub(crate) fn is_pinned(root: i32, cpu: usize) -> bool {
    tree(root).iter().all(|process| {
        let tasks = format!("/proc/{}/task", process.pid);
        numbered(&tasks).all(|task| {
            let Ok(status) = fs::read_to_string(format!("{tasks}/{task}/status")) else { return true };
            let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
            allowed.is_none_or(|list| list.trim() == cpu.to_string())
        })
    })
}

/// Seconds that a CPU was not idle since boot: work of all processes, interrupts, and what the hypervisor took away.
pub(crate) fn core_seconds(cpu: usize) -> f64 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let prefix = format!("cpu{cpu} ");
    let Some(line) = text.lines().find_map(|line| line.strip_prefix(&prefix)) else { return 0.0 };
    // user nice system idle iowait irq softirq steal
    let fields: Vec<u64> = line.split_whitespace().map_while(|field| field.parse().ok()).collect();
    let idle = fields.iter().skip(3).take(2).sum::<u64>();
    seconds(fields.iter().take(8).sum::<u64>() - idle)
}

fn numbered(dir: &str) -> impl Iterator<Item = i32> + use<> {
    fs::read_dir(dir).into_iter().flatten().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// A line of /proc/PID/stat, and the state in it.
fn parse(text: &str) -> Option<(Process, char)> {
    // The command stands in parentheses and may hold any character, so fields are counted from the last one.
    let (head, tail) = text.rsplit_once(')')?;
    let fields: Vec<&str> = tail.split_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    let process = Process {
        pid: head.split_whitespace().next()?.parse().ok()?,
        parent: fields.get(1)?.parse().ok()?,
        started: number(19)?,
        cpu: Cpu { user: number(11)? + number(13)?, system: number(12)? + number(14)? },
    };
    Some((process, fields[0].chars().next()?))
}

fn private_of(roll_up: &str) -> u64 {
    let private =
        roll_up.lines().filter(|line| line.starts_with("Private_Clean:") || line.starts_with("Private_Dirty:"));
    private.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum()
}

fn seconds(ticks: u64) -> f64 {
    let a_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
    ticks as f64 / a_second as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_is_read_past_a_hostile_command_name() {
        let line = "42 (a) R 1 (b) S 7 42 42 0 -1 4194560 1 2 3 4 50 60 7 8 20 0 1 0 9001 1 2";
        let (process, state) = parse(line).unwrap();
        assert_eq!((process.pid, process.parent, process.started, state), (42, 7, 9001, 'S'));
        assert_eq!(process.cpu, Cpu { user: 57, system: 68 });
        assert!(parse("42 (a").is_none());
        assert!(parse("42 (a) S 7").is_none());
    }

    #[test]
    fn private_memory_leaves_out_what_is_shared() {
        let text = "Rss: 900 kB\nPss: 500 kB\nShared_Clean: 300 kB\nPrivate_Clean: 12 kB\nPrivate_Dirty: 30 kB\n";
        assert_eq!(private_of(text), 42);
    }

    #[test]
    fn a_tree_begins_with_its_root() {
        let own = std::process::id().cast_signed();
        let family = tree(own);
        assert_eq!(family[0].pid, own);
        assert!(family[0].is_alive());
        assert!(tree(-1).is_empty());
    }
}
