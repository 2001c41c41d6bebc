//! Which of several representations a client wants (RFC 9110, section 12.5.1).

use axum::http::{HeaderMap, header};
use raworc_api::problem::Code;

use crate::error::Failure;

/// JSON.
pub const JSON: &str = "application/json";
/// Bytes.
pub const BYTES: &str = "application/octet-stream";
/// A tar.
pub const TAR: &str = "application/x-tar";
/// Server-sent events.
pub const EVENTS: &str = "text/event-stream";

/// The one of `offers` that the client wants most; the first of those that it wants alike, and the first of all where it does
/// not say. Parameters of media types are not looked at, but for the weight.
///
/// # Errors
/// 406 where it wants none of them.
pub fn negotiate(headers: &HeaderMap, offers: &[&'static str]) -> Result<&'static str, Failure> {
    let values = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let ranges: Vec<Range> = values.flat_map(|value| split(value, ',')).filter_map(Range::parse).collect();
    let first = offers.first().copied().unwrap_or(JSON);
    if ranges.is_empty() {
        return Ok(first);
    }
    let mut best = (first, 0);
    for &offer in offers {
        let weight = weight(&ranges, offer);
        if weight > best.1 {
            best = (offer, weight);
        }
    }
    if best.1 > 0 {
        return Ok(best.0);
    }
    let detail = format!("this is to be had as {}; the Accept header allows none of it", offers.join(" or "));
    Err(Failure::new(Code::NotAcceptable, detail))
}

/// A media range and its weight, in thousandths.
struct Range<'t> {
    kind: &'t str,
    subtype: &'t str,
    weight: u16,
}

impl<'t> Range<'t> {
    /// None where it is not written as one; such a range is as good as none.
    fn parse(text: &'t str) -> Option<Self> {
        let mut parts = split(text, ';');
        let (kind, subtype) = parts.next()?.trim().split_once('/')?;
        if kind.is_empty() || subtype.is_empty() || (kind == "*" && subtype != "*") {
            return None;
        }
        let mut weight = 1000;
        for part in parts {
            if let Some((name, value)) = part.split_once('=')
                && name.trim().eq_ignore_ascii_case("q")
            {
                weight = thousandths(value.trim())?;
            }
        }
        Some(Self { kind, subtype, weight })
    }

    /// How exactly it names this media type, where it does.
    fn precision(&self, kind: &str, subtype: &str) -> Option<u8> {
        match (self.kind, self.subtype) {
            ("*", "*") => Some(0),
            (range, "*") if range.eq_ignore_ascii_case(kind) => Some(1),
            (range, sub) if range.eq_ignore_ascii_case(kind) && sub.eq_ignore_ascii_case(subtype) => Some(2),
            _ => None,
        }
    }
}

/// What the most exact range for it says. Of several that are as exact, the most that one of them says.
fn weight(ranges: &[Range], offer: &str) -> u16 {
    let (kind, subtype) = offer.split_once('/').unwrap_or((offer, ""));
    let found = ranges.iter().filter_map(|range| Some((range.precision(kind, subtype)?, range.weight)));
    found.max().map_or(0, |(_, weight)| weight)
}

/// `0`, `0.5`, `1.000`: at most three digits, at most 1.
fn thousandths(text: &str) -> Option<u16> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !matches!(whole, "0" | "1") || fraction.len() > 3 || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let weight = format!("{whole}{fraction:0<3}").parse().ok()?;
    (weight <= 1000).then_some(weight)
}

/// The parts between separators that are in no quoted string.
fn split(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    text.split(move |c| {
        if is_escaped {
            is_escaped = false;
        } else {
            match c {
                '"' => is_quoted = !is_quoted,
                '\\' if is_quoted => is_escaped = true,
                _ => return c == separator && !is_quoted,
            }
        }
        false
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_representation_that_is_wanted_most_is_given() {
        let (json, events, none) = (Some(JSON), Some(EVENTS), None);
        for (accept, expected) in [
            (&[][..], json),
            (&[""], json),
            (&["*/*"], json),
            (&["application/json"], json),
            (&["application/*"], json),
            (&["text/event-stream"], events),
            (&["text/*"], events),
            (&["TEXT/Event-Stream"], events),
            (&["text/event-stream; charset=utf-8"], events),
            (&["text/event-stream", "application/json;q=0.5"], events),
            (&["text/html, application/json;q=0.9, text/event-stream;q=0.5, */*"], json),
            (&["text/html, application/json;q=0.4, text/event-stream;q=0.5"], events),
            (&["text/event-stream;q=0, */*"], json),
            (&["application/json;q=0, */*;q=0.1"], events),
            (&["application/json;q=0"], none),
            (&["*/*;q=0"], none),
            (&["*/*;q=0.0, text/event-stream;q=0.001"], events),
            (&["text/html"], none),
            (&["text/html", "image/*;q=0.8"], none),
            // The more exact range counts, wherever it stands.
            (&["*/*;q=1, application/json;q=0.1, text/*;q=0.2"], events),
            (&["text/event-stream;q=0.1, text/*, application/json;q=0.5"], json),
            // What is alike is the server's choice.
            (&["text/event-stream, application/json"], json),
            (&["text/event-stream;q=0.8, application/json;q=0.8"], json),
            // A name of a media type in another's parameter is none.
            (&["application/json;profile=\"a, text/event-stream\""], json),
            (&["text/event-streams"], none),
            (&["xtext/event-stream"], none),
            // What is not written as a range is none; where nothing else is there, nothing is said.
            (&["nonsense"], json),
            (&["nonsense, text/event-stream"], events),
            (&["text/event-stream;q=2"], json),
            (&["text/event-stream;q=0.1234, application/json;q=0.1"], json),
            (&["*/event-stream"], json),
            (&[",, ,text/event-stream,"], events),
        ] {
            let mut headers = HeaderMap::new();
            for value in accept {
                headers.append(header::ACCEPT, value.parse().unwrap());
            }
            assert_eq!(negotiate(&headers, &[JSON, EVENTS]).ok(), expected, "{accept:?}");
        }
    }
}
