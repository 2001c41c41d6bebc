//! Lists processes from `/proc`. Their names are not trusted, and there may be thousands.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use raworc_core::link::WORK_GIDS;
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, kill_process, kill_process_group, pidfd_open, pidfd_send_signal, test_kill_process,
};

use crate::identity::{self, WorkGid};

/// Scans of `/proc` per operation; processes that fork meanwhile are found by the next scan.
const SCANS_MAX: usize = 8;

/// One live process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its parent.
    parent: i32,
    /// Its process group.
    group: i32,
    /// Start time in ticks since boot; it tells apart processes that reuse an id.
    started: u64,
    /// The group of the work that it belongs to.
    work_gid: Option<WorkGid>,
    /// It is stopped by a signal.
    is_stopped: bool,
}

/// Start times of processes, by id.
pub type KnownProcesses = BTreeMap<i32, u64>;

/// Selects the processes of one work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessSelector {
    /// Its first process.
    pub leader: i32,
    /// The group that all its processes have.
    pub work_gid: Option<WorkGid>,
}

/// Whether we are the first process of a container.
pub fn is_first() -> bool {
    std::process::id() == 1
}

/// All live processes by id, without zombies. Outside a container, only we and our descendants.
fn processes_in_scope() -> BTreeMap<i32, Process> {
    let mut all = all_processes();
    if !is_first() {
        let ours = descending_from(&all, &BTreeSet::from([own_pid()]));
        all.retain(|id, _| ours.contains(id));
    }
    all
}

fn own_pid() -> i32 {
    i32::try_from(std::process::id()).unwrap_or(1)
}

fn all_processes() -> BTreeMap<i32, Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return BTreeMap::new() };
    let have_work_gids = identity::is_root();
    entries
        .filter_map(|entry| {
            let id: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
            // A process that has ended meanwhile is left out.
            let process = parse(&fs::read(format!("/proc/{id}/stat")).ok()?)?;
            let work_gid = if have_work_gids { work_gid_of(id) } else { None };
            Some((id, Process { work_gid, ..process }))
        })
        .collect()
}

fn work_gid_of(id: i32) -> Option<WorkGid> {
    work_gid(&fs::read(format!("/proc/{id}/status")).ok()?)
}

/// Parses the line `Groups:` of `/proc/PID/status` (proc(5)). The name before it is chosen by the process, but has
/// its line feeds escaped.
fn work_gid(status: &[u8]) -> Option<WorkGid> {
    let line = status.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"Groups:"))?;
    let groups = std::str::from_utf8(line).ok()?;
    groups.split_ascii_whitespace().filter_map(|group| group.parse().ok()).find(|group| WORK_GIDS.contains(group))
}

/// Parses `pid (name) state ppid pgrp …` (proc(5)). The name may contain anything, so parsing begins after the last
/// `)`.
fn parse(stat: &[u8]) -> Option<Process> {
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    let text = std::str::from_utf8(stat.get(end + 1..)?).ok()?;
    let mut fields = text.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X" | "x") {
        return None;
    }
    let (parent, group) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    // The process group is field 5, the start time field 22.
    Some(Process { parent, group, started: fields.nth(16)?.parse().ok()?, work_gid: None, is_stopped: state == "T" })
}

/// The processes of `selectors`: those with the work's group. For a work without a group, those in its leader's
/// process group, and all their descendants.
fn belonging_to(all: &BTreeMap<i32, Process>, selectors: &[ProcessSelector]) -> BTreeSet<i32> {
    let (tagged, others): (Vec<&ProcessSelector>, Vec<&ProcessSelector>) =
        selectors.iter().partition(|selector| selector.work_gid.is_some());
    let work_gids: BTreeSet<WorkGid> = tagged.iter().filter_map(|selector| selector.work_gid).collect();
    let leaders: BTreeSet<i32> = others.iter().map(|selector| selector.leader).collect();
    let has_work_gid = |process: &Process| process.work_gid.is_some_and(|work_gid| work_gids.contains(&work_gid));
    let mut found = descending_from(all, &leaders);
    found.extend(all.iter().filter(|(_, process)| has_work_gid(process)).map(|(id, _)| *id));
    found
}

/// Processes in a group led by one of `leaders`, and all their descendants.
fn descending_from(all: &BTreeMap<i32, Process>, leaders: &BTreeSet<i32>) -> BTreeSet<i32> {
    let is_first = |id: &i32, process: &Process| leaders.contains(id) || leaders.contains(&process.group);
    let mut found: BTreeSet<i32> =
        all.iter().filter(|(id, process)| is_first(id, process)).map(|(id, _)| *id).collect();
    // Ids wrap around, so a child may have a lower id than its parent: repeat until nothing is new.
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

/// Every live process but us.
fn others() -> BTreeMap<i32, Process> {
    let mut others = processes_in_scope();
    others.remove(&own_pid());
    others
}

/// Whether there is no live process but us.
pub fn is_alone() -> bool {
    others().is_empty()
}

/// Counts live processes besides us and those of `selectors`.
pub fn count_background(selectors: &[ProcessSelector]) -> u32 {
    let others = others();
    let of_work = belonging_to(&others, selectors);
    u32::try_from(others.len() - of_work.len()).unwrap_or(u32::MAX)
}

/// The work groups that live processes have.
pub fn work_gids_in_use() -> BTreeSet<WorkGid> {
    processes_in_scope().values().filter_map(|process| process.work_gid).collect()
}

/// Signals every process but us; outside a container, only our descendants.
pub fn signal_others(signal: Signal) {
    let send = |signal| {
        if is_first() {
            // Pid -1 signals every process that we may signal, except us (kill(2)).
            let _ = kill_process_group(Pid::INIT, signal);
            return;
        }
        for id in others().into_keys().filter_map(Pid::from_raw) {
            let _ = kill_process(id, signal);
        }
    };
    send(signal);
    if signal == Signal::TERM {
        // A stopped process handles the signal only after it is continued.
        send(Signal::CONT);
    }
}

/// Sends SIGTERM to a work's processes and adds them to `known`.
pub fn terminate(selector: ProcessSelector, known: &mut KnownProcesses) {
    let mut told = BTreeSet::new();
    for _ in 0..SCANS_MAX {
        let mut is_new = false;
        for (id, process) in processes_of(selector, known) {
            if told.insert(id) {
                is_new = true;
                known.insert(id, process.started);
                send(id, process, Signal::TERM);
                // A stopped process handles the signal only after it is continued.
                send(id, process, Signal::CONT);
            }
        }
        if !is_new {
            return;
        }
    }
}

/// Kills a work's processes, including those forked meanwhile.
pub fn kill(selector: ProcessSelector, known: &mut KnownProcesses) {
    for _ in 0..SCANS_MAX {
        let newest = newest_pid();
        let found = processes_of(selector, known);
        let is_new = found.keys().any(|id| !known.contains_key(id));
        for (id, process) in found {
            known.insert(id, process.started);
            send(id, process, Signal::KILL);
            if let Some(tracer) = tracer_of(id) {
                let _ = kill_process(tracer, Signal::KILL);
            }
        }
        if !is_new && no_fork_since(newest) {
            return;
        }
    }
    kill_while_stopped(selector, known);
}

/// Stops all processes at once (kill(2), pid -1), kills those of the work and continues the others. This also gets
/// work that forks faster than `/proc` can be scanned.
fn kill_while_stopped(selector: ProcessSelector, known: &mut KnownProcesses) {
    if !is_first() {
        return;
    }
    let were_stopped: BTreeSet<i32> =
        others().into_iter().filter(|(_, process)| process.is_stopped).map(|(id, _)| id).collect();
    let _ = kill_process_group(Pid::INIT, Signal::STOP);
    let found = processes_of(selector, known);
    for (id, process) in &found {
        known.insert(*id, process.started);
        send(*id, *process, Signal::KILL);
    }
    let goes_on = |id: &i32| !found.contains_key(id) && !were_stopped.contains(id);
    for (id, process) in others().into_iter().filter(|(id, _)| goes_on(id)) {
        send(id, process, Signal::CONT);
    }
}

/// The newest process of this container (`/proc/loadavg`, proc(5)). If it changes, something has forked.
fn newest_pid() -> Option<i32> {
    if !is_first() {
        return None;
    }
    let text = fs::read_to_string("/proc/loadavg").ok()?;
    text.split_ascii_whitespace().last()?.parse().ok()
}

/// Whether nothing has forked since `before`. Always true outside a container, where it cannot be told.
fn no_fork_since(before: Option<i32>) -> bool {
    !is_first() || (before.is_some() && before == newest_pid())
}

/// A work's live processes. Without a group, those that descend from its leader or from a known process.
fn processes_of(selector: ProcessSelector, known: &KnownProcesses) -> BTreeMap<i32, Process> {
    let all = processes_in_scope();
    let ids = match selector.work_gid {
        Some(_) => belonging_to(&all, &[selector]),
        None => {
            let lives = |(id, started): (&i32, &u64)| all.get(id).is_some_and(|process| process.started == *started);
            let roots =
                known.iter().filter(|known| lives(*known)).map(|(id, _)| *id).chain([selector.leader]).collect();
            descending_from(&all, &roots)
        }
    };
    all.into_iter().filter(|(id, _)| ids.contains(id)).collect()
}

/// Signals a process unless its id was reused.
fn send(id: i32, process: Process, signal: Signal) {
    let Some(pid) = Pid::from_raw(id) else { return };
    let Ok(descriptor) = pidfd_open(pid, PidfdFlags::empty()) else { return };
    let is_it = |stat: Vec<u8>| parse(&stat).is_some_and(|now| now.started == process.started);
    if fs::read(format!("/proc/{id}/stat")).is_ok_and(is_it) {
        let _ = pidfd_send_signal(&descriptor, signal);
    }
}

/// The tracer of a process. The kernel reports a traced process's end to its tracer first.
fn tracer_of(id: i32) -> Option<Pid> {
    let status = fs::read(format!("/proc/{id}/status")).ok()?;
    let line = status.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"TracerPid:"))?;
    Pid::from_raw(std::str::from_utf8(line).ok()?.trim().parse().ok()?)
}

/// Whether none of a work's processes is left. Scans `/proc` only when all known ones are gone.
pub fn are_gone(selector: ProcessSelector, known: &mut KnownProcesses) -> bool {
    let is_gone = |id: i32| Pid::from_raw(id).is_none_or(|id| test_kill_process(id) == Err(Errno::SRCH));
    if !known.keys().all(|id| is_gone(*id)) {
        return false;
    }
    known.clear();
    for _ in 0..SCANS_MAX {
        let newest = newest_pid();
        known.extend(processes_of(selector, known).into_iter().map(|(id, process)| (id, process.started)));
        if !known.is_empty() {
            return false;
        }
        if no_fork_since(newest) {
            return true;
        }
    }
    // Something forks all the time; killing the work will show whether it belonged to it.
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    const REST: &str = "0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 99 0 0";

    #[test]
    fn names_do_not_confuse_us() {
        let process = Process { parent: 7, group: 8, started: 99, work_gid: None, is_stopped: false };
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
        assert_eq!(work_gid(b"Name:\tsh\nGroups:\t7 61003 \nNStgid:\t1\n"), Some(61003));
        for none in [&b""[..], b"Groups:\t\n", b"Groups:\t1000 5 \n", b"Name:\tGroups:\\n61003\n"] {
            assert_eq!(work_gid(none), None);
        }
    }

    #[test]
    fn work_is_those_with_its_tag_or_its_group_and_its_descendants() {
        let process = |parent, group, work_gid| Process { parent, group, started: 0, work_gid, is_stopped: false };
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
        let selector = |leader, work_gid| ProcessSelector { leader, work_gid };
        assert_eq!(belonging_to(&all, &[selector(10, None)]), BTreeSet::from([5, 10, 11, 12, 13]));
        assert_eq!(belonging_to(&all, &[selector(20, Some(61001))]), BTreeSet::from([20, 21]));
        assert_eq!(belonging_to(&all, &[selector(20, Some(61001)), selector(22, Some(61002))]).len(), 3);
        assert_eq!(belonging_to(&all, &[]), BTreeSet::new());
    }
}
