//! Forms of scalars: what each looks like in a text, and what the schema says of it.

use std::borrow::Cow;
use std::path::PathBuf;
use std::str::FromStr;

use schemars::{Schema, json_schema};

use crate::leaf::Leaf;
use crate::model::{HostPattern, LogTarget, User, WorkerProcesses};
use crate::quantity::{Bytes, Period};
use crate::template::Template;
use crate::value::{Address, Invalid, IpNet};

/// A whole number within bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Int<const MIN: u64, const MAX: u64>(pub(crate) u64);

/// `on` or `off`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Switch(pub(crate) bool);

/// A value, or `off` for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OrOff<T>(pub(crate) Option<T>);

/// Which cores workers run on, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AffinityWord {
    /// Wherever the scheduler puts them.
    Off,
    /// One core each.
    Auto,
}

/// A size in bytes within bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size<const MIN: u64, const MAX: u64>(pub(crate) u64);

/// A path in the file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FilePath(pub(crate) PathBuf);

impl<const MIN: u64, const MAX: u64> FromStr for Int<MIN, MAX> {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text.parse() {
            Ok(number) if (MIN..=MAX).contains(&number) => Ok(Int(number)),
            Ok(_) => Err(Invalid::new(format!("{text} is out of range")).hint(format!("from {MIN} to {MAX}"))),
            Err(_) => Err(Invalid::new(format!("`{text}` is not a whole number")).hint(format!("from {MIN} to {MAX}"))),
        }
    }
}

impl<const MIN: u64, const MAX: u64> Leaf for Int<MIN, MAX> {
    const EXPECTED: &'static str = "a whole number";

    fn schema() -> Schema {
        json_schema!({"type": "integer", "minimum": MIN, "maximum": MAX})
    }
}

impl FromStr for Switch {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Switch, Invalid> {
        match text {
            "on" => Ok(Switch(true)),
            "off" => Ok(Switch(false)),
            _ => Err(Invalid::new(format!("`{text}` is neither on nor off")).hint("write true or false")),
        }
    }
}

impl Leaf for Switch {
    const EXPECTED: &'static str = "true or false";
    const BOOLEAN: bool = true;

    fn schema() -> Schema {
        json_schema!({"anyOf": [{"type": "boolean"}, {"enum": ["on", "off"]}]})
    }
}

impl<T: Leaf> FromStr for OrOff<T> {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<OrOff<T>, Invalid> {
        match text {
            "off" => Ok(OrOff(None)),
            "on" => Err(Invalid::new("`on` is no value here").hint(format!("write {}, or off", T::EXPECTED))),
            _ => text.parse().map(|value| OrOff(Some(value))),
        }
    }
}

impl<T: Leaf> Leaf for OrOff<T> {
    const EXPECTED: &'static str = T::EXPECTED;
    const BOOLEAN: bool = true;

    fn expected() -> Cow<'static, str> {
        format!("{}, or off", T::EXPECTED).into()
    }

    fn schema() -> Schema {
        json_schema!({"anyOf": [{"enum": ["off", false]}, T::schema()]})
    }
}

impl FromStr for AffinityWord {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<AffinityWord, Invalid> {
        match text {
            "off" => Ok(AffinityWord::Off),
            "auto" => Ok(AffinityWord::Auto),
            _ => {
                Err(Invalid::new(format!("unknown value `{text}`"))
                    .hint("off, auto, or lists of cores such as [[0], [1]]"))
            }
        }
    }
}

impl Leaf for AffinityWord {
    const EXPECTED: &'static str = "off or auto";
    const BOOLEAN: bool = true;

    fn schema() -> Schema {
        json_schema!({"enum": ["off", "auto", false]})
    }
}

impl<const MIN: u64, const MAX: u64> FromStr for Size<MIN, MAX> {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let Bytes(bytes) = text.parse()?;
        if !(MIN..=MAX).contains(&bytes) {
            return Err(Invalid::new(format!("{text} is out of range")).hint(format!(
                "from {} to {}",
                Bytes(MIN),
                Bytes(MAX)
            )));
        }
        Ok(Size(bytes))
    }
}

impl<const MIN: u64, const MAX: u64> Leaf for Size<MIN, MAX> {
    const EXPECTED: &'static str = "a size, such as 16KiB";

    fn schema() -> Schema {
        json_schema!({"anyOf": [
            {"type": "string", "pattern": "^[0-9]+([KMGT]iB)?$", "examples": ["16KiB"]},
            {"type": "integer", "minimum": MIN, "maximum": MAX},
        ]})
    }
}

impl Leaf for Period {
    const EXPECTED: &'static str = "a duration, such as 30s";

    fn schema() -> Schema {
        json_schema!({
            "type": "string",
            "pattern": "^([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?([0-9]+ms)?$",
            "minLength": 2,
            "examples": ["30s"],
        })
    }
}

impl Leaf for Address {
    const EXPECTED: &'static str = "an address, such as 127.0.0.1:8080";

    fn schema() -> Schema {
        json_schema!({
            "type": "string",
            "pattern": "^(unix:/.+|\\[[0-9A-Fa-f:.]+\\]:[0-9]+|[0-9.]+:[0-9]+)$",
            "examples": ["127.0.0.1:8080", "[::1]:8080", "unix:/run/app.sock"],
        })
    }
}

impl Leaf for IpNet {
    const EXPECTED: &'static str = "a network, such as 10.0.0.0/8";

    fn schema() -> Schema {
        json_schema!({
            "type": "string",
            "pattern": "^(unix:|[0-9A-Fa-f:.]+(/[0-9]+)?)$",
            "examples": ["10.0.0.0/8", "2001:db8::/32", "192.0.2.7", "unix:"],
        })
    }
}

impl FromStr for FilePath {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<FilePath, Invalid> {
        match text {
            "" => Err(Invalid::new("an empty path")),
            _ if text.contains('\0') => Err(Invalid::new("a path holds no NUL")),
            _ => Ok(FilePath(PathBuf::from(text))),
        }
    }
}

impl Leaf for FilePath {
    const EXPECTED: &'static str = "a path";

    fn schema() -> Schema {
        json_schema!({"type": "string", "minLength": 1})
    }
}

impl FromStr for LogTarget {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<LogTarget, Invalid> {
        match text {
            "stderr" => Ok(LogTarget::Stderr),
            "stdout" => Ok(LogTarget::Stdout),
            _ => text.parse().map(|FilePath(path)| LogTarget::File(path)),
        }
    }
}

impl Leaf for LogTarget {
    const EXPECTED: &'static str = "a path, stderr or stdout";

    fn schema() -> Schema {
        json_schema!({"type": "string", "minLength": 1, "examples": ["stderr", "stdout", "/var/log/sluice/error.log"]})
    }
}

impl FromStr for WorkerProcesses {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<WorkerProcesses, Invalid> {
        match text {
            "auto" => Ok(WorkerProcesses::Auto),
            _ => match text.parse() {
                Ok(number @ 1..=512) => Ok(WorkerProcesses::Exactly(number)),
                _ => Err(Invalid::new(format!("`{text}` is no number of workers")).hint("auto, or from 1 to 512")),
            },
        }
    }
}

impl Leaf for WorkerProcesses {
    const EXPECTED: &'static str = "auto or a number";

    fn schema() -> Schema {
        json_schema!({"anyOf": [{"const": "auto"}, {"type": "integer", "minimum": 1, "maximum": 512}]})
    }
}

impl FromStr for User {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<User, Invalid> {
        let (name, group) = text.split_once(':').map_or((text, None), |(name, group)| (name, Some(group)));
        let is_name =
            |name: &str| !name.is_empty() && !name.contains(|c: char| c == ':' || c.is_control() || c.is_whitespace());
        if !is_name(name) || !group.is_none_or(is_name) {
            return Err(Invalid::new(format!("`{text}` names no account")).hint("write name, or name:group"));
        }
        Ok(User { name: name.to_string(), group: group.map(str::to_string) })
    }
}

impl Leaf for User {
    const EXPECTED: &'static str = "an account's name";

    fn schema() -> Schema {
        json_schema!({"type": "string", "pattern": "^[^:\\s]+(:[^:\\s]+)?$", "examples": ["www-data", "sluice:sluice"]})
    }
}

impl Leaf for HostPattern {
    const EXPECTED: &'static str = "a host";

    fn schema() -> Schema {
        json_schema!({
            "type": "string",
            "pattern": "^(\\*\\.)?([A-Za-z0-9_-]+\\.)*[A-Za-z0-9_-]+$|^\\[[0-9A-Fa-f:.]+\\]$",
            "examples": ["example.com", "*.example.com"],
        })
    }
}

impl FromStr for Template {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Template, Invalid> {
        Template::parse(text).map_err(Invalid::from)
    }
}

impl Leaf for Template {
    const EXPECTED: &'static str = "text";

    fn schema() -> Schema {
        json_schema!({"type": "string"})
    }
}
