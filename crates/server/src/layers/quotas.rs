//! Sessions whose use of the disk is limited, and what each may take.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use raworc_core::ids::{ContainerId, SessionId};
use tokio::time::Instant;

use crate::sync::lock;

/// Time between two looks at a session, at least.
pub const INTERVAL: Duration = Duration::from_secs(1);
/// A look that takes long is taken less often: so many times what it took lies between two.
const REST: u32 = 20;
/// Time between two looks, at most: whoever makes looking slow is looked at all the same.
const INTERVAL_MAX: Duration = Duration::from_secs(30);
/// Bytes that may be written after each save, also by a session at its limit: what is removed takes a little first.
pub const ROOM_BYTES: u64 = 1 << 20;
/// So far above its limit, a session has no such room any more.
const ROOMS_BYTES: u64 = 16 << 20;
/// Where so many bytes are left, the file system refuses most of what is written.
const LEFT_BYTES: u64 = 64 << 10;

/// Sessions that are watched.
#[derive(Default)]
pub struct Quotas(Mutex<HashMap<SessionId, Watch>>);

/// A container that is watched.
#[derive(Clone, Copy)]
pub struct Watch {
    /// What is watched.
    pub container: ContainerId,
    /// What it may take, as its session says.
    pub limit: u64,
    /// What it took when it began.
    pub began_with: u64,
    /// What it may take: its limit, or what it took when it began, where that is more.
    ceiling: u64,
    next: Instant,
    /// It is being looked at.
    is_looked_at: bool,
    /// That the file system refuses what it writes was told.
    is_told: bool,
}

impl Watch {
    /// What it may take at most, with the room to clean up.
    pub fn most(&self, taken: Taken) -> u64 {
        let room = if taken.saved < self.limit.saturating_add(ROOMS_BYTES) { ROOM_BYTES } else { 0 };
        self.ceiling.max(taken.saved.saturating_add(room))
    }

    /// Room that was made does not come back.
    pub fn lower(&mut self, taken: Taken) {
        self.ceiling = self.limit.max(self.ceiling.min(taken.bytes()));
    }
}

/// What a session takes, in bytes.
#[derive(Clone, Copy)]
pub struct Taken {
    /// What its layers hold together.
    pub saved: u64,
    /// What was written to its workspace since.
    pub written: u64,
    /// What its container has written elsewhere.
    pub elsewhere: u64,
}

impl Taken {
    /// All of it.
    pub fn bytes(self) -> u64 {
        self.saved.saturating_add(self.written).saturating_add(self.elsewhere)
    }

    /// What may be written to the workspace for all not to be more than a container may take, beside a little room.
    pub fn left(self, watch: &Watch) -> u64 {
        watch.most(self).saturating_sub(self.saved).saturating_sub(self.elsewhere)
    }
}

/// What is to be done about a session.
pub enum Verdict {
    /// Nothing.
    Fine,
    /// The file system refuses what it writes.
    Refused,
    /// It has to be stopped.
    Over,
}

impl Quotas {
    /// Watches a session's container from now on.
    pub fn set(&self, container: ContainerId, limit: u64, used: u64, room: u64) -> Watch {
        let next = Instant::now() + INTERVAL;
        let watch = Watch {
            container,
            limit,
            began_with: used,
            ceiling: limit.max(used.saturating_add(room)),
            next,
            is_looked_at: false,
            is_told: false,
        };
        lock(&self.0).insert(container.session, watch);
        watch
    }

    /// Watches none of a session's containers.
    pub fn unset(&self, container: ContainerId) {
        lock(&self.0).remove(&container.session);
    }

    /// Whether this container is watched with this limit.
    pub fn has(&self, container: ContainerId, limit: u64) -> bool {
        self.of(container).is_some_and(|watch| watch.limit == limit)
    }

    /// What a container may take, where it is watched.
    pub fn of(&self, container: ContainerId) -> Option<Watch> {
        self.any(container.session).filter(|watch| watch.container == container)
    }

    /// What any container of a session may take.
    pub fn any(&self, session: SessionId) -> Option<Watch> {
        lock(&self.0).get(&session).copied()
    }

    /// A container is watched no more.
    pub fn forget(&self, container: ContainerId) {
        let mut all = lock(&self.0);
        if all.get(&container.session).is_some_and(|watch| watch.container == container) {
            all.remove(&container.session);
        }
    }

    /// Those whose turn it is to be looked at; they are due again when that is [over](Self::looked_at).
    pub fn due(&self) -> Vec<ContainerId> {
        let now = Instant::now();
        let mut all = lock(&self.0);
        let due = all.values_mut().filter(|watch| watch.next <= now && !watch.is_looked_at);
        due.map(|watch| {
            watch.is_looked_at = true;
            watch.container
        })
        .collect()
    }

    /// A look is over.
    pub fn looked_at(&self, container: ContainerId) {
        if let Some(watch) = lock(&self.0).get_mut(&container.session).filter(|watch| watch.container == container) {
            watch.is_looked_at = false;
        }
    }

    /// Notes what was saved.
    pub fn lower(&self, container: ContainerId, taken: Taken) {
        if let Some(watch) = lock(&self.0).get_mut(&container.session).filter(|watch| watch.container == container) {
            watch.lower(taken);
        }
    }

    /// Notes what was found.
    pub fn found(&self, container: ContainerId, taken: Taken, is_bounded: bool, took: Duration) -> Verdict {
        let mut all = lock(&self.0);
        let Some(watch) = all.get_mut(&container.session).filter(|watch| watch.container == container) else {
            return Verdict::Fine;
        };
        watch.next = Instant::now() + (took * REST).clamp(INTERVAL, INTERVAL_MAX);
        let most = watch.most(taken);
        let is_over = taken.bytes() > most;
        watch.lower(taken);
        let is_refused = is_bounded && taken.bytes().saturating_add(LEFT_BYTES) > watch.ceiling;
        let was_told = std::mem::replace(&mut watch.is_told, is_refused);
        match (is_over, is_refused && !was_told) {
            (true, _) => Verdict::Over,
            (false, true) => Verdict::Refused,
            (false, false) => Verdict::Fine,
        }
    }
}
