//! What people ask of a session.

use std::time::Duration;

use super::{Container, Effect, Note, Reason, Refused, State, Step, Termination, TerminationReason};
use crate::limits::QUEUED_MESSAGES_MAX;

impl Step {
    pub(super) fn message_queued(&mut self) -> Result<(), Refused> {
        self.refuse_terminated()?;
        self.refuse_given_up()?;
        if self.session.queued >= QUEUED_MESSAGES_MAX {
            return Err(Refused::QueueFull);
        }
        self.session.queued += 1;
        self.session.last_activity_at = self.now;
        Ok(())
    }

    pub(super) fn wake(&mut self) -> Result<(), Refused> {
        self.refuse_terminated()?;
        self.refuse_given_up()?;
        if self.session.paused_at.is_some() {
            return Err(Refused::Paused);
        }
        self.session.last_activity_at = self.now;
        self.session.wake |= self.session.state == State::Idle;
        Ok(())
    }

    pub(super) fn configured(&mut self, waiting_timeout: Option<Duration>, ttl: Option<Duration>) {
        self.session.waiting_timeout = waiting_timeout.unwrap_or(self.session.waiting_timeout);
        if let Some(ttl) = ttl {
            self.session.ttl = Some(ttl);
            self.session.expires_at = Some(self.now + ttl);
        }
    }

    pub(super) fn pause(&mut self) -> Result<(), Refused> {
        self.refuse_terminated()?;
        if self.session.paused_at.is_none() {
            self.session.paused_at = Some(self.now);
            self.session.wake = false;
            self.effects.push(Effect::Noted(Note::Paused));
            if let Some(running) = self.session.running {
                self.requeue(running, Reason::Paused);
            }
        }
        Ok(())
    }

    pub(super) fn resume(&mut self) -> Result<(), Refused> {
        self.refuse_terminated()?;
        if self.session.paused_at.take().is_some() {
            self.effects.push(Effect::Noted(Note::Resumed));
        }
        self.session.last_activity_at = self.now;
        self.session.wake |= self.session.state == State::Idle;
        Ok(())
    }

    pub(super) fn terminate(&mut self, reason: TerminationReason) {
        if self.session.terminated.is_some() {
            return;
        }
        self.session.terminated = Some(Termination { at: self.now, reason });
        self.session.wake = false;
        self.effects.push(Effect::Noted(Note::Terminated(reason)));
        self.drop_work(Reason::Terminated);
    }

    /// Cancels the running message and those that wait.
    pub(super) fn drop_work(&mut self, reason: Reason) {
        if let Some(running) = self.session.running.take() {
            self.effects.push(Effect::CancelRunning(running));
            self.effects.push(Effect::TellCancel(running));
            self.go(State::Ready, reason);
        }
        if self.session.queued > 0 {
            self.session.queued = 0;
            self.effects.push(Effect::CancelQueued);
        }
    }

    pub(super) fn delete(&mut self) -> Result<(), Refused> {
        if self.session.deleted_at.is_some() {
            return Err(Refused::Deleted);
        }
        self.terminate(TerminationReason::Deleted);
        self.session.deleted_at = Some(self.now);
        self.effects.push(Effect::Noted(Note::Deleted));
        Ok(())
    }

    pub(super) fn restore(&mut self) -> Result<(), Refused> {
        if self.session.terminated.is_none() {
            return Err(Refused::NothingToRestore);
        }
        self.session.terminated = None;
        self.session.deleted_at = None;
        self.session.expires_at = self.session.ttl.map(|ttl| self.now + ttl);
        self.session.last_activity_at = self.now;
        self.effects.push(Effect::Noted(Note::Restored));
        if self.session.state == State::Error {
            self.try_again_now();
        }
        Ok(())
    }

    pub(super) fn restart(&mut self) -> Result<(), Refused> {
        self.refuse_terminated()?;
        if self.session.paused_at.is_some() {
            return Err(Refused::Paused);
        }
        if self.session.state == State::Init {
            return Err(Refused::Starting);
        }
        self.effects.push(Effect::Noted(Note::Restarted));
        self.session.last_activity_at = self.now;
        if let Some(running) = self.session.running {
            self.requeue(running, Reason::Restarted);
        }
        match self.session.state {
            State::Ready => {
                self.rest(Reason::Restarted);
                self.session.wake = true;
            }
            State::Idle => self.session.wake = true,
            State::Error => self.try_again_now(),
            State::Init | State::Busy => {}
        }
        Ok(())
    }

    pub(super) fn cancel(&mut self) -> Result<(), Refused> {
        let running = self.session.running.ok_or(Refused::NothingRuns)?;
        self.effects.push(Effect::TellCancel(running));
        Ok(())
    }

    pub(super) fn message_withdrawn(&mut self) -> Result<(), Refused> {
        self.session.queued = self.session.queued.checked_sub(1).ok_or(Refused::NothingWaits)?;
        Ok(())
    }

    /// What is worked on and what waits belongs to the time that is taken back.
    pub(super) fn rewind(&mut self, checkpoint: u64) -> Result<(), Refused> {
        self.refuse_terminated()?;
        if self.session.rewind.is_some() {
            return Err(Refused::Rewinding);
        }
        self.session.rewind = Some(checkpoint);
        self.session.last_activity_at = self.now;
        self.drop_work(Reason::Rewound);
        Ok(())
    }

    pub(super) fn rewound(&mut self) -> Result<(), Refused> {
        if self.session.rewind.is_none() || self.session.container != Container::None {
            return Err(Refused::NothingToRewind);
        }
        self.session.rewind = None;
        Ok(())
    }
}
