//! What a session's state does not allow.

use super::Step;
use super::types::{Refused, State};
use crate::ids::Generation;

impl Step {
    /// What an older container says is not heard.
    pub(super) fn fence(&self, generation: Generation) -> Result<(), Refused> {
        if generation == self.session.generation { Ok(()) } else { Err(Refused::Fenced) }
    }

    /// What has ended does nothing more.
    pub(super) fn refuse_terminated(&self) -> Result<(), Refused> {
        if self.session.deleted_at.is_some() {
            Err(Refused::Deleted)
        } else if self.session.terminated.is_some() {
            Err(Refused::Terminated)
        } else {
            Ok(())
        }
    }

    /// What waits for a person takes nothing.
    pub(super) fn refuse_given_up(&self) -> Result<(), Refused> {
        if self.session.state == State::Error && self.session.due_at.is_none() { Err(Refused::GivenUp) } else { Ok(()) }
    }
}
