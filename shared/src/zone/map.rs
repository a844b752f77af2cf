//! The zone as memory: words of 64 bits over a file mapped at its full, sparse size.
//!
//! Contract with the floors above: a word is touched only after [`Map::reserve`] gave its page blocks. A load from a
//! hole is harmless, but a store to one on a full file system would be a SIGBUS.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::sync::atomic::AtomicU64;

use memmap2::{MmapOptions, MmapRaw};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

/// A mapped file. It is never unmapped while a word of it is lent: the zone leaks it.
#[derive(Debug)]
pub(super) struct Map {
    memory: MmapRaw,
    file: File,
}

impl Map {
    /// Makes `file` `bytes` long, all of it hole, and maps it.
    pub(super) fn new(file: File, bytes: u64) -> io::Result<Map> {
        file.set_len(bytes)?;
        Map::of(file, bytes)
    }

    /// Maps the first `bytes` of `file`, which must be as long: whoever made it never shortens it.
    pub(super) fn of(file: File, bytes: u64) -> io::Result<Map> {
        let length = usize::try_from(bytes).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        let memory = MmapOptions::new().len(length).map_raw(&file)?;
        Ok(Map { memory, file })
    }

    /// The word at `offset` bytes.
    ///
    /// # Panics
    /// When the offset is not of a word inside the file: offsets come from the layout this process made, never from the file.
    pub(super) fn word(&'static self, offset: u64) -> &'static AtomicU64 {
        &self.words::<1>(offset)[0]
    }

    /// `N` words from `offset` bytes on. Panics as [`word`](Map::word) does.
    pub(super) fn words<const N: usize>(&'static self, offset: u64) -> &'static [AtomicU64; N] {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let inside = start.checked_add(N * 8).is_some_and(|end| end <= self.memory.len());
        assert!(inside && start % 8 == 0, "offset {offset} is outside the zone");
        // SAFETY: needed because the memory is shared with other processes, which no owning type can say. Sound
        // because the range was checked to lie inside the mapping and to be aligned, the mapping lives as long as
        // `self`, which is borrowed for 'static, every bit pattern is an AtomicU64, and all processes access these
        // bytes as atomic words only.
        unsafe { &*self.memory.as_ptr().add(start).cast::<[AtomicU64; N]>() }
    }

    /// Gives `[from, to)` blocks of its own, so that no store into it can fail. What the range holds stays.
    ///
    /// # Errors
    /// When the file system is full, or cannot promise blocks.
    pub(super) fn reserve(&self, from: u64, to: u64) -> io::Result<()> {
        let too_large = |_| io::Error::from(io::ErrorKind::FileTooLarge);
        let (start, length) = (i64::try_from(from).map_err(too_large)?, i64::try_from(to - from).map_err(too_large)?);
        loop {
            match fallocate(&self.file, FallocateFlags::empty(), start, length) {
                Err(Errno::EINTR) => {}
                other => return Ok(other?),
            }
        }
    }
}
