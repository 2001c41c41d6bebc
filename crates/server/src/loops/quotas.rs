//! Looks at what sessions take of the disk, those whose turn it is ([`disk_use`]).

use std::sync::Arc;

use raworc_core::ids::ContainerId;
use tokio::sync::Semaphore;

use super::supervise::Loop;
use crate::app::Shared;
use crate::layers::disk_use;
use crate::layers::quotas::{INTERVAL, Quotas};

/// Sessions that are looked at together: one with very many files does not hide what others write.
const LOOKS_MAX: usize = 4;

/// Looks at what sessions take of the disk.
pub struct QuotaLoop;

impl Loop for QuotaLoop {
    const NAME: &'static str = "quotas";
    const TRIGGER: &'static str = "every half second";

    fn bound() -> String {
        format!("{LOOKS_MAX} sessions looked through at once")
    }

    async fn run(app: Shared) {
        let slots = Arc::new(Semaphore::new(LOOKS_MAX));
        while app.sleep(INTERVAL / 2).await {
            app.loops.ran(QuotaLoop::NAME, true);
            for container in app.quotas.due() {
                app.tasks.spawn(check_quota(app.clone(), Arc::clone(&slots), container));
            }
        }
    }
}

async fn check_quota(app: Shared, slots: Arc<Semaphore>, container: ContainerId) {
    let _looked = Looked { quotas: &app.quotas, container };
    let Ok(_slot) = slots.acquire().await else { return };
    if let Err(error) = disk_use::look(&app, container).await {
        tracing::warn!(%container, %error, "what a session takes could not be looked through");
    }
}

/// A look that is over when this is dropped, however it ended.
struct Looked<'q> {
    quotas: &'q Quotas,
    container: ContainerId,
}

impl Drop for Looked<'_> {
    fn drop(&mut self) {
        self.quotas.looked_at(self.container);
    }
}
