//! The simulated disk of the database: sometimes slow, sometimes full.

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

    fn after(&self) -> BoxFuture<'_, ()> {
        async move { self.0.pass(if self.0.fault(0.01) { 800 } else { 1 }).await }.boxed()
    }
}
