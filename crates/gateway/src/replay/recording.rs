//! A recording, and which of its answers fits a request.

use serde::Deserialize;
use serde_json::Value;

use super::asked::Asked;

/// A recording.
#[derive(Debug)]
pub struct Recording {
    exchanges: Vec<Exchange>,
}

/// A line of a recording.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Exchange {
    #[serde(rename = "match", default)]
    conditions: Conditions,
    answer: Answer,
    /// Counted from 1.
    #[serde(skip)]
    line: usize,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Conditions {
    user: Option<String>,
    user_contains: Vec<String>,
    contains: Vec<String>,
    result_contains: Vec<String>,
    tool_results: Option<usize>,
    user_texts: Option<usize>,
    tools: Option<Vec<String>>,
}

/// What is answered.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    #[serde(default)]
    pub text: String,
    #[serde(default)]
    pub tool_calls: Vec<RecordedCall>,
    #[serde(default)]
    pub usage: Option<RecordedUsage>,
    #[serde(default)]
    pub finish: Option<Finish>,
}

/// A tool call in an answer.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordedCall {
    pub name: String,
    /// A text stands for itself, whatever it is: so invalid JSON can be recorded, too.
    #[serde(default)]
    pub arguments: Value,
    #[serde(default)]
    pub id: Option<String>,
}

/// The tokens of an exchange.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordedUsage {
    pub input_tokens: u64,
    pub output_tokens: u64,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    Stop,
    ToolCalls,
    Length,
    ContentFilter,
}

/// The answer to a request.
pub struct Found<'r> {
    pub answer: &'r Answer,
    pub line: usize,
}

impl Recording {
    /// Reads a recording; the error says which line is wrong.
    pub fn read(bytes: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(bytes).map_err(|_| "has a recording that is no UTF-8".to_owned())?;
        let lines = text.lines().enumerate().map(|(at, line)| (at + 1, line.trim()));
        let exchanges = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')).map(|(line, text)| {
            let read = serde_json::from_str::<Exchange>(text);
            let exchange = read.map_err(|error| format!("has a recording whose line {line} is wrong: {error}"))?;
            Ok(Exchange { line, ..exchange })
        });
        Ok(Self { exchanges: exchanges.collect::<Result<_, String>>()? })
    }

    /// How many exchanges it has.
    pub fn len(&self) -> usize {
        self.exchanges.len()
    }

    /// The answer to a request: that of the most specific exchange that matches.
    pub fn find(&self, asked: &Asked) -> Option<Found<'_>> {
        let matching = self.exchanges.iter().filter(|exchange| exchange.conditions.hold(asked));
        // Of equal ones, `max_by_key` takes the last.
        let best = matching.rev().max_by_key(|exchange| exchange.conditions.specificity())?;
        Some(Found { answer: &best.answer, line: best.line })
    }
}

impl Conditions {
    fn hold(&self, asked: &Asked) -> bool {
        let Self { user, user_contains, contains, result_contains, tool_results, user_texts, tools } = self;
        let last = asked.last_user();
        let result = asked.last_result();
        user.as_ref().is_none_or(|text| last.trim() == text.trim())
            && user_contains.iter().all(|part| last.contains(part))
            && contains.iter().all(|part| asked.texts.iter().any(|text| text.contains(part)))
            && result_contains.iter().all(|part| result.contains(part))
            && tool_results.is_none_or(|count| asked.results.len() == count)
            && user_texts.is_none_or(|count| asked.user.len() == count)
            && tools.as_ref().is_none_or(|named| match named.as_slice() {
                [] => asked.tools.is_empty(),
                named => named.iter().all(|name| asked.tools.contains(name)),
            })
    }

    fn specificity(&self) -> (bool, usize) {
        let Self { user, user_contains, contains, result_contains, tool_results, user_texts, tools } = self;
        let tools = tools.as_ref().map_or(0, |named| named.len().max(1));
        let texts = user_contains.len() + contains.len() + result_contains.len();
        let counts = usize::from(tool_results.is_some()) + usize::from(user_texts.is_some());
        (user.is_some(), usize::from(user.is_some()) + texts + counts + tools)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(request: &str) -> Asked {
        Asked::read(request.as_bytes())
    }

    #[test]
    fn the_most_specific_exchange_answers() {
        let recording = Recording::read(
            br##"# comment

            {"match": {}, "answer": {"text": "anything"}}
            {"match": {"user_contains": ["tests", "fix"]}, "answer": {"text": "contains"}}
            {"match": {"user": "fix the tests"}, "answer": {"text": "exact"}}
            {"match": {"user": "fix the tests"}, "answer": {"text": "exact, later"}}
            {"match": {"user": "fix the tests", "tool_results": 1}, "answer": {"text": "one result"}}
            {"match": {"user": "fix the tests", "tool_results": 1, "result_contains": ["a.py"]}, "answer": {"text": "a.py"}}
            {"match": {"tools": []}, "answer": {"text": "no tools"}}
            {"match": {"tools": ["bash", "search"], "user_texts": 2}, "answer": {"text": "tools"}}
            {"match": {"contains": ["be brief"]}, "answer": {"text": "instructions"}}"##,
        )
        .unwrap();
        let tools = r#""tools":[{"type":"function","function":{"name":"bash"}},{"type":"function","function":{"name":"search"}}]"#;
        let user = |text: &str| format!(r#"{{"role":"user","content":"{text}"}}"#);
        let result = |text: &str| format!(r#"{{"role":"tool","tool_call_id":"1","content":"{text}"}}"#);
        for (messages, tools, expected) in [
            (vec![user("hello")], tools, "anything"),
            (vec![user("hello")], "", "no tools"),
            (vec![user("please fix all tests")], tools, "contains"),
            (vec![user(" fix the tests\\n")], tools, "exact"),
            (vec![user("fix the tests"), result("none")], tools, "one result"),
            (vec![user("fix the tests"), result("x a.py")], tools, "a.py"),
            (vec![user("fix the tests"), result("a.py"), result("b.py")], tools, "exact"),
            (vec![user("one"), user("two")], tools, "tools"),
            (vec![r#"{"role":"system","content":[{"type":"text","text":"be brief"}]}"#.into()], tools, "instructions"),
        ] {
            let comma = if tools.is_empty() { "" } else { "," };
            let request = format!(r#"{{"messages":[{}]{comma}{tools}}}"#, messages.join(","));
            let found = recording.find(&asked(&request)).unwrap();
            assert_eq!(found.answer.text, expected, "{request}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (text, expected) in [
            ("\n{\"answer\": {}}\nno", "line 3"),
            ("{\"match\": {\"usr\": \"x\"}, \"answer\": {}}", "usr"),
            ("{\"match\": {}}", "answer"),
            ("{\"answer\": {\"txt\": \"x\"}}", "txt"),
        ] {
            let error = Recording::read(text.as_bytes()).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        assert!(Recording::read(&[0xff]).is_err());
        assert_eq!(Recording::read(b"").unwrap().len(), 0);
    }
}
