//! A turn of an agent with a model: what the log says of it, and what is to be done next.
//!
//! The log is all that is kept of a turn. So whatever dies in the middle, the next server, or the next turn of the same message, reads the
//! log and goes on: after the last tool call that has ended.
//!
//! ```text
//! Ask      the model is asked: step 1, 2, …      →  text alone: the turn ends with it
//!                                                →  tool calls: they are recorded together, then Use
//! Use      a tool is used                        →  its result is recorded; then the next call, or Ask
//! Lost     a call that someone else had begun    →  its result is recorded as unknown: it is never begun again
//! GiveUp   there have been as many steps as may be
//! ```

use std::collections::BTreeSet;

use serde_json::Value;
use uuid::Uuid;

use crate::events::LogEvent;

/// Steps of one message, unless its agent says otherwise.
pub const STEPS_DEFAULT: u32 = 100;
/// Steps that an agent may say.
pub const STEPS_MAX: u32 = 10_000;

/// The result of a call whose end nobody has seen, for the model.
pub const LOST_RESULT: &str =
    "it was interrupted: whether it was done, and how far, is not known. Look before you repeat it.";

/// A tool call of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolUse {
    /// Names it.
    pub id: Uuid,
    /// The tool.
    pub tool: String,
    /// What the tool is given: an object; or a text that was to be one and is not.
    pub input: Value,
}

/// What the model is shown of the turn, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Entry {
    /// An answer of the model that asked for tools.
    Answer {
        /// What it said beside.
        text: String,
        /// What it asked for; never empty.
        calls: Vec<ToolUse>,
    },
    /// The result of a call.
    Result {
        /// Whose.
        call: Uuid,
        /// What came of it.
        output: String,
        /// It did not work.
        is_error: bool,
    },
}

/// What is to be done next.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    /// Ask the model.
    Ask {
        /// The step, counted from 1.
        step: u32,
    },
    /// Use a tool.
    Use(ToolUse),
    /// Record that the result of a call is not known.
    Lost(ToolUse),
    /// End the turn: there have been as many steps as may be.
    GiveUp,
}

/// What the log says of the work on one message so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    entries: Vec<Entry>,
    /// The calls without a result, in order.
    open: Vec<ToolUse>,
    /// Calls that were open when this progress was read: whoever began them is gone.
    lost: BTreeSet<Uuid>,
    /// The newest step that has ended.
    step: u32,
    /// What the model has written since.
    text: String,
}

impl Progress {
    /// Reads the events of one message, in order; those of other kinds count for nothing.
    #[must_use]
    pub fn read(events: impl IntoIterator<Item = LogEvent>) -> Self {
        let mut progress = Self::default();
        for event in events {
            progress.apply(event);
        }
        progress.lost = progress.open.iter().map(|call| call.id).collect();
        progress
    }

    /// Goes on by one event.
    pub fn apply(&mut self, event: LogEvent) {
        match event {
            LogEvent::MessageDelta(delta) => self.text.push_str(&delta.text),
            LogEvent::AgentStepDiscarded(_) => self.text.clear(),
            LogEvent::ToolCalled(called) => {
                let call = ToolUse { id: called.call_id, tool: called.tool, input: called.input };
                self.open.push(call.clone());
                match self.entries.last_mut() {
                    // Calls of one answer are told together.
                    Some(Entry::Answer { calls, .. }) if self.step == called.step && self.text.is_empty() => {
                        calls.push(call);
                    }
                    _ => self.entries.push(Entry::Answer { text: std::mem::take(&mut self.text), calls: vec![call] }),
                }
                self.step = called.step;
            }
            LogEvent::ToolFinished(finished) => {
                self.open.retain(|call| call.id != finished.call_id);
                self.lost.remove(&finished.call_id);
                let (output, is_error) = (finished.output, finished.is_error);
                self.entries.push(Entry::Result { call: finished.call_id, output, is_error });
            }
            _ => {}
        }
    }

    /// What the model is shown.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Whether the model has written something of a step that has not ended. Whoever goes on has it discarded first.
    #[must_use]
    pub fn has_unfinished_text(&self) -> bool {
        !self.text.is_empty()
    }

    /// What the model has written of a step that has not ended.
    #[must_use]
    pub fn unfinished_text(&self) -> &str {
        &self.text
    }

    /// What is to be done next. `steps_max` bounds how often the model is asked for one message.
    #[must_use]
    pub fn next(&self, steps_max: u32) -> Next {
        match self.open.first() {
            Some(call) if self.lost.contains(&call.id) => Next::Lost(call.clone()),
            Some(call) => Next::Use(call.clone()),
            None if self.step >= steps_max => Next::GiveUp,
            None => Next::Ask { step: self.step + 1 },
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::events::{AgentStepDiscarded, MessageDelta, ToolCalled, ToolFinished};
    use crate::ids::{MessageId, TurnId};
    use crate::link::OutputStream;

    const MESSAGE: MessageId = MessageId(Uuid::nil());
    const TURN: TurnId = TurnId(Uuid::nil());

    fn said(text: &str) -> LogEvent {
        let (stream, text) = (OutputStream::Stdout, text.to_owned());
        MessageDelta { message_id: MESSAGE, turn_id: Some(TURN), stream, text }.into()
    }

    fn called(id: u128, step: u32) -> LogEvent {
        let (call_id, agent, tool, input) = (Uuid::from_u128(id), "a".to_owned(), "bash".to_owned(), json!({}));
        ToolCalled { call_id, message_id: MESSAGE, turn_id: TURN, agent, step, tool, input }.into()
    }

    fn finished(id: u128) -> LogEvent {
        let (call_id, output) = (Uuid::from_u128(id), format!("result {id}"));
        let (is_error, duration_seconds) = (false, None);
        ToolFinished { call_id, message_id: MESSAGE, turn_id: TURN, output, is_error, duration_seconds }.into()
    }

    fn discarded(step: u32) -> LogEvent {
        let reason = "it was cut off".to_owned();
        AgentStepDiscarded { message_id: MESSAGE, turn_id: TURN, step, reason }.into()
    }

    /// A progress in words: what the model is shown, and what is next.
    fn shown(progress: &Progress) -> String {
        let entry = |entry: &Entry| match entry {
            Entry::Answer { text, calls } => {
                let calls: Vec<String> = calls.iter().map(|call| call.id.as_u128().to_string()).collect();
                format!("{text:?} calls {}", calls.join(","))
            }
            Entry::Result { call, output, .. } => format!("{} gave {output:?}", call.as_u128()),
        };
        let mut words: Vec<String> = progress.entries().iter().map(entry).collect();
        words.push(match progress.next(3) {
            Next::Ask { step } => format!("ask {step}"),
            Next::Use(call) => format!("use {}", call.id.as_u128()),
            Next::Lost(call) => format!("lost {}", call.id.as_u128()),
            Next::GiveUp => "give up".to_owned(),
        });
        words.join("; ")
    }

    #[test]
    fn what_is_next_follows_from_the_log() {
        let table: [(Vec<LogEvent>, &str); 8] = [
            (vec![], "ask 1"),
            (vec![said("I look")], "ask 1"),
            (vec![said("I "), said("look"), called(1, 1)], r#""I look" calls 1; lost 1"#),
            (vec![called(1, 1), called(2, 1), finished(1)], r#""" calls 1,2; 1 gave "result 1"; lost 2"#),
            (vec![called(1, 1), finished(1)], r#""" calls 1; 1 gave "result 1"; ask 2"#),
            (
                vec![called(1, 1), finished(1), said("half"), discarded(2), said("whole"), called(2, 2), finished(2)],
                r#""" calls 1; 1 gave "result 1"; "whole" calls 2; 2 gave "result 2"; ask 3"#,
            ),
            (
                // A step that says nothing beside its calls is an answer of its own.
                vec![called(1, 1), finished(1), called(2, 2), finished(2)],
                r#""" calls 1; 1 gave "result 1"; "" calls 2; 2 gave "result 2"; ask 3"#,
            ),
            (
                vec![called(1, 1), finished(1), called(2, 2), finished(2), called(3, 3), finished(3)],
                r#""" calls 1; 1 gave "result 1"; "" calls 2; 2 gave "result 2"; "" calls 3; 3 gave "result 3"; give up"#,
            ),
        ];
        for (events, expected) in table {
            assert_eq!(shown(&Progress::read(events.clone())), expected, "{events:?}");
        }
    }

    #[test]
    fn who_has_recorded_a_call_begins_it() {
        let mut progress = Progress::read([called(1, 1)]);
        assert_eq!(progress.next(3), Next::Lost(progress.open[0].clone()));
        progress.apply(finished(1));
        progress.apply(called(2, 2));
        assert_eq!(progress.next(3), Next::Use(progress.open[0].clone()));
    }

    proptest! {
        /// Wherever it is cut and read again, no call is begun twice and each has one result.
        #[test]
        fn a_call_is_begun_once_wherever_it_is_cut(calls in prop::collection::vec(1_usize..4, 1..5), cuts in any::<u64>()) {
            let (mut log, mut begun, mut asked) = (Vec::new(), BTreeSet::new(), 0_u32);
            let mut progress = Progress::read(log.clone());
            let mut round = 0;
            loop {
                if cuts >> (round % 64) & 1 == 1 {
                    progress = Progress::read(log.clone());
                }
                round += 1;
                let events = match progress.next(STEPS_MAX) {
                    Next::Ask { step } => {
                        prop_assert_eq!(step, asked + 1);
                        asked = step;
                        let Some(count) = calls.get(step as usize - 1) else { break };
                        (0..*count).map(|n| called(u128::from(step) * 10 + n as u128, step)).collect()
                    }
                    Next::Use(call) => {
                        prop_assert!(begun.insert(call.id), "a call was begun twice");
                        vec![finished(call.id.as_u128())]
                    }
                    Next::Lost(call) => vec![finished(call.id.as_u128())],
                    Next::GiveUp => unreachable!(),
                };
                for event in events {
                    log.push(event.clone());
                    progress.apply(event);
                }
            }
            let results = progress.entries().iter().filter(|entry| matches!(entry, Entry::Result { .. })).count();
            prop_assert_eq!(results, calls.iter().sum::<usize>());
            let read = Progress::read(log);
            prop_assert_eq!(progress.entries(), read.entries());
        }
    }
}
