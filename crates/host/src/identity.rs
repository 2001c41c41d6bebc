//! Credentials of work: the agents' user, and one supplementary group per work.
//!
//! Processes inherit groups and cannot change them without `CAP_SETGID`. So the group finds every process of a work,
//! even one that has changed its session, parent, name or environment.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;

use nix::unistd::{Gid, Uid, setfsgid, setfsuid, setgroups, setresgid};
use raworc_core::link::{AGENT_UID, WORK_GIDS};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

/// Bytes of `/etc/passwd` that are read at most.
const USERS_BYTES_MAX: u64 = 1024 * 1024;
/// The agents' user name where `/etc/passwd` has none.
const AGENT_NAME: &str = "agent";

/// The supplementary group of one work.
pub type WorkGid = u32;

/// Allocates groups; no two running works have the same.
#[derive(Default)]
pub struct WorkGidAllocator {
    /// How many have been allocated.
    allocated: u32,
}

impl WorkGidAllocator {
    /// Returns a group that no live process has. `None` without the privilege to set groups, or when all are in use.
    /// `used` lists the groups of live processes.
    pub fn allocate(&mut self, used: impl FnOnce() -> BTreeSet<WorkGid>) -> Option<WorkGid> {
        if !is_root() {
            return None;
        }
        let count = WORK_GIDS.end() - WORK_GIDS.start() + 1;
        // In the first round no group has been used before.
        let used = if self.allocated < count { BTreeSet::new() } else { used() };
        for _ in 0..count {
            let work_gid = WORK_GIDS.start() + self.allocated % count;
            self.allocated = self.allocated.checked_add(1).unwrap_or(count);
            if !used.contains(&work_gid) {
                return Some(work_gid);
            }
        }
        None
    }
}

/// Whether we may start processes as another user.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Runs `with` under the agents' filesystem uid and gid: files and pipes it makes belong to them, and it can open
/// only what they may.
pub fn with_agent_fsuid<T>(with: impl FnOnce() -> T) -> T {
    let _files = is_root().then(AgentFsUidGuard::enter);
    with()
}

/// Runs `spawn`, which must set only [`std::os::unix::process::CommandExt::uid`]. The new process gets the agents'
/// group and the group of its work.
///
/// The standard library clears supplementary groups when it changes the user, but only if it may. So the capability
/// is dropped meanwhile. The test `every_process_has_the_group_of_its_work` fails if that behaviour changes.
pub fn as_agent<T>(work_gid: Option<WorkGid>, spawn: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    if !is_root() {
        return spawn();
    }
    let _groups = AgentGroupsGuard::enter(work_gid)?;
    with_agent_fsuid(spawn)
}

/// Sets the filesystem uid and gid to the agents' until it is dropped.
struct AgentFsUidGuard;

impl AgentFsUidGuard {
    fn enter() -> Self {
        // The group first, while we are still root.
        setfsgid(Gid::from_raw(AGENT_UID));
        setfsuid(Uid::from_raw(AGENT_UID));
        Self
    }
}

impl Drop for AgentFsUidGuard {
    fn drop(&mut self) {
        setfsuid(Uid::from_raw(0));
        setfsgid(Gid::from_raw(0));
        stay_dumpable();
    }
}

/// Sets our groups to the agents' and drops `CAP_SETGID` from the effective set, until it is dropped.
struct AgentGroupsGuard;

impl AgentGroupsGuard {
    fn enter(work_gid: Option<WorkGid>) -> io::Result<Self> {
        let groups: Vec<Gid> = work_gid.into_iter().map(Gid::from_raw).collect();
        setgroups(&groups)?;
        // From here on, dropping this restores the groups.
        let this = Self;
        let agents = Gid::from_raw(AGENT_UID);
        setresgid(agents, agents, agents)?;
        let mut sets = capabilities(None)?;
        sets.effective.remove(CapabilitySet::SETGID);
        set_capabilities(None, sets)?;
        Ok(this)
    }

    fn leave() -> io::Result<()> {
        let mut sets = capabilities(None)?;
        sets.effective.insert(CapabilitySet::SETGID);
        set_capabilities(None, sets)?;
        let root = Gid::from_raw(0);
        setresgid(root, root, root)?;
        Ok(setgroups(&[])?)
    }
}

impl Drop for AgentGroupsGuard {
    fn drop(&mut self) {
        // The permitted set still has the capability.
        if let Err(error) = Self::leave() {
            eprintln!("the host could not change its groups back: {error}");
        }
        stay_dumpable();
    }
}

/// Changing user or group clears the dumpable flag; a server without root needs it to inspect this process.
fn stay_dumpable() {
    let _ = set_dumpable_behavior(DumpableBehavior::Dumpable);
}

/// The name of the agents' user in this root filesystem.
pub fn agent_name() -> String {
    read_passwd().and_then(|text| name_of(&text, AGENT_UID)).unwrap_or_else(|| AGENT_NAME.to_owned())
}

/// Reads `/etc/passwd`, which an image provides and which is not trusted.
fn read_passwd() -> Option<String> {
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOFOLLOW;
    let flags = i32::try_from(flags.bits()).ok()?;
    let file = OpenOptions::new().read(true).custom_flags(flags).open("/etc/passwd").ok()?;
    let mut text = Vec::new();
    file.take(USERS_BYTES_MAX).read_to_end(&mut text).ok()?;
    Some(String::from_utf8_lossy(&text).into_owned())
}

fn name_of(users: &str, uid: u32) -> Option<String> {
    let is_name = |name: &str| {
        !name.is_empty() && name.len() <= 32 && name.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c))
    };
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, _, id) = (fields.next()?, fields.next()?, fields.next()?);
        (id.trim().parse() == Ok(uid) && is_name(name)).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_from_the_list() {
        let users = "root:x:0:0::/root:/bin/sh\nbad\nnode:x:1000:1000::/home/node:/bin/sh\nlater:x:1000:1000:::\n";
        assert_eq!(name_of(users, 1000).as_deref(), Some("node"));
        for none in ["", "a:x\n", "a b:x:1000:\n", ":x:1000:\n", "a\u{1b}:x:1000:\n", "a:x:10000:\n"] {
            assert_eq!(name_of(none, 1000), None, "{none:?}");
        }
    }

    #[test]
    fn a_tag_in_use_is_passed_over() {
        if !is_root() {
            println!("SKIPPED: only root has work_gids to give");
            return;
        }
        let (mut work_gids, all) = (WorkGidAllocator::default(), WORK_GIDS.end() - WORK_GIDS.start() + 1);
        let first: BTreeSet<WorkGid> =
            (0..all).filter_map(|_| work_gids.allocate(|| panic!("none was used before"))).collect();
        assert_eq!(first.len(), all as usize);
        let free = WORK_GIDS.start() + 5;
        let used: BTreeSet<WorkGid> = WORK_GIDS.filter(|work_gid| *work_gid != free).collect();
        assert_eq!(work_gids.allocate(|| used.clone()), Some(free));
        assert_eq!(work_gids.allocate(|| WORK_GIDS.collect()), None);
    }
}
