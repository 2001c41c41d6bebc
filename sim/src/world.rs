//! The simulated world: time, randomness, and the state that outlives servers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use raworc_core::ids::{ContainerId, MessageId, TurnId};
use raworc_core::time::Time;
use raworc_runtime::{Exit, ExitReason};
use raworc_server::Clock;
use raworc_server::engine::Engine;
use raworc_workspace::LayerStack;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use crate::fault_injection::InjectedFault;
use crate::host::Model;
use crate::oracle::WorkspaceOracle;
use crate::people::People;

/// The start of the simulated time: 2030-01-01.
const BEGINNING: Time = Time(1_893_456_000_000_000);

/// A handle to the world.
#[derive(Clone)]
pub struct World(Arc<Mutex<State>>);

/// The state of the world.
pub struct State {
    rng: StdRng,
    /// The log of the run.
    pub trace: Vec<String>,
    /// Prints the log while it is written.
    pub is_loud: bool,
    /// Short names for ids, which differ between runs.
    names: BTreeMap<String, String>,
    /// Time before the current server.
    elapsed: Duration,
    /// When the current server was started.
    born: Option<Instant>,
    /// The error of the machine's clock, in microseconds.
    pub skew: i64,
    /// Whether faults are injected.
    pub has_faults: bool,
    /// Containers, including ended ones that were not removed.
    pub containers: BTreeMap<ContainerId, Model>,
    /// How often hosts started each message.
    pub executions: BTreeMap<MessageId, u32>,
    /// How often hosts started each turn.
    pub turns: BTreeMap<TurnId, u32>,
    /// The current server.
    pub engine: Option<Arc<Engine>>,
    /// Where the current server receives exits.
    pub exits: Option<mpsc::Sender<Exit>>,
    /// The clients.
    pub people: People,
    /// The expected content of workspaces.
    pub oracle: WorkspaceOracle,
    /// The fault of the current work on layers.
    pub fate: Option<InjectedFault>,
    /// Whether the current server may die.
    pub is_mortal: bool,
    /// Whether the current server has died.
    pub is_dead: bool,
    /// Notified when it dies.
    pub death: Arc<Notify>,
}

impl World {
    /// A world that is determined by `seed`.
    pub fn new(seed: u64, is_loud: bool, oracle: WorkspaceOracle) -> Self {
        Self(Arc::new(Mutex::new(State {
            rng: StdRng::seed_from_u64(seed),
            trace: Vec::new(),
            is_loud,
            names: BTreeMap::new(),
            elapsed: Duration::ZERO,
            born: None,
            skew: 0,
            has_faults: true,
            containers: BTreeMap::new(),
            executions: BTreeMap::new(),
            turns: BTreeMap::new(),
            engine: None,
            exits: None,
            people: People::default(),
            oracle,
            fate: None,
            is_mortal: false,
            is_dead: false,
            death: Arc::default(),
        })))
    }

    /// Locks the state. Do not await while holding it.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True with this probability.
    pub fn chance(&self, probability: f64) -> bool {
        self.state().rng.random_bool(probability)
    }

    /// True with this probability, if faults are injected.
    pub fn fault(&self, probability: f64) -> bool {
        let mut state = self.state();
        let happens = state.rng.random_bool(probability);
        happens && state.has_faults
    }

    /// A random number below `end`.
    pub fn below(&self, end: usize) -> usize {
        self.state().rng.random_range(0..end.max(1))
    }

    /// A random duration of up to `millis` milliseconds.
    pub fn millis(&self, millis: u64) -> Duration {
        Duration::from_micros(self.state().rng.random_range(0..=millis * 1000))
    }

    /// Sleeps for a random time of up to `millis` milliseconds.
    pub async fn pass(&self, millis: u64) {
        tokio::time::sleep(self.millis(millis)).await;
    }

    /// Starts a server on the current async runtime. The result is notified if it dies.
    pub fn begin(&self, is_mortal: bool) -> Arc<Notify> {
        let mut state = self.state();
        (state.born, state.is_mortal, state.is_dead, state.fate) = (Some(Instant::now()), is_mortal, false, None);
        state.death = Arc::default();
        Arc::clone(&state.death)
    }

    /// Ends a server, which lived for `after`, and adds a pause.
    pub fn end(&self, after: Duration, pause: Duration) {
        let mut state = self.state();
        (state.born, state.engine, state.exits) = (None, None, None);
        state.elapsed += after + pause;
    }

    /// The server's clock.
    pub fn clock(&self) -> Clock {
        let world = self.clone();
        Arc::new(move || {
            let state = world.state();
            let time = BEGINNING + state.true_time();
            Time(time.0 + state.skew)
        })
    }

    /// Writes a line to the log. Ids get short names in order of appearance.
    pub fn log(&self, what: &str) {
        self.state().log(what);
    }

    /// Ends a container's first process.
    pub fn exit(&self, id: ContainerId, reason: ExitReason) {
        let delays = [self.millis(if self.chance(0.2) { 2_000 } else { 5 }), self.millis(500)];
        let twice = self.fault(0.1);
        let mut state = self.state();
        let Some(model) = state.containers.get_mut(&id).filter(|model| model.is_alive()) else { return };
        model.end();
        state.log(&format!("{id} ends: {reason:?}"));
        let Some(exits) = state.exits.clone() else { return };
        drop(state);
        tokio::spawn(async move {
            for delay in delays.into_iter().take(if twice { 2 } else { 1 }) {
                tokio::time::sleep(delay).await;
                let _ = exits.send(Exit { id, reason }).await;
            }
        });
    }
}

impl State {
    /// Mounts a workspace in a container.
    pub fn mount(&mut self, id: ContainerId, workspace: &LayerStack) {
        let others = self.containers.iter().filter(|(other, model)| **other != id && model.is_alive());
        if let Some((other, _)) = others.into_iter().find(|(_, model)| model.workspace.writable == workspace.writable) {
            let both = format!("{id} and {other} write to the same layer");
            self.oracle.wrong.push(both);
        }
        let found = self.oracle.mount(&id.session.to_string(), workspace);
        let shown = self.oracle.expect(&format!("the workspace of {id}"), found);
        self.log(&format!("{id} has its workspace in state {shown}, on {} layers", workspace.layers.len()));
    }

    fn true_time(&self) -> Duration {
        self.elapsed + self.born.map_or(Duration::ZERO, |born| born.elapsed())
    }

    /// See [`World::tell`].
    pub fn log(&mut self, what: &str) {
        let words: Vec<String> = what.split(' ').map(|word| self.named(word)).collect();
        let line = format!("{:>9.3} {}", self.true_time().as_secs_f64(), words.join(" "));
        if self.is_loud {
            eprintln!("{line}");
        }
        self.trace.push(line);
    }

    fn named(&mut self, word: &str) -> String {
        const LENGTH: usize = 36;
        let is_id = |text: &str| text.bytes().filter(|byte| *byte == b'-').count() == 4;
        match word.get(..LENGTH).filter(|id| is_id(id)) {
            Some(id) => {
                let next = self.names.len() + 1;
                let name = self.names.entry(id.to_owned()).or_insert_with(|| format!("#{next}"));
                format!("{name}{}", &word[LENGTH..])
            }
            None => word.to_owned(),
        }
    }
}
