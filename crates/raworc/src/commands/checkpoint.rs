//! `raworc checkpoint`.

use clap::Subcommand;
use raworc_api::checkpoint::{
    ChangeKind, Checkpoint as Record, CheckpointStatus, CreateCheckpoint, Diff, DiffQuery, ListCheckpoints,
};
use raworc_api::page::PageQuery;

use crate::commands::list::{self, Paging};
use crate::context::Context;
use crate::failure::{Failure, Result};
use crate::output::{Ui, table};
use crate::text::{ago, bytes, clean, span};

/// Commands about the versions of a session's workspace. SESSION is an id or a name everywhere.
#[derive(Debug, Subcommand)]
pub enum Checkpoint {
    /// Take a checkpoint of a session's workspace now.
    #[command(after_help = "Example:\n  raworc checkpoint create demo --label before-the-upgrade")]
    Create {
        /// Whose.
        session: String,
        /// A name for it; one with a name is kept.
        #[arg(long, value_name = "NAME")]
        label: Option<String>,
    },
    /// List the checkpoints of a session, the oldest first.
    #[command(visible_alias = "ls", after_help = "Example:\n  raworc checkpoint list demo")]
    List {
        /// Whose.
        session: String,
        #[command(flatten)]
        paging: Paging,
    },
    /// Show one checkpoint.
    #[command(after_help = "Example:\n  raworc checkpoint get demo 3")]
    Get {
        /// Whose.
        session: String,
        /// Its number.
        n: u64,
    },
    /// Give up a checkpoint.
    #[command(visible_alias = "rm", after_help = "Example:\n  raworc checkpoint delete demo 3")]
    Delete {
        /// Whose.
        session: String,
        /// Its number.
        n: u64,
    },
    /// Show what changed between two checkpoints, or between one and now.
    #[command(
        after_help = "Examples:\n  raworc checkpoint diff demo\n  raworc checkpoint diff demo --from 2 --to 5\n  \
                            raworc checkpoint diff demo --from 2 --path src/main.rs"
    )]
    Diff {
        /// Whose.
        session: String,
        /// The earlier one: a number [default: the checkpoint before the later one].
        #[arg(long, value_name = "N")]
        from: Option<String>,
        /// The later one: a number, or now.
        #[arg(long, value_name = "N", default_value = "now")]
        to: String,
        /// Only this file, line by line.
        #[arg(long, value_name = "PATH")]
        path: Option<String>,
    },
    /// Go back to a checkpoint: workspace and conversation. What is there now is saved as a checkpoint first.
    #[command(after_help = "Example:\n  raworc checkpoint restore demo 3")]
    Restore {
        /// Whose.
        session: String,
        /// Its number.
        n: u64,
    },
}

/// Carries one out.
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
        Checkpoint::Get { session, n } => {
            let checkpoint = client.get_checkpoint(&session, n).await?;
            ui.show(&checkpoint, |checkpoint| rows(std::slice::from_ref(checkpoint)))
        }
        Checkpoint::Delete { session, n } => {
            client.delete_checkpoint(&session, n).await?;
            ui.show(&serde_json::json!({ "deleted": n }), |_| format!("Checkpoint {n} is deleted"))
        }
        Checkpoint::Diff { session, from, to, path } => {
            let diff = client.diff(&session, &to, &DiffQuery { from, path }).await?;
            if ui.is_json() { ui.json(&diff) } else { show_diff(ui, &diff) }
        }
        Checkpoint::Restore { session, n } => {
            let session = client.restore_checkpoint(&session, n).await?;
            let name = clean(&session.name);
            ui.show(&session, |session| match session.rewinding_to {
                Some(_) => format!("Session {name} is going back to checkpoint {n}"),
                None => format!("Session {name} is back at checkpoint {n}; it wakes with the next message"),
            })
        }
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
