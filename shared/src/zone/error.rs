//! Why a zone cannot be made, filled or read. Every message says what to do.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::{fmt, io};

use super::layout::{NAME_BYTES_MAX, major};

/// What went wrong with a zone.
#[derive(Debug)]
pub enum ZoneError {
    /// There is no such file.
    Absent(PathBuf),
    /// The system refused.
    Io {
        /// What was being done, as in "cannot ...".
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file cannot be understood.
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        damage: Damage,
    },
    /// More than the zone was laid out for.
    OverMaximum {
        /// Of what.
        what: &'static str,
        /// How many.
        wanted: usize,
        /// How many there can be.
        maximum: u32,
    },
    /// A name longer than [`NAME_BYTES_MAX`].
    NameTooLong {
        /// Of what.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// One name for two objects of a kind.
    Duplicate {
        /// Of what.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// The file system has no room, or makes no promises.
    NoRoom {
        /// For what.
        what: &'static str,
        /// How many bytes more.
        bytes: u64,
        /// What the system said.
        source: io::Error,
    },
}

/// Why a file is not a zone that this version can read.
#[derive(Debug)]
pub enum Damage {
    /// It does not begin as a zone does.
    Foreign,
    /// It ends too early.
    Truncated {
        /// How long it is.
        bytes: u64,
        /// How long it says it is.
        needed: u64,
    },
    /// Its major version is another one.
    OtherMajor(u64),
    /// A section of this number has no room for the records of this version.
    Narrow(u64),
    /// It was made before the machine was started.
    OtherBoot,
    /// It contradicts itself.
    Corrupt(String),
    /// It could not be read.
    Unreadable(io::Error),
}

impl ZoneError {
    /// Whether it is that the zone has another layout, and nothing else is wrong with it.
    #[must_use]
    pub fn is_of_layout(&self) -> bool {
        matches!(self, ZoneError::Damaged { damage: Damage::OtherMajor(_) | Damage::Narrow(_), .. })
    }
}

impl Damage {
    /// Names the file.
    pub(crate) fn of(self, path: &Path) -> ZoneError {
        match self {
            Damage::Unreadable(source) => ZoneError::Io { doing: "read", path: path.to_owned(), source },
            damage => ZoneError::Damaged { path: path.to_owned(), damage },
        }
    }
}

impl From<io::Error> for Damage {
    fn from(error: io::Error) -> Damage {
        Damage::Unreadable(error)
    }
}

impl fmt::Display for ZoneError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ZoneError::Absent(path) => {
                write!(f, "there is no zone {}: no proxy has been started there", path.display())
            }
            ZoneError::Io { doing, path, source } => write!(f, "cannot {doing} {}: {source}", path.display()),
            ZoneError::Damaged { path, damage } => write!(f, "{} {damage}", path.display()),
            ZoneError::OverMaximum { what, wanted, maximum } => {
                write!(f, "the zone holds at most {maximum} {what}, and the configuration needs {wanted}")
            }
            ZoneError::NameTooLong { what, name } => {
                let start = &name[..name.floor_char_boundary(32)];
                write!(f, "a name of {what} has at most {NAME_BYTES_MAX} bytes, and {start}... has {}", name.len())
            }
            ZoneError::Duplicate { what, name } => write!(f, "two {what} have the name {name}"),
            ZoneError::NoRoom { what, bytes, source } => write!(
                f,
                "cannot reserve {bytes} bytes of the zone for {what}: {source} (runtime_dir should be a tmpfs with room)"
            ),
        }
    }
}

impl std::error::Error for ZoneError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ZoneError::Io { source, .. } | ZoneError::NoRoom { source, .. } => Some(source),
            ZoneError::Damaged { damage, .. } => Some(damage),
            _ => None,
        }
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Damage::Foreign => f.write_str("is not a zone: is this the runtime directory of a proxy?"),
            Damage::Truncated { bytes, needed } => {
                write!(f, "is truncated: {bytes} bytes of {needed} are there; restarting the proxy makes a new zone")
            }
            Damage::OtherMajor(found) => write!(
                f,
                "has layout version {found}, this sluice reads version {}: use the sluice that runs the proxy",
                major()
            ),
            Damage::Narrow(section) => {
                write!(f, "has no room in its section {section} for what this sluice writes: it cannot be shared")
            }
            Damage::OtherBoot => f.write_str("is of another boot of this machine: nobody is in it"),
            Damage::Corrupt(what) => write!(f, "is corrupted: {what}; restarting the proxy makes a new zone"),
            Damage::Unreadable(error) => write!(f, "cannot be read: {error}"),
        }
    }
}

impl std::error::Error for Damage {}
