//! What runs beside us, from `/proc`. Scripts may give their processes any name, and start thousands.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

/// One live process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its parent.
    pub parent: i32,
    /// Its process group.
    pub group: i32,
}

/// All live processes (no zombies) by id.
pub fn all() -> BTreeMap<i32, Process> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return BTreeMap::new();
    };
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
    Some(Process { parent: fields.next()?.parse().ok()?, group: fields.next()?.parse().ok()? })
}

/// The processes that belong to work: those in a group that one of `leaders` leads, and all that descend from them.
pub fn belonging_to(all: &BTreeMap<i32, Process>, leaders: &BTreeSet<i32>) -> BTreeSet<i32> {
    let mut found: BTreeSet<i32> = all
        .iter()
        .filter(|(id, process)| leaders.contains(id) || leaders.contains(&process.group))
        .map(|(id, _)| *id)
        .collect();
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

/// Live processes besides ourselves and those that belong to `leaders`. Outside a container, only our own descendants.
pub fn count_background(leaders: &BTreeSet<i32>) -> u32 {
    let all = all();
    let me = i32::try_from(std::process::id()).unwrap_or(1);
    let of_work = belonging_to(&all, leaders);
    let mine = if me == 1 { None } else { Some(belonging_to(&all, &BTreeSet::from([me]))) };
    let is_background =
        |id: &i32| *id != me && !of_work.contains(id) && mine.as_ref().is_none_or(|mine| mine.contains(id));
    u32::try_from(all.keys().filter(|id| is_background(id)).count()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_not_confuse_us() {
        let process = Process { parent: 7, group: 8 };
        assert_eq!(parse(b"42 (sh) S 7 8 8 0 -1"), Some(process));
        assert_eq!(parse(b"42 (a) Z 1 1 (b) R 7 8 8 0"), Some(process));
        assert_eq!(parse(b"42 (\xff) ) R 7 8"), Some(process));
        assert_eq!(parse(b"42 (sh) Z 7 8"), None);
        for damaged in [&b""[..], b"42", b"42 (sh)", b"42 (sh) R", b"42 (sh) R x y"] {
            assert_eq!(parse(damaged), None);
        }
    }

    #[test]
    fn work_is_its_group_and_its_descendants() {
        let process = |parent, group| Process { parent, group };
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
