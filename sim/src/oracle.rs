//! What workspaces should show. It is never asked of the server: it follows from what containers wrote.
//!
//! Each time a container has written something, the workspace is in a new state, which has a number; the file `number` in it
//! says which. So whatever is found on the disk says which state it means to be, and has to be all of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use raworc_core::ids::LayerId;
use raworc_workspace::{Stack, steps};
use rusqlite::Connection;

use crate::records;
use crate::tree::{self, Change, Entry, Overlay, Tree};

/// The file that says which state it is.
pub const NUMBER: &str = "number";

/// All that is true of workspaces, and where it is looked up what is there.
pub struct WorkspaceOracle {
    /// The directory of all layers.
    pub layers: PathBuf,
    /// What the server has recorded.
    pub records: Connection,
    /// What people were told of checkpoints: session and number.
    pub kept: BTreeMap<(String, u64), Kept>,
    /// Checkpoints that people have given up, or tried to.
    pub given_up: BTreeSet<(String, u64)>,
    /// What was seen to be wrong.
    pub wrong: Vec<String>,
    /// Every state, by number, and whose container made it.
    states: Vec<(String, Tree)>,
    /// The states in which workspaces were found first.
    first: BTreeMap<String, usize>,
    /// Those that they are in.
    shown: BTreeMap<String, usize>,
    /// Those that sessions were asked to go back to; who knows when they do.
    ahead: BTreeSet<(String, usize)>,
    /// The states in which workspaces were when work on a message began, by its id.
    begun: BTreeMap<String, usize>,
    /// The states in which workspaces were when a message had been worked on, by its id.
    done: BTreeMap<String, usize>,
    /// Layers that are on the disk for good.
    flushed: BTreeSet<PathBuf>,
}

/// A checkpoint that people know of.
#[derive(Clone, Copy, Debug)]
pub struct Kept {
    /// The state that it shows.
    pub state: usize,
    /// Whether it was given a name.
    pub has_label: bool,
}

impl WorkspaceOracle {
    /// Of nothing yet.
    pub fn new(layers: PathBuf, records: Connection) -> Self {
        Self {
            layers,
            records,
            kept: BTreeMap::new(),
            given_up: BTreeSet::new(),
            wrong: Vec::new(),
            states: vec![(String::new(), Tree::new())],
            first: BTreeMap::new(),
            shown: BTreeMap::new(),
            ahead: BTreeSet::new(),
            begun: BTreeMap::new(),
            done: BTreeMap::new(),
            flushed: BTreeSet::new(),
        }
    }

    /// The state of a session's workspace.
    pub fn state_of(&self, session: &str) -> usize {
        self.shown.get(session).copied().unwrap_or(0)
    }

    /// What a session's workspace shows.
    pub fn tree_of(&self, session: &str) -> Tree {
        self.states[self.state_of(session)].1.clone()
    }

    /// The state in which a session began. One whose container was faster than the answer has been looked at.
    pub fn begin(&mut self, session: &str) -> anyhow::Result<usize> {
        if let Some(first) = self.first.get(session) {
            return Ok(*first);
        }
        let row = records::sessions(&self.records)?.into_iter().find(|row| row.id == session);
        self.look(session, &row.context("it is not recorded")?.stack)
    }

    /// A session was asked to go back to this state.
    pub fn go_back(&mut self, session: &str, state: usize) {
        self.ahead.insert((session.to_owned(), state));
    }

    /// A host begins to work on a message.
    pub fn begun(&mut self, session: &str, message: &str) {
        self.begun.insert(message.to_owned(), self.state_of(session));
    }

    /// Whether anything was written while a message was worked on.
    pub fn has_changed(&self, message: &str) -> bool {
        self.begun.get(message) != self.done.get(message)
    }

    /// A host is about to say that it has worked on a message.
    pub fn done(&mut self, session: &str, message: &str) {
        self.done.insert(message.to_owned(), self.state_of(session));
    }

    /// The state that the work on this message has left, if it has been told of.
    pub fn left_by(&self, message: &str) -> Option<usize> {
        self.done.get(message).copied()
    }

    /// A layer has been brought to the disk.
    pub fn flushed(&mut self, layer: &Path) {
        self.flushed.insert(layer.to_owned());
    }

    /// What is asked is noted where it fails.
    pub fn expect<T: Default>(&mut self, what: &str, found: anyhow::Result<T>) -> T {
        found.unwrap_or_else(|error| {
            self.wrong.push(format!("{what}: {error:#}"));
            T::default()
        })
    }

    /// The container of a session changes files.
    pub fn write(&mut self, session: &str, stack: &Stack, changes: Vec<Change>) -> anyhow::Result<()> {
        let overlay = self.mounted(stack)?;
        let writable = stack.writable.context("nothing can be written")?;
        ensure!(!records::is_sealed(&self.records, writable)?, "{writable} is written to, and is sealed");
        let mut tree = self.tree_of(session);
        let number = Change::Put(NUMBER.to_owned(), self.states.len().to_string());
        for change in changes.into_iter().chain([number]) {
            overlay.change(&change).with_context(|| format!("{change:?}"))?;
            tree::apply(&mut tree, &change);
        }
        self.flushed.remove(&tree::place(&self.layers, writable));
        self.shown.insert(session.to_owned(), self.states.len());
        self.states.push((session.to_owned(), tree));
        Ok(())
    }

    /// What can be mounted is there.
    fn mounted(&self, stack: &Stack) -> anyhow::Result<Overlay> {
        let overlay = Overlay::of(&self.layers, stack).context("nothing can be written")?;
        let missing = overlay.missing();
        ensure!(missing.is_empty(), "{missing:?} is mounted, and gone");
        Ok(overlay)
    }

    /// Which state a session's workspace is in, looked at as a container would see it. It has to be the one that it was left in.
    pub fn look(&mut self, session: &str, stack: &Stack) -> anyhow::Result<usize> {
        let overlay = Overlay::of(&self.layers, stack).context("nothing can be written")?;
        // What is written to may not have been made.
        let writable = stack.writable.map(|layer| tree::place(&self.layers, layer));
        let missing: Vec<&Path> =
            overlay.missing().into_iter().filter(|path| Some(*path) != writable.as_deref()).collect();
        ensure!(missing.is_empty(), "{missing:?} is needed, and gone");
        let scratch = self.scratch();
        let tree = unwatched(|| overlay.show(&scratch))?;
        let state = self.number(&tree)?;
        let left = self.shown.get(session).copied();
        let is_right = left.is_none_or(|left| left == state) || self.ahead.contains(&(session.to_owned(), state));
        ensure!(is_right, "it is in the state {state} and was left in {left:?}");
        self.first.entry(session.to_owned()).or_insert(state);
        self.shown.insert(session.to_owned(), state);
        Ok(state)
    }

    /// The same before a container gets it: all of it has to be there.
    pub fn mount(&mut self, session: &str, stack: &Stack) -> anyhow::Result<usize> {
        self.mounted(stack)?;
        self.look(session, stack)
    }

    /// Checkpoints of a session that people were told of, that are not among those that are there (their numbers, oldest first),
    /// and that nobody gave up: neither people nor the session's plan.
    pub fn lost(&self, session: &records::Session, there: &[(u64, bool)]) -> Vec<u64> {
        let id = &session.id;
        let is_given_up = |n: u64| self.given_up.contains(&(id.clone(), n));
        let newer = |n: u64| {
            let given_up = self.given_up.iter().filter(|(whose, m)| whose == id && *m > n).map(|(_, m)| *m);
            there.iter().map(|(m, _)| *m).filter(|m| *m > n).chain(given_up).collect::<BTreeSet<_>>().len()
        };
        let told = self.kept.iter().filter(|((whose, _), _)| whose == id).map(|((_, n), kept)| (*n, kept.has_label));
        let is_lost = |(n, has_label): &(u64, bool)| {
            let is_old = !has_label && newer(*n) >= session.keep_last;
            !session.is_purged && !is_old && !is_given_up(*n) && !there.iter().any(|(m, _)| m == n)
        };
        told.filter(is_lost).map(|(n, _)| n).collect()
    }

    /// Which state a checkpoint shows. Nothing, where there is none. It has to be safe on the disk, and what people were told.
    pub fn look_at(&mut self, session: &str, n: u64) -> anyhow::Result<Option<usize>> {
        let Some(chain) = records::checkpoint(&self.records, session, n)? else { return Ok(None) };
        let paths: Vec<PathBuf> = chain.iter().map(|layer| tree::place(&self.layers, *layer)).collect();
        for path in &paths {
            ensure!(path.is_dir(), "{} is needed, and gone", path.display());
            ensure!(self.flushed.contains(path), "{} was never brought to the disk", path.display());
        }
        let scratch = self.scratch();
        let tree = unwatched(|| tree::compose(&paths, &scratch))?;
        let state = self.number(&tree)?;
        if let Some(kept) = self.kept.get(&(session.to_owned(), n)) {
            ensure!(kept.state == state, "it shows the state {state} and showed {}", kept.state);
        }
        Ok(Some(state))
    }

    /// People hear of a checkpoint that can be used.
    pub fn acknowledge(&mut self, session: &str, n: u64, has_label: bool) -> anyhow::Result<Option<usize>> {
        let state = self.look_at(session, n)?;
        if let Some(state) = state {
            self.kept.insert((session.to_owned(), n), Kept { state, has_label });
        }
        Ok(state)
    }

    /// Whether what was saved of a session can be `state`, if it was asked for when the session was in `asked`.
    pub fn is_since(&self, session: &str, asked: usize, state: usize) -> bool {
        let is_later = state > asked && self.states[state].0 == session;
        state == asked || is_later || self.ahead.contains(&(session.to_owned(), state))
    }

    /// The number of the state that this is, all of it.
    fn number(&self, tree: &Tree) -> anyhow::Result<usize> {
        let number = match tree.get(NUMBER) {
            Some(Entry::File(number)) => number.parse()?,
            None => 0,
            other => bail!("its number is {other:?}"),
        };
        let (_, whole) = self.states.get(number).context("a state that never was")?;
        ensure!(tree == whole, "the state {number} was {whole:?} and is {tree:?}");
        Ok(number)
    }

    fn scratch(&self) -> PathBuf {
        self.layers.with_file_name("scratch")
    }

    /// Layers whose directories are there, though nothing needs them but what is `mounted`; and layers that are recorded
    /// and have none, or are not needed.
    pub fn leaks(&self, mounted: &BTreeSet<LayerId>) -> anyhow::Result<()> {
        let (all, needed) = (records::layers(&self.records)?, records::needed(&self.records)?);
        ensure!(all == needed, "recorded are {all:?}, and needed {needed:?}");
        let mut useful: BTreeSet<LayerId> = all.iter().chain(mounted).copied().collect();
        useful.extend(records::sessions(&self.records)?.into_iter().filter_map(|session| session.stack.writable));
        for entry in std::fs::read_dir(&self.layers)? {
            let entry = entry?;
            let name = entry.file_name();
            let layer: LayerId = name.to_str().context("a strange name")?.parse()?;
            let found = || {
                std::fs::read_dir(entry.path()).map(|all| all.flatten().map(|one| one.file_name()).collect::<Vec<_>>())
            };
            ensure!(useful.contains(&layer), "{layer} is left with {:?}, and nothing needs it", found());
        }
        for layer in all {
            let place = tree::place(&self.layers, layer);
            ensure!(place.is_dir(), "{} is recorded, and gone", place.display());
        }
        Ok(())
    }
}

/// Does something that nobody comes in between.
fn unwatched<T>(work: impl FnOnce() -> std::io::Result<T>) -> std::io::Result<T> {
    let watcher = steps::watch(None);
    let done = work();
    steps::watch(watcher);
    done
}
