//! The last copies of workspaces that were copied while something went on running in them: the next copy lies on it.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use raworc_core::ids::{LayerId, SessionId};
use raworc_workspace::layers::links::CopiedUpFile;

use crate::layers::pins::LayerPin;
use crate::sync::lock;

/// The file of what a copy has seen; removed with the last who reads it.
pub struct Listing(pub PathBuf);

impl Drop for Listing {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The last copy of what a session writes.
#[derive(Clone)]
pub struct CaptureBase {
    /// What it writes to: a copy of something else says nothing.
    pub writable: LayerId,
    /// The copy, which lies on earlier ones of the same.
    pub layer: LayerId,
    /// What was seen then.
    pub listing: Arc<Listing>,
    /// Files that had all of their names in what is written to then; it does not become fewer.
    pub gathered: BTreeSet<CopiedUpFile>,
    /// Keeps the copy: the next one lies on it.
    pub _hold: Arc<LayerPin>,
}

/// The last copy of what each session is writing, where it was copied while something went on running.
#[derive(Default)]
pub struct CaptureBases(Mutex<HashMap<SessionId, CaptureBase>>);

impl CaptureBases {
    /// That of a session.
    pub fn get(&self, session: SessionId) -> Option<CaptureBase> {
        lock(&self.0).get(&session).cloned()
    }

    /// Notes a newer one.
    pub fn set(&self, session: SessionId, base: CaptureBase) {
        let before = lock(&self.0).insert(session, base);
        drop(before);
    }

    /// The next copy is of everything: nothing runs any more, or what the session writes to is a layer itself now.
    pub fn forget(&self, session: SessionId) {
        let before = lock(&self.0).remove(&session);
        drop(before);
    }

    /// The next copy cannot lie on one that was given up.
    pub fn forget_given_up(&self, session: SessionId, given_up: &[LayerId]) {
        if self.get(session).is_some_and(|base| given_up.contains(&base.layer)) {
            self.forget(session);
        }
    }
}
