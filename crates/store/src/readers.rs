//! Connections for reading, opened when they are needed and kept.

use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::StoreError;
use crate::damages::DamageRegistry;
use crate::sql::{Read, open_reader};

/// Connections at most; who comes after waits.
const READERS: usize = 4;

/// All of them.
pub(crate) struct Readers {
    path: PathBuf,
    damages: Arc<DamageRegistry>,
    idle: Mutex<Vec<Read>>,
    permits: Arc<Semaphore>,
}

impl Readers {
    pub(crate) fn new(path: &Path, damages: &Arc<DamageRegistry>) -> Self {
        Self {
            path: path.to_owned(),
            damages: Arc::clone(damages),
            idle: Mutex::default(),
            permits: Arc::new(Semaphore::new(READERS)),
        }
    }

    pub(crate) async fn take(this: &Arc<Self>) -> Result<Reader, StoreError> {
        let permit = Arc::clone(&this.permits).acquire_owned().await;
        let permit = permit.map_err(|_| StoreError::Unavailable("the store is closed".into()))?;
        let idle = this.idle().pop();
        let connection = match idle {
            Some(connection) => connection,
            None => Read::new(open_reader(&this.path)?, Arc::clone(&this.damages)),
        };
        Ok(Reader { connection: Some(connection), readers: Arc::clone(this), _permit: permit })
    }

    pub(crate) fn close(&self) {
        self.permits.close();
        self.idle().clear();
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Read>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection for reading; goes back where it came from when dropped.
pub struct Reader {
    connection: Option<Read>,
    readers: Arc<Readers>,
    _permit: OwnedSemaphorePermit,
}

impl Deref for Reader {
    type Target = Read;

    fn deref(&self) -> &Read {
        self.connection.as_ref().expect("taken when dropped only")
    }
}

impl DerefMut for Reader {
    fn deref_mut(&mut self) -> &mut Read {
        self.connection.as_mut().expect("taken when dropped only")
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take()
            && !self.readers.permits.is_closed()
        {
            self.readers.idle().push(connection);
        }
    }
}
