//! What runs beside us, from `/proc`. Scripts may give their processes any name, and start thousands.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process, kill_process_group, test_kill_process, test_kill_process_group};

/// How often the processes of work are looked for before they are killed: one that forks meanwhile is found by another
/// look.
const LOOKS: usize = 3;

/// One live process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its parent.
    parent: i32,
    /// Its process group.
    group: i32,
    /// When it started, in ticks since boot: tells it from a later one of the same id.
    started: u64,
}

/// Processes by id, and when they started.
pub type Known = BTreeMap<i32, u64>;

/// Whether we are the first process of a container.
pub fn is_first() -> bool {
    std::process::id() == 1
}

/// All live processes (no zombies) by id.
fn all() -> BTreeMap<i32, Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return BTreeMap::new() };
    entries
        .filter_map(|entry| {
            let id: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
            // What has ended since is left out.
            let stat = fs::read(format!("/proc/{id}/stat")).ok()?;
            Some((id, parse(&stat)?))
        })
        .collect()
}

/// `pid (name) state ppid pgrp …` (proc(5)); the name may contain anything, so what counts begins after the last `)`.
fn parse(stat: &[u8]) -> Option<Process> {
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    let text = std::str::from_utf8(stat.get(end + 1..)?).ok()?;
    let mut fields = text.split_ascii_whitespace();
    if matches!(fields.next()?, "Z" | "X" | "x") {
        return None;
    }
    let (parent, group) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    // The group is field 5, the start is field 22.
    Some(Process { parent, group, started: fields.nth(16)?.parse().ok()? })
}

/// The processes that belong to work: those in a group that one of `leaders` leads, and all that descend from them.
fn belonging_to(all: &BTreeMap<i32, Process>, leaders: &BTreeSet<i32>) -> BTreeSet<i32> {
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

/// Every live process besides us, and all of them. Outside a container, only our own descendants.
fn others() -> (BTreeSet<i32>, BTreeMap<i32, Process>) {
    let all = all();
    let me = i32::try_from(std::process::id()).unwrap_or(1);
    let mut ids = if is_first() { all.keys().copied().collect() } else { belonging_to(&all, &BTreeSet::from([me])) };
    ids.remove(&me);
    (ids, all)
}

/// Whether there is a live process besides us.
pub fn is_alone() -> bool {
    others().0.is_empty()
}

/// Live processes besides us and those that belong to `leaders`.
pub fn count_background(leaders: &BTreeSet<i32>) -> u32 {
    let (others, all) = others();
    let of_work = belonging_to(&all, leaders);
    u32::try_from(others.difference(&of_work).count()).unwrap_or(u32::MAX)
}

/// Signals every process but us. Outside a container, only our own descendants.
pub fn signal_others(signal: Signal) {
    if is_first() {
        // This means every process that we may signal, but not ourselves (kill(2), `pid` -1).
        let _ = kill_process_group(Pid::INIT, signal);
        return;
    }
    for id in others().0.into_iter().filter_map(Pid::from_raw) {
        let _ = kill_process(id, signal);
    }
}

/// Signals a work's process group and those that left it but descend from it or from one of `known`; they are known from
/// then on, because their ancestors may end before they do.
pub fn signal_work(leader: i32, signal: Signal, known: &mut Known) {
    for _ in 0..if signal == Signal::KILL { LOOKS } else { 1 } {
        let all = all();
        let lives = |(id, started): (&i32, &u64)| all.get(id).is_some_and(|process| process.started == *started);
        let mut roots: BTreeSet<i32> = known.iter().filter(|known| lives(*known)).map(|(id, _)| *id).collect();
        roots.insert(leader);
        // What has ended meanwhile needs no signal.
        if let Some(group) = Pid::from_raw(leader) {
            let _ = kill_process_group(group, signal);
        }
        if let Some(tracer) = tracer_of(leader).filter(|_| signal == Signal::KILL) {
            let _ = kill_process(tracer, signal);
        }
        for id in belonging_to(&all, &roots) {
            let process = all[&id];
            known.insert(id, process.started);
            if let Some(pid) = Pid::from_raw(id).filter(|_| process.group != leader) {
                let _ = kill_process(pid, signal);
            }
        }
    }
}

/// Who traces a process. The end of a process that is traced is told to its tracer first, and to us only after that.
fn tracer_of(id: i32) -> Option<Pid> {
    let status = fs::read(format!("/proc/{id}/status")).ok()?;
    let line = status.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"TracerPid:"))?;
    Pid::from_raw(std::str::from_utf8(line).ok()?.trim().parse().ok()?)
}

/// Whether nothing is left of a work's process group, nor of those that left it.
pub fn are_gone(leader: i32, known: &Known) -> bool {
    let is_gone = |id: i32| Pid::from_raw(id).is_none_or(|id| test_kill_process(id) == Err(Errno::SRCH));
    Pid::from_raw(leader).is_none_or(|id| test_kill_process_group(id) == Err(Errno::SRCH))
        && known.keys().all(|id| is_gone(*id))
}

#[cfg(test)]
mod tests {
    use super::*;

    const REST: &str = "0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 99 0 0";

    #[test]
    fn names_do_not_confuse_us() {
        let process = Process { parent: 7, group: 8, started: 99 };
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
    fn work_is_its_group_and_its_descendants() {
        let process = |parent, group| Process { parent, group, started: 0 };
        let all = BTreeMap::from([
            (1, process(0, 1)),
            (10, process(1, 10)),
            (11, process(10, 10)),
            (12, process(11, 12)),
            (13, process(1, 10)),
            (20, process(1, 20)),
            (5, process(12, 5)),
        ]);
        assert_eq!(belonging_to(&all, &BTreeSet::from([10])), BTreeSet::from([5, 10, 11, 12, 13]));
        assert_eq!(belonging_to(&all, &BTreeSet::new()), BTreeSet::new());
    }
}
