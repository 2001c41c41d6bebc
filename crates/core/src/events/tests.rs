use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::*;
use crate::ids::{MessageId, TurnId};
use crate::session::FaultCode;

/// A type as a person writes it.
fn shown(schema: &Value) -> String {
    let of_type = match &schema["type"] {
        Value::Array(types) => types.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" or "),
        one => one.as_str().unwrap_or("?").to_owned(),
    };
    let format = schema["format"].as_str().map(|format| format!(" ({format})")).unwrap_or_default();
    let words: Vec<String> = schema["enum"].as_array().into_iter().flatten().map(ToString::to_string).collect();
    let words = if words.is_empty() { String::new() } else { format!(" {}", words.join(" ")) };
    format!("{of_type}{format}{words}")
}

/// Whatever changes here changes what is stored and what clients read.
#[test]
fn every_kind_of_event() {
    let mut table = String::new();
    for kind in kinds() {
        let _ = writeln!(table, "{} {}", kind.name, kind.type_name);
        let required = kind.data["required"].as_array().cloned().unwrap_or_default();
        for (name, schema) in kind.data["properties"].as_object().unwrap() {
            let mark = if required.contains(&json!(name)) { "" } else { "?" };
            let _ = writeln!(table, "    {name}{mark}: {}", shown(schema));
            assert!(!schema["description"].as_str().unwrap().is_empty(), "{}.{name}", kind.name);
        }
    }
    insta::assert_snapshot!(table);
}

#[test]
fn kinds_are_named_noun_verb_and_once() {
    let kinds = kinds();
    for kind in &kinds {
        let word = |word: &str| !word.is_empty() && word.chars().all(|c| c.is_ascii_lowercase() || c == '_');
        assert!(kind.name.split_once('.').is_some_and(|(noun, verb)| word(noun) && word(verb)), "{}", kind.name);
        let same = kinds.iter().filter(|other| other.name == kind.name).count();
        assert_eq!(same, 1, "{}", kind.name);
        assert!(!kind.description.is_empty(), "{}", kind.name);
    }
}

#[test]
fn the_codes_of_faults_are_all_known() {
    let Value::Array(words) = FaultCode::schema()["enum"].clone() else { panic!() };
    let all: Vec<Value> = FaultCode::ALL.iter().map(|code| json!(code.as_str())).collect();
    assert_eq!(words, all);
}

fn object(value: Value) -> Map<String, Value> {
    let Value::Object(map) = value else { panic!("{value}") };
    map
}

/// As clients have seen them since the first release: what is null, and what is left out.
#[test]
fn data_is_written_to_the_letter() {
    let (message_id, turn_id) = (MessageId(uuid::Uuid::from_u128(1)), Some(TurnId(uuid::Uuid::from_u128(2))));
    let (message, turn) = ("00000000-0000-0000-0000-000000000001", "00000000-0000-0000-0000-000000000002");
    let result = TurnResult {
        reply_id: message_id,
        exit_code: None,
        signal: Some(9),
        duration_seconds: 0.5,
        output_bytes_dropped: 0,
        output_file: None,
    };
    let finished =
        |turn_id, result| MessageFinished { message_id, turn_id, status: Outcome::Done, error: None, result };
    let end = StreamEnd { exit_code: None, duration_seconds: None, signal: None, error: Some(StreamError::TimedOut) };
    let cases: [(LogEvent, Value); 6] = [
        (SessionPaused {}.into(), json!({})),
        (
            finished(turn_id, Some(result)).into(),
            json!({
                "message_id": message, "turn_id": turn, "status": "done", "error": null, "reply_id": message,
                "exit_code": null, "signal": 9, "duration_seconds": 0.5, "output_bytes_dropped": 0,
            }),
        ),
        (finished(None, None).into(), json!({ "message_id": message, "status": "done", "error": null })),
        (
            ExecFinished { exec_id: uuid::Uuid::from_u128(1), end }.into(),
            json!({ "exec_id": message, "exit_code": null, "error": "timed_out" }),
        ),
        (CheckpointFailed { n: None, cause: None, error: "e".into() }.into(), json!({ "cause": null, "error": "e" })),
        (
            MessageQueued { message_id, role: Speaker::User, agent: None, content: "c".into() }.into(),
            json!({ "message_id": message, "role": "user", "agent": null, "content": "c" }),
        ),
    ];
    for (event, expected) in cases {
        let data = event.data().unwrap();
        assert_eq!(Value::Object(data.clone()), expected, "{}", event.kind());
        assert_eq!(LogEvent::read(event.kind(), &data), Some(event));
    }
}

#[test]
fn logs_of_older_builds_are_read_and_what_newer_ones_say_is_left_as_it_is() {
    let started = object(json!({ "message_id": uuid::Uuid::nil(), "attempt": 1, "agent": "shell" }));
    let Some(LogEvent::MessageStarted(event)) = LogEvent::read("message.started", &started) else { panic!() };
    assert_eq!((event.turn_id, event.agent.as_deref()), (None, Some("shell")));
    let more = object(json!({ "n": 1, "why": "a field of a newer build" }));
    assert_eq!(LogEvent::read("checkpoint.deleted", &more), Some(CheckpointDeleted { n: 1 }.into()));
    assert_eq!(LogEvent::read("agent.thought", &started), None);
    assert_eq!(LogEvent::read("checkpoint.deleted", &started), None);
}
