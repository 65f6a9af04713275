//! How much of what was written to a socket its peer has not acknowledged yet.
#![allow(unsafe_code, reason = "the one system call that no safe wrapper covers; its argument stands at the call")]

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

/// The bytes in the socket's send queue: for TCP, those that were sent and not acknowledged, and those that were not
/// sent (`SIOCOUTQ`, the same number as `TIOCOUTQ`; tcp(7), unix(7)).
///
/// # Errors
///
/// Those of `ioctl(2)`.
pub(super) fn length(socket: impl AsFd) -> io::Result<u64> {
    let socket = socket.as_fd();
    let mut length: libc::c_int = 0;
    // SAFETY: the descriptor is open, since `socket` borrows it for the length of the call; `TIOCOUTQ` on a socket
    // writes one `int` to the pointer it is given and keeps nothing of it; the pointer is to a live `c_int` of ours.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut length) };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(u64::try_from(length).unwrap_or(0))
}
