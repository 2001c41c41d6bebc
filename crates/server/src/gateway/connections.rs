//! Connections of containers to the gateway, counted.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use raworc_core::ids::ContainerId;
use raworc_core::limits::GATEWAY_CONNECTIONS_MAX;

use crate::sync::lock;

/// How many connections each container has to the gateway.
#[derive(Default)]
pub struct GatewayConnections(Mutex<HashMap<ContainerId, usize>>);

/// One of them, for as long as this lives.
pub struct GatewayConnection {
    connections: Arc<GatewayConnections>,
    container: ContainerId,
}

impl GatewayConnections {
    /// Counts one more; none where a container has as many as it may have. (Its host opens no more than that.)
    pub fn open(connections: &Arc<Self>, container: ContainerId) -> Option<GatewayConnection> {
        let mut counts = lock(&connections.0);
        let count = counts.entry(container).or_default();
        if *count >= GATEWAY_CONNECTIONS_MAX {
            return None;
        }
        *count += 1;
        Some(GatewayConnection { connections: Arc::clone(connections), container })
    }
}

impl Drop for GatewayConnection {
    fn drop(&mut self) {
        let mut counts = lock(&self.connections.0);
        if let Some(count) = counts.get_mut(&self.container) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.container);
            }
        }
    }
}
