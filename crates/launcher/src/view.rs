//! Shows a container its own cgroups, read-only, so that programs find their limits and what they use: in a worker, when the
//! container has its namespaces.
//!
//! What is mounted by a process of the container's cgroup namespace begins at the container's own cgroup: nothing above or
//! beside it is seen.

use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::CloneFlags;

use crate::namespaces;

const CGROUPS: &str = "/sys/fs/cgroup";

/// Enters the cgroup and mount namespaces of the container whose first process this is.
pub fn enter(process: i32) -> Result<(), String> {
    for (kind, flag) in [("cgroup", CloneFlags::CLONE_NEWCGROUP), ("mnt", CloneFlags::CLONE_NEWNS)] {
        namespaces::enter(namespaces::open(process, kind)?, kind, flag)?;
    }
    Ok(())
}

/// Mounts the hierarchies of these names for the container whose namespaces this process has entered.
pub fn show_cgroups(hierarchies: &[String]) -> Result<(), String> {
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    for name in hierarchies {
        let (place, kind, options) = match name.as_str() {
            "" => (PathBuf::from(CGROUPS), "cgroup2", None),
            _ => (Path::new(CGROUPS).join(name), "cgroup", Some(name.as_str())),
        };
        mount(Some("cgroup"), &place, Some(kind), flags, options)
            .map_err(|e| format!("its cgroups can't be shown at {}: {e}", place.display()))?;
    }
    Ok(())
}
