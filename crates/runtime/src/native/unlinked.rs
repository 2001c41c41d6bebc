//! Files that were removed while something in a container has them open: they take space, and no directory shows them.
//!
//! What a process holds is in `/proc/PID/task/TID/fd` (threads may have different ones) and `/proc/PID/map_files`
//! (`proc_pid_fd(5)`, `proc_pid_map_files(5)`; the second is for root only). What is nowhere but on its way through a socket
//! is not found.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// `OVERLAYFS_SUPER_MAGIC`: what is not on one (memory, above all) takes nothing of the disk.
const OVERLAY: i64 = 0x794c_7630;
/// Bytes of a block in what `stat(2)` counts.
const BLOCK_BYTES: u64 = 512;

/// Bytes on the disk of such files, by the file system (`st_dev`) that they are on. What ends meanwhile is counted or not.
pub fn unlinked(processes: &BTreeSet<i32>) -> BTreeMap<u64, u64> {
    let mut found = Found::default();
    for pid in processes {
        let process = PathBuf::from(format!("/proc/{pid}"));
        found.all_in(&process.join("map_files"));
        for task in names(&process.join("task")) {
            found.all_in(&task.join("fd"));
        }
    }
    found.bytes
}

#[derive(Default)]
struct Found {
    seen: BTreeSet<(u64, u64)>,
    bytes: BTreeMap<u64, u64>,
}

impl Found {
    fn all_in(&mut self, directory: &Path) {
        names(directory).for_each(|path| self.look(&path));
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
