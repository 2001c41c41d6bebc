//! The server's side of the gateway: connections of programs in containers, and what the gateway asks about their calls.

pub mod calls;
pub mod connections;
pub mod ports;

use std::io::Cursor;
use std::sync::Arc;

use raworc_core::ids::ContainerId;
use raworc_gateway::serve_connection;
use tokio::io::AsyncReadExt as _;

use crate::app::Shared;
use crate::link::attachments::Way;

/// Serves a connection of a program in this container until one of the two goes, or the server stops.
pub async fn serve(app: &Shared, container: ContainerId, way: Way) {
    let (reader, writer) = tokio::io::split(way.stream);
    // What came together with the first frame comes first.
    let stream = tokio::io::join(Cursor::new(way.read).chain(reader), writer);
    let serving = serve_connection(stream, container, Arc::clone(&app.gateway));
    if app.unless_stopping(serving).await.is_none() {
        tracing::debug!(%container, "a connection to the gateway ends with the server");
    }
}
