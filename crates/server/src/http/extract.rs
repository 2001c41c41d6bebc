//! What handlers take from a request. Whatever is wrong with it is answered with a problem document.

use std::time::Duration;

use axum::body::HttpBody as _;
use axum::extract::rejection::{BytesRejection, FailedToBufferBody};
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, header};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use raworc_api::problem::{Code, FieldError, Problem};
use raworc_api::terminal::TOKEN_SUBPROTOCOL;
use raworc_core::limits::BODY_BYTES_MAX;
use raworc_core::permissions::Actor;
use raworc_core::time::Time;
use raworc_store::{Read, accounts};
use serde::de::DeserializeOwned;

use crate::app::Shared;
use crate::error::Failure;
use crate::policy::auth;
use crate::policy::budgets::SMALL_BYTES;
use crate::policy::lease::Lease;
use crate::sync::blocking;

/// The token of a request, as its hash.
pub struct Bearer(String);

impl Bearer {
    /// Whom it speaks for at this moment.
    ///
    /// # Errors
    /// 401 where that is nobody (any more).
    pub async fn actor(&self, connection: &mut Read, now: Time) -> Result<Actor, Failure> {
        let found = accounts::authenticate(connection, &self.0, now).await?;
        let found = found.map(|found| found.actor);
        found.ok_or_else(|| Failure::new(Code::Unauthenticated, "this token is unknown, expired or revoked"))
    }

    /// The hash of the token.
    pub fn hash(&self) -> &str {
        &self.0
    }

    /// From the headers of a request.
    ///
    /// # Errors
    /// 401 where there is none.
    pub fn from_headers(headers: &HeaderMap) -> Result<Self, Failure> {
        let refused = |detail: &str| Failure::new(Code::Unauthenticated, detail);
        let header = headers.get(header::AUTHORIZATION);
        if let (None, Some(token)) = (header, subprotocol_token(headers)) {
            return Ok(Self(auth::hash(&token)));
        }
        let header = header.ok_or_else(|| refused("send your token: Authorization: Bearer TOKEN"))?;
        let text = header.to_str().unwrap_or_default();
        let (scheme, token) = text.split_once(' ').unwrap_or((text, ""));
        if !scheme.eq_ignore_ascii_case("bearer") || token.trim().is_empty() {
            return Err(refused("the Authorization header must be: Bearer TOKEN"));
        }
        Ok(Self(auth::hash(token.trim())))
    }
}

impl FromRequestParts<Shared> for Bearer {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &Shared) -> Result<Self, Failure> {
        Self::from_headers(&parts.headers)
    }
}

/// The token that a browser names as a subprotocol of a WebSocket, where it can send no headers of its own. A page of
/// another site cannot make a browser do it, since it does not know the token.
fn subprotocol_token(headers: &HeaderMap) -> Option<String> {
    let is_websocket = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"websocket");
    headers.get(header::UPGRADE).filter(|value| is_websocket(value))?;
    let offered = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    let encoded =
        offered.flat_map(|value| value.split(',')).find_map(|one| one.trim().strip_prefix(TOKEN_SUBPROTOCOL))?;
    String::from_utf8(URL_SAFE_NO_PAD.decode(encoded).ok()?).ok()
}

/// Who sent the request.
pub struct Caller(pub Actor);

impl FromRequestParts<Shared> for Caller {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, app: &Shared) -> Result<Self, Failure> {
        let actor = match parts.extensions.get::<Lease>() {
            Some(lease) => lease.actor().clone(),
            None => {
                let bearer = Bearer::from_headers(&parts.headers)?;
                let mut connection = app.store.read().await?;
                bearer.actor(&mut connection, app.now()).await?
            }
        };
        // What frees space has to be recorded first, also on a full disk.
        let path = parts.uri.path();
        let frees = parts.method == Method::DELETE || FREEING.iter().any(|call| path.ends_with(call));
        if let Some(reserve) = app.reserve.clone().filter(|_| frees) {
            let _ = blocking(move || reserve.give_up_if_full()).await;
        }
        Ok(Caller(actor))
    }
}

/// Longest time for the whole of a JSON body.
const BODY_TIME_MAX: Duration = Duration::from_secs(60);

/// Calls that free space, or end what takes it.
const FREEING: [&str; 4] = ["/system/prune", "/cancel", "/pause", "/terminate"];

/// A JSON body.
pub struct Json<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Shared> for Json<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, app: &Shared) -> Result<Self, Failure> {
        let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let media_type = content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim();
        if !media_type.eq_ignore_ascii_case("application/json") {
            let detail = "the body must be JSON, sent with Content-Type: application/json";
            return Err(Failure::new(Code::UnsupportedMediaType, detail));
        }
        // Only who has shown a token has a lease; nobody else's body is read.
        let lease = request.extensions().get::<Lease>().cloned();
        let lease = lease.ok_or_else(|| Failure::new(Code::Unauthenticated, "send your token"))?;
        let announced = request.body().size_hint().upper().and_then(|bytes| usize::try_from(bytes).ok());
        let bytes = announced.unwrap_or(BODY_BYTES_MAX).min(BODY_BYTES_MAX);
        let charge = match bytes {
            0..=SMALL_BYTES => None,
            bytes => Some(app.budgets.bodies.take(lease.account(), bytes).await?),
        };
        let read = tokio::time::timeout(BODY_TIME_MAX, Bytes::from_request(request, app)).await;
        let read = read.map_err(|_| {
            let detail = format!("the body did not come within {} seconds", BODY_TIME_MAX.as_secs());
            Failure::new(Code::InvalidBody, detail)
        })?;
        let parsed = parse(&read.map_err(body_rejected)?).map(Json);
        drop(charge);
        parsed
    }
}

fn body_rejected(rejection: BytesRejection) -> Failure {
    match rejection {
        BytesRejection::FailedToBufferBody(FailedToBufferBody::LengthLimitError(_)) => {
            Failure::new(Code::TooLarge, format!("the body may have at most {BODY_BYTES_MAX} bytes"))
        }
        _ => Failure::new(Code::InvalidBody, "the body could not be read to its end"),
    }
}

/// Reads an object; says which field is at fault.
fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Failure> {
    // serde would take a list for the fields in their order.
    if bytes.trim_ascii_start().first() != Some(&b'{') && is_json(bytes) {
        return Err(Problem::field(".", "must be a JSON object").into());
    }
    let deserializer = &mut serde_json::Deserializer::from_slice(bytes);
    match serde_path_to_error::deserialize::<_, T>(&mut *deserializer) {
        Ok(value) => match deserializer.end() {
            Ok(()) => Ok(value),
            Err(_) => Err(Failure::new(Code::InvalidBody, "there is something after the end of the JSON document")),
        },
        Err(error) => {
            let path = error.path().to_string();
            let inner = error.into_inner();
            if inner.is_data() {
                Err(Problem::fields(vec![field_error(&path, &inner.to_string())]).into())
            } else if is_json(bytes) {
                // serde_json calls a number in place of one of several words a fault of the JSON.
                Err(Problem::field(path, "is not of the right type").into())
            } else {
                Err(Failure::new(Code::InvalidBody, format!("the body is not valid JSON: {inner}")))
            }
        }
    }
}

fn is_json(bytes: &[u8]) -> bool {
    serde_json::from_slice::<serde_json::Value>(bytes).is_ok()
}

/// serde names an unknown or missing field in its message, not in the path.
fn field_error(path: &str, text: &str) -> FieldError {
    let message = text.rsplit_once(" at line ").map_or(text, |(message, _)| message);
    let named = ["unknown field `", "missing field `", "duplicate field `"]
        .iter()
        .find_map(|start| message.strip_prefix(start)?.split('`').next());
    let field = match (path, named) {
        (".", Some(name)) => name.to_owned(),
        (path, Some(name)) if path == name || path.ends_with(&format!(".{name}")) => path.to_owned(),
        (path, Some(name)) => format!("{path}.{name}"),
        (path, None) => path.to_owned(),
    };
    FieldError { field, message: message.to_owned() }
}

/// The query.
pub struct Query<T>(pub T);

impl<T: DeserializeOwned> FromRequestParts<Shared> for Query<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &Shared) -> Result<Self, Failure> {
        match axum::extract::Query::<T>::try_from_uri(&parts.uri) {
            Ok(axum::extract::Query(query)) => Ok(Query(query)),
            Err(rejection) => {
                let text = rejection.body_text();
                let why = text.rsplit_once("query string: ").map_or(text.as_str(), |(_, why)| why);
                // A parameter's name stands before what is wrong with its value.
                let (path, message) = why.split_once(": ").unwrap_or((".", why));
                let errors = vec![field_error(path, message)];
                let detail = format!("the query is wrong: {why}");
                Err(Problem { errors, ..Problem::new(Code::InvalidRequest, detail) }.into())
            }
        }
    }
}

/// Parts of the path.
pub struct Path<T>(pub T);

impl<T: DeserializeOwned + Send> FromRequestParts<Shared> for Path<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, app: &Shared) -> Result<Self, Failure> {
        match axum::extract::Path::<T>::from_request_parts(parts, app).await {
            Ok(axum::extract::Path(path)) => Ok(Path(path)),
            Err(_) => Err(Failure::new(
                Code::InvalidRequest,
                "the path is not valid: ids are UUIDs, checkpoints have numbers, text is UTF-8",
            )),
        }
    }
}

/// The `Idempotency-Key`, if one was sent.
///
/// # Errors
/// 422 where it is not text.
pub fn idempotency_key(headers: &HeaderMap) -> Result<Option<&str>, Failure> {
    let Some(value) = headers.get("idempotency-key") else {
        return Ok(None);
    };
    let text = value.to_str().map_err(|_| Problem::field("Idempotency-Key", "must be printable ASCII"))?;
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use raworc_api::session::CreateSession;

    fn fields(body: &str) -> Vec<String> {
        match parse::<CreateSession>(body.as_bytes()) {
            Ok(_) => Vec::new(),
            Err(failure) => {
                let problem = failure.into_problem();
                if problem.errors.is_empty() {
                    vec![problem.code.as_str().to_owned()]
                } else {
                    problem.errors.into_iter().map(|error| error.field).collect()
                }
            }
        }
    }

    #[test]
    fn the_field_at_fault_is_named() {
        let deep = format!("{{\"metadata\":{{\"a\":{}{}}}}}", "[".repeat(200), "]".repeat(200));
        for (body, expected) in [
            ("{}", vec![]),
            (r#"{"nam": "x"}"#, vec!["nam"]),
            (r#"{"name": 1}"#, vec!["name"]),
            (r#"{"resources": {"cpus": 1}}"#, vec!["resources.cpus"]),
            (r#"{"resources": {"memory": "4X"}}"#, vec!["resources.memory"]),
            (r#"{"resources": {"memory": true}}"#, vec!["resources.memory"]),
            (r#"{"agent_ids": ["a", 1]}"#, vec!["agent_ids[1]"]),
            (r#"{"waiting_timeout_seconds": -1}"#, vec!["waiting_timeout_seconds"]),
            (r#"{"metadata": []}"#, vec!["metadata"]),
            ("[]", vec!["."]),
            (r#"["a"]"#, vec!["."]),
            ("null", vec!["."]),
            ("", vec!["invalid_body"]),
            ("{", vec!["invalid_body"]),
            ("{} {}", vec!["invalid_body"]),
            (deep.as_str(), vec!["invalid_body"]),
        ] {
            assert_eq!(fields(body), expected, "{body}");
        }
    }
}
