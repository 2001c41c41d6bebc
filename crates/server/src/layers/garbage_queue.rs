//! The queue of layers that may be of no use any more.

use std::collections::BTreeSet;
use std::sync::Mutex;

use raworc_core::ids::LayerId;
use tokio::sync::Notify;

use crate::sync::lock;

/// Layers that may be of no use any more.
#[derive(Default)]
pub struct GarbageQueue {
    layers: Mutex<BTreeSet<LayerId>>,
    added: Notify,
}

impl GarbageQueue {
    /// Has these layers looked at: their directories are removed if nothing needs them. What a transaction leaves is to go
    /// through [`raworc_store::Tx::wasted`]: before its commit, it is still needed.
    pub fn enqueue(&self, layers: impl IntoIterator<Item = LayerId>) {
        let mut waiting = lock(&self.layers);
        waiting.extend(layers);
        if !waiting.is_empty() {
            self.added.notify_one();
        }
    }

    /// Waits for such layers; the caller looks at each.
    pub async fn next_batch(&self) -> BTreeSet<LayerId> {
        loop {
            let batch = std::mem::take(&mut *lock(&self.layers));
            if !batch.is_empty() {
                return batch;
            }
            self.added.notified().await;
        }
    }
}
