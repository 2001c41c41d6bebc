use raworc_api::message::{MessageError, MessageWithReply};
use raworc_api::session::Session;
use serde_json::{Value, json};

use super::*;

const ID: &str = "0192f1d2-0000-7000-8000-000000000000";
const TIME: &str = "2026-01-01T00:00:00Z";

fn message(status: &str, usage: Value) -> MessageWithReply {
    let part = |role: &str, status: &str, usage: Value| {
        json!({
            "id": ID, "seq": 1, "session_id": ID, "role": role, "content": "x", "agent": "shell", "status": status,
            "reply_to": null, "attempts": 1, "error": null, "created_at": TIME, "finished_at": TIME, "usage": usage,
            "metadata": {},
        })
    };
    let mut document = part("user", status, Value::Null);
    document["reply"] = if usage.is_null() { Value::Null } else { part("agent", "done", usage) };
    serde_json::from_value(document).unwrap()
}

#[test]
fn a_messages_end_as_an_exit_status() {
    let usage = |code: Value| json!({ "exit_code": code, "duration_seconds": 0.1, "output_bytes_dropped": 0 });
    for (status, usage, expected) in [
        ("done", usage(json!(0)), 0),
        ("done", Value::Null, 0),
        ("failed", usage(json!(3)), 3),
        ("failed", usage(json!(127)), 127),
        ("failed", usage(Value::Null), 1),
        ("failed", usage(json!(0)), 1),
        ("failed", usage(json!(1000)), 1),
        ("failed", Value::Null, 1),
        ("cancelled", Value::Null, 130),
        ("cancelled", usage(json!(0)), 130),
        ("failed", json!({ "exit_code": null, "signal": 15, "duration_seconds": 0.1, "output_bytes_dropped": 0 }), 143),
    ] {
        assert_eq!(exit_status(&message(status, usage.clone())), expected, "{status} {usage}");
    }
    for (code, expected) in [("timeout", 124), ("not_started", 126), ("host_died", 1), ("out_of_memory", 1)] {
        let mut ended = message("failed", usage(Value::Null));
        ended.message.error = Some(MessageError { code: code.into(), message: "x".into() });
        assert_eq!(exit_status(&ended), expected, "{code}");
    }
}

#[test]
fn only_a_session_that_waits_for_a_person_is_stuck() {
    let session = |state: &str, error: Value| -> Session {
        serde_json::from_value(json!({
            "id": ID, "name": "demo", "starting_prompt": "", "state": state, "waiting_timeout_seconds": 300,
            "ttl_seconds": null, "created_by": "admin", "agents": [], "metadata": {},
            "resources": { "cpu": 1.0, "memory": 1, "pids": 1 }, "env": {}, "background_activity": true,
            "checkpoints": { "policy": "each_message", "every_seconds": null, "keep_last": 20 },
            "parent_session_id": null, "generation": 1, "error": error, "queued_messages": 0, "last_seq": 1,
            "usage": { "messages": 0, "busy_seconds": 0.0 }, "created_at": TIME, "updated_at": TIME, "started_at": null,
            "last_activity_at": TIME, "expires_at": null, "paused_at": null, "terminated_at": null,
            "termination_reason": null, "deleted_at": null,
        }))
        .unwrap()
    };
    let error = |restarts: Value| json!({ "code": "start_failed", "message": "no cgroups", "restarts_at": restarts });
    for (session, is_stuck) in [
        (session("READY", Value::Null), false),
        (session("ERROR", error(json!(TIME))), false),
        (session("ERROR", error(Value::Null)), true),
        (session("INIT", error(Value::Null)), false),
    ] {
        assert_eq!(stuck(&session).is_some(), is_stuck, "{session:?}");
    }
}
