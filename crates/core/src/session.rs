//! THE state machine of a session. Everything that may happen to one is an [`Event`]; [`step`] decides what it means.
//!
//! The five states and their edges ([`State::may_become`]) are the only ones there are. Beside the state stand facts: a
//! pause, a termination, a deletion are recorded at once, and [`converge`] walks legal edges towards them.
//!
//! The `container` of a session says what is wanted of the runtime (`Starting`, `Stopping`) until the runtime or the host
//! says that it is so. It is stored with the session, so whoever carries it out can begin again after a crash.

mod commands;
mod refusals;
#[cfg(test)]
mod tests;
mod types;

pub use types::*;

use std::time::Duration;

use crate::ids::{Generation, TurnId};
use crate::limits::{MESSAGE_ATTEMPTS_MAX, RESTART_BACKOFF, RESTARTS_MAX, STABLE, START_TIMEOUT};
use crate::time::Time;

/// Decides what `event`, at `now`, means for `session`: the session after it and what else has to be recorded or done, in
/// order. Pure: the same arguments give the same answer.
///
/// # Errors
/// [`Refused`] where the event is not possible; then nothing happened.
pub fn step(session: &Session, event: &Event, now: Time) -> Result<(Session, Vec<Effect>), Refused> {
    let mut next = Step { session: session.clone(), effects: Vec::new(), now };
    next.doubt_the_future();
    next.apply(event)?;
    next.converge();
    Ok((next.session, next.effects))
}

/// When [`Event::Tick`] has something to decide, if ever.
pub fn deadline(session: &Session) -> Option<Time> {
    let waiting = match session.state {
        State::Ready if session.queued == 0 => Some(session.last_activity_at + session.waiting_timeout),
        State::Init | State::Idle if session.container == Container::Starting => session.due_at,
        // While the old container is being removed there is nothing to decide: `ContainerGone` goes on from there.
        // Nor while it goes back to a checkpoint: `Rewound` goes on from there.
        State::Error if session.container != Container::Stopping && session.rewind.is_none() => session.due_at,
        State::Init | State::Ready | State::Idle | State::Busy | State::Error => None,
    };
    let expiry = if session.terminated.is_some() { None } else { session.expires_at };
    waiting.into_iter().chain(expiry).min()
}

struct Step {
    session: Session,
    effects: Vec<Effect>,
    now: Time,
}

impl Step {
    fn apply(&mut self, event: &Event) -> Result<(), Refused> {
        match event {
            Event::MessageQueued => self.message_queued(),
            Event::Wake => self.wake(),
            Event::Used => {
                self.session.last_activity_at = self.now;
                Ok(())
            }
            Event::Configured { waiting_timeout, ttl } => {
                self.configured(*waiting_timeout, *ttl);
                Ok(())
            }
            Event::Pause => self.pause(),
            Event::Resume => self.resume(),
            Event::Terminate(reason) => {
                self.terminate(*reason);
                Ok(())
            }
            Event::Delete => self.delete(),
            Event::Restore => self.restore(),
            Event::Restart => self.restart(),
            Event::Cancel => self.cancel(),
            Event::MessageWithdrawn => self.message_withdrawn(),
            Event::Rewind { checkpoint } => self.rewind(*checkpoint),
            Event::Rewound => self.rewound(),
            Event::HostPolled { generation } => self.host_polled(*generation),
            Event::MessageTaken { generation, running } => self.message_taken(*generation, *running),
            Event::MessageFinished { generation, turn } => self.message_finished(*generation, *turn),
            Event::StartWaits { generation } => self.start_waits(*generation),
            Event::StartFailed { generation, fault } => self.start_failed(*generation, fault),
            Event::ContainerGone { generation, fault } => self.container_gone(*generation, fault),
            Event::OverQuota { generation } => self.over_quota(*generation),
            Event::HostLost { generation } => self.host_lost(*generation),
            Event::Tick { active_inside } => {
                self.tick(*active_inside);
                Ok(())
            }
        }
    }

    // --- what was observed ------------------------------------------------------------------------------------------

    fn host_polled(&mut self, generation: Generation) -> Result<(), Refused> {
        self.fence(generation)?;
        match (self.session.state, self.session.container) {
            (State::Init | State::Idle, Container::Starting) => self.ready(Reason::HostReady),
            (State::Error, Container::Up) => self.ready(Reason::HostBack),
            (State::Ready, Container::Up) => {}
            (State::Busy, _) => return Err(Refused::Running),
            (State::Init | State::Idle | State::Ready | State::Error, _) => {
                return Err(Refused::Fenced);
            }
        }
        Ok(())
    }

    fn message_taken(&mut self, generation: Generation, running: Running) -> Result<(), Refused> {
        self.fence(generation)?;
        if self.session.state != State::Ready || self.session.queued == 0 {
            return Err(Refused::NotReady);
        }
        self.session.queued -= 1;
        self.session.running = Some(running);
        self.session.last_activity_at = self.now;
        self.go(State::Busy, Reason::MessageTaken);
        Ok(())
    }

    fn message_finished(&mut self, generation: Generation, turn: TurnId) -> Result<(), Refused> {
        self.fence(generation)?;
        match self.session.running {
            Some(running) if running.turn == turn => {
                self.session.running = None;
                self.session.restarts = 0;
                self.session.last_activity_at = self.now;
                self.go(State::Ready, Reason::MessageFinished);
                Ok(())
            }
            Some(_) | None => Err(Refused::NothingRuns),
        }
    }

    /// What it waits does not count towards the start's timeout.
    fn start_waits(&mut self, generation: Generation) -> Result<(), Refused> {
        self.fence(generation)?;
        if self.session.container != Container::Starting {
            return Err(Refused::Fenced);
        }
        self.session.due_at = Some(self.now + START_TIMEOUT);
        self.effects.push(Effect::Noted(Note::StartWaits));
        Ok(())
    }

    fn start_failed(&mut self, generation: Generation, fault: &Fault) -> Result<(), Refused> {
        self.fence(generation)?;
        if self.session.container != Container::Starting {
            return Err(Refused::Fenced);
        }
        self.session.container = Container::None;
        self.fail(fault.clone());
        Ok(())
    }

    fn container_gone(&mut self, generation: Generation, fault: &Fault) -> Result<(), Refused> {
        self.fence(generation)?;
        let wanted = self.session.container;
        if wanted == Container::None {
            return Err(Refused::Fenced);
        }
        self.session.container = Container::None;
        if wanted != Container::Stopping && self.session.state != State::Error {
            self.lose_message();
            self.fail(fault.clone());
        }
        Ok(())
    }

    /// What writes too much ends: the message with its processes, and those in the background. Nothing that was written is lost.
    fn over_quota(&mut self, generation: Generation) -> Result<(), Refused> {
        self.fence(generation)?;
        if !matches!(self.session.state, State::Ready | State::Busy) {
            return Err(Refused::Fenced);
        }
        if let Some(running) = self.session.running.take() {
            self.effects.push(Effect::FailRunning(running));
            self.go(State::Ready, Reason::DiskQuota);
        }
        self.rest(Reason::DiskQuota);
        Ok(())
    }

    fn host_lost(&mut self, generation: Generation) -> Result<(), Refused> {
        self.fence(generation)?;
        match self.session.state {
            // Its container is left for the moment: a host that only lost its way may still come back.
            State::Ready => self.fail(Fault::host_lost()),
            State::Busy => {
                self.lose_message();
                self.session.container = Container::Stopping;
                self.fail(Fault::host_lost());
            }
            State::Init | State::Idle | State::Error => return Err(Refused::Fenced),
        }
        Ok(())
    }

    fn tick(&mut self, active_inside: bool) {
        if self.session.expires_at.is_some_and(|at| at <= self.now) {
            self.terminate(TerminationReason::Ttl);
        }
        let due = self.session.due_at.is_some_and(|at| at <= self.now);
        match self.session.state {
            State::Ready => {
                if active_inside {
                    self.session.last_activity_at = self.now;
                } else if self.session.queued == 0
                    && self.session.last_activity_at + self.session.waiting_timeout <= self.now
                {
                    self.rest(Reason::WaitingTimeout);
                }
            }
            State::Init | State::Idle if due && self.session.container == Container::Starting => {
                self.session.container = Container::Stopping;
                self.fail(Fault::start_timeout());
            }
            State::Error if due && self.has_live_container() => self.session.container = Container::Stopping,
            State::Init | State::Idle | State::Busy | State::Error => {}
        }
    }

    /// What is further away than it can be was written by a clock that has been set back since.
    fn doubt_the_future(&mut self) {
        let now = self.now;
        let longest = match self.session.state {
            State::Error => self.backoff(),
            State::Init | State::Ready | State::Idle | State::Busy => START_TIMEOUT,
        };
        self.session.due_at = self.session.due_at.map(|at| at.min(now + longest));
        self.session.last_activity_at = self.session.last_activity_at.min(now);
    }

    // --- moves ------------------------------------------------------------------------------------------------------

    /// Takes every legal step that the session's facts ask for and that needs no event from outside.
    fn converge(&mut self) {
        let rewinds = self.session.rewind.is_some();
        let held = self.session.paused_at.is_some() || self.session.terminated.is_some() || rewinds;
        if held && self.session.state == State::Ready {
            let reason = match (self.session.terminated, rewinds) {
                (Some(_), _) => Reason::Terminated,
                (None, true) => Reason::Rewound,
                (None, false) => Reason::Paused,
            };
            self.rest(reason);
        }
        if held && self.session.state == State::Idle && self.session.container == Container::Starting {
            self.session.container = Container::Stopping;
            self.session.due_at = None;
        }
        if self.session.state == State::Error {
            if self.session.terminated.is_some() {
                self.session.due_at = None;
            }
            // A host may come back only to a session that waits for it: not to one that rests or was given up.
            if (held || self.session.due_at.is_none()) && self.has_live_container() {
                self.session.container = Container::Stopping;
            }
        }
        if self.session.container == Container::None {
            let wanted = !held && (self.session.queued > 0 || self.session.wake);
            if self.session.state == State::Idle && wanted {
                self.start();
            } else if self.session.state == State::Error
                && !rewinds
                && self.session.due_at.is_some_and(|at| at <= self.now)
            {
                self.session.restarts += 1;
                self.go(State::Init, Reason::Restarted);
                self.start();
            }
        }
    }

    fn go(&mut self, to: State, reason: Reason) {
        let from = self.session.state;
        debug_assert!(from.may_become(to), "{from} may not become {to}");
        self.session.state = to;
        self.effects.push(Effect::StateChanged { from, to, reason });
    }

    fn start(&mut self) {
        self.session.generation += 1;
        self.session.container = Container::Starting;
        self.session.due_at = Some(self.now + START_TIMEOUT);
    }

    fn ready(&mut self, reason: Reason) {
        self.session.container = Container::Up;
        self.session.due_at = None;
        self.session.error = None;
        self.session.wake = false;
        self.session.started_at = Some(self.now);
        self.session.last_activity_at = self.now;
        self.go(State::Ready, reason);
    }

    /// READY to IDLE: the container goes, the workspace stays.
    fn rest(&mut self, reason: Reason) {
        self.session.container = Container::Stopping;
        self.go(State::Idle, reason);
    }

    /// Time until the next restart.
    fn backoff(&self) -> Duration {
        RESTART_BACKOFF * 2_u32.saturating_pow(self.session.restarts)
    }

    /// To ERROR, with a restart planned unless there were too many.
    fn fail(&mut self, fault: Fault) {
        let was_stable = self.session.state == State::Ready || self.session.state == State::Busy;
        if was_stable && self.session.started_at.is_some_and(|at| self.now.since(at) >= STABLE) {
            self.session.restarts = 0;
        }
        let tries_left = self.session.restarts < RESTARTS_MAX;
        self.session.due_at = tries_left.then(|| self.now + self.backoff());
        self.session.wake = false;
        self.effects.push(Effect::Failed(fault.clone()));
        self.go(State::Error, Reason::Fault(fault.code));
        self.session.error = Some(fault);
    }

    fn try_again_now(&mut self) {
        self.session.restarts = 0;
        self.session.due_at = Some(self.now);
        if self.has_live_container() {
            self.session.container = Container::Stopping;
        }
    }

    /// The running message goes back to the head of the queue, because someone wished so.
    fn requeue(&mut self, running: Running, reason: Reason) {
        self.session.running = None;
        self.session.queued += 1;
        self.effects.push(Effect::Requeue { running, is_lost: false });
        self.effects.push(Effect::TellCancel(running));
        self.go(State::Ready, reason);
    }

    /// The container died under its message: another attempt, or its end.
    fn lose_message(&mut self) {
        let Some(running) = self.session.running.take() else {
            return;
        };
        if running.attempt < MESSAGE_ATTEMPTS_MAX {
            self.session.queued += 1;
            self.effects.push(Effect::Requeue { running, is_lost: true });
        } else {
            // The culprit is dealt with: what comes after it starts with a clean record.
            self.session.restarts = 0;
            self.effects.push(Effect::GiveUp(running));
        }
    }

    fn has_live_container(&self) -> bool {
        matches!(self.session.container, Container::Starting | Container::Up)
    }
}
