//! Reads and replaces single values of a request and leaves every other byte as it is: programs send fields that nobody here knows.

use std::fmt;
use std::ops::Range;

use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::{Dialect, Malformed};

/// What the gateway has to know of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ask {
    /// The model that it names.
    pub model: Option<String>,
    /// Whether the answer is to be streamed.
    pub is_streaming: bool,
}

/// A member of an object: its name without escapes, and where its value is.
struct Member<'a> {
    name: String,
    value: &'a str,
    span: Range<usize>,
}

impl Dialect {
    /// Reads a request. Gemini's has neither model nor streaming: both are in its path.
    ///
    /// # Errors
    /// If it is no JSON object, or says something twice that the gateway has to know: it and the provider might read different ones.
    pub fn read_request(self, body: &[u8]) -> Result<Ask, Malformed> {
        let members = members(body)?;
        if self == Self::Gemini {
            return Ok(Ask::default());
        }
        for name in ["model", "stream", "stream_options"] {
            if members.iter().filter(|member| member.name == name).count() > 1 {
                return Err(Malformed(format!("the request has `{name}` more than once")));
            }
        }
        let model = value(&members, "model", "a string")?;
        let is_streaming = value(&members, "stream", "a boolean")?.unwrap_or(false);
        Ok(Ask { model, is_streaming })
    }

    /// The same request with another model: every `model` of the top level gets that value. Gemini's request stays as it is.
    ///
    /// # Errors
    /// If it is no JSON object.
    pub fn with_model(self, body: &[u8], model: &str) -> Result<Vec<u8>, Malformed> {
        if self == Self::Gemini {
            return Ok(body.to_vec());
        }
        with_value(body, "model", &serde_json::Value::from(model).to_string())
    }

    /// The same request with `stream_options.include_usage`, for a streaming request in chat completions that does not have it; without
    /// it, the stream never tells its usage. None where nothing is to be changed.
    ///
    /// # Errors
    /// If it is no JSON object.
    pub fn with_usage_asked(self, body: &[u8]) -> Result<Option<Vec<u8>>, Malformed> {
        if self != Self::ChatCompletions || !self.read_request(body)?.is_streaming {
            return Ok(None);
        }
        let options = members(body)?.into_iter().find(|member| member.name == "stream_options");
        let Some(options) = options.filter(|options| options.value != "null") else {
            return with_value(body, "stream_options", r#"{"include_usage":true}"#).map(Some);
        };
        let inner = members(options.value.as_bytes())
            .map_err(|_| Malformed("`stream_options` of the request is to be an object".to_owned()))?;
        let mut asked = inner.iter().filter(|member| member.name == "include_usage").peekable();
        if asked.peek().is_some() && asked.all(|member| member.value == "true") {
            return Ok(None);
        }
        let options = with_value(options.value.as_bytes(), "include_usage", "true")?;
        with_value(body, "stream_options", &String::from_utf8_lossy(&options)).map(Some)
    }
}

/// The body with `value` at every member of that name, or with a new one in front where there is none.
fn with_value(body: &[u8], name: &str, value: &str) -> Result<Vec<u8>, Malformed> {
    let members = members(body)?;
    let mut out = Vec::with_capacity(body.len() + name.len() + value.len() + 4);
    let mut rest = 0;
    for member in members.iter().filter(|member| member.name == name) {
        out.extend_from_slice(&body[rest..member.span.start]);
        out.extend_from_slice(value.as_bytes());
        rest = member.span.end;
    }
    if rest == 0 {
        rest = body.iter().position(|&byte| byte == b'{').map_or(0, |at| at + 1);
        out.extend_from_slice(&body[..rest]);
        out.extend_from_slice(format!("\"{name}\":{value}").as_bytes());
        if !members.is_empty() {
            out.push(b',');
        }
    }
    out.extend_from_slice(&body[rest..]);
    Ok(out)
}

/// The last member of that name; absent if it is null.
fn value<T: serde::de::DeserializeOwned>(
    members: &[Member<'_>],
    name: &str,
    expected: &str,
) -> Result<Option<T>, Malformed> {
    let Some(member) = members.iter().rev().find(|member| member.name == name) else { return Ok(None) };
    serde_json::from_str(member.value).map_err(|_| Malformed(format!("`{name}` of the request is to be {expected}")))
}

fn members(body: &[u8]) -> Result<Vec<Member<'_>>, Malformed> {
    let malformed = |error: serde_json::Error| Malformed(format!("the body of the request is no JSON object: {error}"));
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let mut members = deserializer.deserialize_map(Members).map_err(malformed)?;
    deserializer.end().map_err(malformed)?;
    for member in &mut members {
        // A raw value borrows from the body, so that its address tells where it is.
        let start = (member.value.as_ptr() as usize).saturating_sub(body.as_ptr() as usize);
        member.span = start..start + member.value.len();
    }
    Ok(members)
}

struct Members;

impl<'de> Visitor<'de> for Members {
    type Value = Vec<Member<'de>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Vec::new();
        while let Some((name, value)) = map.next_entry::<String, &'de RawValue>()? {
            members.push(Member { name, value: value.get(), span: 0..0 });
        }
        Ok(members)
    }
}
