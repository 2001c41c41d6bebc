//! `raworc session files`.

use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use clap::{Args, Subcommand};
use futures::stream::{self, BoxStream, StreamExt as _};
use raworc_api::client::Content;
use raworc_api::workspace::{FileEntry, FileKind, Listing, ReadFile, WriteFile};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::context::Context;
use crate::failure::{Failure, Result};
use crate::output::table;
use crate::text::{at, bytes, clean};

/// Bytes of a local file per read.
const CHUNK_BYTES: usize = 64 * 1024;

/// Commands about files of a workspace. They also work for a session without a container.
#[derive(Debug, Subcommand)]
pub enum Files {
    /// List a directory.
    #[command(
        visible_alias = "list",
        after_help = "Examples:\n  raworc session files ls demo\n  raworc session files ls demo src\n  \
                      raworc session files ls demo src --checkpoint 3"
    )]
    Ls {
        /// The session's id or name.
        session: String,
        /// The directory, relative to the workspace [default: the workspace].
        #[arg(default_value = "", hide_default_value = true)]
        path: OsString,
        #[command(flatten)]
        version: Version,
    },
    /// Print a file of the workspace.
    #[command(
        visible_alias = "read",
        after_help = "Examples:\n  raworc session files cat demo result.csv > result.csv\n  \
                      raworc session files cat demo result.csv --checkpoint works"
    )]
    Cat {
        /// The session's id or name.
        session: String,
        /// The file, relative to the workspace.
        path: OsString,
        #[command(flatten)]
        version: Version,
    },
    /// Write a local file, or standard input, to the workspace.
    #[command(
        visible_alias = "write",
        after_help = "Examples:\n  raworc session files put demo ./data.csv data/data.csv\n  \
                      date | raworc session files put demo - now.txt"
    )]
    Put {
        /// The session's id or name.
        session: String,
        /// The local file; '-' is standard input.
        local: PathBuf,
        /// The destination, relative to the workspace [default: the local file's name].
        path: Option<OsString>,
        /// Permission bits, such as 0755 [default: those of an existing file, or 0644].
        #[arg(long)]
        mode: Option<String>,
    },
    /// Delete a file, or a directory with its content.
    #[command(visible_alias = "delete", after_help = "Example:\n  raworc session files rm demo data")]
    Rm {
        /// The session's id or name.
        session: String,
        /// The path, relative to the workspace.
        path: OsString,
    },
}

/// The version of a workspace to read.
#[derive(Debug, Args)]
pub struct Version {
    /// Read from the checkpoint with this number or label [default: the current state].
    #[arg(long, value_name = "N")]
    checkpoint: Option<String>,
}

impl Version {
    /// The checkpoint, if one is given.
    pub fn name(&self) -> Option<&str> {
        self.checkpoint.as_deref()
    }
}

/// Runs the command.
pub async fn run(context: &Context, command: Files) -> Result<()> {
    match command {
        Files::Ls { session, path, version } => ls(context, &session, &path, &version).await,
        Files::Cat { session, path, version } => cat(context, &session, &path, &version).await,
        Files::Put { session, local, path, mode } => put(context, &session, &local, path, mode).await,
        Files::Rm { session, path } => {
            context.client()?.delete_file(&session, path.as_bytes()).await?;
            context.ui.show(&json!({}), |_| format!("Deleted {}", shown(path.as_bytes())))
        }
    }
}

async fn ls(context: &Context, session: &str, path: &OsStr, version: &Version) -> Result<()> {
    let (client, version) = (context.client()?, version.checkpoint.as_deref());
    let mut listing = match client.read_file(session, version, path.as_bytes()).await? {
        Content::File(_) => {
            let path = shown(path.as_bytes());
            return Err(Failure::usage(format!("{path} is a file"))
                .help(format!("`raworc session files cat {} {path}` reads it.", clean(session))));
        }
        Content::Directory(listing) => listing,
    };
    while let Some(cursor) = listing.next_cursor.take() {
        let query = ReadFile { cursor: Some(cursor), ..ReadFile::default() };
        let more = client.list_files(session, version, path.as_bytes(), &query).await?;
        listing.entries.extend(more.entries);
        listing.next_cursor = more.next_cursor;
    }
    listing.truncated = false;
    if context.ui.is_json() {
        context.ui.json(&listing)
    } else if listing.entries.is_empty() {
        context.ui.note("the directory is empty");
        Ok(())
    } else {
        context.ui.line(&rows(&listing))
    }
}

fn rows(listing: &Listing) -> String {
    let row = |entry: &FileEntry| {
        let mut name = shown(&entry.bytes());
        match entry.kind {
            FileKind::Directory => name.push('/'),
            FileKind::Symlink => name.push_str(&format!(" → {}", shown(&entry.target_bytes().unwrap_or_default()))),
            FileKind::File | FileKind::Other => {}
        }
        let size = if entry.kind == FileKind::File { bytes(entry.size) } else { "-".to_owned() };
        vec![format!("{:04o}", entry.mode & 0o7777), size, at(entry.modified_at), name]
    };
    table(&["MODE", "SIZE", "MODIFIED", "NAME"], listing.entries.iter().map(row).collect())
}

async fn cat(context: &Context, session: &str, path: &OsStr, version: &Version) -> Result<()> {
    let name = shown(path.as_bytes());
    let client = context.client()?;
    let mut file = match client.read_file(session, version.checkpoint.as_deref(), path.as_bytes()).await? {
        Content::File(file) => file,
        Content::Directory(_) => {
            return Err(Failure::usage(format!("{name} is a directory"))
                .help(format!("`raworc session files ls {} {name}` lists it.", clean(session))));
        }
    };
    if context.ui.is_json() {
        let all = file.bytes().await?;
        let content = String::from_utf8(all).map_err(|_| {
            Failure::usage(format!("{name} is not text")).help("Leave --output json out to get its bytes.")
        })?;
        let path = path.to_string_lossy();
        return context.ui.json(&json!({ "path": path, "size": content.len(), "content": content }));
    }
    while let Some(chunk) = file.chunk().await? {
        context.ui.out(chunk)?;
    }
    Ok(())
}

async fn put(
    context: &Context,
    session: &str,
    local: &Path,
    path: Option<OsString>,
    mode: Option<String>,
) -> Result<()> {
    let client = context.client()?;
    let path = match path {
        Some(path) => path,
        None => name_of(local)?,
    };
    let content = if local == Path::new("-") { standard_input()? } else { open(local).await? };
    client.write_file(session, path.as_bytes(), &WriteFile { mode, follow: None }, content).await?;
    context.ui.show(&json!({ "path": path.to_string_lossy() }), |_| format!("Wrote {}", shown(path.as_bytes())))
}

/// A name for a terminal; bytes that are not UTF-8 become `\xFF`.
pub fn shown(name: &[u8]) -> String {
    let parts = name.utf8_chunks().map(|chunk| {
        let bytes: String = chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")).collect();
        clean(chunk.valid()) + &bytes
    });
    parts.collect()
}

fn name_of(local: &Path) -> Result<OsString> {
    let name = local.file_name().filter(|name| *name != "-");
    let name = name.ok_or_else(|| Failure::usage("say what the file is to be called in the workspace"))?;
    Ok(name.to_owned())
}

/// Streams a file.
pub async fn open(local: &Path) -> Result<BoxStream<'static, std::io::Result<Bytes>>> {
    let wrong = |what: &str| Failure::usage(format!("{} {what}", clean(&local.display().to_string())));
    let file = tokio::fs::File::open(local).await.map_err(|error| wrong(&format!("can't be read: {error}")))?;
    let is_directory = file.metadata().await.is_ok_and(|metadata| metadata.is_dir());
    if is_directory { Err(wrong("is a directory").help("Write its files one by one.")) } else { Ok(chunks(file)) }
}

/// Streams standard input.
pub fn standard_input() -> Result<BoxStream<'static, std::io::Result<Bytes>>> {
    let descriptor = std::io::stdin().as_fd().try_clone_to_owned();
    let descriptor = descriptor.map_err(|error| Failure::usage(format!("standard input can't be read: {error}")))?;
    Ok(chunks(tokio::fs::File::from_std(descriptor.into())))
}

fn chunks(source: impl AsyncRead + Send + Unpin + 'static) -> BoxStream<'static, std::io::Result<Bytes>> {
    stream::try_unfold(source, |mut source| async move {
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        let count = source.read_buf(&mut chunk).await?;
        Ok((count > 0).then(|| (Bytes::from(chunk), source)))
    })
    .boxed()
}
