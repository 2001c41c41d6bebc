//! Who may do what, for how long, and how much of the server it may take.

pub mod auth;
pub mod budgets;
pub mod ceilings;
pub mod lease;
pub mod refusals;

use raworc_api::problem::{Code, Problem};
use raworc_core::permissions::{Action, Actor, Decision, allow};

use crate::error::Failure;

/// Lets the actor go on, or says why not. Every verb asks.
///
/// # Errors
/// 403, or 404 where the actor may not know that `what` is there.
pub fn permit(actor: &Actor, action: Action, what: &str, name: &str) -> Result<(), Failure> {
    match allow(actor, action) {
        Decision::Allow => Ok(()),
        Decision::Forbid => {
            let detail = format!("the account {:?} may not do this; ask an administrator", actor.name);
            Err(Failure::NotAllowed(Box::new(Problem::new(Code::Forbidden, detail))))
        }
        Decision::Hide => Err(Failure::NotAllowed(Box::new(Failure::not_found(what, name).into_problem()))),
    }
}
