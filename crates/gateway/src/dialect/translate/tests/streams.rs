use raworc_core::models::TokenUsage;
use serde_json::{Value, json};

use super::*;
use crate::ports::ToolCall;

/// The kinds of streams: every dialect has one of each.
const KINDS: [&str; 7] = ["text", "tools", "only tools", "side by side", "too long", "error", "cut"];

fn stream(events: &[Value]) -> Vec<String> {
    let write = |event: &Value| match event {
        Value::String(text) => format!("data: {text}\n\n"),
        event => {
            event.get("type").map_or(String::new(), |kind| format!("event: {}\n", kind.as_str().unwrap()))
                + &format!("data: {event}\n\n")
        }
    };
    events.iter().map(write).collect()
}

fn chat(kind: &str) -> Vec<Value> {
    let chunk = |delta: Value, finish: Value| json!({"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]});
    let begin = |index: u64, id: &str, name: &str| {
        chunk(
            json!({"tool_calls": [{"index": index, "id": id, "type": "function", "function": {"name": name, "arguments": ""}}]}),
            Value::Null,
        )
    };
    let arguments = |index: u64, text: &str| {
        chunk(json!({"tool_calls": [{"index": index, "function": {"arguments": text}}]}), Value::Null)
    };
    // An empty list of calls is none.
    let text = |text: &str| chunk(json!({"content": text, "tool_calls": []}), Value::Null);
    let role = || chunk(json!({"role": "assistant", "content": ""}), Value::Null);
    let end = |finish: &str| {
        vec![
            chunk(json!({}), finish.into()),
            json!({"id": "chatcmpl-1", "choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 4}}}),
            "[DONE]".into(),
        ]
    };
    let calls = || {
        vec![begin(0, "a", "f"), arguments(0, "{\"x\""), arguments(0, ":1}"), begin(1, "b", "g"), arguments(1, "{}")]
    };
    match kind {
        "text" => {
            [vec![role(), chunk(json!({"reasoning_content": "Hm"}), Value::Null), text("Hel"), text("lo")], end("stop")]
                .concat()
        }
        "tools" => [vec![role(), text("Hel"), text("lo")], calls(), end("tool_calls")].concat(),
        // Some servers say `stop` although there are calls.
        "only tools" => [vec![role()], calls(), end("stop")].concat(),
        "side by side" => [
            vec![
                role(),
                begin(0, "a", "f"),
                begin(1, "b", "g"),
                arguments(0, "{\"x\""),
                arguments(1, "{"),
                arguments(0, ":1}"),
                arguments(1, "}"),
            ],
            end("tool_calls"),
        ]
        .concat(),
        "too long" => [vec![role(), text("Hel")], end("length")].concat(),
        "error" => {
            vec![role(), text("Hel"), json!({"error": {"message": "It broke.", "type": "server_error", "code": 503}})]
        }
        _ => vec![role(), text("Hel"), begin(0, "a", "f"), arguments(0, "{\"x\"")],
    }
}

fn messages(kind: &str) -> Vec<Value> {
    let begin = json!({"type": "message_start", "message": {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": [], "usage": {"input_tokens": 6, "cache_read_input_tokens": 4, "output_tokens": 1}}});
    let block =
        |index: u64, block: Value| json!({"type": "content_block_start", "index": index, "content_block": block});
    let delta = |index: u64, kind: &str, name: &str, text: &str| json!({"type": "content_block_delta", "index": index, "delta": {"type": kind, name: text}});
    let stop = |index: u64| json!({"type": "content_block_stop", "index": index});
    let text = |index: u64, texts: &[&str]| {
        let mut events = vec![block(index, json!({"type": "text", "text": ""}))];
        events.extend(texts.iter().map(|text| delta(index, "text_delta", "text", text)));
        events.push(stop(index));
        events
    };
    let tool = |index: u64, id: &str, name: &str| {
        block(index, json!({"type": "tool_use", "id": id, "name": name, "input": {}}))
    };
    let arguments = |index: u64, text: &str| delta(index, "input_json_delta", "partial_json", text);
    let calls = |at: u64| {
        vec![
            tool(at, "a", "f"),
            arguments(at, ""),
            arguments(at, "{\"x\""),
            arguments(at, ":1}"),
            stop(at),
            tool(at + 1, "b", "g"),
            stop(at + 1),
        ]
    };
    let end = |reason: &str| {
        vec![
            json!({"type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": null}, "usage": {"output_tokens": 5}}),
            json!({"type": "message_stop"}),
        ]
    };
    let begin = || vec![begin.clone(), json!({"type": "ping"})];
    let thinking = vec![
        block(0, json!({"type": "thinking", "thinking": "", "signature": ""})),
        delta(0, "thinking_delta", "thinking", "Hm"),
        delta(0, "signature_delta", "signature", "x"),
        stop(0),
    ];
    match kind {
        "text" => [begin(), thinking, text(1, &["Hel", "lo"]), end("end_turn")].concat(),
        "tools" => [begin(), text(0, &["Hel", "lo"]), calls(1), end("tool_use")].concat(),
        // With an empty block of text in front, and another reason than it should be.
        "only tools" => [begin(), text(0, &[]), calls(1), end("end_turn")].concat(),
        "side by side" => [
            begin(),
            vec![
                tool(0, "a", "f"),
                tool(1, "b", "g"),
                arguments(0, "{\"x\""),
                arguments(1, "{"),
                arguments(0, ":1}"),
                arguments(1, "}"),
                stop(0),
                stop(1),
            ],
            end("tool_use"),
        ]
        .concat(),
        "too long" => [begin(), text(0, &["Hel"]), end("max_tokens")].concat(),
        "error" => [
            begin(),
            text(0, &["Hel"]),
            vec![json!({"type": "error", "error": {"type": "overloaded_error", "message": "It broke."}})],
        ]
        .concat(),
        _ => [begin(), text(0, &["Hel"]), vec![tool(1, "a", "f"), arguments(1, "{\"x\"")]].concat(),
    }
}

fn responses(kind: &str) -> Vec<Value> {
    let begin =
        || json!({"type": "response.created", "response": {"id": "resp_1", "model": "m", "status": "in_progress"}});
    let message = |text: &str| json!({"type": "message", "id": "msg_1", "role": "assistant", "content": [{"type": "output_text", "text": text}]});
    let call = |id: &str, name: &str, arguments: &str| json!({"type": "function_call", "id": format!("fc_{id}"), "call_id": id, "name": name, "arguments": arguments});
    let added = |at: u64, item: Value| json!({"type": "response.output_item.added", "output_index": at, "item": item});
    let done = |at: u64, item: Value| json!({"type": "response.output_item.done", "output_index": at, "item": item});
    let delta = |at: u64, kind: &str, text: &str| json!({"type": format!("response.{kind}.delta"), "output_index": at, "delta": text});
    let text = |at: u64, texts: &[&str]| {
        let mut events = vec![added(at, json!({"type": "message", "content": []}))];
        events.extend(texts.iter().map(|text| delta(at, "output_text", text)));
        events.push(done(at, message(&texts.concat())));
        events
    };
    let arguments = |at: u64, text: &str| delta(at, "function_call_arguments", text);
    let calls = |at: u64| {
        vec![
            added(at, call("a", "f", "")),
            arguments(at, "{\"x\""),
            arguments(at, ":1}"),
            done(at, call("a", "f", "{\"x\":1}")),
            added(at + 1, call("b", "g", "")),
            arguments(at + 1, "{}"),
            done(at + 1, call("b", "g", "{}")),
        ]
    };
    let usage = json!({"input_tokens": 10, "output_tokens": 5, "input_tokens_details": {"cached_tokens": 4}});
    let end = |output: Vec<Value>| {
        vec![
            json!({"type": "response.completed", "response": {"id": "resp_1", "status": "completed", "output": output, "usage": usage}}),
        ]
    };
    let both = || vec![call("a", "f", "{\"x\":1}"), call("b", "g", "{}")];
    let reasoning = vec![
        added(0, json!({"type": "reasoning", "summary": []})),
        delta(0, "reasoning_summary_text", "Hm"),
        done(0, json!({"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm"}]})),
    ];
    match kind {
        "text" => [vec![begin()], reasoning, text(1, &["Hel", "lo"]), end(vec![])].concat(),
        "tools" => [vec![begin()], text(0, &["Hel", "lo"]), calls(1), end([vec![message("Hello")], both()].concat())].concat(),
        "only tools" => [vec![begin()], calls(0), end(both())].concat(),
        "side by side" => [vec![begin(), added(0, call("a", "f", "")), added(1, call("b", "g", "")), arguments(0, "{\"x\""), arguments(1, "{"), arguments(0, ":1}"), arguments(1, "}")], end(both())].concat(),
        "too long" => [vec![begin()], text(0, &["Hel"]), vec![json!({"type": "response.incomplete", "response": {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}, "usage": usage}})]].concat(),
        "error" => [vec![begin()], text(0, &["Hel"]), vec![json!({"type": "response.failed", "response": {"status": "failed", "error": {"code": "server_error", "message": "It broke."}}})]].concat(),
        _ => [vec![begin()], text(0, &["Hel"]), vec![added(1, call("a", "f", "")), arguments(1, "{\"x\"")]].concat(),
    }
}

fn fixture(provider: Dialect, kind: &str) -> Vec<String> {
    stream(&match provider {
        Dialect::ChatCompletions => chat(kind),
        Dialect::Messages => messages(kind),
        _ => responses(kind),
    })
}

fn expected(client: Dialect, kind: &str) -> Observed {
    let word = |chat: &str, responses: &str, messages: &str| match client {
        Dialect::ChatCompletions => Some(chat.to_owned()),
        Dialect::Messages => Some(messages.to_owned()),
        _ => Some(responses.to_owned()),
    };
    let call = |id: &str, name: &str, arguments: &str| ToolCall {
        id: id.to_owned(),
        name: name.to_owned(),
        arguments: arguments.to_owned(),
    };
    let calls = vec![call("a", "f", "{\"x\":1}"), call("b", "g", "{}")];
    let usage = Some(TokenUsage { input_tokens: 10, output_tokens: 5, cached_tokens: 4 });
    let complete = Observed { usage, is_complete: true, ..Observed::default() };
    let tools = Observed { tool_calls: calls, stop: word("tool_calls", "completed", "tool_use"), ..complete.clone() };
    let text = |text: &str| text.to_owned();
    match kind {
        "text" => Observed { text: text("Hello"), stop: word("stop", "completed", "end_turn"), ..complete },
        "tools" => Observed { text: text("Hello"), ..tools },
        "only tools" | "side by side" => tools,
        "too long" => {
            Observed { text: text("Hel"), stop: word("length", "max_output_tokens", "max_tokens"), ..complete }
        }
        "error" => Observed { text: text("Hel"), error: Some(text("It broke.")), ..Observed::default() },
        _ => Observed {
            text: text("Hel"),
            tool_calls: vec![call("a", "f", "{\"x\"")],
            error: Some(text("the provider's stream ended before the answer did")),
            ..Observed::default()
        },
    }
}

fn translate(client: Dialect, provider: Dialect, bytes: &[u8], piece: usize) -> Vec<u8> {
    let mut translator = StreamTranslator::new(&exchange(client, provider));
    let mut out: Vec<u8> = bytes.chunks(piece).flat_map(|piece| translator.push(piece)).collect();
    out.extend(translator.finish());
    out
}

/// Tool arguments, parallel calls, usage, reasons to stop, errors and cuts arrive, whatever the pieces.
#[test]
fn streams_say_the_same_in_every_direction() {
    for (client, provider) in directions() {
        for kind in KINDS {
            let bytes = fixture(provider, kind).concat();
            let out = translate(client, provider, bytes.as_bytes(), usize::MAX);
            let mut observed = observe(client, &out);
            if matches!(kind, "error" | "cut") {
                // Failed responses have that for a reason; usage so far is told by some.
                (observed.stop, observed.is_complete, observed.usage) = (None, false, None);
            }
            let text = String::from_utf8_lossy(&out);
            assert_eq!(observed, expected(client, kind), "{provider:?} to {client:?}, {kind}:\n{text}");
            for piece in [1, 3, 50] {
                assert_eq!(text, String::from_utf8_lossy(&translate(client, provider, bytes.as_bytes(), piece)));
            }
        }
    }
}

/// What an event brings goes out with it, not with a later one.
#[test]
fn no_delta_is_held_back() {
    for (client, provider) in directions() {
        for kind in ["text", "tools", "side by side", "too long"] {
            let mut translator = StreamTranslator::new(&exchange(client, provider));
            let (mut came, mut went) = (Vec::new(), Vec::new());
            for event in fixture(provider, kind) {
                came.extend_from_slice(event.as_bytes());
                went.extend(translator.push(event.as_bytes()));
                let (came, went) = (observe(provider, &came), observe(client, &went));
                assert_eq!(
                    (came.text, came.tool_calls),
                    (went.text, went.tool_calls),
                    "{provider:?} to {client:?}, {kind}"
                );
            }
        }
    }
}

/// A provider that streams for a client that did not, and the other way round, are understood.
#[test]
fn a_whole_answer_to_a_streaming_request_becomes_a_stream() {
    let body = json!({"id": "chatcmpl-1", "model": "m", "choices": [{"index": 0, "finish_reason": "tool_calls", "message": {"content": "Hello", "tool_calls": [
        {"id": "a", "function": {"name": "f", "arguments": "{\"x\":1}"}}, {"id": "b", "function": {"name": "g", "arguments": ""}}]}}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 4}}});
    let out = translate(MESSAGES, CHAT, body.to_string().as_bytes(), 10);
    assert_eq!(observe(MESSAGES, &out), expected(MESSAGES, "tools"));
}

#[test]
fn garbage_ends_with_an_error() {
    let garbage: [&[u8]; 5] = [b"", b"<html>", b"{}", b"data: {\n\n", b"data: {\"choices\":5}\n\ndata: [DONE]"];
    for (client, provider) in directions() {
        for bytes in garbage {
            let out = translate(client, provider, bytes, 1);
            let observed = observe(client, &out);
            let is_empty = observed.text.is_empty() && observed.tool_calls.is_empty();
            let is_told = observed.error.is_some() || observed.is_complete;
            assert!(is_empty && is_told, "{}", String::from_utf8_lossy(&out));
        }
    }
}

/// A provider that sends without end, and never an end of a line, is told as an error once, and costs no memory after that.
#[test]
fn an_event_without_end_ends_the_answer() {
    for (client, provider) in directions() {
        let mut translator = StreamTranslator::new(&exchange(client, provider));
        let mut out = translator.push(fixture(provider, "cut")[..2].concat().as_bytes());
        out.extend(translator.push(b"data: "));
        for _ in 0..6 {
            out.extend(translator.push(&[b'x'; 1024 * 1024]));
        }
        let told = observe(client, &out).error;
        assert_eq!(told.as_deref(), Some("the provider's answer is too large to be read"), "{client:?}");
        let rest = fixture(provider, "text").concat();
        assert!(translator.push(format!("\n\n{rest}").as_bytes()).is_empty() && translator.finish().is_empty());
    }
}

/// Text and arguments without end are bounded, too.
#[test]
fn an_answer_without_end_ends_with_an_error() {
    for (client, provider) in [(MESSAGES, CHAT), (RESPONSES, CHAT)] {
        let mut translator = StreamTranslator::new(&exchange(client, provider));
        let chunk = json!({"choices": [{"index": 0, "delta": {"content": "x".repeat(1024 * 1024)}}]});
        let mut last = Vec::new();
        for _ in 0..17 {
            let out = translator.push(format!("data: {chunk}\n\n").as_bytes());
            last = if out.is_empty() { last } else { out };
        }
        assert!(String::from_utf8(last).unwrap().contains("the provider's answer is too large to be translated"));
        assert!(translator.finish().is_empty());
    }
}

/// The events themselves, for a person to compare with the references of the APIs.
#[test]
fn streams_as_they_are_written() {
    for (client, provider) in directions() {
        let out = translate(client, provider, fixture(provider, "tools").concat().as_bytes(), usize::MAX);
        insta::assert_snapshot!(format!("{provider:?}_to_{client:?}"), String::from_utf8(out).unwrap());
    }
    let out = translate(MESSAGES, CHAT, fixture(CHAT, "text").concat().as_bytes(), usize::MAX);
    insta::assert_snapshot!("reasoning_in_messages", String::from_utf8(out).unwrap());
    let out = translate(RESPONSES, CHAT, fixture(CHAT, "text").concat().as_bytes(), usize::MAX);
    insta::assert_snapshot!("reasoning_in_responses", String::from_utf8(out).unwrap());
}

/// A client that did not ask for usage has no chunk of it.
#[test]
fn usage_is_told_where_it_was_asked_for() {
    let exchange = Exchange { is_usage_asked: false, ..exchange(CHAT, MESSAGES) };
    let mut translator = StreamTranslator::new(&exchange);
    let out = String::from_utf8(translator.push(fixture(MESSAGES, "text").concat().as_bytes())).unwrap();
    assert!(!out.contains("usage") && out.ends_with("data: [DONE]\n\n"), "{out}");
}
