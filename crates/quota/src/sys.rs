//! System calls, with the structures of `linux/quota.h`, `linux/dqblk_xfs.h` and `linux/fs.h`.

use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};

use nix::libc;
use rustix::io::Errno;

use super::Used;

const PRJQUOTA: libc::c_int = 2;
/// `Q_XGETQSTATV`: gets the quota state.
const GET_STATE: libc::c_int = 0x5808;
/// `FS_QSTATV_VERSION1`.
const STATE_VERSION: i8 = 1;
/// `FS_QUOTA_PDQ_ENFD`: project quotas are enforced.
const PROJECTS_ENFORCED: u16 = 1 << 5;
/// `FS_IOC_FSGETXATTR`.
const GET_ATTRIBUTES: libc::c_ulong = 0x801c_581f;
/// `FS_IOC_FSSETXATTR`.
const SET_ATTRIBUTES: libc::c_ulong = 0x401c_5820;
/// `KCMP_FILES`: compares tables of open files.
const COMPARE_FILES: libc::c_int = 2;
/// `FS_XFLAG_PROJINHERIT`: new entries inherit the directory's project.
const INHERIT: u32 = 0x200;

/// `struct fs_qfilestatv`.
#[repr(C)]
#[derive(Default)]
struct FileState {
    ino: u64,
    blocks: u64,
    extents: u32,
    pad: u32,
}

/// `struct fs_quota_statv`.
#[repr(C)]
#[derive(Default)]
struct State {
    version: i8,
    pad1: u8,
    flags: u16,
    in_core: u32,
    files: [FileState; 3],
    time_limits: [i32; 3],
    warnings: [u16; 3],
    pad3: u16,
    pad4: u32,
    pad2: [u64; 7],
}

/// `struct fsxattr`.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    flags: u32,
    extent_bytes: u32,
    extents: u32,
    project: u32,
    copied_extent_bytes: u32,
    pad: [u8; 8],
}

/// Whether project quotas are enforced on the file system of `at`.
pub fn is_enforced(at: impl AsFd) -> Result<bool, Errno> {
    let mut state = State { version: STATE_VERSION, ..State::default() };
    // SAFETY: Q_XGETQSTATV writes a `fs_quota_statv`, which lives for the call and is valid whatever is in it.
    unsafe { quotactl(at.as_fd(), GET_STATE, 0, (&raw mut state).cast()) }?;
    Ok(state.flags & PROJECTS_ENFORCED != 0)
}

/// The usage of a project.
pub fn used(at: impl AsFd, project: u32) -> Result<Used, Errno> {
    let mut quota = no_quota();
    // SAFETY: Q_GETQUOTA writes an `if_dqblk`, which lives for the call and is valid whatever is in it.
    unsafe { quotactl(at.as_fd(), libc::Q_GETQUOTA, project, (&raw mut quota).cast()) }?;
    Ok(Used { bytes: quota.dqb_curspace, files: quota.dqb_curinodes })
}

/// Limits a project in KiB and inodes; 0 for no limit.
pub fn set_limits(at: impl AsFd, project: u32, blocks: u64, inodes: u64) -> Result<(), Errno> {
    let valid = libc::QIF_BLIMITS | libc::QIF_ILIMITS;
    let mut quota = libc::dqblk { dqb_bhardlimit: blocks, dqb_ihardlimit: inodes, dqb_valid: valid, ..no_quota() };
    // SAFETY: Q_SETQUOTA reads an `if_dqblk`, which lives for the call.
    unsafe { quotactl(at.as_fd(), libc::Q_SETQUOTA, project, (&raw mut quota).cast()) }
}

/// The project of a file; `None` if the file system has no projects.
pub fn project(file: BorrowedFd<'_>) -> Result<Option<u32>, Errno> {
    match attributes(file) {
        Ok(attributes) => Ok(Some(attributes.project)),
        Err(Errno::NOTTY | Errno::OPNOTSUPP | Errno::INVAL) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Sets the project of a directory and its new entries.
pub fn join(directory: BorrowedFd<'_>, project: u32) -> Result<(), Errno> {
    let attributes = attributes(directory)?;
    set_attributes(directory, &Attributes { project, flags: attributes.flags | INHERIT, ..attributes })
}

/// Stops new entries from inheriting a directory's project.
pub fn leave(directory: BorrowedFd<'_>) -> Result<(), Errno> {
    let attributes = attributes(directory)?;
    if attributes.flags & INHERIT == 0 {
        return Ok(());
    }
    set_attributes(directory, &Attributes { flags: attributes.flags & !INHERIT, ..attributes })
}

fn attributes(file: BorrowedFd<'_>) -> Result<Attributes, Errno> {
    let mut attributes = Attributes::default();
    // SAFETY: FS_IOC_FSGETXATTR writes an `fsxattr`, which lives for the call and is valid whatever is in it.
    check(unsafe { libc::ioctl(file.as_raw_fd(), GET_ATTRIBUTES, &raw mut attributes) })?;
    Ok(attributes)
}

fn set_attributes(file: BorrowedFd<'_>, attributes: &Attributes) -> Result<(), Errno> {
    // SAFETY: FS_IOC_FSSETXATTR reads an `fsxattr`, which lives for the call.
    check(unsafe { libc::ioctl(file.as_raw_fd(), SET_ATTRIBUTES, &raw const *attributes) })
}

fn no_quota() -> libc::dqblk {
    libc::dqblk {
        dqb_bhardlimit: 0,
        dqb_bsoftlimit: 0,
        dqb_curspace: 0,
        dqb_ihardlimit: 0,
        dqb_isoftlimit: 0,
        dqb_curinodes: 0,
        dqb_btime: 0,
        dqb_itime: 0,
        dqb_valid: 0,
    }
}

/// `quotactl_fd(2)`, of Linux 5.14.
///
/// # Safety
/// `data` must be valid for the command.
unsafe fn quotactl(
    at: BorrowedFd<'_>,
    command: libc::c_int,
    project: u32,
    data: *mut libc::c_void,
) -> Result<(), Errno> {
    let command = libc::QCMD(command, PRJQUOTA);
    // SAFETY: the descriptor is open, and the caller guarantees `data`.
    let result = unsafe { libc::syscall(libc::SYS_quotactl_fd, at.as_raw_fd(), command, project, data) };
    check(if result == 0 { 0 } else { -1 })
}

fn check(result: libc::c_int) -> Result<(), Errno> {
    match result {
        -1 => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)),
        _ => Ok(()),
    }
}

/// Compares two tasks' tables of open files with `kcmp(2)`.
pub fn same_files(one: i32, other: i32) -> Result<bool, Errno> {
    // SAFETY: numbers only.
    let order = unsafe { libc::syscall(libc::SYS_kcmp, one, other, COMPARE_FILES, 0_u64, 0_u64) };
    match order {
        0 => Ok(true),
        1.. => Ok(false),
        _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::NOSYS)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_are_as_large_as_the_kernel_has_them() {
        assert_eq!(size_of::<State>(), 160);
        assert_eq!(size_of::<Attributes>(), 28);
        assert_eq!(size_of::<libc::dqblk>(), 72);
        // The number includes the structure's size (`_IOR('X', 31, struct fsxattr)`).
        assert_eq!((GET_ATTRIBUTES >> 16) & 0x3fff, 28);
    }
}
