//! What a child may do: whose account it runs as, how many descriptors and how much memory it may have, on which cores
//! it runs. The child assumes them itself, first thing, and cannot go back.

#![forbid(unsafe_code)]

use std::ffi::CString;

use conf::model::{Config, CpuAffinity};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::prctl::set_no_new_privs;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Gid, Group, Pid, Uid, User, geteuid, getpid, initgroups, setgid, setuid};
use shared::ident::Seat;

/// The most memory that the proof of a configuration may allocate.
const PROOF_MEMORY_BYTES_MAX: u64 = 1 << 30;
/// The most time on a core that the proof of a configuration may take.
const PROOF_CPU_SECONDS_MAX: u64 = 20;
/// Descriptors for what is not a connection: logs, channel, poll, zone, files read by the helper.
const DESCRIPTORS_SPARE: u64 = 64;

/// The rights of the children of one configuration.
#[derive(Debug, Clone)]
pub(crate) struct Rights {
    account: Option<Account>,
    affinity: CpuAffinity,
    cores: Vec<usize>,
    descriptors: u64,
}

#[derive(Debug, Clone)]
struct Account {
    name: CString,
    uid: Uid,
    gid: Gid,
}

/// A setting that this machine cannot satisfy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lack {
    /// Its place in the document.
    pub(crate) setting: &'static str,
    /// What is wrong, in a sentence for the operator.
    pub(crate) reason: String,
    /// What would be right.
    pub(crate) hint: &'static str,
}

impl From<Lack> for String {
    fn from(lack: Lack) -> String {
        lack.reason
    }
}

impl Rights {
    /// Looks up what `config` asks for. `sockets` is how many listening sockets a worker inherits.
    ///
    /// # Errors
    /// No such account, group or core.
    pub(crate) fn of(config: &Config, sockets: usize) -> Result<Rights, Lack> {
        let user =
            |reason| Lack { setting: "user", reason, hint: "name an account of this machine, as in `user: www-data`" };
        let affinity =
            |reason| Lack { setting: "worker_cpu_affinity", reason, hint: "name cores that it may run on, or auto" };
        let account = match &config.user {
            Some(name) if geteuid().is_root() => Some(Account::find(&name.name, name.group.as_deref()).map_err(user)?),
            _ => None,
        };
        let cores = allowed_cores().map_err(affinity)?;
        if let CpuAffinity::Cores(entries) = &config.worker_cpu_affinity
            && let Some(core) = entries.iter().flatten().find(|core| !cores.contains(&(**core as usize)))
        {
            return Err(affinity(format!("core {core} is not one that this process may run on (it may: {cores:?})")));
        }
        // A spliced connection has a pipe of two beside its own descriptor.
        let descriptors = u64::from(config.worker_connections) * 2 + sockets as u64 + DESCRIPTORS_SPARE;
        Ok(Rights { account, affinity: config.worker_cpu_affinity.clone(), cores, descriptors })
    }

    /// Raises the limit of descriptors, as far as it goes, for the master and all that it forks from now on. Says what
    /// is unwise about these rights, in a sentence each.
    pub(crate) fn prepare(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if geteuid().is_root() && self.account.is_none() {
            warnings.push("the workers run as root: name an account for them with `user`".into());
        }
        let needed = self.descriptors;
        match raise_descriptors(needed) {
            Ok(limit) if limit < needed => warnings.push(format!(
                "a worker may need {needed} descriptors and can have {limit}: raise the limit (ulimit -Hn) or lower worker_connections"
            )),
            Ok(_) => {}
            Err(error) => warnings.push(format!("cannot raise the limit of descriptors to {needed}: {error}")),
        }
        warnings
    }

    /// Makes the calling process a worker on `seat`.
    ///
    /// # Errors
    /// What was refused.
    pub(crate) fn assume_worker(&self, seat: Seat) -> Result<(), String> {
        let cores = self.cores_of(seat);
        if !cores.is_empty() {
            let mut set = CpuSet::new();
            cores
                .iter()
                .try_for_each(|core| set.set(*core))
                .map_err(|error| format!("cannot name cores {cores:?}: {error}"))?;
            sched_setaffinity(Pid::from_raw(0), &set)
                .map_err(|error| format!("cannot run on cores {cores:?}: {error}"))?;
        }
        self.drop_privileges()
    }

    /// Makes the calling process one that only computes, within bounds.
    ///
    /// # Errors
    /// What was refused.
    pub(crate) fn assume_proof(&self) -> Result<(), String> {
        setrlimit(Resource::RLIMIT_DATA, PROOF_MEMORY_BYTES_MAX, PROOF_MEMORY_BYTES_MAX)
            .and_then(|()| setrlimit(Resource::RLIMIT_CPU, PROOF_CPU_SECONDS_MAX, PROOF_CPU_SECONDS_MAX))
            .map_err(|error| format!("cannot bound the proof: {error}"))?;
        self.drop_privileges()
    }

    /// Makes the calling process `control`.
    ///
    /// # Errors
    /// What was refused.
    pub(crate) fn assume_control(&self) -> Result<(), String> {
        self.drop_privileges()
    }

    fn drop_privileges(&self) -> Result<(), String> {
        if let Some(account) = &self.account {
            account
                .assume()
                .map_err(|error| format!("cannot become user {}: {error}", account.name.to_string_lossy()))?;
        }
        set_no_new_privs().map_err(|error| format!("cannot set no_new_privs: {error}"))
    }

    fn cores_of(&self, seat: Seat) -> Vec<usize> {
        let seat = seat.0 as usize;
        match &self.affinity {
            CpuAffinity::Off => Vec::new(),
            CpuAffinity::Auto => self.cores.get(seat % self.cores.len().max(1)).copied().into_iter().collect(),
            CpuAffinity::Cores(entries) => {
                entries.get(seat % entries.len().max(1)).into_iter().flatten().map(|core| *core as usize).collect()
            }
        }
    }
}

impl Account {
    fn find(name: &str, group: Option<&str>) -> Result<Account, String> {
        let user = User::from_name(name)
            .map_err(|error| format!("cannot look up user {name:?}: {error}"))?
            .ok_or_else(|| format!("there is no user {name:?}"))?;
        let gid = match group {
            None => user.gid,
            Some(group) => {
                Group::from_name(group)
                    .map_err(|error| format!("cannot look up group {group:?}: {error}"))?
                    .ok_or_else(|| format!("there is no group {group:?}"))?
                    .gid
            }
        };
        let name = CString::new(name).map_err(|_| format!("user {name:?} contains a NUL byte"))?;
        Ok(Account { name, uid: user.uid, gid })
    }

    // Groups first: after setuid there is no right left to change them.
    fn assume(&self) -> nix::Result<()> {
        initgroups(&self.name, self.gid)?;
        setgid(self.gid)?;
        setuid(self.uid)
    }
}

/// The cores that the calling process may run on.
///
/// # Errors
/// When the kernel does not tell.
pub(crate) fn allowed_cores() -> Result<Vec<usize>, String> {
    let set = sched_getaffinity(getpid()).map_err(|error| format!("cannot tell which cores there are: {error}"))?;
    Ok((0..CpuSet::count()).filter(|core| set.is_set(*core).unwrap_or(false)).collect())
}

/// Raises the limit to `needed`, or as far as it goes, and says how far that is.
fn raise_descriptors(needed: u64) -> nix::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft >= needed || setrlimit(Resource::RLIMIT_NOFILE, needed, needed.max(hard)).is_ok() {
        return Ok(soft.max(needed));
    }
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map(|()| hard)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rights(affinity: CpuAffinity) -> Rights {
        Rights { account: None, affinity, cores: vec![2, 3, 5], descriptors: 0 }
    }

    #[test]
    fn seats_wrap_around_cores() {
        let entries = CpuAffinity::Cores(vec![vec![2], vec![3, 5]]);
        let table: &[(CpuAffinity, u32, &[usize])] = &[
            (CpuAffinity::Off, 0, &[]),
            (CpuAffinity::Auto, 0, &[2]),
            (CpuAffinity::Auto, 2, &[5]),
            (CpuAffinity::Auto, 4, &[3]),
            (entries.clone(), 1, &[3, 5]),
            (entries, 2, &[2]),
        ];
        for (affinity, seat, expected) in table {
            assert_eq!(rights(affinity.clone()).cores_of(Seat(*seat)), *expected, "{affinity:?}, seat {seat}");
        }
    }

    #[test]
    fn unknown_accounts_are_named() {
        assert_eq!(Account::find("nobody-here", None).unwrap_err(), "there is no user \"nobody-here\"");
        assert_eq!(Account::find("root", Some("no-group")).unwrap_err(), "there is no group \"no-group\"");
        assert_eq!(Account::find("root", None).unwrap().uid, Uid::from_raw(0));
    }
}
