//! Turns of agents with a model: they run in the server, one task each, and use tools in the session's container.
//!
//! A turn is carried on by whoever reads its log ([`raworc_core::turn`]): every answer of the model and every result of a tool is
//! committed before the next step begins, so a turn outlives the server and the container.

mod answer;
mod context;
mod driver;
pub mod drivers;
pub mod tools;

use std::time::Duration;

use self::drivers::Turn;
use crate::app::Shared;

/// Wait before a turn is carried on that could not be: longer each time, since each may ask the model again.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// Carries a turn on, unless someone does already.
pub fn ensure(app: &Shared, turn: Turn) {
    if !app.turn_drivers.begin(turn.running.turn) {
        return;
    }
    let guard = Guard { app: app.clone(), turn };
    app.tasks.spawn(async move {
        let (app, mut pause) = (&guard.app, RETRY_MIN);
        while let Err(error) = Box::pin(driver::drive(app, turn)).await {
            tracing::error!(container = %turn.container, %error, "a turn cannot be carried on right now");
            if !app.sleep(pause).await {
                return;
            }
            pause = (pause * 2).min(RETRY_MAX);
        }
    });
}

/// Gives a turn's place back when nobody carries it on any more. A change of the session has it carried on again if it is not over.
struct Guard {
    app: Shared,
    turn: Turn,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.app.turn_drivers.end(self.turn.running.turn);
    }
}
