//! The credentials of work: the agents' user, and one supplementary group that tells which work a process belongs to.
//!
//! A process inherits its groups, and without `CAP_SETGID` it can neither add nor leave one: whatever it does to get out of
//! sight (a session of its own, a parent that ends, another name or environment), its work is found by it.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;

use nix::unistd::{Gid, Uid, setfsgid, setfsuid, setgroups, setresgid};
use raworc_core::link::{AGENT_UID, WORK_GIDS};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

/// The longest list of users that is looked into, in bytes.
const USERS_BYTES_MAX: u64 = 1024 * 1024;
/// What the agents' user is called where no list says so.
const AGENT_NAME: &str = "agent";

/// A group that one piece of work has for itself.
pub type Tag = u32;

/// Hands out tags, each to one piece of work at a time.
#[derive(Default)]
pub struct Tags {
    /// How many were handed out.
    given: u32,
}

impl Tags {
    /// One that no live process has; none where we may not give groups away, or all are in use. `used` looks which are.
    pub fn next(&mut self, used: impl FnOnce() -> BTreeSet<Tag>) -> Option<Tag> {
        if !is_root() {
            return None;
        }
        let count = WORK_GIDS.end() - WORK_GIDS.start() + 1;
        // In the first round, none has been used before.
        let used = if self.given < count { BTreeSet::new() } else { used() };
        for _ in 0..count {
            let tag = WORK_GIDS.start() + self.given % count;
            self.given = self.given.checked_add(1).unwrap_or(count);
            if !used.contains(&tag) {
                return Some(tag);
            }
        }
        None
    }
}

/// Whether we may start processes as another user.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Runs `with` as the agents' user as far as files go: what it makes, pipes included, is theirs, and it opens what they may.
pub fn with_agents_files<T>(with: impl FnOnce() -> T) -> T {
    let _files = is_root().then(AgentsFiles::enter);
    with()
}

/// Runs `spawn`, which starts a process with [`std::os::unix::process::CommandExt::uid`] and nothing else said of users and
/// groups: the process has the agents' group, and the tag's.
///
/// The standard library takes all groups from a process that it gives another user, unless it may not: so it may not for
/// that long. `every_process_has_the_group_of_its_work` would tell if that changed.
pub fn as_agent<T>(tag: Option<Tag>, spawn: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    if !is_root() {
        return spawn();
    }
    let _groups = AgentsGroups::enter(tag)?;
    with_agents_files(spawn)
}

/// The user of files is the agents' for as long as this lives.
struct AgentsFiles;

impl AgentsFiles {
    fn enter() -> Self {
        // The group first, while we are root.
        setfsgid(Gid::from_raw(AGENT_UID));
        setfsuid(Uid::from_raw(AGENT_UID));
        Self
    }
}

impl Drop for AgentsFiles {
    fn drop(&mut self) {
        setfsuid(Uid::from_raw(0));
        setfsgid(Gid::from_raw(0));
        stay_dumpable();
    }
}

/// Our groups are the agents' for as long as this lives, and we may not change them.
struct AgentsGroups;

impl AgentsGroups {
    fn enter(tag: Option<Tag>) -> io::Result<Self> {
        let groups: Vec<Gid> = tag.into_iter().map(Gid::from_raw).collect();
        setgroups(&groups)?;
        // From here on, what was changed is changed back.
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

impl Drop for AgentsGroups {
    fn drop(&mut self) {
        // We may: what is taken from the effective set stays in the permitted one.
        if let Err(error) = Self::leave() {
            eprintln!("the host could not change its groups back: {error}");
        }
        stay_dumpable();
    }
}

/// A process that changes its user or group loses this, and the server that is not root outside then sees less of it.
fn stay_dumpable() {
    let _ = set_dumpable_behavior(DumpableBehavior::Dumpable);
}

/// What the agents' user is called in this root filesystem.
pub fn agent_name() -> String {
    users().and_then(|text| name_of(&text, AGENT_UID)).unwrap_or_else(|| AGENT_NAME.to_owned())
}

/// An image brings its own: it may be anything.
fn users() -> Option<String> {
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
            println!("SKIPPED: only root has tags to give");
            return;
        }
        let (mut tags, all) = (Tags::default(), WORK_GIDS.end() - WORK_GIDS.start() + 1);
        let first: BTreeSet<Tag> = (0..all).filter_map(|_| tags.next(|| panic!("none was used before"))).collect();
        assert_eq!(first.len(), all as usize);
        let free = WORK_GIDS.start() + 5;
        let used: BTreeSet<Tag> = WORK_GIDS.filter(|tag| *tag != free).collect();
        assert_eq!(tags.next(|| used.clone()), Some(free));
        assert_eq!(tags.next(|| WORK_GIDS.collect()), None);
    }
}
