//! Which turns are carried on in the server.

use std::collections::BTreeSet;
use std::sync::Mutex;

use raworc_core::ids::{ContainerId, TurnId};
use raworc_core::session::{Running, Session};

use crate::sync::lock;

/// A turn in its container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// The container in which its tools are used.
    pub container: ContainerId,
    /// The turn, and its message.
    pub running: Running,
}

impl Turn {
    /// Whether a session is in this turn.
    pub fn is_current(&self, machine: &Session) -> bool {
        machine.generation == self.container.generation && machine.running == Some(self.running)
    }
}

/// The turns that are carried on at the moment.
#[derive(Default)]
pub struct Drivers(Mutex<BTreeSet<TurnId>>);

impl Drivers {
    /// Whether nobody carries this turn on; from now on somebody does.
    pub fn begin(&self, turn: TurnId) -> bool {
        lock(&self.0).insert(turn)
    }

    /// Nobody does any more.
    pub fn end(&self, turn: TurnId) {
        lock(&self.0).remove(&turn);
    }
}
