//! The expected content of workspaces. It follows from what containers wrote, independently of the server.
//!
//! Each change gives a workspace a new state with a number, which the file `number` in it contains. So the content on
//! the disk names its state, and must match it completely.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use raworc_core::ids::LayerId;
use raworc_workspace::{LayerStack, failpoints};
use rusqlite::Connection;

use crate::records;
use crate::tree::{self, Change, Entry, Overlay, Tree};

/// The file with the number of the state.
pub const NUMBER: &str = "number";

/// The expected content of workspaces and checkpoints.
pub struct WorkspaceOracle {
    /// The directory of all layers.
    pub layers: PathBuf,
    /// The server's database.
    pub records: Connection,
    /// Acknowledged checkpoints, by session and number.
    pub kept: BTreeMap<(String, u64), Kept>,
    /// Checkpoints that clients deleted, or tried to.
    pub given_up: BTreeSet<(String, u64)>,
    /// Errors found so far.
    pub wrong: Vec<String>,
    /// All states by number, with the session that wrote each.
    states: Vec<(String, Tree)>,
    /// The first state of each session.
    first: BTreeMap<String, usize>,
    /// The current state of each session.
    shown: BTreeMap<String, usize>,
    /// States that sessions were asked to restore, maybe not yet.
    ahead: BTreeSet<(String, usize)>,
    /// The state at the start of each message, by message id.
    begun: BTreeMap<String, usize>,
    /// The state at the end of each message, by message id.
    done: BTreeMap<String, usize>,
    /// Layers that were flushed to the disk.
    flushed: BTreeSet<PathBuf>,
}

/// An acknowledged checkpoint.
#[derive(Clone, Copy, Debug)]
pub struct Kept {
    /// Its state.
    pub state: usize,
    /// Whether it has a label.
    pub has_label: bool,
}

impl WorkspaceOracle {
    /// An oracle without sessions.
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

    /// The content of a session's workspace.
    pub fn tree_of(&self, session: &str) -> Tree {
        self.states[self.state_of(session)].1.clone()
    }

    /// Records and returns the first state of a session. If its container has already written, its workspace is read.
    pub fn begin(&mut self, session: &str) -> anyhow::Result<usize> {
        if let Some(first) = self.first.get(session) {
            return Ok(*first);
        }
        let row = records::sessions(&self.records)?.into_iter().find(|row| row.id == session);
        self.look(session, &row.context("it is not recorded")?.stack)
    }

    /// Records that a session was asked to restore a state.
    pub fn go_back(&mut self, session: &str, state: usize) {
        self.ahead.insert((session.to_owned(), state));
    }

    /// Records that a host starts a message.
    pub fn begun(&mut self, session: &str, message: &str) {
        self.begun.insert(message.to_owned(), self.state_of(session));
    }

    /// Whether a message changed anything.
    pub fn has_changed(&self, message: &str) -> bool {
        self.begun.get(message) != self.done.get(message)
    }

    /// Records that a host has finished a message.
    pub fn done(&mut self, session: &str, message: &str) {
        self.done.insert(message.to_owned(), self.state_of(session));
    }

    /// The state at the end of a message, if it has finished.
    pub fn left_by(&self, message: &str) -> Option<usize> {
        self.done.get(message).copied()
    }

    /// Records that a layer was flushed.
    pub fn flushed(&mut self, layer: &Path) {
        self.flushed.insert(layer.to_owned());
    }

    /// Returns the value, or records the error and returns a default.
    pub fn expect<T: Default>(&mut self, what: &str, found: anyhow::Result<T>) -> T {
        found.unwrap_or_else(|error| {
            self.wrong.push(format!("{what}: {error:#}"));
            T::default()
        })
    }

    /// Applies changes of a session's container.
    pub fn write(&mut self, session: &str, stack: &LayerStack, changes: Vec<Change>) -> anyhow::Result<()> {
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

    /// Checks that all layers of a stack exist.
    fn mounted(&self, stack: &LayerStack) -> anyhow::Result<Overlay> {
        let overlay = Overlay::of(&self.layers, stack).context("nothing can be written")?;
        let missing = overlay.missing();
        ensure!(missing.is_empty(), "{missing:?} is mounted, and gone");
        Ok(overlay)
    }

    /// The state of a session's workspace on the disk, which must be the expected one.
    pub fn look(&mut self, session: &str, stack: &LayerStack) -> anyhow::Result<usize> {
        let overlay = Overlay::of(&self.layers, stack).context("nothing can be written")?;
        // The writable layer may not have been created yet.
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

    /// As [`Self::look`], when a container mounts the stack: all layers must exist.
    pub fn mount(&mut self, session: &str, stack: &LayerStack) -> anyhow::Result<usize> {
        self.mounted(stack)?;
        self.look(session, stack)
    }

    /// Acknowledged checkpoints of a session that are missing in `there` (numbers, oldest first), although neither a
    /// client nor the retention setting removed them.
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

    /// The state of a checkpoint on the disk, or `None`. It must be flushed, and must match what clients were told.
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

    /// Records that clients know of a checkpoint.
    pub fn acknowledge(&mut self, session: &str, n: u64, has_label: bool) -> anyhow::Result<Option<usize>> {
        let state = self.look_at(session, n)?;
        if let Some(state) = state {
            self.kept.insert((session.to_owned(), n), Kept { state, has_label });
        }
        Ok(state)
    }

    /// Whether `state` can be that of a checkpoint requested when the session was in state `asked`.
    pub fn is_since(&self, session: &str, asked: usize, state: usize) -> bool {
        let is_later = state > asked && self.states[state].0 == session;
        state == asked || is_later || self.ahead.contains(&(session.to_owned(), state))
    }

    /// The number of the state with this content.
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

    /// Checks that no unused layer has a directory, unless it is `mounted`, and that no recorded layer is unused or
    /// lacks its directory.
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

/// Runs work without failpoints.
fn unwatched<T>(work: impl FnOnce() -> std::io::Result<T>) -> std::io::Result<T> {
    let watcher = failpoints::set_handler(None);
    let done = work();
    failpoints::set_handler(watcher);
    done
}
