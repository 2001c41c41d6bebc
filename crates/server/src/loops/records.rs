//! Looks for damaged records, now and then ([`damages`]).

use std::time::Duration;

use super::supervise::Loop;
use crate::app::Shared;
use crate::record::damages;

/// How often it is asked whether another process has changed the database.
const INTERVAL: Duration = Duration::from_secs(2);

/// Looks for damaged records.
pub struct Records;

impl Loop for Records {
    const NAME: &'static str = "records";
    const TRIGGER: &'static str = "every 2 seconds, where another process has changed the database; every hour";

    fn bound() -> String {
        "one look at a time".to_owned()
    }

    async fn run(app: Shared) {
        // In a simulation nobody touches the records.
        if app.fault_injector.is_some() {
            return app.stopping.cancelled().await;
        }
        loop {
            let looked = damages::look(&app).await;
            app.loops.ran(Records::NAME, looked.is_ok());
            if let Err(error) = looked {
                tracing::error!(%error, "the records could not be looked through; trying again");
            }
            if !app.sleep(INTERVAL).await {
                return;
            }
        }
    }
}
