use http::StatusCode;
use proptest::prelude::*;
use raworc_core::models::TokenUsage;
use serde_json::{Value, json};

use super::*;
use crate::ports::ToolCall;

const ALL: [Dialect; 4] = [Dialect::ChatCompletions, Dialect::Responses, Dialect::Messages, Dialect::Gemini];
const CHAT: Dialect = Dialect::ChatCompletions;

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

#[test]
fn requests_are_read() {
    for (body, expected) in [
        (r#"{"model":"m"}"#, Ok((Some("m"), false))),
        (r#" { "stream" : true , "model" : "a\"b" } "#, Ok((Some("a\"b"), true))),
        (r#"{"mod\u0065l":"m","stream":null}"#, Ok((Some("m"), false))),
        (r#"{"model":null,"x":{"model":"inner","stream":true}}"#, Ok((None, false))),
        ("{}", Ok((None, false))),
        (r#"{"model":"a","model":"b"}"#, Err("the request has `model` more than once")),
        (r#"{"stream":true,"str\u0065am":false}"#, Err("the request has `stream` more than once")),
        (r#"{"model":5}"#, Err("`model` of the request is to be a string")),
        (r#"{"stream":"yes"}"#, Err("`stream` of the request is to be a boolean")),
    ] {
        for dialect in [Dialect::ChatCompletions, Dialect::Responses, Dialect::Messages] {
            let read = dialect.read_request(body.as_bytes()).map_err(|error| error.to_string());
            let expected = expected.map(|(model, is_streaming)| Ask { model: model.map(str::to_owned), is_streaming });
            assert_eq!(read, expected.map_err(str::to_owned), "{body}");
        }
    }
    for body in ["", "[]", "null", "{", r#"{"model":"m"} x"#, "{\"a\":\"\u{0}\"}", "\u{feff}{}", r#"{"a":}"#] {
        for dialect in ALL {
            let error = dialect.read_request(body.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with("the body of the request is no JSON object: "), "{body:?}: {error}");
        }
    }
    assert!(CHAT.read_request(b"{\"a\":\"\xff\"}").is_err());
    assert_eq!(Dialect::Gemini.read_request(br#"{"model":5}"#), Ok(Ask::default()));
    // Depth costs no stack.
    let deep = format!("{{\"a\":{}{},\"model\":\"m\"}}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(CHAT.read_request(deep.as_bytes()).is_ok_and(|ask| ask.model.as_deref() == Some("m")));
}

#[test]
fn the_model_is_replaced_and_every_other_byte_stays() {
    for (body, expected) in [
        (r#"{"model":"old"}"#, r#"{"model":"new\"\\"}"#),
        (
            "{ \"a\" : 1.0e0 ,\n\t\"model\" :  \"old\"  , \"b\":\"\\u00e9\"}\n",
            "{ \"a\" : 1.0e0 ,\n\t\"model\" :  \"new\\\"\\\\\"  , \"b\":\"\\u00e9\"}\n",
        ),
        (
            r#"{"mod\u0065l":"old","x":{"model":"old"},"y":["model"]}"#,
            r#"{"mod\u0065l":"new\"\\","x":{"model":"old"},"y":["model"]}"#,
        ),
        // Whichever a provider reads.
        (
            r#"{"model":"a","model":null,"model":{"b":[]}}"#,
            r#"{"model":"new\"\\","model":"new\"\\","model":"new\"\\"}"#,
        ),
        (r#" {"a":1}"#, r#" {"model":"new\"\\","a":1}"#),
        ("{ }", r#"{"model":"new\"\\" }"#),
    ] {
        assert_eq!(CHAT.with_model(body.as_bytes(), "new\"\\").map(text), Ok(expected.to_owned()), "{body}");
    }
    assert_eq!(Dialect::Gemini.with_model(b"{\"model\":1}", "x").map(text), Ok("{\"model\":1}".to_owned()));
    assert!(CHAT.with_model(b"nothing", "x").is_err());
}

#[test]
fn usage_is_asked_for_where_a_stream_would_not_tell_it() {
    for (body, expected) in [
        (r#"{"stream":true}"#, Some(r#"{"stream_options":{"include_usage":true},"stream":true}"#)),
        (
            r#"{"stream":true,"stream_options":null}"#,
            Some(r#"{"stream":true,"stream_options":{"include_usage":true}}"#),
        ),
        (r#"{"stream":true,"stream_options":{}}"#, Some(r#"{"stream":true,"stream_options":{"include_usage":true}}"#)),
        (
            r#"{"stream":true,"stream_options":{ "include_usage":false, "x":1 }}"#,
            Some(r#"{"stream":true,"stream_options":{ "include_usage":true, "x":1 }}"#),
        ),
        (r#"{"stream":true,"stream_options":{"include_usage":true}}"#, None),
        (r#"{"stream":false}"#, None),
        ("{}", None),
    ] {
        let changed = CHAT.with_usage_asked(body.as_bytes()).unwrap();
        assert_eq!(changed.map(text).as_deref(), expected, "{body}");
    }
    for dialect in [Dialect::Responses, Dialect::Messages, Dialect::Gemini] {
        assert_eq!(dialect.with_usage_asked(br#"{"stream":true}"#), Ok(None));
    }
    assert!(CHAT.with_usage_asked(br#"{"stream":true,"stream_options":5}"#).is_err());
}

#[test]
fn errors_have_the_form_of_their_dialect() {
    let error = |dialect: Dialect, status| -> Value {
        serde_json::from_slice(&dialect.error(StatusCode::from_u16(status).unwrap(), "some_code", "Do \"this\"."))
            .unwrap()
    };
    for (status, openai, anthropic, google) in [
        (400, "invalid_request_error", "invalid_request_error", "INVALID_ARGUMENT"),
        (401, "authentication_error", "authentication_error", "UNAUTHENTICATED"),
        (403, "permission_error", "permission_error", "PERMISSION_DENIED"),
        (404, "invalid_request_error", "not_found_error", "NOT_FOUND"),
        (413, "invalid_request_error", "request_too_large", "INVALID_ARGUMENT"),
        (429, "rate_limit_error", "rate_limit_error", "RESOURCE_EXHAUSTED"),
        (500, "server_error", "api_error", "INTERNAL"),
        (502, "server_error", "api_error", "INTERNAL"),
        (503, "server_error", "overloaded_error", "UNAVAILABLE"),
        (504, "server_error", "timeout_error", "DEADLINE_EXCEEDED"),
        (529, "server_error", "overloaded_error", "UNAVAILABLE"),
    ] {
        let body = json!({"error": {"message": "Do \"this\".", "type": openai, "param": null, "code": "some_code"}});
        assert_eq!(error(CHAT, status), body);
        assert_eq!(error(Dialect::Responses, status), body);
        let inner = json!({"type": anthropic, "message": "Do \"this\".", "code": "some_code"});
        assert_eq!(error(Dialect::Messages, status), json!({"type": "error", "error": inner}));
        let inner = json!({"code": status, "message": "Do \"this\".", "status": google});
        assert_eq!(error(Dialect::Gemini, status), json!({"error": inner}));
    }
    // What is written as an event is read as an error.
    for dialect in ALL {
        let mut observer = Observer::new(dialect, true);
        observer.push(&dialect.error_event(StatusCode::BAD_GATEWAY, "some_code", "It broke."));
        assert_eq!(observer.finish().error.as_deref(), Some("It broke."), "{dialect:?}");
    }
}

fn observe(dialect: Dialect, is_streaming: bool, bytes: &[u8], piece: usize) -> Observed {
    let mut observer = Observer::new(dialect, is_streaming);
    for piece in bytes.chunks(piece) {
        observer.push(piece);
    }
    Observed { told: None, ..observer.finish() }
}

#[test]
fn errors_that_a_provider_tells_are_told_from_answers_that_are_none() {
    for (dialect, answer, told) in [
        (CHAT, r#"{"error":{"message":"m","type":"server_error","code":503}}"#, Some(503)),
        (CHAT, r#"{"error":{"message":"m","code":"rate_limit_exceeded"}}"#, Some(429)),
        (CHAT, r#"{"error":"model not found"}"#, Some(502)),
        (CHAT, "data: {\"object\":\"error\",\"message\":\"m\",\"code\":400}\n\n", Some(400)),
        (CHAT, "{", None),
        (CHAT, "<html>", None),
        (CHAT, r#"{"choices":[]}"#, None),
        (
            Dialect::Responses,
            "data: {\"type\":\"response.failed\",\"response\":{\"status\":\"failed\"}}\n\n",
            Some(502),
        ),
        (Dialect::Messages, r#"{"type":"error","error":{"type":"overloaded_error","message":"m"}}"#, Some(503)),
        (Dialect::Messages, r#"{"type":"error","error":{"type":"invalid_request_error","message":"m"}}"#, Some(400)),
        (Dialect::Gemini, r#"{"error":{"code":404,"message":"m","status":"NOT_FOUND"}}"#, Some(404)),
    ] {
        let mut observer = Observer::new(dialect, false);
        observer.push(answer.as_bytes());
        assert_eq!(observer.finish().told.map(|status| status.as_u16()), told, "{answer}");
    }
}

fn sse(events: &[Value]) -> String {
    events.iter().map(|event| format!("data: {event}\n\n")).collect()
}

fn call(id: &str, name: &str, arguments: &str) -> ToolCall {
    ToolCall { id: id.to_owned(), name: name.to_owned(), arguments: arguments.to_owned() }
}

fn usage(input_tokens: u64, output_tokens: u64, cached_tokens: u64) -> Option<TokenUsage> {
    Some(TokenUsage { input_tokens, output_tokens, cached_tokens })
}

/// Name, dialect, answer, and what is to be observed: text, calls, stop, error, whether complete, usage.
type Case = (&'static str, Dialect, String, Observed);

fn observed(text: &str, tool_calls: Vec<ToolCall>, stop: &str, usage: Option<TokenUsage>) -> Observed {
    let stop = Some(stop.to_owned()).filter(|stop| !stop.is_empty());
    Observed { usage, tool_calls, stop, is_complete: true, text: text.to_owned(), ..Observed::default() }
}

fn chat_chunk(delta: Value, finish_reason: Value) -> Value {
    json!({"id": "c", "model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]})
}

fn chat_cases() -> Vec<Case> {
    let piece = |index: u64, id: &str, name: &str, arguments: &str| {
        let mut call = json!({"index": index, "function": {"arguments": arguments}});
        if !id.is_empty() {
            call["id"] = id.into();
            call["function"]["name"] = name.into();
        }
        chat_chunk(json!({"tool_calls": [call]}), Value::Null)
    };
    let end = |reason: &str| chat_chunk(json!({}), reason.into());
    let done = "data: [DONE]\n\n";
    let usage_chunk = json!({"choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 4}}});
    let two = vec![call("a", "f", "{\"x\":1}"), call("b", "g", "{}")];
    vec![
        (
            "text, an empty list of calls, usage",
            CHAT,
            sse(&[
                chat_chunk(json!({"content": "H\u{e4}", "tool_calls": []}), Value::Null),
                chat_chunk(json!({"content": "llo"}), Value::Null),
                end("stop"),
                usage_chunk.clone(),
            ]) + done,
            observed("H\u{e4}llo", vec![], "stop", usage(10, 5, 4)),
        ),
        (
            "arguments in pieces, one call after the other",
            CHAT,
            sse(&[
                piece(0, "a", "f", ""),
                piece(0, "", "", "{\"x\""),
                piece(0, "", "", ":1}"),
                piece(1, "b", "g", "{"),
                piece(1, "", "", "}"),
                end("tool_calls"),
                usage_chunk,
            ]) + done,
            observed("", two.clone(), "tool_calls", usage(10, 5, 4)),
        ),
        (
            "calls side by side",
            CHAT,
            sse(&[
                piece(0, "a", "f", "{\"x\""),
                piece(1, "b", "g", ""),
                piece(0, "", "", ":1}"),
                piece(1, "", "", "{}"),
                end("tool_calls"),
            ]) + done,
            observed("", two.clone(), "tool_calls", None),
        ),
        (
            "the same index for every call",
            CHAT,
            sse(&[piece(0, "a", "f", "{\"x\":1}"), piece(0, "b", "g", "{}"), end("tool_calls")]) + done,
            observed("", two.clone(), "tool_calls", None),
        ),
        (
            "a call without arguments, and no [DONE]",
            CHAT,
            sse(&[piece(0, "b", "g", ""), end("tool_calls")]),
            observed("", vec![call("b", "g", "{}")], "tool_calls", None),
        ),
        (
            "cut in the middle of arguments",
            CHAT,
            sse(&[piece(0, "a", "f", "{\"x\"")]) + "data: {\"choi",
            Observed {
                tool_calls: vec![call("a", "f", "{\"x\"")],
                error: Some("the provider sent an event that is no JSON object".to_owned()),
                ..Observed::default()
            },
        ),
        (
            "cut between events",
            CHAT,
            sse(&[chat_chunk(json!({"content": "Hi"}), Value::Null)]),
            Observed { text: "Hi".to_owned(), ..Observed::default() },
        ),
        (
            "an error in the stream",
            CHAT,
            sse(&[
                chat_chunk(json!({"content": "Hi"}), Value::Null),
                json!({"error": {"message": "It broke.", "code": 502}}),
            ]),
            Observed { text: "Hi".to_owned(), error: Some("It broke.".to_owned()), ..Observed::default() },
        ),
        (
            "a whole answer",
            CHAT,
            json!({"choices": [{"index": 0, "finish_reason": "tool_calls", "message": {"content": null, "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{\"x\":1}"}},
                {"id": "b", "type": "function", "function": {"name": "g", "arguments": ""}}]}}],
                "usage": {"prompt_tokens": 1, "completion_tokens": 2}})
            .to_string(),
            observed("", two, "tool_calls", usage(1, 2, 0)),
        ),
    ]
}

fn responses_cases() -> Vec<Case> {
    let item = |id: &str, name: &str, arguments: &str| json!({"type": "function_call", "id": format!("fc_{id}"), "call_id": id, "name": name, "arguments": arguments});
    let message = json!({"type": "message", "content": [{"type": "output_text", "text": "Hello"}]});
    let response = |status: &str| {
        json!({"id": "r", "model": "m", "status": status, "output": [message, item("a", "f", "{\"x\":1}"), item("b", "g", "{}")],
        "usage": {"input_tokens": 10, "output_tokens": 5, "input_tokens_details": {"cached_tokens": 4}}})
    };
    let two = || vec![call("a", "f", "{\"x\":1}"), call("b", "g", "{}")];
    let all = || observed("Hello", two(), "completed", usage(10, 5, 4));
    let created = json!({"type": "response.created", "response": {"id": "r", "model": "m"}});
    let added = |at: u64, item: Value| json!({"type": "response.output_item.added", "output_index": at, "item": item});
    let arguments = |at: u64, delta: &str| json!({"type": "response.function_call_arguments.delta", "output_index": at, "delta": delta});
    let completed = json!({"type": "response.completed", "response": response("completed")});
    vec![
        (
            "everything in deltas",
            Dialect::Responses,
            sse(&[
                created.clone(),
                json!({"type": "response.output_text.delta", "output_index": 0, "delta": "Hel"}),
                json!({"type": "response.output_text.delta", "output_index": 0, "delta": "lo"}),
                json!({"type": "response.output_item.done", "output_index": 0, "item": message}),
                added(1, item("a", "f", "")),
                added(2, item("b", "g", "")),
                arguments(1, "{\"x\""),
                arguments(2, "{}"),
                arguments(1, ":1}"),
                completed.clone(),
            ]),
            all(),
        ),
        ("everything at the end", Dialect::Responses, sse(&[created.clone(), completed]), all()),
        ("a whole answer", Dialect::Responses, response("completed").to_string(), all()),
        (
            "too long",
            Dialect::Responses,
            sse(&[
                json!({"type": "response.incomplete", "response": {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}}),
            ]),
            observed("", vec![], "max_output_tokens", None),
        ),
        (
            "failed",
            Dialect::Responses,
            sse(&[
                created.clone(),
                json!({"type": "response.failed", "response": {"status": "failed", "error": {"code": "server_error", "message": "It broke."}}}),
            ]),
            Observed { error: Some("It broke.".to_owned()), ..observed("", vec![], "failed", None) },
        ),
        (
            "an error in the stream",
            Dialect::Responses,
            sse(&[created, json!({"type": "error", "code": "server_error", "message": "It broke.", "param": null})]),
            Observed { error: Some("It broke.".to_owned()), ..Observed::default() },
        ),
    ]
}

fn messages_cases() -> Vec<Case> {
    let start = json!({"type": "message_start", "message": {"id": "msg_1", "model": "m", "usage": {"input_tokens": 3, "cache_read_input_tokens": 4, "cache_creation_input_tokens": 3, "output_tokens": 1}}});
    let block =
        |index: u64, block: Value| json!({"type": "content_block_start", "index": index, "content_block": block});
    let tool = |id: &str, name: &str, input: Value| json!({"type": "tool_use", "id": id, "name": name, "input": input});
    let json_delta = |index: u64, text: &str| json!({"type": "content_block_delta", "index": index, "delta": {"type": "input_json_delta", "partial_json": text}});
    let stop = |index: u64| json!({"type": "content_block_stop", "index": index});
    let end = || {
        [
            json!({"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 5}}),
            json!({"type": "message_stop"}),
        ]
    };
    let head = || {
        vec![
            start.clone(),
            block(0, json!({"type": "text", "text": ""})),
            json!({"type": "ping"}),
            json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello"}}),
            stop(0),
        ]
    };
    let two = || vec![call("a", "f", "{\"x\":1}"), call("b", "g", "{}")];
    vec![
        (
            "arguments in pieces, and none",
            Dialect::Messages,
            sse(&[head(), vec![block(1, tool("a", "f", json!({}))), json_delta(1, ""), json_delta(1, "{\"x\""), json_delta(1, ":1}"), stop(1), block(2, tool("b", "g", json!({}))), stop(2)], end().to_vec()].concat()),
            observed("Hello", two(), "tool_use", usage(10, 5, 4)),
        ),
        (
            "the whole input at the start",
            Dialect::Messages,
            sse(&[head(), vec![block(1, tool("a", "f", json!({"x": 1}))), stop(1), block(2, tool("b", "g", json!({}))), stop(2)], end().to_vec()].concat()),
            observed("Hello", two(), "tool_use", usage(10, 5, 4)),
        ),
        (
            "cut",
            Dialect::Messages,
            sse(&head()),
            Observed { text: "Hello".to_owned(), usage: usage(10, 1, 4), ..Observed::default() },
        ),
        (
            "an error in the stream",
            Dialect::Messages,
            sse(&[start, json!({"type": "error", "error": {"type": "overloaded_error", "message": "It broke."}})]),
            Observed { error: Some("It broke.".to_owned()), usage: usage(10, 1, 4), ..Observed::default() },
        ),
        (
            "a whole answer",
            Dialect::Messages,
            json!({"type": "message", "content": [{"type": "thinking", "thinking": "Hm", "signature": "x"}, {"type": "text", "text": "Hello"}, tool("a", "f", json!({"x": 1})), tool("b", "g", json!({}))],
                "stop_reason": "tool_use", "usage": {"input_tokens": 3, "cache_read_input_tokens": 4, "cache_creation_input_tokens": 3, "output_tokens": 5}}).to_string(),
            observed("Hello", two(), "tool_use", usage(10, 5, 4)),
        ),
        ("counted tokens", Dialect::Messages, json!({"input_tokens": 5}).to_string(), observed("", vec![], "", None)),
        (
            "an error inside of a 200",
            Dialect::Messages,
            json!({"type": "error", "error": {"type": "overloaded_error", "message": "It broke."}}).to_string(),
            Observed { error: Some("It broke.".to_owned()), ..Observed::default() },
        ),
    ]
}

fn gemini_cases() -> Vec<Case> {
    let chunk = |parts: Value| json!({"candidates": [{"content": {"parts": parts}}], "usageMetadata": {"promptTokenCount": 10}});
    let last = json!({"candidates": [{"content": {"parts": [{"functionCall": {"name": "f", "args": {"x": 1}}}]}, "finishReason": "STOP"}],
        "usageMetadata": {"promptTokenCount": 10, "candidatesTokenCount": 3, "thoughtsTokenCount": 2, "cachedContentTokenCount": 4}});
    let chunks =
        [chunk(json!([{"text": "Hm", "thought": true}, {"text": "Hel"}])), chunk(json!([{"text": "lo"}])), last];
    let all = || observed("Hello", vec![call("", "f", "{\"x\":1}")], "STOP", usage(10, 5, 4));
    vec![
        ("a stream", Dialect::Gemini, sse(&chunks), all()),
        ("an array", Dialect::Gemini, Value::from(chunks.to_vec()).to_string(), all()),
        (
            "cut",
            Dialect::Gemini,
            sse(&chunks[..2]),
            Observed { text: "Hello".to_owned(), usage: usage(10, 0, 0), ..Observed::default() },
        ),
        (
            "an error inside of a 200",
            Dialect::Gemini,
            json!({"error": {"code": 503, "message": "It broke.", "status": "UNAVAILABLE"}}).to_string(),
            Observed { error: Some("It broke.".to_owned()), ..Observed::default() },
        ),
        ("counted tokens", Dialect::Gemini, json!({"totalTokens": 5}).to_string(), observed("", vec![], "", None)),
    ]
}

#[test]
fn answers_are_observed_however_they_come() {
    for (name, dialect, answer, expected) in
        [chat_cases(), responses_cases(), messages_cases(), gemini_cases()].concat()
    {
        for piece in [1, 2, 3, 7, 64, usize::MAX] {
            for is_streaming in [true, false] {
                assert_eq!(observe(dialect, is_streaming, answer.as_bytes(), piece), expected, "{dialect:?}: {name}");
            }
        }
    }
}

#[test]
fn what_is_observed_is_bounded() {
    // 1 MiB without a newline, and much more.
    let mut observer = Observer::new(CHAT, true);
    observer.push(b"data: ");
    for _ in 0..64 {
        observer.push(&[b'x'; 1024 * 1024]);
    }
    assert_eq!(observer.finish().error.as_deref(), Some("the provider's answer is too large to be read"));
    // A stream of text without end.
    let mut observer = Observer::new(CHAT, true);
    let chunk = sse(&[chat_chunk(json!({"content": "\u{e4}".repeat(32 * 1024 + 1)}), Value::Null)]);
    for _ in 0..100 {
        observer.push(chunk.as_bytes());
    }
    observer.push(sse(&[json!({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}})]).as_bytes());
    let observed = observer.finish();
    assert!(observed.text.len() <= TEXT_BYTES_MAX && observed.text.len() > TEXT_BYTES_MAX - 4);
    assert_eq!(observed.usage, usage(1, 2, 0));
    // A body without end.
    let mut observer = Observer::new(CHAT, false);
    observer.push(b"{");
    for _ in 0..20 {
        observer.push(&[b' '; 1024 * 1024]);
    }
    assert_eq!(observer.finish().error.as_deref(), Some("the provider's answer is too large to be read"));
}

#[test]
fn only_the_chunk_that_tells_usage_is_taken_out() {
    let stream = "data: {\"choices\":[{\"delta\":{\"content\":\"say \\\"usage\\\"\"}}],\"usage\":null}\r\n\r\n: ping\n\n\
                  data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":1}}\n\n";
    let usage = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1}}\n\n";
    let end = "data: [DONE]\n\ndata: not ended";
    let whole = [stream, usage, end].concat();
    for piece in [1, 2, 5, 1000] {
        let mut filter = UsageFilter::new();
        let mut passed: Vec<u8> = whole.as_bytes().chunks(piece).flat_map(|piece| filter.push(piece)).collect();
        passed.extend(filter.finish());
        assert_eq!(text(passed), [stream, end].concat());
    }
    // What can't be that chunk is not waited for.
    let mut filter = UsageFilter::new();
    assert_eq!(filter.push(&[b'x'; 20_000]).len(), 20_000);
    assert_eq!(filter.push(b"yz"), b"yz");
}

/// JSON as programs write it: any members, any order, with spaces and escapes.
fn object() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        "(model|stream|[a-z]{0,5})".prop_map(Value::from),
    ];
    let value = leaf.prop_recursive(3, 30, 5, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            proptest::collection::hash_map("(model|stream|.{0,5})", inner, 0..5)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    });
    proptest::collection::hash_map("(model|messages|stream_options|.{0,5})", value, 0..6)
        .prop_map(|members| Value::Object(members.into_iter().collect()))
}

proptest! {
    #[test]
    fn a_request_with_another_model_differs_in_it_only(mut request in object(), model in any::<String>(), is_pretty in any::<bool>()) {
        let write = |value: &Value| if is_pretty { serde_json::to_string_pretty(value).unwrap() } else { value.to_string() };
        let body = write(&request);
        let changed = CHAT.with_model(body.as_bytes(), &model).unwrap();
        let had_model = request.get("model").is_some();
        request["model"] = model.clone().into();
        prop_assert_eq!(serde_json::from_slice::<Value>(&changed).unwrap(), request.clone());
        if had_model {
            prop_assert_eq!(text(changed), write(&request));
        }
    }

    #[test]
    fn no_bytes_make_an_observer_fail(
        bytes in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..300),
            proptest::collection::vec(noise(), 0..12).prop_map(|events| events.concat().into_bytes()),
        ],
        piece in 1_usize..40,
        is_streaming in any::<bool>(),
    ) {
        for dialect in ALL {
            let whole = observe(dialect, is_streaming, &bytes, usize::MAX);
            prop_assert_eq!(observe(dialect, is_streaming, &bytes, piece), whole);
            let mut filter = UsageFilter::new();
            filter.push(&bytes);
            let _ = filter.finish();
        }
    }
}

/// Events that are nearly right: members of all dialects with values of any type.
fn noise() -> impl Strategy<Value = String> {
    let names = "(type|index|output_index|choices|delta|content|tool_calls|function|name|id|arguments|usage|response|item|message|\
                 content_block|finish_reason|input|output|error|candidates|parts|status|model|partial_json|text)";
    let kinds = "(message_start|content_block_start|content_block_delta|content_block_stop|message_delta|message_stop|error|text|tool_use|\
                 input_json_delta|text_delta|function_call|response.created|response.completed|response.output_item.added|\
                 response.output_item.done|response.function_call_arguments.delta|response.output_text.delta|stop)";
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<u64>().prop_map(Value::from),
        (0_u64..3).prop_map(Value::from),
        kinds.prop_map(Value::from),
    ];
    let value = leaf.prop_recursive(5, 60, 6, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            proptest::collection::hash_map(names, inner, 0..6)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    });
    value.prop_map(|value| format!("data: {value}\n\n"))
}
