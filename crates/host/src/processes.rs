//! What runs beside us, from `/proc`. Scripts may give their processes any name, and start thousands.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use raworc_core::link::WORK_GIDS;
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, kill_process, kill_process_group, pidfd_open, pidfd_send_signal, test_kill_process,
};

use crate::identity::{self, Tag};

/// How often the processes of work are looked for in one go: one that forks meanwhile is found by another look.
const LOOKS_MAX: usize = 8;

/// One live process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its parent.
    parent: i32,
    /// Its process group.
    group: i32,
    /// When it started, in ticks since boot: tells it from a later one of the same id.
    started: u64,
    /// Which work it belongs to.
    tag: Option<Tag>,
    /// A signal has stopped it.
    is_stopped: bool,
}

/// Processes by id, and when they started.
pub type Known = BTreeMap<i32, u64>;

/// How the processes of one piece of work are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Its first process.
    pub leader: i32,
    /// The group that all of them have.
    pub tag: Option<Tag>,
}

/// Whether we are the first process of a container.
pub fn is_first() -> bool {
    std::process::id() == 1
}

/// All live processes (no zombies) by id. Outside a container, only we and our own descendants: others have hosts of their own.
fn all() -> BTreeMap<i32, Process> {
    let mut all = everything();
    if !is_first() {
        let ours = descending_from(&all, &BTreeSet::from([me()]));
        all.retain(|id, _| ours.contains(id));
    }
    all
}

fn me() -> i32 {
    i32::try_from(std::process::id()).unwrap_or(1)
}

fn everything() -> BTreeMap<i32, Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return BTreeMap::new() };
    let are_tagged = identity::is_root();
    entries
        .filter_map(|entry| {
            let id: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
            // What has ended since is left out.
            let process = parse(&fs::read(format!("/proc/{id}/stat")).ok()?)?;
            let tag = if are_tagged { tag_of(id) } else { None };
            Some((id, Process { tag, ..process }))
        })
        .collect()
}

fn tag_of(id: i32) -> Option<Tag> {
    tag(&fs::read(format!("/proc/{id}/status")).ok()?)
}

/// The line `Groups:` of a status (proc(5)). What stands before it may be made up by the process: its name, in which an end of
/// line is escaped.
fn tag(status: &[u8]) -> Option<Tag> {
    let line = status.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"Groups:"))?;
    let groups = std::str::from_utf8(line).ok()?;
    groups.split_ascii_whitespace().filter_map(|group| group.parse().ok()).find(|group| WORK_GIDS.contains(group))
}

/// `pid (name) state ppid pgrp …` (proc(5)); the name may contain anything, so what counts begins after the last `)`.
fn parse(stat: &[u8]) -> Option<Process> {
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    let text = std::str::from_utf8(stat.get(end + 1..)?).ok()?;
    let mut fields = text.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X" | "x") {
        return None;
    }
    let (parent, group) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    // The group is field 5, the start is field 22.
    Some(Process { parent, group, started: fields.nth(16)?.parse().ok()?, tag: None, is_stopped: state == "T" })
}

/// The processes that belong to work: those with the group of one of `owners`. Of one that has none, those in the process
/// group that its first process leads, and all that descend from them.
fn belonging_to(all: &BTreeMap<i32, Process>, owners: &[Owner]) -> BTreeSet<i32> {
    let (tagged, others): (Vec<&Owner>, Vec<&Owner>) = owners.iter().partition(|owner| owner.tag.is_some());
    let tags: BTreeSet<Tag> = tagged.iter().filter_map(|owner| owner.tag).collect();
    let leaders: BTreeSet<i32> = others.iter().map(|owner| owner.leader).collect();
    let has_tag = |process: &Process| process.tag.is_some_and(|tag| tags.contains(&tag));
    let mut found = descending_from(all, &leaders);
    found.extend(all.iter().filter(|(_, process)| has_tag(process)).map(|(id, _)| *id));
    found
}

/// Those in a group that one of `leaders` leads, and all that descend from them.
fn descending_from(all: &BTreeMap<i32, Process>, leaders: &BTreeSet<i32>) -> BTreeSet<i32> {
    let is_first = |id: &i32, process: &Process| leaders.contains(id) || leaders.contains(&process.group);
    let mut found: BTreeSet<i32> =
        all.iter().filter(|(id, process)| is_first(id, process)).map(|(id, _)| *id).collect();
    // Children usually have higher ids than their parents, but ids wrap around: go on until nothing is new.
    loop {
        let before = found.len();
        for (id, process) in all {
            if found.contains(&process.parent) {
                found.insert(*id);
            }
        }
        if found.len() == before {
            return found;
        }
    }
}

/// Every live process besides us.
fn others() -> BTreeMap<i32, Process> {
    let mut others = all();
    others.remove(&me());
    others
}

/// Whether there is a live process besides us.
pub fn is_alone() -> bool {
    others().is_empty()
}

/// Live processes besides us and those that belong to `owners`.
pub fn count_background(owners: &[Owner]) -> u32 {
    let others = others();
    let of_work = belonging_to(&others, owners);
    u32::try_from(others.len() - of_work.len()).unwrap_or(u32::MAX)
}

/// The tags that live processes have.
pub fn tags_in_use() -> BTreeSet<Tag> {
    all().values().filter_map(|process| process.tag).collect()
}

/// Signals every process but us. Outside a container, only our own descendants.
pub fn signal_others(signal: Signal) {
    let send = |signal| {
        if is_first() {
            // This means every process that we may signal, but not ourselves (kill(2), `pid` -1).
            let _ = kill_process_group(Pid::INIT, signal);
            return;
        }
        for id in others().into_keys().filter_map(Pid::from_raw) {
            let _ = kill_process(id, signal);
        }
    };
    send(signal);
    if signal == Signal::TERM {
        // One that is stopped would not hear of it before it is killed.
        send(Signal::CONT);
    }
}

/// Asks a work's processes to end; all that are found are `known` from then on.
pub fn ask_to_end(owner: Owner, known: &mut Known) {
    let mut told = BTreeSet::new();
    for _ in 0..LOOKS_MAX {
        let mut is_new = false;
        for (id, process) in of(owner, known) {
            if told.insert(id) {
                is_new = true;
                known.insert(id, process.started);
                send(id, process, Signal::TERM);
                // One that is stopped would not hear of it before it is killed.
                send(id, process, Signal::CONT);
            }
        }
        if !is_new {
            return;
        }
    }
}

/// Kills a work's processes, however they fork meanwhile.
pub fn kill(owner: Owner, known: &mut Known) {
    for _ in 0..LOOKS_MAX {
        let newest = newest();
        let found = of(owner, known);
        let is_new = found.keys().any(|id| !known.contains_key(id));
        for (id, process) in found {
            known.insert(id, process.started);
            send(id, process, Signal::KILL);
            if let Some(tracer) = tracer_of(id) {
                let _ = kill_process(tracer, Signal::KILL);
            }
        }
        if !is_new && has_forked_none_since(newest) {
            return;
        }
    }
    kill_at_a_standstill(owner, known);
}

/// Where something forks all the time, a look at all processes, one by one, may miss what is passed on from one to the next. So
/// all of them are stopped at once, which no fork escapes (kill(2), `pid` -1), and those that are not the work's go on.
fn kill_at_a_standstill(owner: Owner, known: &mut Known) {
    if !is_first() {
        return;
    }
    let were_stopped: BTreeSet<i32> =
        others().into_iter().filter(|(_, process)| process.is_stopped).map(|(id, _)| id).collect();
    let _ = kill_process_group(Pid::INIT, Signal::STOP);
    let found = of(owner, known);
    for (id, process) in &found {
        known.insert(*id, process.started);
        send(*id, *process, Signal::KILL);
    }
    let goes_on = |id: &i32| !found.contains_key(id) && !were_stopped.contains(id);
    for (id, process) in others().into_iter().filter(|(id, _)| goes_on(id)) {
        send(id, process, Signal::CONT);
    }
}

/// The newest process of this container (proc(5), `/proc/loadavg`): another one says that something has forked.
fn newest() -> Option<i32> {
    if !is_first() {
        return None;
    }
    let text = fs::read_to_string("/proc/loadavg").ok()?;
    text.split_ascii_whitespace().last()?.parse().ok()
}

/// Whether what was seen since then is all there is. Outside a container nobody can tell, and nobody has to.
fn has_forked_none_since(before: Option<i32>) -> bool {
    !is_first() || (before.is_some() && before == newest())
}

/// A work's live processes. Without a tag, they are those that descend from its first one, or from one that is known.
fn of(owner: Owner, known: &Known) -> BTreeMap<i32, Process> {
    let all = all();
    let ids = match owner.tag {
        Some(_) => belonging_to(&all, &[owner]),
        None => {
            let lives = |(id, started): (&i32, &u64)| all.get(id).is_some_and(|process| process.started == *started);
            let roots = known.iter().filter(|known| lives(*known)).map(|(id, _)| *id).chain([owner.leader]).collect();
            descending_from(&all, &roots)
        }
    };
    all.into_iter().filter(|(id, _)| ids.contains(id)).collect()
}

/// Signals a process, unless another one has its id by now.
fn send(id: i32, process: Process, signal: Signal) {
    let Some(pid) = Pid::from_raw(id) else { return };
    let Ok(descriptor) = pidfd_open(pid, PidfdFlags::empty()) else { return };
    let is_it = |stat: Vec<u8>| parse(&stat).is_some_and(|now| now.started == process.started);
    if fs::read(format!("/proc/{id}/stat")).is_ok_and(is_it) {
        let _ = pidfd_send_signal(&descriptor, signal);
    }
}

/// Who traces a process. The end of a process that is traced is told to its tracer first, and to us only after that.
fn tracer_of(id: i32) -> Option<Pid> {
    let status = fs::read(format!("/proc/{id}/status")).ok()?;
    let line = status.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"TracerPid:"))?;
    Pid::from_raw(std::str::from_utf8(line).ok()?.trim().parse().ok()?)
}

/// Whether nothing is left of a work's processes. Looks for them only when none is left of those that are known.
pub fn are_gone(owner: Owner, known: &mut Known) -> bool {
    let is_gone = |id: i32| Pid::from_raw(id).is_none_or(|id| test_kill_process(id) == Err(Errno::SRCH));
    if !known.keys().all(|id| is_gone(*id)) {
        return false;
    }
    known.clear();
    for _ in 0..LOOKS_MAX {
        let newest = newest();
        known.extend(of(owner, known).into_iter().map(|(id, process)| (id, process.started)));
        if !known.is_empty() {
            return false;
        }
        if has_forked_none_since(newest) {
            return true;
        }
    }
    // Something forks all the time; whose it is shows when all of it is killed.
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    const REST: &str = "0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 99 0 0";

    #[test]
    fn names_do_not_confuse_us() {
        let process = Process { parent: 7, group: 8, started: 99, tag: None, is_stopped: false };
        let parse = |start: &[u8]| parse(&[start, b" ", REST.as_bytes()].concat());
        assert_eq!(parse(b"42 (sh) S 7 8"), Some(process));
        assert_eq!(parse(b"42 (a) Z 1 1 (b) R 7 8"), Some(process));
        assert_eq!(parse(b"42 (\xff) ) R 7 8"), Some(process));
        assert_eq!(parse(b"42 (sh) Z 7 8"), None);
    }

    #[test]
    fn damaged_records_are_left_out() {
        for damaged in [&b""[..], b"42", b"42 (sh)", b"42 (sh) R", b"42 (sh) R x y", b"42 (sh) R 7 8 0"] {
            assert_eq!(parse(damaged), None);
        }
    }

    #[test]
    fn a_tag_is_read_from_the_groups() {
        assert_eq!(tag(b"Name:\tsh\nGroups:\t7 61003 \nNStgid:\t1\n"), Some(61003));
        for none in [&b""[..], b"Groups:\t\n", b"Groups:\t1000 5 \n", b"Name:\tGroups:\\n61003\n"] {
            assert_eq!(tag(none), None);
        }
    }

    #[test]
    fn work_is_those_with_its_tag_or_its_group_and_its_descendants() {
        let process = |parent, group, tag| Process { parent, group, started: 0, tag, is_stopped: false };
        let all = BTreeMap::from([
            (1, process(0, 1, None)),
            (10, process(1, 10, None)),
            (11, process(10, 10, None)),
            (12, process(11, 12, None)),
            (13, process(1, 10, None)),
            (20, process(1, 20, Some(61001))),
            (21, process(1, 21, Some(61001))),
            (22, process(1, 22, Some(61002))),
            (5, process(12, 5, None)),
        ]);
        let owner = |leader, tag| Owner { leader, tag };
        assert_eq!(belonging_to(&all, &[owner(10, None)]), BTreeSet::from([5, 10, 11, 12, 13]));
        assert_eq!(belonging_to(&all, &[owner(20, Some(61001))]), BTreeSet::from([20, 21]));
        assert_eq!(belonging_to(&all, &[owner(20, Some(61001)), owner(22, Some(61002))]).len(), 3);
        assert_eq!(belonging_to(&all, &[]), BTreeSet::new());
    }
}
