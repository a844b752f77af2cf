//! Where a reader gets words from: a file by `pread`, or bytes in memory. Never a mapping: a file that shrinks under
//! its reader is then an error, where a mapping would be a SIGBUS.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes at offsets.
pub(crate) trait Source {
    /// How many bytes there are.
    fn length(&self) -> io::Result<u64>;

    /// Fills `buffer` from `offset` on, whole.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// The words from `offset` on.
    fn words(&self, offset: u64, words: &mut [u64]) -> io::Result<()> {
        let mut bytes = vec![0; words.len() * 8];
        self.read(offset, &mut bytes)?;
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
            *word = u64::from_ne_bytes(*bytes);
        }
        Ok(())
    }

    /// The word at `offset`.
    fn word(&self, offset: u64) -> io::Result<u64> {
        let mut word = [0];
        self.words(offset, &mut word)?;
        Ok(word[0])
    }
}

impl Source for File {
    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(buffer, offset)
    }
}

impl Source for &[u8] {
    fn length(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = start.checked_add(buffer.len()).and_then(|end| self.get(start..end));
        buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}
