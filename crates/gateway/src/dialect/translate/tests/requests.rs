use serde_json::{Value, json};

use super::*;

/// A conversation with everything in it, as a client of messages sends it.
fn in_messages() -> Value {
    json!({
        "model": "claude", "max_tokens": 5, "stream": true, "temperature": 1, "stop_sequences": ["END"],
        "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "Be kind."}],
        "thinking": {"type": "enabled", "budget_tokens": 1024}, "metadata": {"user_id": "u"}, "context_management": {"edits": []},
        "output_config": {"effort": "high"}, "safeguards": {"x": 1},
        "tools": [
            {"name": "read", "description": "Reads.", "input_schema": {"type": "object", "properties": {"b": {}, "a": {}}}, "eager_input_streaming": true},
            {"type": "web_search_20250305", "name": "web_search"},
        ],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": true},
        "messages": [
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "Hm", "signature": "x"},
                {"type": "text", "text": "Two."},
                {"type": "tool_use", "id": "a", "name": "read", "input": {"z": 1, "a": 2}},
                {"type": "tool_use", "id": "b", "name": "read", "input": {}},
            ]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "One"}, {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}]},
                {"type": "tool_result", "tool_use_id": "b", "content": "no such file", "is_error": true},
                {"type": "text", "text": "Go on."},
                {"type": "image", "source": {"type": "url", "url": "https://pictures.test/a.png"}},
            ]},
        ],
    })
}

#[test]
fn messages_become_chat_completions() {
    let function = json!({"name": "read", "description": "Reads.", "parameters": {"type": "object", "properties": {"b": {}, "a": {}}}});
    let call = |id: &str, arguments: &str| json!({"id": id, "type": "function", "function": {"name": "read", "arguments": arguments}});
    let text = |text: &str| json!({"type": "text", "text": text});
    let image = |url: &str| json!({"type": "image_url", "image_url": {"url": url}});
    let moved = "(What else the tool gave is in the next message of the user.)";
    assert_eq!(
        translated(MESSAGES, CHAT, &in_messages()),
        json!({
            "model": "model-x", "max_completion_tokens": 5, "temperature": 1, "stop": ["END"],
            "stream": true, "stream_options": {"include_usage": true},
            "tools": [{"type": "function", "function": function}], "tool_choice": "required", "parallel_tool_calls": false,
            "messages": [
                {"role": "system", "content": "Be brief.\n\nBe kind."},
                {"role": "user", "content": "Hello"},
                {"role": "assistant", "content": "Two.", "tool_calls": [call("a", "{\"a\":2,\"z\":1}"), call("b", "{}")]},
                {"role": "tool", "tool_call_id": "a", "content": [text("One"), text(moved)]},
                {"role": "tool", "tool_call_id": "b", "content": [text("Error:"), text("no such file")]},
                {"role": "user", "content": [text("From the tool call a:"), image("data:image/png;base64,AAAA"), text("Go on."), image("https://pictures.test/a.png")]},
            ],
        })
    );
}

#[test]
fn messages_become_responses() {
    let mut body = in_messages();
    body["stop_sequences"] = json!([]);
    let text = |text: &str| json!({"type": "input_text", "text": text});
    let image = |url: &str| json!({"type": "input_image", "image_url": url, "detail": "auto"});
    let call = |id: &str, arguments: &str| json!({"type": "function_call", "call_id": id, "name": "read", "arguments": arguments});
    let output = |id: &str, output: Value| json!({"type": "function_call_output", "call_id": id, "output": output});
    assert_eq!(
        translated(MESSAGES, RESPONSES, &body),
        json!({
            "model": "model-x", "max_output_tokens": 16, "temperature": 1, "stream": true, "store": false, "instructions": "Be brief.\n\nBe kind.",
            "tools": [{"type": "function", "name": "read", "description": "Reads.", "strict": false, "parameters": {"type": "object", "properties": {"b": {}, "a": {}}}}],
            "tool_choice": "required", "parallel_tool_calls": false,
            "input": [
                {"type": "message", "role": "user", "content": [text("Hello")]},
                {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Two."}]},
                call("a", "{\"a\":2,\"z\":1}"),
                call("b", "{}"),
                output("a", json!([text("One"), image("data:image/png;base64,AAAA")])),
                output("b", json!([text("Error:"), text("no such file")])),
                {"type": "message", "role": "user", "content": [text("Go on."), image("https://pictures.test/a.png")]},
            ],
        })
    );
}

#[test]
fn responses_become_messages() {
    let body = json!({
        "model": "gpt", "instructions": "Be brief.", "stream": true, "store": true, "include": ["reasoning.encrypted_content"],
        "reasoning": {"effort": "high"}, "prompt_cache_key": "k", "client_metadata": {"x": 1}, "temperature": 1.5,
        "tools": [{"type": "function", "name": "read", "strict": true, "parameters": {"properties": {}}}, {"type": "web_search"}],
        "tool_choice": {"type": "function", "name": "read"}, "parallel_tool_calls": false,
        "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}},
        "input": [
            {"role": "developer", "content": [{"type": "input_text", "text": "Be kind."}]},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello"}, {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}]},
            {"type": "reasoning", "summary": [], "encrypted_content": "x"},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Two."}]},
            {"type": "function_call", "call_id": "functions.read:0", "name": "read", "arguments": "{\"z\":1}"},
            {"type": "function_call", "call_id": "b", "name": "read", "arguments": "{not JSON"},
            {"type": "function_call_output", "call_id": "functions.read:0", "output": "One"},
            {"type": "function_call_output", "call_id": "b", "output": [{"type": "input_text", "text": "Two"}, {"type": "input_text", "text": "Three"}]},
        ],
    });
    let call = |id: &str, input: Value| json!({"type": "tool_use", "id": id, "name": "read", "input": input});
    let text = |text: &str| json!({"type": "text", "text": text});
    assert_eq!(
        translated(RESPONSES, MESSAGES, &body),
        json!({
            "model": "model-x", "max_tokens": 8192, "stream": true, "temperature": 1, "system": [text("Be brief."), text("Be kind.")],
            "tools": [{"name": "read", "strict": true, "input_schema": {"type": "object", "properties": {}}}],
            "tool_choice": {"type": "tool", "name": "read", "disable_parallel_tool_use": true},
            "output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}},
            "messages": [
                {"role": "user", "content": [text("Hello"), {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}]},
                {"role": "assistant", "content": [text("Two."), call("functions_read_0", json!({"z": 1})), call("b", json!({"invalid_arguments": "{not JSON"}))]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "functions_read_0", "content": "One"},
                    {"type": "tool_result", "tool_use_id": "b", "content": [text("Two"), text("Three")]},
                ]},
            ],
        })
    );
}

#[test]
fn openais_dialects_keep_what_they_share() {
    let body = json!({
        "model": "gpt", "messages": [{"role": "user", "content": "Hello"}], "reasoning_effort": "low", "verbosity": "low", "user": "u",
        "prompt_cache_key": "k", "max_tokens": 100, "response_format": {"type": "json_schema", "json_schema": {"name": "n", "strict": true, "schema": {"z": 1, "a": 2}}},
        "seed": 1, "presence_penalty": 0.5, "store": true, "metadata": {"x": "y"}, "logprobs": false, "n": 1, "stop": null,
    });
    let there = translated(CHAT, RESPONSES, &body);
    let message = json!({"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello"}]});
    let format = json!({"type": "json_schema", "name": "n", "strict": true, "schema": {"z": 1, "a": 2}});
    let expected = json!({
        "model": "model-x", "input": [message], "store": false, "max_output_tokens": 100, "reasoning": {"effort": "low"},
        "text": {"format": format, "verbosity": "low"}, "user": "u", "prompt_cache_key": "k",
    });
    assert_eq!(there, expected);
    let back = translated(RESPONSES, CHAT, &there);
    for name in ["messages", "reasoning_effort", "verbosity", "user", "prompt_cache_key", "response_format"] {
        assert_eq!(back[name], body[name], "{name}");
    }
}

/// Models fill in properties in the order of the schema.
#[test]
fn schemas_and_arguments_keep_their_order() {
    let body = r#"{"messages":[{"role":"user","content":"x"},{"role":"assistant","tool_calls":[{"id":"a","function":{"name":"f","arguments":"{\"z\":1,\"b\":2,\"a\":3}"}}]}],
        "tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object","properties":{"why":{},"answer":{}},"required":["why","answer"]}}}]}"#;
    let there = request(CHAT, MESSAGES, body.as_bytes(), "m", None).unwrap();
    let there = String::from_utf8(there.body).unwrap();
    assert!(there.contains(r#""input":{"z":1,"b":2,"a":3}"#), "{there}");
    assert!(
        there.contains(
            r#""input_schema":{"type":"object","properties":{"why":{},"answer":{}},"required":["why","answer"]}"#
        ),
        "{there}"
    );
}

#[test]
fn the_bound_of_an_answer() {
    let user = json!([{"role": "user", "content": "x"}]);
    for (asked, model_max, expected) in [
        (None, None, 8192),
        (None, Some(100), 100),
        (Some(50), Some(100), 50),
        (Some(500), Some(100), 100),
        (Some(500), None, 500),
        (Some(0), None, 1),
    ] {
        let body = json!({"messages": user, "max_completion_tokens": asked}).to_string();
        let translated = request(CHAT, MESSAGES, body.as_bytes(), "m", model_max).unwrap();
        let translated: Value = serde_json::from_slice(&translated.body).unwrap();
        assert_eq!(translated["max_tokens"], expected);
    }
}

/// Messages demand things of a conversation that other dialects don't.
#[test]
fn what_messages_demand() {
    // Tools, where there are calls; no empty text; instructions in their own place.
    let call = json!({"id": "a", "type": "function", "function": {"name": "f", "arguments": ""}});
    let body = json!({"messages": [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "a", "content": ""},
        {"role": "system", "content": "Late."},
        {"role": "user", "content": "y"},
    ]});
    let there = translated(CHAT, MESSAGES, &body);
    let tool_use = json!({"type": "tool_use", "id": "a", "name": "f", "input": {}});
    let messages = json!([
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": [tool_use]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a"}, {"type": "text", "text": "y"}]},
    ]);
    assert_eq!(there["messages"], messages);
    assert_eq!(there["system"], "Late.");
    assert_eq!(there["tools"], json!([{"name": "f", "input_schema": {"type": "object"}}]));
    assert_eq!(there["tool_choice"], json!({"type": "none"}));
}

/// Formats of an answer, where the dialects have different ones.
#[test]
fn formats_of_answers() {
    let user = json!([{"role": "user", "content": "x"}]);
    let there = translated(CHAT, MESSAGES, &json!({"messages": user, "response_format": {"type": "json_object"}}));
    assert_eq!(there["system"], "Answer with a single JSON object and nothing around it.");
    let there =
        translated(CHAT, MESSAGES, &json!({"messages": user, "response_format": {"type": "text"}, "stop": "END"}));
    assert_eq!((&there["system"], &there["output_config"]), (&Value::Null, &Value::Null));
    assert_eq!(there["stop_sequences"], json!(["END"]));
    let format = json!({"type": "json_schema", "schema": {"type": "object"}});
    for body in [
        json!({"messages": user, "max_tokens": 20, "output_config": {"format": format}}),
        json!({"messages": user, "max_tokens": 20, "output_format": format}),
    ] {
        let schema = json!({"name": "answer", "schema": {"type": "object"}});
        assert_eq!(
            translated(MESSAGES, CHAT, &body)["response_format"],
            json!({"type": "json_schema", "json_schema": schema})
        );
        let format = json!({"type": "json_schema", "name": "answer", "schema": {"type": "object"}});
        assert_eq!(translated(MESSAGES, RESPONSES, &body)["text"]["format"], format);
    }
}

#[test]
fn a_choice_of_some_tools_leaves_the_others_out() {
    let tool = |name: &str| json!({"type": "function", "function": {"name": name}});
    let body = json!({"messages": [{"role": "user", "content": "x"}], "tools": [tool("f"), tool("g"), tool("h")],
        "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [tool("f"), tool("h")]}}});
    let there = translated(CHAT, MESSAGES, &body);
    assert_eq!(there["tool_choice"], json!({"type": "any"}));
    assert_eq!(there["tools"].as_array().unwrap().iter().map(|tool| &tool["name"]).collect::<Vec<_>>(), ["f", "h"]);
}

#[test]
fn what_the_other_dialect_cannot_say_is_named() {
    let chat = |name: &str, value: Value| {
        let mut body = json!({"messages": [{"role": "user", "content": "x"}]});
        body[name] = value;
        body
    };
    let said = |part: Value| json!({"messages": [{"role": "user", "content": [part]}]});
    let input = |item: Value| json!({"input": [item]});
    let with = |mut body: Value, name: &str, value: Value| {
        body[name] = value;
        body
    };
    let empty = || json!({"messages": [], "input": []});
    for (from, to, body, field) in [
        (CHAT, MESSAGES, chat("n", json!(2)), "n"),
        (CHAT, MESSAGES, chat("logprobs", json!(true)), "logprobs"),
        (CHAT, MESSAGES, chat("logit_bias", json!({"1": 1})), "logit_bias"),
        (CHAT, MESSAGES, chat("functions", json!([{"name": "f"}])), "functions"),
        (CHAT, MESSAGES, chat("modalities", json!(["text", "audio"])), "modalities"),
        (CHAT, RESPONSES, chat("stop", json!(["a"])), "stop"),
        (CHAT, RESPONSES, chat("max_tokens", json!(-1)), "max_tokens"),
        (CHAT, RESPONSES, chat("tools", json!([{"type": "other", "other": {"name": "c"}}])), "tools[0]"),
        (CHAT, MESSAGES, chat("messages", json!([{"role": "function", "content": "x"}])), "messages[0].role"),
        (CHAT, MESSAGES, said(json!({"type": "input_audio"})), "messages[0].content[0]"),
        (CHAT, MESSAGES, said(json!({"type": "file", "file": {"file_id": "f"}})), "messages[0].content[0]"),
        (RESPONSES, CHAT, with(empty(), "previous_response_id", json!("r")), "previous_response_id"),
        (RESPONSES, CHAT, with(empty(), "background", json!(true)), "background"),
        (RESPONSES, CHAT, with(empty(), "tools", json!([{"type": "web_search"}])), "tools"),
        (RESPONSES, CHAT, with(empty(), "tools", json!([{"type": "local_shell"}])), "tools[0]"),
        (RESPONSES, CHAT, input(json!({"type": "item_reference", "id": "x"})), "input[0]"),
        (
            RESPONSES,
            CHAT,
            input(json!({"type": "message", "role": "user", "content": [{"type": "input_image", "file_id": "f"}]})),
            "input[0].content[0]",
        ),
        (RESPONSES, MESSAGES, json!({}), "input"),
        (MESSAGES, CHAT, with(empty(), "tools", json!([{"type": "bash_20250124", "name": "bash"}])), "tools[0]"),
        (MESSAGES, CHAT, with(empty(), "mcp_servers", json!([{"url": "x"}])), "mcp_servers"),
        (MESSAGES, CHAT, said(json!({"type": "container_upload", "file_id": "f"})), "messages[0].content[0]"),
        (
            MESSAGES,
            CHAT,
            said(json!({"type": "image", "source": {"type": "file", "file_id": "f"}})),
            "messages[0].content[0].source",
        ),
        (MESSAGES, CHAT, said(json!({"type": "document", "source": {"type": "url", "url": "x"}})), "document"),
        (MESSAGES, RESPONSES, with(empty(), "stop_sequences", json!(["a"])), "stop"),
        (Dialect::Gemini, CHAT, empty(), "generateContent"),
        (CHAT, Dialect::Gemini, empty(), "generateContent"),
    ] {
        let error = request(from, to, body.to_string().as_bytes(), "m", None).unwrap_err();
        assert_eq!(error.field, field, "{from:?} to {to:?}: {body}: {error}");
    }
    assert_eq!(request(CHAT, MESSAGES, b"x", "m", None).unwrap_err().field, "body");
    assert_eq!(request(CHAT, MESSAGES, b"[]", "m", None).unwrap_err().field, "body");
    assert!(request(CHAT, MESSAGES, "[".repeat(100_000).as_bytes(), "m", None).is_err());
}

#[test]
fn errors_of_providers_are_told_in_the_clients_dialect() {
    let error = |client, provider, body: &str| -> Value {
        serde_json::from_slice(&exchange(client, provider).error(StatusCode::TOO_MANY_REQUESTS, body.as_bytes()))
            .unwrap()
    };
    let openai = r#"{"error":{"message":"Slow down.","type":"requests","code":"rate_limit_exceeded"}}"#;
    let inner = json!({"type": "rate_limit_error", "message": "Slow down.", "code": "rate_limit_exceeded"});
    assert_eq!(error(MESSAGES, CHAT, openai), json!({"type": "error", "error": inner}));
    let anthropic = r#"{"type":"error","error":{"type":"rate_limit_error","message":"Slow down."}}"#;
    let inner = json!({"type": "rate_limit_error", "message": "Slow down.", "param": null, "code": "rate_limit_error"});
    assert_eq!(error(CHAT, MESSAGES, anthropic), json!({"error": inner}));
    let told = error(CHAT, MESSAGES, "<html>key sk-123</html>");
    assert_eq!(told["error"]["message"], "the provider answered with status 429 Too Many Requests");
    // One inside of a 200 is a failure, never an empty answer.
    let failure = exchange(CHAT, MESSAGES).answer(anthropic.as_bytes()).unwrap_err();
    assert_eq!((failure.status, failure.message.as_str()), (StatusCode::TOO_MANY_REQUESTS, "Slow down."));
    assert!(exchange(CHAT, MESSAGES).answer(b"<html>").is_err());
}

#[test]
fn whole_answers_as_they_are_written() {
    let answer = json!({"id": "chatcmpl-1", "model": "m", "choices": [{"index": 0, "finish_reason": "stop", "message": {"content": "", "reasoning_content": "Hm",
        "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{\"x\":1}"}}, {"id": "", "function": {"name": "g"}}]}}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 4}}});
    let written: Value =
        serde_json::from_slice(&exchange(MESSAGES, CHAT).answer(answer.to_string().as_bytes()).unwrap()).unwrap();
    let id = &written["content"][2]["id"];
    assert!(id.as_str().unwrap().starts_with("call_"));
    assert_eq!(
        written,
        json!({
            "id": "msg_1", "type": "message", "role": "assistant", "model": "m", "stop_reason": "tool_use", "stop_sequence": null,
            "content": [
                {"type": "thinking", "thinking": "Hm", "signature": ""},
                {"type": "tool_use", "id": "a", "name": "f", "input": {"x": 1}},
                {"type": "tool_use", "id": id, "name": "g", "input": {}},
            ],
            "usage": {"input_tokens": 6, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 4, "output_tokens": 5},
        })
    );
    let answer = json!({"id": "msg_1", "type": "message", "model": "m", "content": [{"type": "text", "text": ""}, {"type": "text", "text": "Hi"}], "stop_reason": "tool_use",
        "usage": {"input_tokens": 6, "cache_read_input_tokens": 4, "output_tokens": 5}});
    let written: Value =
        serde_json::from_slice(&exchange(CHAT, MESSAGES).answer(answer.to_string().as_bytes()).unwrap()).unwrap();
    let message = json!({"role": "assistant", "content": "Hi", "refusal": null});
    assert_eq!(
        written,
        json!({
            "id": "chatcmpl-1", "object": "chat.completion", "created": 1_700_000_000, "model": "m",
            "choices": [{"index": 0, "message": message, "logprobs": null, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15,
                "prompt_tokens_details": {"cached_tokens": 4}, "completion_tokens_details": {"reasoning_tokens": 0}},
        })
    );
}

/// Tools that take plain text are functions for other models, and plain text again for the program.
#[test]
fn custom_tools() {
    let grammar = json!({"type": "grammar", "syntax": "lark", "definition": "start: x"});
    let in_responses = json!({
        "tools": [{"type": "custom", "name": "patch", "description": "Patches.", "format": grammar}], "tool_choice": {"type": "custom", "name": "patch"},
        "input": [
            {"type": "custom_tool_call", "call_id": "a", "name": "patch", "input": "*** \"x\"\n"},
            {"type": "custom_tool_call_output", "call_id": "a", "output": "done"},
        ],
    });
    let in_chat = json!({
        "tools": [{"type": "custom", "custom": {"name": "patch", "description": "Patches.", "format": {"type": "grammar", "grammar": grammar}}}],
        "tool_choice": {"type": "custom", "custom": {"name": "patch"}},
        "messages": [
            {"role": "assistant", "tool_calls": [{"id": "a", "type": "custom", "custom": {"name": "patch", "input": "*** \"x\"\n"}}]},
            {"role": "tool", "tool_call_id": "a", "content": "done"},
        ],
    });
    for (client, body) in [(RESPONSES, in_responses), (CHAT, in_chat)] {
        let there = translated(client, MESSAGES, &body);
        let tool = &there["tools"][0];
        assert_eq!(tool["description"], "Patches.\n\n`input` keeps to this lark grammar:\nstart: x");
        assert_eq!(tool["input_schema"]["required"], json!(["input"]));
        assert_eq!(there["tool_choice"], json!({"type": "tool", "name": "patch"}));
        assert_eq!(there["messages"][0]["content"][0]["input"], json!({"input": "*** \"x\"\n"}));

        let exchange = request(client, MESSAGES, body.to_string().as_bytes(), "m", None).unwrap().exchange;
        let answer = json!({"id": "msg_1", "type": "message", "stop_reason": "tool_use", "content": [
            {"type": "tool_use", "id": "b", "name": "patch", "input": {"input": "+ y\n"}}, {"type": "tool_use", "id": "c", "name": "other", "input": {"input": "z"}}]});
        let whole = exchange.answer(answer.to_string().as_bytes()).unwrap();
        let mut translator = StreamTranslator::new(&exchange);
        let mut streamed = translator.push(answer.to_string().as_bytes());
        streamed.extend(translator.finish());
        for written in [whole, streamed] {
            let text = String::from_utf8(written).unwrap();
            let kind = if client == CHAT { "\"type\":\"custom\"" } else { "\"type\":\"custom_tool_call\"" };
            assert!(text.contains(kind), "{text}");
            let calls = observe(client, text.as_bytes()).tool_calls;
            let calls: Vec<_> = calls.iter().map(|call| (call.name.as_str(), call.arguments.as_str())).collect();
            assert_eq!(calls, [("patch", "+ y\n"), ("other", "{\"input\":\"z\"}")]);
        }
    }
}
