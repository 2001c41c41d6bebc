use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// What the model or a person says.
fn said() -> impl Strategy<Value = String> {
    "[a-z \u{e4}\u{1f600}\"\\\\]{0,10}[a-z]"
}

fn arguments() -> impl Strategy<Value = String> {
    proptest::collection::btree_map(
        "[a-z]{1,4}",
        prop_oneof![any::<i32>().prop_map(Value::from), said().prop_map(Value::from)],
        0..3,
    )
    .prop_map(|members| json!(members).to_string())
}

fn content() -> impl Strategy<Value = Value> {
    let image = prop_oneof![Just("https://pictures.test/a.png"), Just("data:image/png;base64,AAAA")];
    prop_oneof![
        said().prop_map(Value::from),
        (said(), image, said()).prop_map(|(before, url, after)| json!([
            {"type": "text", "text": before},
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": after},
        ])),
    ]
}

/// A turn of the assistant with calls, their results, and what the user says to it; or one without calls.
fn exchange_of_turns() -> impl Strategy<Value = Vec<Value>> {
    let calls = proptest::collection::vec(("[a-z]{1,8}", arguments(), said()), 0..4);
    (content(), proptest::option::of(said()), calls).prop_map(|(user, text, calls)| {
        let mut messages = vec![json!({"role": "user", "content": user})];
        if text.is_none() && calls.is_empty() {
            return messages;
        }
        let mut assistant = json!({"role": "assistant", "content": text});
        if !calls.is_empty() {
            let write = |(at, (name, arguments, _)): (usize, &(String, String, String))| {
                json!({"id": format!("call_{at}"), "type": "function", "function": {"name": name, "arguments": arguments}})
            };
            assistant["tool_calls"] = calls.iter().enumerate().map(write).collect();
        }
        messages.push(assistant);
        for (at, (_, _, result)) in calls.into_iter().enumerate() {
            messages.push(json!({"role": "tool", "tool_call_id": format!("call_{at}"), "content": result}));
        }
        messages
    })
}

fn request_in_chat() -> impl Strategy<Value = Value> {
    let turns = proptest::collection::vec(exchange_of_turns(), 1..4).prop_map(|turns| turns.concat());
    let choice = prop_oneof![
        Just(json!("auto")),
        Just(json!("none")),
        Just(json!("required")),
        Just(json!({"type": "function", "function": {"name": "f"}})),
    ];
    (turns, proptest::option::of(said()), choice, 16_u64..1000).prop_map(|(turns, system, choice, tokens)| {
        let system = system.map(|text| json!({"role": "system", "content": text}));
        let messages: Vec<Value> = system.into_iter().chain(turns).collect();
        json!({
            "model": "model-x", "messages": messages, "temperature": 0.5, "top_p": 0.25, "max_completion_tokens": tokens,
            "parallel_tool_calls": false, "tool_choice": choice,
            "tools": [{"type": "function", "function": {"name": "f", "description": "does", "parameters": {"type": "object", "properties": {"b": {"type": "string"}, "a": {}}}}}],
        })
    })
}

/// Neighbours of the user's are one message in messages.
fn merged(request: &Value) -> Vec<Value> {
    let mut merged: Vec<Value> = Vec::new();
    let parts = |content: &Value| match content {
        Value::String(text) => vec![json!({"type": "text", "text": text})],
        content => content.as_array().cloned().unwrap_or_default(),
    };
    for message in request["messages"].as_array().unwrap() {
        match merged.last_mut().filter(|last| last["role"] == "user" && message["role"] == "user") {
            Some(last) => last["content"] = [parts(&last["content"]), parts(&message["content"])].concat().into(),
            None => merged.push(message.clone()),
        }
    }
    merged
}

proptest! {
    #[test]
    fn requests_come_back_from_other_dialects(request in request_in_chat()) {
        for other in [MESSAGES, RESPONSES] {
            let there = translated(CHAT, other, &request);
            let back = translated(other, CHAT, &there);
            prop_assert_eq!(merged(&back), merged(&request), "{:?}", there);
            for name in ["model", "temperature", "top_p", "max_completion_tokens"] {
                prop_assert_eq!(&back[name], &request[name], "{}", name);
            }
            prop_assert_eq!(&back["tool_choice"], &request["tool_choice"]);
            prop_assert_eq!(&back["tools"][0]["function"]["parameters"], &request["tools"][0]["function"]["parameters"]);
            if request["tool_choice"] != "none" {
                prop_assert_eq!(&back["parallel_tool_calls"], &request["parallel_tool_calls"]);
            }
        }
    }

    #[test]
    fn answers_come_back_from_other_dialects(
        text in proptest::option::of(said()),
        calls in proptest::collection::vec(("[a-z]{1,8}", "[a-z]{1,8}", arguments()), 0..4),
        (input, output, cached) in (0_u64..1000, 0_u64..1000, 0_u64..1000),
        is_too_long in any::<bool>(),
    ) {
        let finish = if is_too_long { "length" } else if calls.is_empty() { "stop" } else { "tool_calls" };
        let mut message = json!({"role": "assistant", "content": text});
        if !calls.is_empty() {
            let write = |(at, (id, name, arguments)): (usize, &(String, String, String))| {
                json!({"id": format!("{id}{at}"), "type": "function", "function": {"name": name, "arguments": arguments}})
            };
            message["tool_calls"] = calls.iter().enumerate().map(write).collect();
        }
        let answer = json!({"id": "chatcmpl-1", "model": "m", "choices": [{"index": 0, "message": message, "finish_reason": finish}],
            "usage": {"prompt_tokens": input + cached, "completion_tokens": output, "prompt_tokens_details": {"cached_tokens": cached}}});
        let answer = answer.to_string().into_bytes();
        for other in [MESSAGES, RESPONSES] {
            let there = exchange(other, CHAT).answer(&answer).unwrap();
            let back = exchange(CHAT, other).answer(&there).unwrap();
            prop_assert_eq!(observe(CHAT, &back), observe(CHAT, &answer));
            prop_assert_eq!(observe(other, &there).tool_calls, observe(CHAT, &answer).tool_calls);
        }
    }

    #[test]
    fn no_body_makes_a_translation_fail(body in nearly_right()) {
        for (from, to) in directions() {
            if let Ok(translated) = request(from, to, body.to_string().as_bytes(), "m", None) {
                prop_assert!(serde_json::from_slice::<Value>(&translated.body).is_ok());
            }
            let _ = exchange(from, to).answer(body.to_string().as_bytes());
            let _ = exchange(from, to).error(StatusCode::BAD_GATEWAY, body.to_string().as_bytes());
            let mut translator = StreamTranslator::new(&exchange(from, to));
            let _ = translator.push(format!("data: {body}\n\n").as_bytes());
            let _ = translator.finish();
        }
    }
}

fn nearly_right() -> impl Strategy<Value = Value> {
    let names = "(type|role|messages|input|content|text|tool_calls|tool_choice|tools|function|name|id|call_id|arguments|output|system|source|\
                 image_url|choices|message|delta|usage|error|response|item|stop|model|n)";
    let kinds = "(user|assistant|tool|system|text|image_url|tool_use|tool_result|function|function_call|function_call_output|message|\
                 input_text|input_image|image|error|response.completed|response.output_item.done|message_start|content_block_start)";
    let leaf = prop_oneof![Just(Value::Null), any::<u64>().prop_map(Value::from), kinds.prop_map(Value::from)];
    let value = leaf.prop_recursive(5, 60, 6, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::hash_map(names, inner, 0..6)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    });
    proptest::collection::hash_map(names, value, 0..6).prop_map(|members| Value::Object(members.into_iter().collect()))
}
