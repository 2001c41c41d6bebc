//! Tools for files of the workspace. The server does them itself: they work in containers without any program, and no path leads out.

use std::io::Read as _;

use raworc_core::link::WORKSPACE_PATH;
use raworc_store::sessions::{self, SessionRow};
use raworc_workspace::{
    Entries, EntryKind, ExistingEntry, FileError, OpenEntry, Version, Workspace, WriteOptions, list as entries_of,
};

use super::{Bench, Input, ToolError, ToolResult};
use crate::layers::workspace_access;
use crate::verbs::files::refuse_over_quota;

/// Longest file that is read or edited, in bytes.
const FILE_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// Longest file that is written, in bytes.
const WRITTEN_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// Entries of a directory that are shown.
const ENTRIES_MAX: usize = 1000;

/// Reads a file, or some of its lines.
pub(super) async fn read(bench: &Bench<'_>, input: &Input<'_>) -> Result<ToolResult, ToolError> {
    let path = below(input.text("path")?)?;
    let (first, lines) = (input.optional_number("first_line")?, input.optional_number("lines")?);
    let (text, _) = content(bench, path).await?;
    if first.is_none() && lines.is_none() {
        return Ok(ToolResult::done(text));
    }
    let (skipped, wanted) = (first.unwrap_or(1) - 1, lines.unwrap_or(u64::MAX));
    let all = text.split_inclusive('\n').count();
    let (skipped, wanted) =
        (usize::try_from(skipped).unwrap_or(usize::MAX), usize::try_from(wanted).unwrap_or(usize::MAX));
    let shown: String = text.split_inclusive('\n').skip(skipped).take(wanted).collect();
    if shown.is_empty() {
        return Err(ToolError::Input(format!("the file has {all} lines only")));
    }
    Ok(ToolResult::done(shown))
}

/// Writes a file.
pub(super) async fn write(bench: &Bench<'_>, input: &Input<'_>) -> Result<ToolResult, ToolError> {
    let (path, content) = (below(input.text("path")?)?, input.text("content")?.to_owned());
    let bytes = content.len();
    let is_new = replace(bench, path, content, None).await?;
    Ok(ToolResult::done(format!(
        "{} {bytes} bytes",
        if is_new { "made a file of" } else { "replaced the file; it has" }
    )))
}

/// Replaces a text in a file.
pub(super) async fn edit(bench: &Bench<'_>, input: &Input<'_>) -> Result<ToolResult, ToolError> {
    let path = below(input.text("path")?)?;
    let (old, new, all) = (input.text("old_text")?, input.text("new_text")?, input.flag("replace_all"));
    if old.is_empty() {
        return Err(ToolError::Input("old_text is empty; write_file replaces a whole file".into()));
    }
    let (text, version) = content(bench, path.clone()).await?;
    let count = text.matches(old).count();
    match count {
        0 => {
            return Err(ToolError::Input(
                "old_text is not in the file; read it again, and copy the text exactly".into(),
            ));
        }
        2.. if !all => {
            let why =
                format!("old_text is in the file {count} times; give more of what is around it, or set replace_all");
            return Err(ToolError::Input(why));
        }
        _ => {}
    }
    // It is refused before it is made: a short text may be replaced by a long one very often.
    let bytes = (new.len().checked_mul(count)).and_then(|added| (text.len() - old.len() * count).checked_add(added));
    if bytes.is_none_or(|bytes| bytes as u64 > WRITTEN_BYTES_MAX) {
        return Err(ToolError::Input(format!("the file would have more than {WRITTEN_BYTES_MAX} bytes")));
    }
    replace(bench, path, text.replace(old, new), Some(version)).await?;
    Ok(ToolResult::done(format!("replaced {count} times")))
}

/// Lists a directory.
pub(super) async fn list(bench: &Bench<'_>, input: &Input<'_>) -> Result<ToolResult, ToolError> {
    let path = below(input.optional_text("path")?.unwrap_or_default())?;
    let workspace = workspace_access::open_now(bench.app, bench.session).await?;
    let found =
        workspace_access::read(workspace, move |workspace: &Workspace| match workspace.open_entry(&path, true)? {
            OpenEntry::Directory(directory) => entries_of(&directory, None, ENTRIES_MAX),
            OpenEntry::File(..) | OpenEntry::Symlink(..) => {
                Err(FileError::WrongKind("it is a file; read_file reads it"))
            }
        });
    Ok(ToolResult::done(listing(&found.await?)))
}

fn listing(found: &Entries) -> String {
    let line = |entry: &raworc_workspace::Entry| {
        let name = String::from_utf8_lossy(&entry.name);
        match (entry.kind, &entry.target) {
            (EntryKind::Directory, _) => format!("{name}/"),
            (_, Some(target)) => format!("{name} -> {}", String::from_utf8_lossy(target)),
            (EntryKind::File, None) => format!("{name}  {} bytes", entry.size),
            (_, None) => format!("{name}  (no file)"),
        }
    };
    let mut lines: Vec<String> = found.entries.iter().map(line).collect();
    if found.next.is_some() {
        lines.push("[there are more]".to_owned());
    }
    if lines.is_empty() { "[it is empty]".to_owned() } else { lines.join("\n") }
}

/// The text of a file, and its version.
async fn content(bench: &Bench<'_>, path: Vec<u8>) -> Result<(String, Version), ToolError> {
    let workspace = workspace_access::open_now(bench.app, bench.session).await?;
    let (bytes, version) =
        workspace_access::read(workspace, move |workspace: &Workspace| match workspace.open_entry(&path, true)? {
            OpenEntry::File(mut file, version) => {
                let mut bytes = Vec::new();
                file.by_ref().take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
                if bytes.len() as u64 > FILE_BYTES_MAX { Err(FileError::TooLarge) } else { Ok((bytes, version)) }
            }
            OpenEntry::Directory(_) => Err(FileError::WrongKind("it is a directory; list_files lists it")),
            OpenEntry::Symlink(..) => Err(FileError::NotFound),
        })
        .await?;
    let text = String::from_utf8(bytes)
        .map_err(|_| ToolError::Input("the file is no text in UTF-8; look at it with bash".into()))?;
    Ok((text, version))
}

/// Writes a file, where it still has this version; whether it is new.
async fn replace(
    bench: &Bench<'_>,
    path: Vec<u8>,
    content: String,
    version: Option<Version>,
) -> Result<bool, ToolError> {
    let guard = bench.app.session_locks.lock(bench.session.id).await;
    // The turn may have ended, and the session gone back or given its room away, before the lock was ours.
    let row = {
        let mut connection = bench.app.store.read().await?;
        sessions::find(&mut connection, bench.session.id).await?
    };
    let is_current = |row: &SessionRow| bench.turn.is_current(&row.machine);
    let Some(row) = row.filter(is_current) else {
        return Err(ToolError::Input("the turn is over".into()));
    };
    refuse_over_quota(bench.app, &row, content.len() as u64).await?;
    let written = workspace_access::change(bench.app, guard, move |workspace: &Workspace| {
        let allows = |present: Option<&ExistingEntry<'_>>| {
            let present = present.map(ExistingEntry::version).transpose()?.flatten();
            Ok(version
                .as_ref()
                .is_none_or(|version| present.as_ref().is_some_and(|present| present.tag == version.tag)))
        };
        let how = WriteOptions { follow: true, mode: None, bytes_max: WRITTEN_BYTES_MAX, allows: &allows };
        workspace.write(&path, &mut content.as_bytes(), &how)
    })
    .await?;
    Ok(written.is_new)
}

/// A path of the workspace, relative to it.
fn below(path: &str) -> Result<Vec<u8>, ToolError> {
    let relative = match path.strip_prefix(WORKSPACE_PATH) {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => rest.trim_start_matches('/'),
        _ if path.starts_with('/') => {
            let why = format!("{path:?} is outside of {WORKSPACE_PATH}; bash can look at what is there");
            return Err(ToolError::Input(why));
        }
        _ => path,
    };
    let parts = relative.split('/').filter(|part| !part.is_empty() && *part != ".");
    Ok(parts.collect::<Vec<_>>().join("/").into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        for (path, expected) in [
            ("a/b", Some("a/b")),
            ("./a", Some("a")),
            (".", Some("")),
            ("", Some("")),
            ("/workspace", Some("")),
            ("/workspace/a//b/", Some("a/b")),
            ("/workspaces/a", None),
            ("/etc/passwd", None),
            // What leads out is refused where it is resolved.
            ("../x", Some("../x")),
        ] {
            let found = below(path).ok().map(|path| String::from_utf8(path).unwrap_or_default());
            assert_eq!(found.as_deref(), expected, "{path:?}");
        }
    }
}
