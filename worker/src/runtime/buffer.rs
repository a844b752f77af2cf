//! Memory for bytes in flight: fixed blocks from a pool of this thread.

use std::cell::{Cell, RefCell};

/// Capacity of a pooled buffer in bytes.
pub(crate) const BUFFER_BYTES: usize = 16 * 1024;
/// How many idle buffers are kept: 4 MiB. More than that are returned to the allocator.
const POOLED_BUFFERS: usize = 256;

thread_local! {
    static POOL: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
    static IN_USE_BYTES: Cell<u64> = const { Cell::new(0) };
}

/// Bytes that have come and not yet gone, in one block: `[consumed][filled][spare]`.
pub(crate) struct Buffer {
    block: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Buffer {
    /// An empty buffer of [`BUFFER_BYTES`].
    pub(crate) fn new() -> Buffer {
        let pooled = POOL.with_borrow_mut(Vec::pop);
        let block = pooled.unwrap_or_else(|| vec![0; BUFFER_BYTES].into_boxed_slice());
        IN_USE_BYTES.set(IN_USE_BYTES.get() + block.len() as u64);
        Buffer { block, start: 0, end: 0 }
    }

    /// A buffer with these bytes in it, and room for more if they are fewer than [`BUFFER_BYTES`].
    pub(crate) fn holding(bytes: &[u8]) -> Buffer {
        let mut buffer = Buffer::new();
        let mut count = buffer.extend(bytes);
        while count < bytes.len() {
            buffer.make_room(bytes.len());
            count += buffer.extend(&bytes[count..]);
        }
        buffer
    }

    /// What came and was not consumed.
    pub(crate) fn filled(&self) -> &[u8] {
        &self.block[self.start..self.end]
    }

    /// Room behind it.
    pub(crate) fn spare(&mut self) -> &mut [u8] {
        &mut self.block[self.end..]
    }

    /// How much room there is behind it.
    pub(crate) fn spare_bytes(&self) -> usize {
        self.block.len() - self.end
    }

    /// The first `count` spare bytes were written.
    pub(crate) fn commit(&mut self, count: usize) {
        self.end = (self.end + count).min(self.block.len());
    }

    /// The first `count` filled bytes are done with.
    pub(crate) fn consume(&mut self, count: usize) {
        self.start = (self.start + count).min(self.end);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Whether nothing is filled.
    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Appends as much of `bytes` as fits; says how much.
    pub(crate) fn extend(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.spare_bytes());
        self.block[self.end..self.end + count].copy_from_slice(&bytes[..count]);
        self.end += count;
        count
    }

    /// Makes room behind what is filled: moves it to the front, or to a larger block of at most `limit` bytes. False
    /// when it is already as large as that.
    pub(crate) fn make_room(&mut self, limit: usize) -> bool {
        if self.spare_bytes() > 0 {
            return true;
        }
        if self.start > 0 {
            self.block.copy_within(self.start..self.end, 0);
        } else {
            let size = (self.block.len() * 2).min(limit.max(BUFFER_BYTES));
            if size <= self.block.len() {
                return false;
            }
            let mut larger = vec![0; size].into_boxed_slice();
            larger[..self.end].copy_from_slice(&self.block[..self.end]);
            IN_USE_BYTES.set(IN_USE_BYTES.get() + size as u64);
            give_back(std::mem::replace(&mut self.block, larger));
        }
        (self.start, self.end) = (0, self.end - self.start);
        true
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        give_back(std::mem::take(&mut self.block));
    }
}

/// Bytes of all buffers that are in use on this thread.
pub(crate) fn in_use_bytes() -> u64 {
    IN_USE_BYTES.get()
}

fn give_back(block: Box<[u8]>) {
    let _ = IN_USE_BYTES.try_with(|bytes| bytes.set(bytes.get() - block.len() as u64));
    if block.len() == BUFFER_BYTES {
        let _ = POOL.try_with(|pool| {
            let mut pool = pool.borrow_mut();
            if pool.len() < POOLED_BUFFERS {
                pool.push(block);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn makes_room_by_moving_and_then_by_growing() {
        let mut buffer = Buffer::new();
        assert_eq!(buffer.extend(&vec![b'a'; BUFFER_BYTES + 1]), BUFFER_BYTES);
        buffer.consume(10);
        assert!(buffer.make_room(0) && buffer.spare_bytes() == 10);
        buffer.extend(b"0123456789");
        assert!(!buffer.make_room(BUFFER_BYTES));
        assert!(buffer.make_room(BUFFER_BYTES + 5) && buffer.spare_bytes() == 5);
        assert!(buffer.filled().ends_with(b"a0123456789"));
        assert_eq!(in_use_bytes(), BUFFER_BYTES as u64 + 5);
        drop(buffer);
        assert_eq!(in_use_bytes(), 0);
    }
}
