//! Files that were removed while something in a container has them open: they take space, and no directory shows them.
//!
//! What a process holds is in `/proc/PID/task/TID/fd` (threads may have tables of their own) and `/proc/PID/map_files`
//! (`proc_pid_fd(5)`, `proc_pid_map_files(5)`; the second is for root only). What is nowhere but on its way through a socket
//! is not found.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use raworc_quota::same_files;

/// `OVERLAYFS_SUPER_MAGIC`: what is not on one (memory, above all) takes nothing of the disk.
const OVERLAY: i64 = 0x794c_7630;
/// Bytes of a block in what `stat(2)` counts.
const BLOCK_BYTES: u64 = 512;

/// Open files and mappings of a container that are looked at in one go; a look at so many takes about a second.
const LOOKS_MAX: usize = 1 << 18;

/// There are more of them.
#[derive(Debug, thiserror::Error)]
#[error("its processes have more than {LOOKS_MAX} files open")]
struct TooMany;

/// Bytes on the disk of such files, by the file system (`st_dev`) that they are on. What ends meanwhile is counted or not.
///
/// # Errors
/// Where there is more than can be looked through: to open files is cheap, to look at them is not.
pub fn unlinked(processes: &BTreeSet<i32>) -> io::Result<BTreeMap<u64, u64>> {
    let mut found = UnlistedScan { left: LOOKS_MAX, ..UnlistedScan::default() };
    for pid in processes {
        let process = PathBuf::from(format!("/proc/{pid}"));
        found.all_in(&process.join("map_files"))?;
        for task in names(&process.join("task")) {
            found.count()?;
            let thread = task.file_name().and_then(|name| name.to_str()?.parse().ok());
            // The main thread's are looked at; others mostly have the same.
            if thread == Some(*pid) || !thread.is_some_and(|thread| same_files(*pid, thread)) {
                found.all_in(&task.join("fd"))?;
            }
        }
    }
    Ok(found.bytes)
}

#[derive(Default)]
struct UnlistedScan {
    left: usize,
    seen: BTreeSet<(u64, u64)>,
    bytes: BTreeMap<u64, u64>,
}

impl UnlistedScan {
    fn count(&mut self) -> io::Result<()> {
        self.left = self.left.checked_sub(1).ok_or_else(|| io::Error::other(TooMany))?;
        Ok(())
    }

    fn all_in(&mut self, directory: &Path) -> io::Result<()> {
        for link in names(directory) {
            self.count()?;
            self.look(&link);
        }
        Ok(())
    }

    /// `link` leads to a file, wherever that is: nothing is opened.
    fn look(&mut self, link: &Path) {
        let Ok(file) = fs::metadata(link) else { return };
        if !file.is_file() || file.nlink() > 0 || !self.seen.insert((file.dev(), file.ino())) {
            return;
        }
        if rustix::fs::statfs(link).is_ok_and(|system| system.f_type == OVERLAY) {
            *self.bytes.entry(file.dev()).or_default() += file.blocks() * BLOCK_BYTES;
        }
    }
}

fn names(directory: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path())
}
