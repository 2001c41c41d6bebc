//! How much containers may have going on at the same time, each of them and all together.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use raworc_core::ids::ContainerId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Calls of one container at the same time.
const CALLS_PER_CONTAINER_MAX: usize = 256;
/// Calls of all containers at the same time.
const CALLS_MAX: usize = 4096;
/// Bodies of requests of one container that are in memory, in KiB.
const BODIES_PER_CONTAINER_KIB_MAX: usize = 64 * 1024;
/// Bodies of requests of all containers that are in memory, in KiB.
const BODIES_KIB_MAX: usize = 512 * 1024;

struct Places {
    calls: Arc<Semaphore>,
    bodies: Arc<Semaphore>,
}

impl Places {
    fn new(calls: usize, bodies_kib: usize) -> Self {
        Self { calls: Arc::new(Semaphore::new(calls)), bodies: Arc::new(Semaphore::new(bodies_kib)) }
    }
}

/// The rooms of all containers.
pub struct Rooms {
    all: Arc<Places>,
    of: Mutex<HashMap<ContainerId, Weak<Places>>>,
}

/// What one container may have; its connections share it.
#[derive(Clone)]
pub struct Room {
    all: Arc<Places>,
    own: Arc<Places>,
}

/// A place, given back when it is dropped.
#[derive(Debug, Default)]
pub struct Place {
    _permits: Vec<OwnedSemaphorePermit>,
}

impl Rooms {
    pub fn new() -> Self {
        Self { all: Arc::new(Places::new(CALLS_MAX, BODIES_KIB_MAX)), of: Mutex::default() }
    }

    /// The room of a container.
    pub fn of(&self, container: ContainerId) -> Room {
        let mut of = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        let known = of.get(&container).and_then(Weak::upgrade);
        let own = known.unwrap_or_else(|| {
            of.retain(|_, places| places.strong_count() > 0);
            let own = Arc::new(Places::new(CALLS_PER_CONTAINER_MAX, BODIES_PER_CONTAINER_KIB_MAX));
            of.insert(container, Arc::downgrade(&own));
            own
        });
        Room { all: self.all.clone(), own }
    }
}

impl Room {
    /// A place for one more call.
    pub fn call(&self) -> Option<Place> {
        let own = self.own.calls.clone().try_acquire_owned().ok()?;
        let all = self.all.calls.clone().try_acquire_owned().ok()?;
        Some(Place { _permits: vec![own, all] })
    }

    /// Makes `place` larger, for so many more bytes of a body; whether there was room.
    pub fn body(&self, place: &mut Place, bytes: usize) -> bool {
        let Ok(kib) = u32::try_from(bytes.div_ceil(1024)) else { return false };
        let own = self.own.bodies.clone().try_acquire_many_owned(kib);
        let all = self.all.bodies.clone().try_acquire_many_owned(kib);
        let (Ok(own), Ok(all)) = (own, all) else { return false };
        place._permits.extend([own, all]);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_has_its_room_and_no_more() {
        let rooms = Rooms::new();
        let container =
            |generation| ContainerId { session: raworc_core::ids::SessionId(uuid::Uuid::from_u128(1)), generation };
        let (room, again) = (rooms.of(container(1)), rooms.of(container(1)));
        let calls: Vec<Place> = (0..CALLS_PER_CONTAINER_MAX).filter_map(|_| room.call()).collect();
        assert_eq!(calls.len(), CALLS_PER_CONTAINER_MAX);
        assert!(again.call().is_none(), "its connections share its room");
        assert!(rooms.of(container(2)).call().is_some());
        drop(calls);
        assert!(again.call().is_some());

        let mut place = Place::default();
        assert!(room.body(&mut place, BODIES_PER_CONTAINER_KIB_MAX * 1024));
        assert!(!again.body(&mut Place::default(), 1));
        assert!(rooms.of(container(2)).body(&mut Place::default(), 1));
        drop(place);
        assert!(again.body(&mut Place::default(), 1));
        drop((room, again));
        rooms.of(container(3));
        assert!(rooms.of.lock().unwrap().len() <= 2, "rooms of containers that are gone go, too");
    }
}
