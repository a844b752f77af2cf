//! Descriptors between processes: passed over a unix socket, or sealed so that both sides may trust what is inside.

#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

/// The most descriptors one message carries. The kernel's own limit is 253.
pub const DESCRIPTORS_MAX: usize = 64;

/// Sends one message of `bytes`, which must not be empty, and `descriptors`.
///
/// # Errors
/// What `sendmsg` says, or `InvalidInput` for more than [`DESCRIPTORS_MAX`].
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    if descriptors.len() > DESCRIPTORS_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors for one message"));
    }
    let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    let sent = sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(bytes)], control, MsgFlags::MSG_NOSIGNAL, None)?;
    if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Receives one message: how many bytes of `buffer` it filled (0 at the end), and its descriptors, closed on exec.
///
/// # Errors
/// What `recvmsg` says; `InvalidData` for a message that did not fit, whose descriptors are closed.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = nix::cmsg_space!([RawFd; DESCRIPTORS_MAX]);
    let mut parts = [IoSliceMut::new(buffer)];
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut descriptors = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = control {
            // SAFETY: needed because SCM_RIGHTS delivers numbers. Sound because the kernel has just made these
            // descriptors for this process, and nothing else has seen their numbers.
            descriptors.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    if message.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "message larger than its receiver allows"));
    }
    Ok((message.bytes, descriptors))
}

/// A nameless file of `bytes` that nobody, its maker included, can change any more.
///
/// # Errors
/// When memory is short.
pub fn seal(name: &str, bytes: &[u8]) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?);
    file.write_all(bytes)?;
    fcntl(&file, FcntlArg::F_ADD_SEALS(required_seals() | SealFlag::F_SEAL_SEAL))?;
    Ok(file.into())
}

/// The bytes of a file made by [`seal`], at most `limit_bytes`.
///
/// # Errors
/// `InvalidData` for a file that could still change under its reader, or is larger than `limit_bytes`.
pub fn unseal(descriptor: impl AsFd, limit_bytes: usize) -> io::Result<Vec<u8>> {
    let seals = fcntl(descriptor.as_fd(), FcntlArg::F_GET_SEALS).map(SealFlag::from_bits_truncate);
    if !seals.is_ok_and(|seals| seals.contains(required_seals())) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "descriptor is not a sealed file"));
    }
    let file = File::from(descriptor.as_fd().try_clone_to_owned()?);
    let length = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
    if length > limit_bytes {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "sealed file larger than its receiver allows"));
    }
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

fn required_seals() -> SealFlag {
    SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    #[test]
    fn descriptors_arrive_and_close_on_exec() {
        let (a, b) = UnixDatagram::pair().unwrap();
        let sealed = seal("test", b"hello").unwrap();
        send(a.as_fd(), b"x", &[sealed.as_fd(), sealed.as_fd()]).unwrap();
        let mut buffer = [0; 8];
        let (length, received) = receive(b.as_fd(), &mut buffer).unwrap();
        assert_eq!((length, received.len()), (1, 2));
        assert_eq!(unseal(&received[1], 5).unwrap(), b"hello");
        let flags = fcntl(&received[0], FcntlArg::F_GETFD).unwrap();
        assert_eq!(flags & 1, 1);
    }

    #[test]
    fn what_does_not_fit_or_is_not_sealed_is_refused() {
        let (a, b) = UnixDatagram::pair().unwrap();
        send(a.as_fd(), b"four", &[]).unwrap();
        assert_eq!(receive(b.as_fd(), &mut [0; 3]).unwrap_err().kind(), io::ErrorKind::InvalidData);
        let open = memfd_create("open", MFdFlags::MFD_ALLOW_SEALING).unwrap();
        assert!(unseal(&open, 10).is_err());
        assert!(unseal(File::open("/dev/null").unwrap(), 10).is_err());
        assert!(unseal(seal("test", b"12345").unwrap(), 4).is_err());
        assert!(File::from(seal("test", b"1").unwrap()).write_at(b"2", 0).is_err());
    }
}
