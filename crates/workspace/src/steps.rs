//! Where work on layers can be cut off.
//!
//! Whatever is done to layers has to be right though the disk is full at any step of it, or the server killed. To try that,
//! someone has to stand in the middle: so the work says each step before it is taken, and a simulation, whose work is done on
//! one thread, watches that thread and has a step fail. Nobody watches elsewhere; a step costs a look at a thread's variable.

use std::cell::RefCell;
use std::io;
use std::path::Path;

/// What is about to be done, or has been.
#[derive(Clone, Copy, Debug)]
pub enum Step<'s> {
    /// Something is about to be changed on the disk.
    Change,
    /// All of this layer has been brought to the disk.
    Flushed(&'s Path),
}

/// Decides about steps. A step for which it has an error is not taken.
pub type Watcher = Box<dyn FnMut(Step<'_>) -> io::Result<()>>;

thread_local! {
    static WATCHER: RefCell<Option<Watcher>> = const { RefCell::new(None) };
}

/// Has this thread watched from now on, or no more; who watched before.
pub fn watch(watcher: Option<Watcher>) -> Option<Watcher> {
    WATCHER.replace(watcher)
}

/// Something is about to be changed.
pub(crate) fn change() -> io::Result<()> {
    take(Step::Change)
}

/// A layer has been brought to the disk.
pub(crate) fn flushed(layer: &Path) -> io::Result<()> {
    take(Step::Flushed(layer))
}

fn take(step: Step<'_>) -> io::Result<()> {
    WATCHER.with_borrow_mut(|watcher| watcher.as_mut().map_or(Ok(()), |watcher| watcher(step)))
}
