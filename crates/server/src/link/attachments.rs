//! Connections of clients' streams, from when a host is asked to dial until it has.

use std::collections::HashMap;
use std::sync::Mutex;

use bytes::BytesMut;
use raworc_core::ids::ContainerId;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::sync::lock;

/// Whatever leads to a host.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send + Sync + 'static {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + Sync + 'static> Stream for T {}

/// A connection on which pieces follow.
pub struct Way {
    /// It.
    pub stream: Box<dyn Stream>,
    /// What has been read of it already.
    pub read: BytesMut,
}

/// All that are expected.
#[derive(Default)]
pub struct Attachments(Mutex<HashMap<(ContainerId, Uuid), oneshot::Sender<Way>>>);

/// One that is expected, for as long as this lives.
pub struct Expected<'a> {
    attachments: &'a Attachments,
    key: (ContainerId, Uuid),
    way: oneshot::Receiver<Way>,
}

impl Attachments {
    /// A connection is expected from now on.
    pub fn expect(&self, container: ContainerId, attachment: Uuid) -> Expected<'_> {
        let (sender, way) = oneshot::channel();
        let key = (container, attachment);
        lock(&self.0).insert(key, sender);
        Expected { attachments: self, key, way }
    }

    /// Whether this one is.
    pub fn is_expected(&self, container: ContainerId, attachment: Uuid) -> bool {
        lock(&self.0).contains_key(&(container, attachment))
    }

    /// It is there; it ends here where nobody expects it any more.
    pub fn arrived(&self, container: ContainerId, attachment: Uuid, way: Way) {
        let sender = lock(&self.0).remove(&(container, attachment));
        if let Some(sender) = sender {
            let _ = sender.send(way);
        }
    }
}

impl Expected<'_> {
    /// Waits for it.
    pub async fn way(&mut self) -> Option<Way> {
        (&mut self.way).await.ok()
    }
}

impl Drop for Expected<'_> {
    fn drop(&mut self) {
        lock(&self.attachments.0).remove(&self.key);
    }
}
