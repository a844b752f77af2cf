//! The text of the configuration that is served, in the runtime directory: what a reload would change, and whether the file
//! has drifted from what runs, is told from it without asking any process.

#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use conf::model::Config;

use crate::recipe::Recipe;
use crate::runtime_dir::replace_file;

/// What its first line begins with.
const MARK: &str = "# read from ";

/// The file. Removed when its master ends in order.
#[derive(Debug)]
pub(crate) struct Committed(PathBuf);

impl Committed {
    /// Writes it, in one step for whoever reads. `name` is what the configuration was read from.
    ///
    /// # Errors
    /// A sentence for the operator.
    pub(crate) fn write(path: &Path, name: &str, text: &str) -> Result<Committed, String> {
        replace_file(path, &format!("{MARK}{name}\n{text}"), 0o640)
            .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        Ok(Committed(path.into()))
    }

    /// The configuration in it, as `recipe` would have loaded it.
    ///
    /// # Errors
    /// `NotFound` when no proxy serves; a text that this version cannot read is `InvalidData`.
    pub(crate) fn read(path: &Path, recipe: &Recipe) -> io::Result<(String, Config)> {
        let whole = fs::read_to_string(path)?;
        let text = whole.split_once('\n').map_or("", |(_, text)| text).to_owned();
        let loaded = conf::parse(&text, &path.display().to_string())
            .map_err(|problems| io::Error::new(io::ErrorKind::InvalidData, problems.to_string()))?;
        Ok((text, recipe.anchored(loaded).config))
    }

    /// What the configuration that is served was read from, and what the next one will be; `None` when nobody tells.
    pub(crate) fn name(path: &Path) -> Option<String> {
        let whole = fs::read_to_string(path).ok()?;
        Some(whole.lines().next()?.strip_prefix(MARK)?.to_owned())
    }

    /// Removes it.
    pub(crate) fn remove(self) {
        // It may have been removed by hand: then there is nothing left to do.
        let _ = fs::remove_file(self.0);
    }
}

/// A short name for a text: FNV-1a of 64 bits, as 16 hexadecimal digits.
pub(crate) fn hash(text: &str) -> String {
    let hash = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back_as_the_same_configuration() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("committed.yaml");
        let loaded = Recipe::BuiltIn.load().unwrap();
        assert_eq!(Committed::read(&path, &Recipe::BuiltIn).unwrap_err().kind(), io::ErrorKind::NotFound);
        let committed = Committed::write(&path, "x.yaml", &loaded.text).unwrap();
        assert_eq!(Committed::name(&path).as_deref(), Some("x.yaml"));
        assert_eq!(Committed::read(&path, &Recipe::BuiltIn).unwrap(), (loaded.text, loaded.config));
        committed.remove();
        assert!(!path.exists());
    }

    #[test]
    fn hashes_are_those_of_the_standard() {
        assert_eq!(hash(""), "cbf29ce484222325");
        assert_eq!(hash("a"), "af63dc4c8601ec8c");
    }
}
