//! System calls without a safe wrapper, each wrapped here.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, signal, sigprocmask};

/// Which side of a fork this is.
pub enum Fork {
    /// The new process.
    Child,
    /// The old process, and the new one's number.
    Parent(i32),
}

/// `struct clone_args` of the kernel, version 2.
#[repr(C)]
#[derive(Default)]
struct CloneArguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Forks; the child starts inside `cgroup` (a directory of a version 2 hierarchy) where one is given.
///
/// Moving a process into a cgroup afterwards would wait for every CPU to pass a quiescent state: about 10 ms.
pub fn fork(cgroup: Option<BorrowedFd<'_>>) -> io::Result<Fork> {
    let arguments = CloneArguments {
        flags: if cgroup.is_some() { CLONE_INTO_CGROUP } else { 0 },
        exit_signal: nix::libc::SIGCHLD as u64,
        cgroup: cgroup.map_or(0, |fd| fd.as_raw_fd() as u64),
        ..CloneArguments::default()
    };
    // SAFETY: the arguments are valid for the call. This process is single-threaded, so the child gets a consistent copy
    // of all memory and may go on as any program; without CLONE_VM and a stack it returns here on a copy of this stack.
    let result =
        unsafe { nix::libc::syscall(nix::libc::SYS_clone3, &raw const arguments, size_of::<CloneArguments>()) };
    match result {
        0 => Ok(Fork::Child),
        pid if pid > 0 => Ok(Fork::Parent(pid as i32)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Closes, in a forked child, a descriptor that its parent's data still owns: the child must never use that data.
pub fn close_inherited(descriptor: BorrowedFd<'_>) {
    // SAFETY: whatever owns it is a copy that the child neither uses nor drops: it leaves by `exit`.
    unsafe { nix::libc::close(descriptor.as_raw_fd()) };
}

/// Gives every signal its default action and unblocks it: a container must not inherit what this process does.
pub fn reset_signals() {
    for each in Signal::iterator().filter(|each| !matches!(each, Signal::SIGKILL | Signal::SIGSTOP)) {
        // SAFETY: the default action runs no code of ours.
        let _ = unsafe { signal(each, SigHandler::SigDfl) };
    }
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
}

/// Brings the loopback interface of the current network namespace up.
pub fn loopback_up() -> io::Result<()> {
    use nix::libc;
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    // SAFETY: all zeroes is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads an `ifreq`, which lives for the call.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Confines this process by a compiled filter. It needs `no_new_privs`.
pub fn load_filter(filter: &[nix::libc::sock_filter]) -> io::Result<()> {
    use nix::libc;
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: the kernel copies `len` instructions from `filter`, which it doesn't write to; both live for the call.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
