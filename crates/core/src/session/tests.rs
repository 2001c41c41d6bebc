//! The transition table as a snapshot, and properties that hold for every sequence of events.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::ids::MessageId;
use crate::limits::{LEASE, RESTARTS_MAX};

const TIMEOUT: Duration = Duration::from_secs(300);
const NOW: Time = Time(1_000_000_000);

fn message(n: u32) -> MessageId {
    MessageId(Uuid::from_u128(u128::from(n)))
}

fn fault() -> Fault {
    Fault { code: FaultCode::ContainerKilled, message: "killed by signal 9".into() }
}

/// One of its own for each attempt.
fn turn(message: MessageId, attempt: u32) -> TurnId {
    TurnId(Uuid::from_u128((message.0.as_u128() << 32) | u128::from(attempt)))
}

fn a_turn(number: u32, attempt: u32) -> Running {
    Running { turn: turn(message(number), attempt), message: message(number), attempt }
}

/// The turns that this event and its effects bring to an end.
fn ends(event: &Event, effects: &[Effect]) -> Vec<TurnId> {
    let finished = if let Event::MessageFinished { turn, .. } = event { Some(*turn) } else { None };
    let others = effects.iter().filter_map(|effect| match effect {
        Effect::Requeue { running, .. }
        | Effect::GiveUp(running)
        | Effect::FailRunning(running)
        | Effect::CancelRunning(running) => Some(running.turn),
        Effect::StateChanged { .. }
        | Effect::Noted(_)
        | Effect::Failed(_)
        | Effect::CancelQueued
        | Effect::TellCancel(_) => None,
    });
    finished.into_iter().chain(others).collect()
}

/// The turn that went on before and does not any more.
fn ended_turns(before: &Session, after: &Session) -> Vec<TurnId> {
    let turn = |session: &Session| session.running.map(|running| running.turn);
    turn(before).filter(|ended| turn(after) != Some(*ended)).into_iter().collect()
}

#[test]
fn a_turn_of_an_older_build_is_known_by_its_message() {
    let id = message(7);
    let stored = format!(r#"{{"message":"{id}","attempt":2}}"#);
    let read: Running = serde_json::from_str(&stored).unwrap();
    assert_eq!(read, Running { turn: TurnId(id.0), message: id, attempt: 2 });
    let again: Running = serde_json::from_str(&serde_json::to_string(&a_turn(1, 2)).unwrap()).unwrap();
    assert_eq!(again, a_turn(1, 2));
}

/// Every situation worth a row: (name, session).
fn situations() -> Vec<(&'static str, Session)> {
    let new = Session::new(TIMEOUT, None, NOW - Duration::from_secs(1));
    let ready = Session {
        state: State::Ready,
        container: Container::Up,
        due_at: None,
        started_at: Some(NOW - Duration::from_secs(1)),
        ..new.clone()
    };
    let running = Some(a_turn(1, 1));
    let busy = Session { state: State::Busy, running, queued: 1, ..ready.clone() };
    let idle = Session { state: State::Idle, container: Container::None, ..ready.clone() };
    let error = Session {
        state: State::Error,
        container: Container::None,
        error: Some(fault()),
        due_at: Some(NOW + RESTART_BACKOFF),
        ..ready.clone()
    };
    let termination = Some(Termination { at: NOW, reason: TerminationReason::Manual });
    vec![
        ("INIT", new.clone()),
        ("INIT paused", Session { paused_at: Some(NOW), ..new.clone() }),
        ("INIT terminated", Session { terminated: termination, ..new.clone() }),
        ("INIT overdue", Session { due_at: Some(NOW), ..new }),
        ("READY", ready.clone()),
        ("READY queued", Session { queued: 1, ..ready.clone() }),
        ("READY long unused", Session { last_activity_at: NOW - TIMEOUT, ..ready.clone() }),
        ("READY expired", Session { expires_at: Some(NOW), ..ready }),
        ("BUSY", busy.clone()),
        ("BUSY last attempt", Session { running: Some(a_turn(1, MESSAGE_ATTEMPTS_MAX)), ..busy }),
        ("IDLE", idle.clone()),
        ("IDLE stopping", Session { container: Container::Stopping, ..idle.clone() }),
        ("IDLE stopping, queued", Session { container: Container::Stopping, queued: 1, ..idle.clone() }),
        ("IDLE waking", Session { container: Container::Starting, queued: 1, ..idle.clone() }),
        ("IDLE rewinding, queued", Session { rewind: Some(1), queued: 1, ..idle.clone() }),
        ("IDLE paused, queued", Session { paused_at: Some(NOW), queued: 1, ..idle.clone() }),
        ("IDLE terminated", Session { terminated: termination, ..idle.clone() }),
        ("IDLE deleted", Session { terminated: termination, deleted_at: Some(NOW), ..idle }),
        ("ERROR", error.clone()),
        ("ERROR, container up", Session { container: Container::Up, ..error.clone() }),
        ("ERROR rewinding, due", Session { rewind: Some(1), due_at: Some(NOW), ..error.clone() }),
        ("ERROR due", Session { due_at: Some(NOW), ..error.clone() }),
        ("ERROR given up", Session { due_at: None, restarts: RESTARTS_MAX, ..error.clone() }),
        ("ERROR terminated", Session { due_at: None, terminated: termination, ..error }),
    ]
}

fn events(generation: Generation) -> Vec<(&'static str, Event)> {
    vec![
        ("message", Event::MessageQueued),
        ("wake", Event::Wake),
        ("pause", Event::Pause),
        ("resume", Event::Resume),
        ("terminate", Event::Terminate(TerminationReason::Manual)),
        ("delete", Event::Delete),
        ("restore", Event::Restore),
        ("restart", Event::Restart),
        ("cancel", Event::Cancel),
        ("message withdrawn", Event::MessageWithdrawn),
        ("rewind", Event::Rewind { checkpoint: 2 }),
        ("rewound", Event::Rewound),
        ("host polled", Event::HostPolled { generation }),
        ("old host polled", Event::HostPolled { generation: generation - 1 }),
        ("message taken", Event::MessageTaken { generation, running: a_turn(2, 1) }),
        ("message finished", Event::MessageFinished { generation, turn: turn(message(1), 1) }),
        ("turn before finished", Event::MessageFinished { generation, turn: turn(message(1), 0) }),
        ("used", Event::Used),
        ("configured", Event::Configured { waiting_timeout: Some(Duration::from_secs(9)), ttl: None }),
        ("start waits", Event::StartWaits { generation }),
        ("start failed", Event::StartFailed { generation, fault: fault() }),
        ("container gone", Event::ContainerGone { generation, fault: fault() }),
        ("over quota", Event::OverQuota { generation }),
        ("host lost", Event::HostLost { generation }),
        ("tick", Event::Tick { active_inside: false }),
        ("tick, active inside", Event::Tick { active_inside: true }),
    ]
}

fn describe(before: &Session, after: &Session, effects: &[Effect]) -> String {
    let mut text = after.state.to_string();
    if (before.container, before.generation) != (after.container, after.generation) {
        let _ = write!(text, " container={:?}", after.container);
    }
    if before.queued != after.queued {
        let _ = write!(text, " queued={}", after.queued);
    }
    for effect in effects {
        match effect {
            Effect::StateChanged { from, to, reason } => {
                let _ = write!(text, "; {from}→{to} {}", reason.as_str());
            }
            Effect::Requeue { is_lost: true, .. } => text.push_str("; requeue, lost"),
            Effect::Requeue { .. } => text.push_str("; requeue"),
            Effect::GiveUp(_) => text.push_str("; give up"),
            Effect::FailRunning(_) => text.push_str("; fail running"),
            Effect::CancelRunning(_) => text.push_str("; cancel running"),
            Effect::TellCancel(_) => text.push_str("; tell host to cancel"),
            other @ (Effect::Noted(_) | Effect::Failed(_) | Effect::CancelQueued) => {
                let _ = write!(text, "; {other:?}");
            }
        }
    }
    if (before, effects) == (after, &[]) {
        text = "–".into();
    }
    text.replace("message: \"killed by signal 9\"", "…")
}

#[test]
fn the_transition_table() {
    let mut table = String::new();
    for (name, session) in situations() {
        let _ = writeln!(table, "{name}");
        for (event_name, event) in events(session.generation) {
            let outcome = match step(&session, &event, NOW) {
                Ok((after, effects)) => describe(&session, &after, &effects),
                Err(refused) => format!("refused: {refused}"),
            };
            let _ = writeln!(table, "    {event_name:<20} {outcome}");
        }
    }
    insta::assert_snapshot!(table);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Queued,
    Processing,
    Ended,
}

/// A session with its conversation, as the store would keep them.
#[derive(Clone, Debug)]
struct World {
    session: Session,
    messages: BTreeMap<MessageId, (Status, u32)>,
    now: Time,
}

impl World {
    fn new() -> Self {
        Self {
            session: Session::new(TIMEOUT, Some(Duration::from_secs(4000)), NOW),
            messages: BTreeMap::new(),
            now: NOW,
        }
    }

    fn first_queued(&self) -> Option<(MessageId, u32)> {
        self.messages.iter().find(|(_, (status, _))| *status == Status::Queued).map(|(id, (_, tries))| (*id, *tries))
    }

    fn feed(&mut self, event: &Event) {
        let before = self.session.clone();
        let Ok((after, effects)) = step(&self.session, event, self.now) else {
            return;
        };
        match event {
            Event::MessageQueued => {
                let id = message(u32::try_from(self.messages.len()).unwrap() + 1);
                self.messages.insert(id, (Status::Queued, 0));
            }
            Event::MessageTaken { running, .. } => {
                self.messages.insert(running.message, (Status::Processing, running.attempt));
            }
            Event::MessageFinished { turn, .. } => {
                let running = before.running.expect("only a turn that goes on has an end");
                assert_eq!(running.turn, *turn, "no turn ends another one");
                self.messages.get_mut(&running.message).unwrap().0 = Status::Ended;
            }
            Event::MessageWithdrawn => {
                let (id, _) = self.first_queued().expect("only what waits is withdrawn");
                self.messages.get_mut(&id).unwrap().0 = Status::Ended;
            }
            _ => {}
        }
        let mut state = before.state;
        for effect in &effects {
            match effect {
                Effect::StateChanged { from, to, .. } => {
                    assert_eq!(*from, state, "changes follow one another");
                    assert!(from.may_become(*to), "{from}→{to} is not an edge");
                    state = *to;
                }
                Effect::Requeue { running, .. } => {
                    self.messages.get_mut(&running.message).unwrap().0 = Status::Queued;
                }
                Effect::GiveUp(running) => {
                    let entry = self.messages.get_mut(&running.message).unwrap();
                    assert!(entry.1 >= MESSAGE_ATTEMPTS_MAX, "given up too early");
                    entry.0 = Status::Ended;
                }
                Effect::FailRunning(running) | Effect::CancelRunning(running) => {
                    self.messages.get_mut(&running.message).unwrap().0 = Status::Ended;
                }
                Effect::CancelQueued => {
                    let rewinds = matches!(event, Event::Rewind { .. });
                    assert!(after.terminated.is_some() || rewinds, "only an end or a rewind cancels what waits");
                    self.messages.values_mut().filter(|m| m.0 == Status::Queued).for_each(|m| m.0 = Status::Ended);
                }
                Effect::TellCancel(_) | Effect::Noted(_) | Effect::Failed(_) => {}
            }
        }
        assert_eq!(state, after.state, "every change of state is seen");
        assert_eq!(ends(event, &effects), ended_turns(&before, &after), "a turn that is over has exactly one end");
        self.session = after;
        self.check(&before, event);
    }

    fn check(&self, before: &Session, event: &Event) {
        let s = &self.session;
        let count = |wanted| self.messages.values().filter(|(status, _)| *status == wanted).count();
        assert_eq!(count(Status::Queued), s.queued as usize, "the queue is what the machine believes");
        assert_eq!(count(Status::Processing), usize::from(s.running.is_some()));
        assert_eq!(s.running.is_some(), s.state == State::Busy, "a message runs exactly in BUSY");
        assert!(s.generation >= before.generation && s.generation <= before.generation + 1);
        if s.generation > before.generation {
            let gone = matches!(event, Event::ContainerGone { .. } | Event::StartFailed { .. });
            assert!(gone || before.container == Container::None, "one container at a time");
        }
        assert_eq!(s.error.is_some() && s.state != State::Init, s.state == State::Error);
        assert!(s.restarts <= RESTARTS_MAX + 1);
        match s.state {
            State::Ready | State::Busy => assert_eq!(s.container, Container::Up),
            State::Init => assert_eq!(s.container, Container::Starting),
            State::Idle => assert_ne!(s.container, Container::Up),
            State::Error => {}
        }
        if let Some(at) = deadline(s) {
            // A deadline that has come leads somewhere: a loop that ticks never spins.
            let mut later = self.clone();
            later.now = at.max(self.now);
            let (ticked, _) = step(s, &Event::Tick { active_inside: false }, later.now).unwrap();
            assert!(deadline(&ticked).is_none_or(|next| next > later.now), "a tick that changes nothing: {s:?}");
        }
    }

    /// One observation that a healthy world would bring next, if there is anything left to bring.
    fn fair_event(&self) -> Option<Event> {
        let s = &self.session;
        let generation = s.generation;
        match (s.container, s.state) {
            (Container::None, _) if s.rewind.is_some() => Some(Event::Rewound),
            (Container::Starting, _) => Some(Event::HostPolled { generation }),
            (Container::Stopping, _) => Some(Event::ContainerGone { generation, fault: fault() }),
            (Container::Up, State::Busy) => Some(Event::MessageFinished { generation, turn: s.running.unwrap().turn }),
            (Container::Up, State::Ready) => self.first_queued().map(|(message, tries)| {
                let running = Running { turn: turn(message, tries + 1), message, attempt: tries + 1 };
                Event::MessageTaken { generation, running }
            }),
            (Container::None | Container::Up, _) => s.due_at.map(|_| Event::Tick { active_inside: false }),
        }
    }

    fn settle_fairly(&mut self) {
        for _ in 0..10_000 {
            let Some(event) = self.fair_event() else {
                return;
            };
            if let (Event::Tick { .. }, Some(due)) = (&event, self.session.due_at) {
                self.now = self.now.max(due);
            }
            self.feed(&event);
        }
        panic!("it never settles: {:?}", self.session);
    }
}

fn any_event() -> impl Strategy<Value = u8> {
    0u8..30
}

fn drive(world: &mut World, choice: u8, seconds: u32) {
    world.now = world.now + Duration::from_secs(u64::from(seconds));
    let generation = world.session.generation;
    let stale = generation.saturating_sub(1);
    let event = match choice {
        0 | 1 => Event::MessageQueued,
        2 => Event::Wake,
        3 => Event::Pause,
        4 => Event::Resume,
        5 => Event::Terminate(TerminationReason::Manual),
        6 => Event::Delete,
        7 => Event::Restore,
        8 => Event::Restart,
        9 => Event::Cancel,
        10 => Event::HostPolled { generation: stale },
        11 => Event::StartFailed { generation, fault: fault() },
        12 | 13 => Event::ContainerGone { generation, fault: fault() },
        14 => Event::ContainerGone { generation: stale, fault: fault() },
        15 | 16 => Event::HostLost { generation },
        17 => Event::Tick { active_inside: true },
        18 => Event::Tick { active_inside: false },
        19 => Event::Rewind { checkpoint: 1 },
        20 => Event::Rewound,
        21 => Event::OverQuota { generation },
        22 => Event::MessageWithdrawn,
        23 => Event::StartWaits { generation },
        24 => Event::Used,
        25 => Event::Configured { waiting_timeout: Some(Duration::from_secs(9)), ttl: Some(Duration::from_secs(999)) },
        _ => match world.fair_event() {
            Some(event) => event,
            None => return,
        },
    };
    world.feed(&event);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_it_stays_legal_and_settles(moves in prop::collection::vec((any_event(), 0u32..400), 0..80)) {
        let mut world = World::new();
        for (choice, seconds) in moves {
            drive(&mut world, choice, seconds);
            let mut fair = world.clone();
            fair.settle_fairly();
            let s = &fair.session;
            let given_up = s.state == State::Error && s.due_at.is_none();
            let rests = matches!(s.state, State::Ready | State::Idle) || given_up;
            prop_assert!(rests, "settled in {:?}", s);
            prop_assert_eq!(s.rewind, None, "it never goes back: {:?}", s);
            if s.terminated.is_none() && s.paused_at.is_none() && !given_up {
                prop_assert_eq!(s.queued, 0, "a message is stuck: {:?}", s);
            }
            if s.terminated.is_some() || s.paused_at.is_some() {
                prop_assert_ne!(s.container, Container::Up);
            }
        }
        // And from wherever it ended, a person can bring it back to READY.
        world.settle_fairly();
        for event in [Event::Restore, Event::Resume, Event::Restart] {
            world.feed(&event);
            world.settle_fairly();
        }
        prop_assert_eq!(world.session.state, State::Ready);
    }
}

#[test]
fn a_message_that_kills_its_host_is_given_up_and_the_next_one_gets_its_turn() {
    let mut world = World::new();
    world.feed(&Event::MessageQueued);
    world.feed(&Event::MessageQueued);
    for _ in 0..MESSAGE_ATTEMPTS_MAX {
        while world.session.state != State::Busy {
            let event = world.fair_event().unwrap();
            world.now = world.session.due_at.map_or(world.now, |due| due.max(world.now));
            world.feed(&event);
        }
        world.feed(&Event::ContainerGone { generation: world.session.generation, fault: fault() });
        assert_eq!(world.session.state, State::Error);
    }
    assert_eq!(world.messages[&message(1)], (Status::Ended, MESSAGE_ATTEMPTS_MAX));
    assert_eq!(world.messages[&message(2)], (Status::Queued, 0));
    world.settle_fairly();
    assert_eq!((world.session.state, world.session.queued), (State::Ready, 0));
}

#[test]
fn a_lease_outlasts_a_few_missed_heartbeats() {
    assert!(LEASE >= 3 * crate::limits::HEARTBEAT_INTERVAL);
}

#[test]
fn a_clock_that_is_set_back_holds_nobody_up() {
    let hour = Duration::from_secs(3600);
    let now = Time(0) + hour * 2;
    let starting = Session::new(Duration::from_secs(5), None, now);
    let (failed, _) = step(&starting, &Event::StartFailed { generation: 1, fault: fault() }, now).unwrap();
    let (ready, _) = step(&starting, &Event::HostPolled { generation: 1 }, now).unwrap();
    for (session, longest) in [(starting, START_TIMEOUT), (failed, RESTART_BACKOFF), (ready, Duration::from_secs(5))] {
        let (told, _) = step(&session, &Event::Tick { active_inside: false }, now - hour).unwrap();
        assert_eq!(deadline(&told), Some(now - hour + longest), "{session:?}");
    }
}
