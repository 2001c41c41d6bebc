//! `raworc checkpoint`.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use raworc_api::checkpoint::{
    ChangeKind, Checkpoint as Record, CheckpointStatus, CreateCheckpoint, Diff, DiffQuery, ListCheckpoints,
};
use raworc_api::client::Client;
use raworc_api::image::{LEFT_OUT_HEADER, PushCheckpoint};
use raworc_api::page::PageQuery;
use tokio::io::AsyncWriteExt as _;

use crate::commands::image::{self, Login, transfer};
use crate::commands::list::{self, Paging};
use crate::context::Context;
use crate::failure::{Failure, Result};
use crate::output::{Ui, table};
use crate::progress::Progress;
use crate::text::{ago, bytes, clean, span};

/// Manage versions of a session's workspace. SESSION is an id or a name.
#[derive(Debug, Subcommand)]
pub enum Checkpoint {
    /// Take a checkpoint of a session's workspace now.
    #[command(after_help = "Example:\n  raworc checkpoint create demo --label before-the-upgrade")]
    Create {
        /// The session's id or name.
        session: String,
        /// A label; labelled checkpoints are not deleted automatically.
        #[arg(long, value_name = "NAME")]
        label: Option<String>,
    },
    /// List the checkpoints of a session, oldest first.
    #[command(visible_alias = "ls", after_help = "Example:\n  raworc checkpoint list demo")]
    List {
        /// The session's id or name.
        session: String,
        #[command(flatten)]
        paging: Paging,
    },
    /// Show one checkpoint.
    #[command(after_help = "Example:\n  raworc checkpoint get demo 3")]
    Get {
        /// The session's id or name.
        session: String,
        /// The checkpoint's number or label.
        #[arg(value_name = "N")]
        version: String,
    },
    /// Delete a checkpoint.
    #[command(visible_alias = "rm", after_help = "Example:\n  raworc checkpoint delete demo 3")]
    Delete {
        /// The session's id or name.
        session: String,
        /// The checkpoint's number or label.
        #[arg(value_name = "N")]
        version: String,
    },
    /// Show what changed between two checkpoints, or between one and now.
    #[command(
        after_help = "Examples:\n  raworc checkpoint diff demo\n  raworc checkpoint diff demo --from 2 --to 5\n  \
                            raworc checkpoint diff demo --from 2 --path src/main.rs\n  \
                            raworc checkpoint diff one --from other@now"
    )]
    Diff {
        /// The session's id or name.
        session: String,
        /// The earlier version: a number or label, or SESSION@N of another session [default: the checkpoint before
        /// the later one].
        #[arg(long, value_name = "[SESSION@]N")]
        from: Option<String>,
        /// The later version: a number, a label, or now.
        #[arg(long, value_name = "N", default_value = "now")]
        to: String,
        /// Show the differing lines of this file only.
        #[arg(long, value_name = "PATH")]
        path: Option<String>,
    },
    /// Push a checkpoint to a registry, as an OCI image.
    #[command(after_help = "Examples:\n  raworc checkpoint push demo registry.example:5000/team/demo:v1\n  \
                            raworc checkpoint push demo@3 127.0.0.1:5000/demo:third")]
    Push {
        /// SESSION for its current state, or SESSION@N for the checkpoint with that number or label.
        #[arg(value_name = "SESSION[@N]")]
        session: String,
        /// The destination: REGISTRY/REPOSITORY:TAG.
        reference: String,
        #[command(flatten)]
        login: Login,
    },
    /// Pull a checkpoint from a registry; `raworc session create --from` starts a session from it.
    #[command(after_help = "Example:\n  raworc checkpoint pull registry.example:5000/team/demo:v1")]
    Pull {
        /// The source: REGISTRY/REPOSITORY:TAG or REGISTRY/REPOSITORY@DIGEST.
        reference: String,
        #[command(flatten)]
        login: Login,
    },
    /// Export a checkpoint to a file, as an OCI archive.
    #[command(after_help = "Examples:\n  raworc checkpoint export demo@3 demo.tar\n  \
                            raworc checkpoint export demo - | ssh there raworc checkpoint import - --name demo")]
    Export {
        /// SESSION for its current state, or SESSION@N for the checkpoint with that number or label.
        #[arg(value_name = "SESSION[@N]")]
        session: String,
        /// The file; '-' is standard output.
        file: PathBuf,
    },
    /// Import a checkpoint from a file or an OCI layout; `raworc session create --from` starts a session from it.
    #[command(after_help = "Example:\n  raworc checkpoint import demo.tar --name demo")]
    Import {
        /// The file, or the directory of an OCI layout; '-' is standard input.
        file: PathBuf,
        /// Its name on this server [default: the name in the archive].
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
    },
    /// Restore workspace and conversation of a checkpoint. The current state is saved as a checkpoint first.
    #[command(after_help = "Example:\n  raworc checkpoint restore demo 3")]
    Restore {
        /// The session's id or name.
        session: String,
        /// The checkpoint's number or label.
        #[arg(value_name = "N")]
        version: String,
    },
}

/// Runs the command.
pub async fn run(context: &Context, command: Checkpoint) -> Result<()> {
    let client = context.client()?;
    let ui = context.ui;
    match command {
        Checkpoint::Create { session, label } => {
            let checkpoint = client.create_checkpoint(&session, &CreateCheckpoint { label }).await?;
            ui.show(&checkpoint, |checkpoint| sentence(&session, checkpoint))?;
            match (checkpoint.status, checkpoint.error) {
                (CheckpointStatus::Failed, error) => Err(Failure::failed(error.unwrap_or_default())),
                _ => Ok(()),
            }
        }
        Checkpoint::List { session, paging } => {
            let fetch = async |page: PageQuery| {
                let query = ListCheckpoints { limit: page.limit, cursor: page.cursor };
                client.list_checkpoints(&session, &query).await
            };
            let page = paging.fetch(fetch).await?;
            list::show(context, &page, "there are no checkpoints", rows)
        }
        Checkpoint::Get { session, version } => {
            let checkpoint = client.get_checkpoint(&session, &version).await?;
            ui.show(&checkpoint, |checkpoint| rows(std::slice::from_ref(checkpoint)))
        }
        Checkpoint::Delete { session, version } => {
            let n = number(&client, &session, &version).await?;
            client.delete_checkpoint(&session, n).await?;
            ui.show(&serde_json::json!({ "deleted": n }), |_| format!("Checkpoint {n} is deleted"))
        }
        Checkpoint::Diff { session, from, to, path } => {
            let diff = client.diff(&session, &to, &DiffQuery { from, path }).await?;
            if ui.is_json() { ui.json(&diff) } else { show_diff(ui, &diff) }
        }
        Checkpoint::Push { session, reference, login } => {
            let (session, n) = version(&session);
            let body = PushCheckpoint { reference, credentials: login.credentials()? };
            let pushed = transfer(&ui, "pushing", async |tell| client.push_checkpoint(session, n, &body, tell).await);
            let pushed = pushed.await?;
            warn_of(ui, pushed.left_out);
            ui.show(&pushed, |pushed| {
                format!("Pushed checkpoint {} to {}\n{}", pushed.n, clean(&pushed.reference), clean(&pushed.digest))
            })
        }
        Checkpoint::Pull { reference, login } => image::pull(context, reference, login).await,
        Checkpoint::Export { session, file } => export(context, &session, &file).await,
        Checkpoint::Import { file, name } => image::import(context, &file, name).await,
        Checkpoint::Restore { session, version } => {
            let n = number(&client, &session, &version).await?;
            let session = client.restore_checkpoint(&session, n).await?;
            let name = clean(&session.name);
            ui.show(&session, |session| match session.rewinding_to {
                Some(_) => format!("Session {name} is going back to checkpoint {n}"),
                None => format!("Session {name} is back at checkpoint {n}; it wakes with the next message"),
            })
        }
    }
}

/// Splits `SESSION[@N]`.
fn version(text: &str) -> (&str, &str) {
    text.rsplit_once('@').filter(|(session, n)| !session.is_empty() && !n.is_empty()).unwrap_or((text, "now"))
}

/// The number of the checkpoint with this number or label.
pub async fn number(client: &Client, session: &str, version: &str) -> Result<u64> {
    match version.parse() {
        Ok(n) => Ok(n),
        Err(_) => Ok(client.get_checkpoint(session, version).await?.n),
    }
}

/// Writes an archive to a temporary file, which is renamed when it is complete.
async fn export(context: &Context, session: &str, file: &Path) -> Result<()> {
    let (session, n) = version(session);
    let mut archive = context.client()?.export_checkpoint(session, n).await?;
    warn_of(context.ui, archive.number(LEFT_OUT_HEADER).unwrap_or(0));
    if file == Path::new("-") {
        while let Some(chunk) = archive.chunk().await? {
            context.ui.out(chunk)?;
        }
        return Ok(());
    }
    let wrong = |error: std::io::Error| Failure::failed(format!("{} can't be written: {error}", file.display()));
    // Pipes and devices are written to directly.
    if std::fs::metadata(file).is_ok_and(|found| !found.is_file()) {
        let mut open = tokio::fs::OpenOptions::new().write(true).open(file).await.map_err(wrong)?;
        while let Some(chunk) = archive.chunk().await? {
            open.write_all(&chunk).await.map_err(wrong)?;
        }
        return open.flush().await.map_err(wrong);
    }
    let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let (new, path) = tempfile::NamedTempFile::new_in(directory).map_err(wrong)?.into_parts();
    let (mut new, mut written) = (tokio::fs::File::from_std(new), 0);
    let progress = Progress::start(&context.ui, "exporting");
    while let Some(chunk) = archive.chunk().await? {
        written += chunk.len() as u64;
        progress.set_text(&format!("exporting: {}", bytes(written)));
        new.write_all(&chunk).await.map_err(wrong)?;
    }
    new.sync_all().await.map_err(wrong)?;
    path.persist(file).map_err(|error| wrong(error.error))?;
    let shown = serde_json::json!({ "file": file, "size_bytes": written });
    context.ui.show(&shown, |_| format!("Wrote {} ({})", file.display(), bytes(written)))
}

/// Warns about entries that the archive lacks.
fn warn_of(ui: Ui, left_out: u64) {
    if left_out > 0 {
        let what = "sockets, devices, names that begin with .wh., attributes with = in their names";
        ui.note(&format!("{left_out} of what is in it has no form in an image, and was left out ({what})"));
    }
}

fn sentence(session: &str, checkpoint: &Record) -> String {
    let n = checkpoint.n;
    match checkpoint.status {
        CheckpointStatus::Ready => format!(
            "Checkpoint {n} of {}: {} in {} files, {} changed, after {}",
            clean(session),
            bytes(checkpoint.size_bytes),
            checkpoint.files,
            bytes(checkpoint.changed_bytes),
            span(checkpoint.took_seconds)
        ),
        CheckpointStatus::Pending | CheckpointStatus::Saving => format!("Checkpoint {n} is still being taken"),
        CheckpointStatus::Failed => format!("Checkpoint {n} could not be taken"),
    }
}

fn rows(checkpoints: &[Record]) -> String {
    let now = jiff::Timestamp::now();
    let row = |checkpoint: &Record| {
        let cause = serde_json::to_value(checkpoint.cause).ok();
        vec![
            checkpoint.n.to_string(),
            clean(checkpoint.label.as_deref().unwrap_or_default()),
            cause.as_ref().and_then(|cause| cause.as_str()).unwrap_or_default().to_owned(),
            match checkpoint.status {
                CheckpointStatus::Ready => bytes(checkpoint.size_bytes),
                CheckpointStatus::Pending | CheckpointStatus::Saving => "being taken".to_owned(),
                CheckpointStatus::Failed => "failed".to_owned(),
            },
            bytes(checkpoint.changed_bytes),
            checkpoint.files.to_string(),
            checkpoint.seq.to_string(),
            ago(checkpoint.created_at, now),
        ]
    };
    let head = ["N", "LABEL", "CAUSE", "SIZE", "CHANGED", "FILES", "SEQ", "TAKEN"];
    table(&head, checkpoints.iter().map(row).collect())
}

fn show_diff(ui: Ui, diff: &Diff) -> Result<()> {
    if let Some(unified) = &diff.unified {
        return ui.out(crate::text::clean_lines(unified));
    }
    if diff.items.is_empty() {
        ui.note(&format!("nothing differs between {} and {}", diff.from, diff.to));
        return Ok(());
    }
    for item in &diff.items {
        let sign = match item.change {
            ChangeKind::Added => '+',
            ChangeKind::Changed => '~',
            ChangeKind::Deleted => '-',
        };
        let size = match (item.size_before, item.size_after) {
            (Some(before), Some(after)) if before != after => format!("  {} → {}", bytes(before), bytes(after)),
            (_, Some(size)) | (Some(size), None) => format!("  {}", bytes(size)),
            (None, None) => String::new(),
        };
        ui.line(&format!("{sign} {}{size}", clean(&item.path)))?;
    }
    if diff.truncated {
        ui.note("there is more than is shown");
    }
    if diff.is_binary {
        ui.note("the file is no text, or too large to be compared as one");
    }
    Ok(())
}
