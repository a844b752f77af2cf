//! Who is compared, and how each is set up: one worker, no access log, connections to the origin kept.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::ValueEnum;

/// A proxy of the comparison.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Peer {
    /// A blind relay: what no epoll proxy goes below.
    Floor,
    /// nginx.
    Nginx,
    /// HAProxy.
    Haproxy,
    /// Sluice.
    Sluice,
    /// Sluice that writes an access log in JSON.
    SluiceLog,
}

impl Peer {
    /// What tables and chart call it.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Peer::Floor => "floor",
            Peer::Nginx => "nginx",
            Peer::Haproxy => "HAProxy",
            Peer::Sluice => "Sluice",
            Peer::SluiceLog => "Sluice, logging",
        }
    }

    /// How to run it on 127.0.0.1 at `port` before an origin at `origin`, with its files in `dir`.
    ///
    /// # Errors
    /// When its configuration cannot be written.
    pub(crate) fn command(self, dir: &Path, port: u16, origin: u16) -> io::Result<Command> {
        let ports = [("@PORT@", port.to_string()), ("@ORIGIN@", origin.to_string())];
        match self {
            Peer::Floor => {
                let mut command = Command::new(std::env::current_exe()?);
                command.args(["floor", &format!("127.0.0.1:{port}"), &format!("127.0.0.1:{origin}")]);
                Ok(command)
            }
            Peer::Nginx => Ok(nginx(dir, &configure(dir, "nginx.conf", include_str!("conf/nginx.conf"), &ports)?)),
            Peer::Haproxy => {
                let file = configure(dir, "haproxy.cfg", include_str!("conf/haproxy.cfg"), &ports)?;
                let mut command = Command::new(program("HAPROXY", "haproxy"));
                command.arg("-db").arg("-f").arg(file);
                Ok(command)
            }
            Peer::Sluice | Peer::SluiceLog => {
                let log = match self {
                    Peer::SluiceLog => format!("{{path: {}, format: json}}", dir.join("access.log").display()),
                    _ => "off".to_owned(),
                };
                let [port, origin] = ports;
                let words = [port, origin, ("@ACCESS_LOG@", log)];
                let file = configure(dir, "sluice.yaml", include_str!("conf/sluice.yaml"), &words)?;
                let mut command = Command::new(sluice()?);
                command.arg("-c").arg(file);
                Ok(command)
            }
        }
    }

    /// Its name and version as it tells them itself; `None` for the floor, which has none.
    ///
    /// # Errors
    /// When the program is not there.
    pub(crate) fn version(self) -> io::Result<Option<String>> {
        let program = match self {
            Peer::Floor => return Ok(None),
            Peer::Nginx => program("NGINX", "nginx"),
            Peer::Haproxy => program("HAPROXY", "haproxy"),
            Peer::Sluice | Peer::SluiceLog => sluice()?,
        };
        let said = Command::new(&program)
            .arg("-v")
            .output()
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", program.display())))?;
        let text =
            String::from_utf8_lossy(if said.stdout.is_empty() { &said.stderr } else { &said.stdout }).into_owned();
        let number = text.split(|c: char| c.is_whitespace() || c == '/').find(|word| is_version(word));
        Ok(Some(format!("{} {}", Peer::title(self), number.unwrap_or("of unknown version"))))
    }
}

/// The origin behind every peer: an nginx that answers from memory.
///
/// # Errors
/// When its files cannot be written.
pub(crate) fn origin(dir: &Path, port: u16) -> io::Result<Command> {
    fs::write(dir.join("1m"), vec![b'x'; 1 << 20])?;
    let words = [("@PORT@", port.to_string()), ("@KIBIBYTE@", "x".repeat(1024))];
    Ok(nginx(dir, &configure(dir, "origin.conf", include_str!("conf/origin.conf"), &words)?))
}

fn nginx(dir: &Path, config: &Path) -> Command {
    let mut command = Command::new(program("NGINX", "nginx"));
    command.arg("-p").arg(dir).arg("-e").arg(dir.join("error.log")).arg("-c").arg(config).args(["-g", "daemon off;"]);
    command
}

fn configure(dir: &Path, name: &str, text: &str, words: &[(&str, String)]) -> io::Result<PathBuf> {
    let mut text = text.replace("@DIR@", &dir.display().to_string());
    for (word, value) in words {
        text = text.replace(word, value);
    }
    let path = dir.join(name);
    fs::write(&path, text)?;
    Ok(path)
}

/// The build that the environment names, or else the one that install.sh made, or else the system's.
fn program(variable: &str, name: &str) -> PathBuf {
    if let Some(path) = std::env::var_os(variable) {
        return PathBuf::from(path);
    }
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/peers").join(name);
    if built.exists() { built } else { PathBuf::from(name) }
}

/// The binary that was built beside this one, unless `SLUICE_BIN` names another.
fn sluice() -> io::Result<PathBuf> {
    match std::env::var_os("SLUICE_BIN") {
        Some(path) => Ok(PathBuf::from(path)),
        None => Ok(std::env::current_exe()?.with_file_name("sluice")),
    }
}

fn is_version(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_placeholder_is_left_in_a_configuration() {
        let dir = tempfile::tempdir().unwrap();
        for peer in [Peer::Nginx, Peer::Haproxy, Peer::Sluice, Peer::SluiceLog] {
            peer.command(dir.path(), 8001, 8002).unwrap();
        }
        origin(dir.path(), 8002).unwrap();
        for name in ["nginx.conf", "haproxy.cfg", "sluice.yaml", "origin.conf"] {
            let text = fs::read_to_string(dir.path().join(name)).unwrap();
            assert!(!text.contains('@'), "{name}");
            assert!(text.contains("8002"), "{name}");
        }
    }

    #[test]
    fn versions_are_told_from_words() {
        for (word, expected) in [("1.22.1", true), ("2.6.12-1+deb12u4", true), ("nginx", false), ("2026", false)] {
            assert_eq!(is_version(word), expected, "{word}");
        }
    }
}
