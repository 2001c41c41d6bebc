//! Tools that take plain text. The provider's model was given a function with one argument; the program gets the text in it.

use std::collections::BTreeMap;

use super::conversation::FREEFORM_ARGUMENT;
use super::exchange::Exchange;
use crate::dialect::intake::ANSWER_BYTES_MAX;
use crate::dialect::json::Json;
use crate::dialect::neutral::{Delta, Failure};

/// Calls of such tools whose arguments are not complete. Only these wait: plain text is not to be had from half of a JSON string.
#[derive(Debug, Default)]
pub struct Freeform {
    open: BTreeMap<usize, String>,
    bytes: usize,
}

impl Freeform {
    /// Passes a delta on, with plain text in place of the arguments of such calls.
    pub fn take(&mut self, exchange: &Exchange, delta: Delta, mut pass: impl FnMut(Delta)) {
        match delta {
            Delta::CallBegin { call, ref name, .. } if exchange.is_freeform(name) => {
                self.open.insert(call, String::new());
                pass(delta);
            }
            Delta::Arguments { call, text } => match self.open.get_mut(&call) {
                Some(_) if self.bytes + text.len() > ANSWER_BYTES_MAX => {
                    pass(Delta::Failed(Failure::bad_answer("the provider's answer is too large to be translated")));
                }
                Some(arguments) => {
                    self.bytes += text.len();
                    arguments.push_str(&text);
                }
                None => pass(Delta::Arguments { call, text }),
            },
            Delta::CallEnd { call } => {
                if let Some(arguments) = self.open.remove(&call) {
                    let input = Json::read(arguments.as_bytes()).ok();
                    let input = input.and_then(|input| input.text(FREEFORM_ARGUMENT).map(str::to_owned));
                    pass(Delta::Arguments { call, text: input.unwrap_or(arguments) });
                }
                pass(Delta::CallEnd { call });
            }
            delta => pass(delta),
        }
    }
}

impl Exchange {
    /// Whether the tool of that name takes plain text.
    pub(super) fn is_freeform(&self, name: &str) -> bool {
        self.freeform.iter().any(|tool| tool == name)
    }
}
