//! The simulated disk of the database: sometimes slow, sometimes full, sometimes away just when a transaction is to be committed.

use futures::FutureExt as _;
use futures::future::BoxFuture;
use raworc_store::{Disk, StoreError};

use crate::world::World;

/// The server may die before a transaction, or between it and the answer.
pub struct SimDisk(pub World);

impl Disk for SimDisk {
    fn before(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        async move {
            self.0.pass(if self.0.fault(0.01) { 1_500 } else { 1 }).await;
            if self.0.fault(0.005) {
                self.0.log("the disk is full");
                return Err(StoreError::DiskFull);
            }
            Ok(())
        }
        .boxed()
    }

    fn commit(&self) -> Result<(), StoreError> {
        if self.0.fault(0.005) {
            self.0.log("a commit meets a full disk");
            return Err(StoreError::DiskFull);
        }
        if self.0.fault(0.05) {
            self.0.log("a transaction is rolled back and run again");
            return Err(StoreError::Unavailable("the disk does not answer for a moment".into()));
        }
        Ok(())
    }

    fn after(&self) -> BoxFuture<'_, ()> {
        async move { self.0.pass(if self.0.fault(0.01) { 800 } else { 1 }).await }.boxed()
    }
}
