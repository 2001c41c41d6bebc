//! Paths of files in requests: bytes, since names of files are.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use percent_encoding::percent_decode_str;
use raworc_api::PREFIX;
use raworc_api::problem::Code;

use crate::app::Shared;
use crate::error::Failure;

/// `/sessions/{id}/files/{path}`, or `/sessions/{id}/checkpoints/{n}/files/{path}`; without a path, the workspace itself.
pub struct FilePath {
    /// Id or name of the session.
    pub session: String,
    /// Number or label of the checkpoint, or `now`; none where the workspace is meant as it is.
    pub version: Option<String>,
    /// From the workspace down.
    pub path: Vec<u8>,
}

impl FilePath {
    fn parse(path: &str) -> Option<Self> {
        let path = path.strip_prefix(PREFIX).unwrap_or(path);
        let (session, rest) = path.strip_prefix("/sessions/")?.split_once('/')?;
        let (version, rest) = match rest.strip_prefix("checkpoints/") {
            Some(rest) => rest.split_once('/').map(|(version, rest)| (Some(version), rest))?,
            None => (None, rest),
        };
        let path = rest.strip_prefix("files")?;
        let text = |encoded| Some(percent_decode_str(encoded).decode_utf8().ok()?.into_owned());
        let version = match version {
            Some(version) => Some(text(version)?),
            None => None,
        };
        Some(Self { session: text(session)?, version, path: percent_decode_str(path).collect() })
    }
}

impl FromRequestParts<Shared> for FilePath {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &Shared) -> Result<Self, Failure> {
        let detail = "the path is not valid: ids and labels are UTF-8; only names of files may be other bytes";
        Self::parse(parts.uri.path()).ok_or_else(|| Failure::new(Code::InvalidRequest, detail))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        for (path, expected) in [
            ("/api/v0/sessions/a/files", Some(("a", None, &b""[..]))),
            ("/api/v0/sessions/a%20b/files/x/y", Some(("a b", None, b"/x/y"))),
            ("/sessions/a/files/b%ff%2Fc%zz", Some(("a", None, b"/b\xff/c%zz"))),
            ("/sessions/files/files/files/files", Some(("files", None, b"/files/files"))),
            ("/sessions/a/checkpoints/now/files/files", Some(("a", Some("now"), b"/files"))),
            ("/sessions/a%ff/files/x", None),
        ] {
            let found = FilePath::parse(path);
            let found = found.as_ref().map(|found| (&*found.session, found.version.as_deref(), &*found.path));
            assert_eq!(found, expected, "{path}");
        }
    }
}
