//! Builds the path of a request, so that no id, name or file path leads to another endpoint.

use std::fmt::Write as _;

use super::{ClientError, Result};

/// A path below the prefix, built segment by segment.
#[derive(Debug)]
pub(super) struct Path {
    text: String,
    fault: Option<String>,
}

impl Path {
    /// Starts with a fixed segment.
    pub(super) fn new(segment: &'static str) -> Self {
        Self { text: segment.to_owned(), fault: None }
    }

    /// Appends a fixed segment.
    pub(super) fn then(mut self, segment: &'static str) -> Self {
        self.text.push('/');
        self.text.push_str(segment);
        self
    }

    /// Appends an id or a name.
    pub(super) fn id(mut self, id: impl std::fmt::Display) -> Self {
        let id = id.to_string();
        // URLs cannot contain these as names: even percent-encoded they mean the same or the parent directory.
        if matches!(id.as_str(), "" | "." | "..") {
            self.fault.get_or_insert_with(|| format!("{id:?} can't be used as a name here: use the id"));
        }
        self.text.push('/');
        encode(&mut self.text, id.as_bytes());
        self
    }

    /// Appends the path of a file; `/`, `.` and the empty path mean the workspace.
    pub(super) fn file(mut self, path: &[u8]) -> Self {
        let segments = || path.split(|byte| *byte == b'/');
        if segments().any(|segment| segment == b"..") {
            let path = String::from_utf8_lossy(path);
            self.fault.get_or_insert_with(|| format!("{path:?} contains '..': write the path without it"));
        }
        for segment in segments().filter(|segment| !matches!(*segment, b"" | b".")) {
            self.text.push('/');
            encode(&mut self.text, segment);
        }
        self
    }

    /// The path as text, relative to the prefix.
    pub(super) fn finish(self) -> Result<String> {
        match self.fault {
            Some(fault) => Err(ClientError::Input(fault)),
            None => Ok(self.text),
        }
    }
}

fn encode(into: &mut String, segment: &[u8]) {
    for &byte in segment {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            into.push(char::from(byte));
        } else {
            // Writing to a String can't fail.
            let _ = write!(into, "%{byte:02X}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_one_segment() {
        for (name, expected) in [
            ("demo", Some("sessions/demo")),
            ("Updated session name", Some("sessions/Updated%20session%20name")),
            ("../agents", Some("sessions/..%2Fagents")),
            ("größe?#%", Some("sessions/gr%C3%B6%C3%9Fe%3F%23%25")),
            ("...", Some("sessions/...")),
            ("..", None),
            (".", None),
            ("", None),
        ] {
            assert_eq!(Path::new("sessions").id(name).finish().ok().as_deref(), expected, "{name:?}");
        }
    }

    #[test]
    fn files_stay_in_the_workspace() {
        for (path, expected) in [
            ("", Some("files")),
            (".", Some("files")),
            ("/", Some("files")),
            ("a/b c.txt", Some("files/a/b%20c.txt")),
            ("/a//./b", Some("files/a/b")),
            ("a/../b", None),
            ("..", None),
            ("..a", Some("files/..a")),
        ] {
            assert_eq!(Path::new("files").file(path.as_bytes()).finish().ok().as_deref(), expected, "{path:?}");
        }
    }
}
