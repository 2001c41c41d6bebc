//! Calls of models that are being made.

use std::collections::HashMap;
use std::sync::Mutex;

use raworc_core::ids::{ContainerId, TurnId};
use raworc_core::models::Price;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::sync::lock;

/// What is known of a call from its beginning.
#[derive(Clone, Debug)]
pub struct CallContext {
    /// Where it comes from.
    pub container: ContainerId,
    /// The turn in which the program runs.
    pub turn: Option<TurnId>,
    /// Whose turn.
    pub agent: Option<String>,
    /// The provider's name.
    pub provider: String,
    /// The model's name there.
    pub model: String,
    /// What the program asked for, where that is another model.
    pub requested: Option<String>,
    /// What the model costs.
    pub price: Option<Price>,
}

/// All that are being made, by their ids.
#[derive(Default)]
pub struct RunningCalls(Mutex<HashMap<Uuid, (CallContext, CancellationToken)>>);

impl RunningCalls {
    /// Adds a call. The token ends it.
    pub fn begin(&self, id: Uuid, context: CallContext) -> CancellationToken {
        let token = CancellationToken::new();
        lock(&self.0).insert(id, (context, token.clone()));
        token
    }

    /// Removes a call that has ended.
    pub fn end(&self, id: Uuid) -> Option<CallContext> {
        lock(&self.0).remove(&id).map(|(context, _)| context)
    }

    /// Ends the calls of a turn.
    pub fn cancel(&self, container: ContainerId, turn: TurnId) {
        for (context, token) in lock(&self.0).values() {
            if context.container == container && context.turn == Some(turn) {
                token.cancel();
            }
        }
    }
}
