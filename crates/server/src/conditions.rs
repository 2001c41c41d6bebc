//! Conditional requests and ranges, as RFC 9110 has them (sections 13 and 14).
//!
//! What only reads is answered first and judged by the `ETag` and `Last-Modified` of its answer. What changes something is
//! judged where it changes it, under the same lock or in the same transaction; a call that cannot do that refuses conditions.

mod range;

pub use range::Range;

use axum::body::Body;
use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use jiff::civil::DateTime;
use jiff::fmt::rfc2822::DateTimePrinter;
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use raworc_api::PREFIX;
use raworc_api::problem::Code;

use crate::error::{Failure, stale};

/// The calls that change something and look at conditions. All others that change something refuse them.
const HEEDED: [(&str, &str); 11] = [
    ("PUT", "/sessions/{id}"),
    ("DELETE", "/sessions/{id}"),
    ("PUT", "/sessions/{id}/files"),
    ("PUT", "/sessions/{id}/files/{*path}"),
    ("DELETE", "/sessions/{id}/files/{*path}"),
    ("PUT", "/agents/{id}"),
    ("DELETE", "/agents/{id}"),
    ("PUT", "/providers/{name}"),
    ("DELETE", "/providers/{name}"),
    ("PUT", "/secrets/{name}"),
    ("DELETE", "/secrets/{name}"),
];
/// Headers that make a call that changes something depend on what is there.
const PRECONDITIONS: [HeaderName; 3] = [header::IF_MATCH, header::IF_NONE_MATCH, header::IF_UNMODIFIED_SINCE];
/// What an answer without a body keeps (RFC 9110, 15.4.5).
const KEPT: [HeaderName; 5] =
    [header::ETAG, header::LAST_MODIFIED, header::CACHE_CONTROL, header::VARY, header::CONTENT_LOCATION];
/// The forms of a date (RFC 9110, 5.6.7), all of which a recipient has to know.
const DATE_FORMS: [&str; 3] = ["%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %e %H:%M:%S %Y"];

/// An entity tag.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Tag {
    is_weak: bool,
    opaque: Vec<u8>,
}

/// What a list of tags names.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Tags {
    Any,
    List(Vec<Tag>),
}

/// The conditions of a request.
#[derive(Clone, Debug, Default)]
pub struct Conditions {
    if_match: Option<Tags>,
    if_none_match: Option<Tags>,
    if_unmodified_since: Option<i64>,
    if_modified_since: Option<i64>,
}

/// The present state of what conditions are about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Present {
    /// Its tag, without quotes, where it has one.
    pub tag: Option<String>,
    /// When it changed, in seconds since 1970, where that is known.
    pub modified: Option<i64>,
}

/// What follows from conditions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    GoOn,
    NotModified,
    Failed,
}

impl Conditions {
    /// Those of a request.
    ///
    /// # Errors
    /// 400 where one is malformed.
    pub fn of(headers: &HeaderMap, method: &Method) -> Result<Self, Failure> {
        let is_read = matches!(*method, Method::GET | Method::HEAD);
        let unmodified = match single(headers, &header::IF_UNMODIFIED_SINCE).map(parse_date) {
            None => None,
            Some(Some(date)) => Some(date),
            // To ignore it is right only where nothing can be lost.
            Some(None) if is_read => None,
            Some(None) => {
                return Err(malformed(
                    "If-Unmodified-Since must be an HTTP date, such as Sun, 06 Nov 1994 08:49:37 GMT",
                ));
            }
        };
        Ok(Self {
            if_match: tags(headers, &header::IF_MATCH)?,
            if_none_match: tags(headers, &header::IF_NONE_MATCH)?,
            if_unmodified_since: unmodified,
            // RFC 9110, 13.1.3: to be ignored with other methods, and where it is no date.
            if_modified_since: single(headers, &header::IF_MODIFIED_SINCE).and_then(parse_date).filter(|_| is_read),
        })
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.if_match.is_none()
            && self.if_none_match.is_none()
            && self.if_unmodified_since.is_none()
            && self.if_modified_since.is_none()
    }

    /// In the order of RFC 9110, 13.2.2.
    fn judge(&self, present: Option<&Present>, is_read: bool) -> Verdict {
        let tag = present.and_then(|present| present.tag.as_deref());
        let modified = present.and_then(|present| present.modified);
        let names = |tags: &Tags, is_strong: bool| match tags {
            Tags::Any => present.is_some(),
            Tags::List(tags) => tags
                .iter()
                .any(|named| !(is_strong && named.is_weak) && tag.is_some_and(|tag| tag.as_bytes() == named.opaque)),
        };
        match (&self.if_match, self.if_unmodified_since) {
            (Some(tags), _) if !names(tags, true) => return Verdict::Failed,
            (Some(_), _) | (None, None) => {}
            // What has no date of change cannot be said not to have changed.
            (None, Some(since)) => match modified {
                Some(modified) if modified <= since => {}
                None if is_read => {}
                _ => return Verdict::Failed,
            },
        }
        match (&self.if_none_match, self.if_modified_since) {
            (Some(tags), _) if names(tags, false) => {
                if is_read {
                    Verdict::NotModified
                } else {
                    Verdict::Failed
                }
            }
            (None, Some(since)) if modified.is_some_and(|modified| modified <= since) => Verdict::NotModified,
            _ => Verdict::GoOn,
        }
    }

    /// Whether something may be changed that is like this, or is not there.
    pub fn allow(&self, present: Option<&Present>) -> bool {
        self.judge(present, false) == Verdict::GoOn
    }

    /// Lets a row of this version be changed, or says why not.
    ///
    /// # Errors
    /// 412.
    pub fn check_version(&self, version: i64) -> Result<(), Failure> {
        let present = Present { tag: Some(version_tag(version)), modified: None };
        if self.allow(Some(&present)) { Ok(()) } else { Err(stale()) }
    }

    /// Lets the configuration of a session be changed, or says why not. `If-Match` fits where it names any state of this edition: what has
    /// happened in the session since is in nobody's way who changes how it is configured.
    ///
    /// # Errors
    /// 412.
    pub fn check_edition(&self, edition: i64, version: i64) -> Result<(), Failure> {
        let prefix = format!("v{edition}.").into_bytes();
        let is_fitting = |tag: &Tag| {
            let state = tag.opaque.strip_prefix(&prefix[..]);
            !tag.is_weak && state.is_some_and(|state| !state.is_empty() && state.iter().all(u8::is_ascii_digit))
        };
        let fits = match &self.if_match {
            Some(Tags::List(tags)) => tags.iter().any(is_fitting),
            Some(Tags::Any) | None => true,
        };
        // RFC 9110, 13.1.4: where there is `If-Match`, the date says nothing.
        let since = self.if_unmodified_since.filter(|_| self.if_match.is_none());
        let others = Self { if_match: None, if_unmodified_since: since, ..self.clone() };
        if fits { others.check_session(edition, version) } else { Err(stale()) }
    }

    /// Lets a session of this edition and version be ended, or says why not: `If-Match` fits in this state only.
    ///
    /// # Errors
    /// 412.
    pub fn check_session(&self, edition: i64, version: i64) -> Result<(), Failure> {
        let present = Present { tag: Some(session_tag(edition, version)), modified: None };
        if self.allow(Some(&present)) { Ok(()) } else { Err(stale()) }
    }
}

fn malformed(detail: &str) -> Failure {
    Failure::new(Code::InvalidRequest, detail)
}

fn version_tag(version: i64) -> String {
    format!("v{version}")
}

/// The `ETag` of a version.
pub fn etag(version: i64) -> [(HeaderName, String); 1] {
    [(header::ETAG, format!("\"{}\"", version_tag(version)))]
}

fn session_tag(edition: i64, version: i64) -> String {
    format!("v{edition}.{version}")
}

/// The `ETag` of a session: it tells each state from another, and which of them are configured alike.
pub fn session_etag(edition: i64, version: i64) -> [(HeaderName, String); 1] {
    [(header::ETAG, format!("\"{}\"", session_tag(edition, version)))]
}

/// A date for a header: a time that has not come yet is now (RFC 9110, 8.8.2.1). None for what headers cannot say.
pub fn date(seconds: i64) -> Option<String> {
    let time = Timestamp::from_second(seconds).ok()?.min(Timestamp::now());
    DateTimePrinter::new().timestamp_to_rfc9110_string(&time).ok()
}

/// The value of a header that may be there once.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?;
    // Twice is malformed, and so is what is no text.
    if values.next().is_some() { Some("") } else { Some(first.to_str().unwrap_or_default()) }
}

fn parse_date(text: &str) -> Option<i64> {
    let text = text.trim();
    let parsed = DATE_FORMS.iter().find_map(|form| DateTime::strptime(form, text).ok())?;
    parsed.to_zoned(TimeZone::UTC).ok().map(|zoned: Zoned| zoned.timestamp().as_second())
}

/// The tags that a header names, in all its lines.
fn tags(headers: &HeaderMap, name: &HeaderName) -> Result<Option<Tags>, Failure> {
    let lines: Vec<&[u8]> = headers.get_all(name).iter().map(|value| value.as_bytes()).collect();
    if lines.is_empty() {
        return Ok(None);
    }
    let text = lines.join(&b',');
    let parsed = if text.trim_ascii() == b"*" { Some(Tags::Any) } else { parse_tags(&text).map(Tags::List) };
    parsed.map(Some).ok_or_else(|| {
        malformed(&format!("{name} must be * or a list of ETags as this server gave them, in quotes, such as \"v3\""))
    })
}

/// A list of tags, in which elements may be empty (RFC 9110, 5.6.1.2), but not all of them.
fn parse_tags(text: &[u8]) -> Option<Vec<Tag>> {
    let (mut rest, mut found) = (text.trim_ascii(), Vec::new());
    loop {
        while let Some(after) = rest.strip_prefix(b",") {
            rest = after.trim_ascii_start();
        }
        if rest.is_empty() {
            return (!found.is_empty()).then_some(found);
        }
        let (tag, after) = parse_tag(rest)?;
        found.push(tag);
        rest = after.trim_ascii_start();
        if !rest.is_empty() && !rest.starts_with(b",") {
            return None;
        }
    }
}

/// One tag at the beginning of a text, and what follows it.
fn parse_tag(text: &[u8]) -> Option<(Tag, &[u8])> {
    let (is_weak, quoted) = text.strip_prefix(b"W/").map_or((false, text), |rest| (true, rest));
    let inner = quoted.strip_prefix(b"\"")?;
    let end = inner.iter().position(|byte| *byte == b'"')?;
    let (opaque, after) = (&inner[..end], &inner[end + 1..]);
    let is_allowed = |byte: &u8| matches!(byte, 0x21 | 0x23..=0x7e | 0x80..=0xff);
    opaque.iter().all(is_allowed).then(|| (Tag { is_weak, opaque: opaque.to_vec() }, after))
}

/// Judges what reads by its answer, and refuses what no call here can do.
pub async fn obey(mut request: Request, next: Next) -> Response {
    // RFC 9110, 14.2: a range means something with GET only.
    if request.method() == Method::HEAD {
        request.headers_mut().remove(header::RANGE);
    }
    let (method, headers) = (request.method().clone(), request.headers());
    let is_read = matches!(method, Method::GET | Method::HEAD);
    let conditions = match Conditions::of(headers, &method) {
        Ok(conditions) => conditions,
        Err(failure) => return failure.into_response(),
    };
    if !is_read {
        let path = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
        return match refuse(&method, path, headers) {
            Some(response) => response,
            None => next.run(request).await,
        };
    }
    let response = next.run(request).await;
    // RFC 9110, 13.2.1: conditions count where there would be something to answer without them.
    let counts = response.status().is_success() || response.status() == StatusCode::RANGE_NOT_SATISFIABLE;
    if conditions.is_empty() || !counts {
        return response;
    }
    match conditions.judge(Some(&described(response.headers())), true) {
        Verdict::GoOn => response,
        Verdict::Failed => stale().into_response(),
        Verdict::NotModified => not_modified(response),
    }
}

fn described(headers: &HeaderMap) -> Present {
    let tag = headers.get(header::ETAG).and_then(|value| parse_tag(value.as_bytes()));
    let tag = tag.and_then(|(tag, _)| String::from_utf8(tag.opaque).ok());
    Present { tag, modified: single(headers, &header::LAST_MODIFIED).and_then(parse_date) }
}

fn not_modified(response: Response) -> Response {
    let (mut parts, _) = response.into_parts();
    let old = std::mem::take(&mut parts.headers);
    parts.headers.extend(KEPT.iter().filter_map(|name| Some((name.clone(), old.get(name)?.clone()))));
    parts.status = StatusCode::NOT_MODIFIED;
    Response::from_parts(parts, Body::empty())
}

/// What a call that changes something must not overlook.
fn refuse(method: &Method, path: Option<&str>, headers: &HeaderMap) -> Option<Response> {
    if headers.contains_key(header::CONTENT_RANGE) {
        let detail = "a request writes a whole file, never a part of one: send all of it, without Content-Range";
        return Some(Failure::new(Code::PartialUpload, detail).into_response());
    }
    let is_plain = |value: &axum::http::HeaderValue| value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"identity");
    if !headers.get_all(header::CONTENT_ENCODING).iter().all(is_plain) {
        let detail = "no Content-Encoding is decoded here: send the body as it is";
        let failure = Failure::new(Code::UnsupportedMediaType, detail);
        return Some(([(header::ACCEPT_ENCODING, "identity")], failure).into_response());
    }
    let named = PRECONDITIONS.iter().find(|name| headers.contains_key(*name))?;
    let path = path.map_or("", |path| path.strip_prefix(PREFIX).unwrap_or(path));
    let Some((_, template)) = HEEDED.iter().find(|(heeded, template)| *heeded == method.as_str() && *template == path)
    else {
        let detail = format!("this call does not look at {named}: leave it out, or the call would not do what it says");
        return Some(Failure::new(Code::PreconditionUnsupported, detail).into_response());
    };
    if *named == header::IF_UNMODIFIED_SINCE && !template.contains("/files") {
        let detail = "this has no Last-Modified: use If-Match with its ETag";
        return Some(Failure::new(Code::PreconditionUnsupported, detail).into_response());
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        lines.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    #[test]
    fn conditions_follow_from_tags_and_dates_in_their_order() {
        let old = "Sun, 06 Nov 1994 08:49:37 GMT";
        let new = "Sun Nov  6 08:49:38 1994";
        let mid = "Sunday, 06-Nov-94 08:49:37 GMT";
        let there = Present { tag: Some("a".into()), modified: Some(784_111_777) };
        let bare = Present::default();
        use Verdict::{Failed, GoOn, NotModified};
        // Of what is there, what has no validators, and what is not there: reading, changing.
        for (lines, expected) in [
            (vec![], [GoOn, GoOn, GoOn, GoOn, GoOn]),
            (vec![("if-match", "\"a\"")], [GoOn, GoOn, Failed, Failed, Failed]),
            (vec![("if-match", "\"b\"")], [Failed, Failed, Failed, Failed, Failed]),
            (vec![("if-match", "W/\"a\"")], [Failed, Failed, Failed, Failed, Failed]),
            (vec![("if-match", "\"b\", W/\"c\",, \"a\"")], [GoOn, GoOn, Failed, Failed, Failed]),
            (vec![("if-match", "\"b\""), ("if-match", "\"a\"")], [GoOn, GoOn, Failed, Failed, Failed]),
            (vec![("if-match", "*")], [GoOn, GoOn, GoOn, GoOn, Failed]),
            (vec![("if-none-match", "\"a\"")], [NotModified, Failed, GoOn, GoOn, GoOn]),
            (vec![("if-none-match", "W/\"a\"")], [NotModified, Failed, GoOn, GoOn, GoOn]),
            (vec![("if-none-match", "\"b\"")], [GoOn, GoOn, GoOn, GoOn, GoOn]),
            (vec![("if-none-match", "*")], [NotModified, Failed, NotModified, Failed, GoOn]),
            (vec![("if-modified-since", old)], [NotModified, GoOn, GoOn, GoOn, GoOn]),
            (vec![("if-modified-since", "Sun, 06 Nov 1994 08:49:36 GMT")], [GoOn, GoOn, GoOn, GoOn, GoOn]),
            (vec![("if-unmodified-since", mid)], [GoOn, GoOn, GoOn, Failed, Failed]),
            (vec![("if-unmodified-since", new)], [GoOn, GoOn, GoOn, Failed, Failed]),
            (vec![("if-unmodified-since", "Sun, 06 Nov 1994 08:49:36 GMT")], [Failed, Failed, GoOn, Failed, Failed]),
            // The tag wins over the date, and If-Match comes first.
            (vec![("if-none-match", "\"b\""), ("if-modified-since", old)], [GoOn, GoOn, GoOn, GoOn, GoOn]),
            (
                vec![("if-match", "\"a\""), ("if-unmodified-since", "Sat, 05 Nov 1994 08:49:37 GMT")],
                [GoOn, GoOn, Failed, Failed, Failed],
            ),
            (vec![("if-match", "\"b\""), ("if-none-match", "\"a\"")], [Failed, Failed, Failed, Failed, Failed]),
        ] {
            let map = headers(&lines);
            let judge = |present: Option<&Present>, method: &Method| {
                Conditions::of(&map, method).unwrap().judge(present, *method == Method::GET)
            };
            let seen = [
                judge(Some(&there), &Method::GET),
                judge(Some(&there), &Method::PUT),
                judge(Some(&bare), &Method::GET),
                judge(Some(&bare), &Method::PUT),
                judge(None, &Method::PUT),
            ];
            assert_eq!(seen, expected, "{lines:?}");
        }
    }

    #[test]
    fn what_is_malformed_is_refused() {
        for value in ["", ",", "a", "\"a", "\"a\" \"b\"", "\"a b\"", "w/\"a\"", "*, \"a\"", "\"a\", *", "W/", "\"a\"x"]
        {
            for name in ["if-match", "if-none-match"] {
                let map = headers(&[(name, value)]);
                assert!(Conditions::of(&map, &Method::GET).is_err(), "{value:?}");
            }
        }
        let map = headers(&[("if-unmodified-since", "yesterday")]);
        assert!(Conditions::of(&map, &Method::PUT).is_err());
        assert!(Conditions::of(&map, &Method::GET).unwrap().is_empty());
    }

    #[test]
    fn ranges() {
        use Range::{Part, Unsatisfiable, Whole};
        for (text, size, expected) in [
            ("bytes=0-0", 10, Part(0, 1)),
            ("bytes=2-", 10, Part(2, 8)),
            ("bytes=-3", 10, Part(7, 3)),
            ("bytes=-30", 10, Part(0, 10)),
            ("Bytes=2-300", 10, Part(2, 8)),
            ("bytes=9-99999999999999999999999999", 10, Part(9, 1)),
            ("bytes=10-", 10, Unsatisfiable),
            ("bytes=99999999999999999999999999-", 10, Unsatisfiable),
            ("bytes=-0", 10, Unsatisfiable),
            ("bytes=0-", 0, Unsatisfiable),
            ("bytes=-1", 0, Whole),
            ("bytes=3-2", 10, Whole),
            ("bytes=0-1,4-5", 10, Whole),
            ("lines=0-1", 10, Whole),
            ("bytes=a-b", 10, Whole),
            ("bytes=-", 10, Whole),
            ("bytes", 10, Whole),
            ("bytes=+1-2", 10, Whole),
        ] {
            assert_eq!(Range::of(&headers(&[("range", text)]), size, &Present::default()), expected, "{text} {size}");
        }
        let present = Present { tag: Some("a".into()), modified: Some(784_111_777) };
        for (text, is_same) in [
            ("\"a\"", true),
            ("W/\"a\"", false),
            ("\"b\"", false),
            ("Sun, 06 Nov 1994 08:49:37 GMT", true),
            ("Sun, 06 Nov 1994 08:49:38 GMT", false),
            ("nonsense", false),
        ] {
            let found = Range::of(&headers(&[("range", "bytes=1-"), ("if-range", text)]), 10, &present);
            assert_eq!(found == Part(1, 9), is_same, "{text}");
        }
        let now = Present { tag: None, modified: Some(Timestamp::now().as_second()) };
        let map = headers(&[("range", "bytes=1-"), ("if-range", &date(now.modified.unwrap()).unwrap())]);
        assert_eq!(Range::of(&map, 10, &now), Whole, "it may change again within that second");
    }
}
