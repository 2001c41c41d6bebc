//! Failpoints: where a simulation can interrupt work on layers.
//!
//! Work on layers must survive a full disk or a crash at any step. So each step calls a failpoint first. A simulation
//! installs a handler on its thread, which may fail the step. Without a handler, a failpoint costs one thread-local
//! read.

use std::cell::RefCell;
use std::io;
use std::path::Path;

/// A step of work on layers.
#[derive(Clone, Copy, Debug)]
pub enum Failpoint<'s> {
    /// A change on the disk is about to be made.
    Change,
    /// The layer at this path has been flushed.
    Flushed(&'s Path),
}

/// Called at each failpoint; a step for which it returns an error is not taken.
pub type FailpointHandler = Box<dyn FnMut(Failpoint<'_>) -> io::Result<()>>;

thread_local! {
    static HANDLER: RefCell<Option<FailpointHandler>> = const { RefCell::new(None) };
}

/// Installs or removes this thread's handler, and returns the previous one.
pub fn set_handler(handler: Option<FailpointHandler>) -> Option<FailpointHandler> {
    HANDLER.replace(handler)
}

/// To be called before a change on the disk.
pub(crate) fn change() -> io::Result<()> {
    reach(Failpoint::Change)
}

/// To be called after a layer was flushed.
pub(crate) fn flushed(layer: &Path) -> io::Result<()> {
    reach(Failpoint::Flushed(layer))
}

fn reach(step: Failpoint<'_>) -> io::Result<()> {
    HANDLER.with_borrow_mut(|handler| handler.as_mut().map_or(Ok(()), |handler| handler(step)))
}
