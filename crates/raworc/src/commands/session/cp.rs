//! `raworc session cp`: copies files and directories, like `docker cp`.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, BufWriter, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use clap::Args;
use futures::stream::{BoxStream, StreamExt as _};
use raworc_api::client::{Client, ClientError, FileBody};
use raworc_api::image::LEFT_OUT_HEADER;
use raworc_api::workspace::FileKind;
use raworc_core::limits::{ARCHIVE_BYTES_MAX, ARCHIVE_ENTRIES_MAX};
use raworc_core::link::WORKSPACE_PATH;
use raworc_workspace::{PackSource, UnpackOptions, UnpackStats, unpack_into};
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio_util::io::{ReaderStream, SyncIoBridge};

use super::files::{Version, shown, standard_input};
use crate::context::Context;
use crate::failure::{Failure, Result};
use crate::output::Ui;
use crate::progress::Progress;
use crate::text::bytes as size;

/// Bytes of an archive that are buffered between reader and writer.
const PIPE_BYTES: usize = 256 * 1024;
/// Permission bits that local files may get: no setuid, setgid or sticky bit.
const MODE_MASK: u32 = 0o777;

/// Copy files and directories between this machine and a session, even one without a container.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  raworc session cp ./data demo:data\n  raworc session cp demo:result.csv .\n  \
    raworc session cp demo:src/. ./copy\n  raworc session cp demo:src - | tar tv\n  tar c src | raworc session cp - demo:new\n\n\
    As docker cp: where DST is a directory, SRC goes into it (of SRC/. what is in it); otherwise it becomes DST. \
    A local path with a ':' is written with a '/' before it, such as ./a:b.")]
pub struct Cp {
    /// The source: PATH, SESSION:PATH relative to the workspace, or '-' for a tar on standard input.
    src: OsString,
    /// The destination: PATH, SESSION:PATH, or '-' for a tar on standard output.
    dst: OsString,
    /// Follow SRC if it is a symbolic link.
    #[arg(short = 'L', long)]
    follow_link: bool,
    #[command(flatten)]
    version: Version,
}

/// The source or destination of a copy.
#[derive(Debug, PartialEq, Eq)]
enum CopyEnd {
    Pipe,
    Local(PathBuf),
    Session(String, Vec<u8>),
}

/// Runs the command.
pub async fn run(context: &Context, args: Cp) -> Result<()> {
    let client = context.client()?;
    let version = args.version.name();
    let follow = args.follow_link;
    match (parse_end(&args.src)?, parse_end(&args.dst)?) {
        (CopyEnd::Session(session, path), CopyEnd::Pipe) => {
            let mut archive = client.read_archive(&session, version, &path, follow).await?;
            while let Some(chunk) = archive.chunk().await? {
                context.ui.out(chunk)?;
            }
            note_left_out(context.ui, archive.number(LEFT_OUT_HEADER).unwrap_or(0));
            Ok(())
        }
        (CopyEnd::Session(session, path), CopyEnd::Local(local)) => {
            let remote = Remote { client: &client, session: &session, version, path: &path };
            download(context, &remote, &local, follow).await
        }
        (CopyEnd::Pipe | CopyEnd::Local(_), CopyEnd::Session(..)) if version.is_some() => {
            Err(Failure::usage("a checkpoint never changes: --checkpoint is for what is copied from a session"))
        }
        (CopyEnd::Pipe, CopyEnd::Session(session, path)) => {
            let remote = Remote { client: &client, session: &session, version, path: &path };
            send(context, &remote, &path, standard_input()?, &AtomicU64::new(0)).await
        }
        (CopyEnd::Local(local), CopyEnd::Session(session, path)) => {
            let remote = Remote { client: &client, session: &session, version, path: &path };
            upload(context, &local, &remote, follow).await
        }
        (CopyEnd::Session(..), CopyEnd::Session(..)) => Err(Failure::usage("one of SRC and DST has to be local")
            .help("`raworc session cp ONE:PATH - | raworc session cp - TWO:PATH` copies between sessions.")),
        (_, _) => Err(Failure::usage("one of SRC and DST has to be SESSION:PATH")),
    }
}

/// Parses an argument. The text before the first ':' names a session unless it looks like a path.
fn parse_end(argument: &OsStr) -> Result<CopyEnd> {
    let text = argument.as_bytes();
    if text == b"-" {
        return Ok(CopyEnd::Pipe);
    }
    let colon = text.iter().position(|byte| *byte == b':').filter(|colon| !text[..*colon].contains(&b'/'));
    let Some(colon) = colon.filter(|colon| *colon > 0) else {
        return Ok(CopyEnd::Local(argument.into()));
    };
    let session = String::from_utf8(text[..colon].to_vec());
    let session = session.map_err(|_| Failure::usage("the name of a session is UTF-8"))?;
    let path = &text[colon + 1..];
    if !path.starts_with(b"/") {
        return Ok(CopyEnd::Session(session, path.to_vec()));
    }
    // Accepts absolute paths as in the container.
    match path.strip_prefix(WORKSPACE_PATH.as_bytes()) {
        Some(rest) if rest.is_empty() || rest.starts_with(b"/") => Ok(CopyEnd::Session(session, rest.to_vec())),
        _ => Err(Failure::usage(format!("{} is not in {WORKSPACE_PATH}, and nothing else can be copied", shown(path)))),
    }
}

/// A path in a session's workspace.
struct Remote<'a> {
    client: &'a Client,
    session: &'a str,
    version: Option<&'a str>,
    path: &'a [u8],
}

impl Remote<'_> {
    async fn kind(&self, follow: bool) -> Result<Option<FileKind>> {
        match self.client.file_kind(self.session, self.version, self.path, follow).await {
            // The answer to HEAD has no body with the error.
            Err(error @ ClientError::Protocol(_)) => {
                let said = self.client.read_file(self.session, self.version, self.path).await;
                Err(said.err().unwrap_or(error).into())
            }
            found => Ok(found?),
        }
    }
}

/// The last component of a path; `None` if it stands for a directory's content.
fn name_of(path: &[u8]) -> Option<&[u8]> {
    let name = trimmed(path).rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    (!matches!(name, b"" | b"." | b"..")).then_some(name)
}

fn trimmed(path: &[u8]) -> &[u8] {
    let end = path.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
    &path[..end]
}

fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if trimmed(directory).is_empty() { name.to_vec() } else { [trimmed(directory), b"/", name].concat() }
}

/// Splits a path into directory and last component.
fn split(path: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let path = trimmed(path);
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (path[..slash].to_vec(), path[slash + 1..].to_vec()),
        None => (Vec::new(), path.to_vec()),
    }
}

fn exists(remote: &[u8]) -> Failure {
    Failure::usage(format!("{} is no directory, and SRC is one", shown(remote)))
}

async fn upload(context: &Context, local: &Path, to: &Remote<'_>, follow: bool) -> Result<()> {
    let wrong = |error: &dyn std::fmt::Display| {
        Failure::usage(format!("{} can't be read: {error}", shown(local.as_os_str().as_bytes())))
    };
    let source = local.as_os_str().as_bytes();
    let there = to.kind(true).await?;
    let is_directory = match fs::metadata(local) {
        Ok(found) if follow || name_of(source).is_none() || source.ends_with(b"/") => found.is_dir(),
        _ => fs::symlink_metadata(local).map_err(|error| wrong(&error))?.is_dir(),
    };
    let means_directory = to.path.is_empty() || to.path.ends_with(b"/") || to.path.ends_with(b"/.");
    let into = match (is_directory, there) {
        (true, Some(FileKind::Directory)) => match name_of(source) {
            Some(name) if !source.ends_with(b"/.") => join(to.path, name),
            _ => to.path.to_vec(),
        },
        (true, None) => to.path.to_vec(),
        (true, Some(_)) => return Err(exists(to.path)),
        (false, Some(FileKind::Directory)) => join(to.path, name_of(source).unwrap_or_default()),
        (false, None) if means_directory => {
            return Err(Failure::usage(format!("there is no directory {}", shown(to.path)))
                .help("Without the '/' at its end, it is what the copy is to be called."));
        }
        (false, _) => to.path.to_vec(),
    };
    // A file is unpacked into its directory, under its name.
    let (directory, name) = if is_directory { (into.clone(), Vec::new()) } else { split(&into) };
    let follow = follow || is_directory;
    let packing = PackSource::local(local, follow, &name).map_err(|error| wrong(&error))?;
    let (writer, reader) = tokio::io::duplex(PIPE_BYTES);
    let writer = SyncIoBridge::new(writer);
    let packing = tokio::task::spawn_blocking(move || {
        let mut writer = BufWriter::with_capacity(PIPE_BYTES / 4, writer);
        let packed = packing.write(&mut writer).map_err(io::Error::other)?;
        writer.flush()?;
        writer.into_inner().map_err(io::IntoInnerError::into_error)?.shutdown()?;
        Ok::<_, io::Error>(packed)
    });
    let left_out = Arc::new(AtomicU64::new(0));
    let told = Arc::clone(&left_out);
    // A read error fails the request instead of truncating the archive.
    let ended = futures::stream::once(async move {
        let packed = packing.await.map_err(io::Error::other)??;
        told.store(packed.left_out, Ordering::Relaxed);
        Ok::<_, io::Error>(())
    });
    let ended = ended.filter_map(async |outcome: io::Result<()>| outcome.err().map(Err));
    let archive = ReaderStream::new(reader).chain(ended).boxed();
    send(context, &Remote { path: &directory, ..*to }, &into, archive, &left_out).await
}

/// Sends an archive to the directory `to`. `left_out` gives the number of omitted entries once all is sent.
async fn send(
    context: &Context,
    to: &Remote<'_>,
    named: &[u8],
    archive: BoxStream<'static, io::Result<Bytes>>,
    left_out: &AtomicU64,
) -> Result<()> {
    let progress = Arc::new(Progress::start(&context.ui, "copying"));
    let shows = Arc::clone(&progress);
    let mut sent = 0;
    let archive = archive.inspect(move |chunk| {
        sent += chunk.as_ref().map_or(0, Bytes::len) as u64;
        shows.set_text(&format!("copying: {}", size(sent)));
    });
    let mut unpacked = to.client.write_archive(to.session, to.path, archive).await?;
    drop(progress);
    unpacked.left_out += left_out.load(Ordering::Relaxed);
    note_left_out(context.ui, unpacked.left_out);
    context.ui.show(&unpacked, |unpacked| sentence(unpacked.entries, unpacked.size_bytes, &shown(named)))
}

async fn download(context: &Context, from: &Remote<'_>, local: &Path, follow: bool) -> Result<()> {
    let target = local.as_os_str().as_bytes();
    let wrong = |what: &str| Failure::usage(format!("{} {what}", shown(target)));
    let means_content = name_of(from.path).is_none() || from.path.ends_with(b"/.");
    let kind = from.kind(follow || means_content || from.path.ends_with(b"/")).await?;
    let follow = follow || kind == Some(FileKind::Directory);
    let is_directory = kind == Some(FileKind::Directory);
    let there = fs::metadata(local).ok();
    let into = match there {
        Some(there) if there.is_dir() => match name_of(from.path) {
            Some(name) if !(is_directory && means_content) => local.join(OsStr::from_bytes(name)),
            _ => local.to_owned(),
        },
        Some(_) if is_directory => return Err(wrong("is no directory, and SRC is one")),
        Some(_) => local.to_owned(),
        None if !is_directory && target.ends_with(b"/") => return Err(wrong("is no directory")),
        None => local.to_owned(),
    };
    let archive = from.client.read_archive(from.session, from.version, from.path, follow).await?;
    let unpacked = receive(context, archive, into.clone(), is_directory, into == local).await?;
    note_left_out(context.ui, unpacked.left_out);
    let named = shown(into.as_os_str().as_bytes());
    let document = json!({ "entries": unpacked.entries, "size_bytes": unpacked.bytes, "left_out": unpacked.left_out });
    context.ui.show(&document, |_| sentence(unpacked.entries, unpacked.bytes, &named))
}

/// Unpacks an archive while it is received.
async fn receive(
    context: &Context,
    mut archive: FileBody,
    into: PathBuf,
    is_directory: bool,
    is_named: bool,
) -> Result<UnpackStats> {
    let (mut writer, reader) = tokio::io::duplex(PIPE_BYTES);
    let reader = SyncIoBridge::new(reader);
    let unpacking = tokio::task::spawn_blocking(move || unpack(&into, is_directory, is_named, reader));
    let progress = Progress::start(&context.ui, "copying");
    let mut received = 0;
    let mut broken = None;
    loop {
        match archive.chunk().await {
            Ok(Some(chunk)) => {
                received += chunk.len() as u64;
                progress.set_text(&format!("copying: {}", size(received)));
                // The unpacking thread has failed and reports why.
                if writer.write_all(&chunk).await.is_err() {
                    break;
                }
            }
            Ok(None) => break,
            Err(error) => {
                broken = Some(error);
                break;
            }
        }
    }
    drop(writer);
    let unpacked = unpacking.await.map_err(|error| Failure::failed(error.to_string()))?;
    match (broken, unpacked) {
        (Some(error), _) => Err(error.into()),
        (None, Ok(unpacked)) => {
            let left_out = unpacked.left_out + archive.number(LEFT_OUT_HEADER).unwrap_or(0);
            Ok(UnpackStats { left_out, ..unpacked })
        }
        (None, Err(error)) => Err(error),
    }
}

/// `is_named`: `into` is the path that was typed, not a name within that directory.
fn unpack(into: &Path, is_directory: bool, is_named: bool, mut archive: impl Read) -> Result<UnpackStats> {
    let wrong =
        |error: &dyn std::fmt::Display| Failure::failed(format!("{} can't be written: {error}", into.display()));
    let mut how = UnpackOptions {
        bytes_max: ARCHIVE_BYTES_MAX,
        entries_max: ARCHIVE_ENTRIES_MAX,
        mode_mask: MODE_MASK,
        name: None,
    };
    let mut is_new = false;
    let directory = if is_directory {
        match fs::create_dir(into) {
            Ok(()) => is_new = true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(wrong(&error)),
        }
        // An earlier copy may have created this link, so its target is not trusted.
        if !is_named && fs::symlink_metadata(into).is_ok_and(|found| found.is_symlink()) {
            let help = "Remove it first, or name what it leads to as the destination.";
            return Err(wrong(&"it is a symbolic link, which is not followed").help(help));
        }
        into
    } else {
        let (parent, name) = split(into.as_os_str().as_bytes());
        how.name = Some(name);
        &PathBuf::from(OsString::from_vec(match (parent.is_empty(), into.is_absolute()) {
            (true, true) => b"/".to_vec(),
            (true, false) => b".".to_vec(),
            (false, _) => parent,
        }))
    };
    let open = fs::File::open(directory).map_err(|error| wrong(&error))?;
    let unpacked = unpack_into(&OwnedFd::from(open), is_new, &mut archive, &how).map_err(|error| wrong(&error))?;
    // Read to the end, to know that the archive is complete.
    io::copy(&mut archive, &mut io::sink()).map_err(|error| wrong(&error))?;
    Ok(unpacked)
}

fn sentence(entries: u64, bytes: u64, to: &str) -> String {
    let to = if to.is_empty() { WORKSPACE_PATH } else { to };
    let what = if entries == 1 { "1 entry".to_owned() } else { format!("{entries} entries") };
    format!("Copied {what} ({}) to {to}", size(bytes))
}

fn note_left_out(ui: Ui, left_out: u64) {
    if left_out > 0 {
        ui.note(&format!("{left_out} of what is in it could not be kept (sockets, devices, some attributes, directories below 512 levels)"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_apart() {
        let session = |name: &str, path: &str| Some(CopyEnd::Session(name.into(), path.into()));
        for (text, expected) in [
            ("-", Some(CopyEnd::Pipe)),
            ("demo:", session("demo", "")),
            ("demo:a/b:c", session("demo", "a/b:c")),
            ("demo:/workspace", session("demo", "")),
            ("demo:/workspace/a", session("demo", "/a")),
            ("demo:/etc/passwd", None),
            ("demo:/workspaces", None),
            ("./a:b", Some(CopyEnd::Local("./a:b".into()))),
            (":a", Some(CopyEnd::Local(":a".into()))),
            ("/a", Some(CopyEnd::Local("/a".into()))),
        ] {
            assert_eq!(parse_end(OsStr::new(text)).ok(), expected, "{text}");
        }
    }
}
