//! `raworc system`.

use clap::{Args, Subcommand};
use raworc_api::disk::{DiskUsage, LayerUsage, Limits, Prune as Body};
use raworc_api::health::{LoopList, LoopStatus};

use crate::context::Context;
use crate::failure::Result;
use crate::input;
use crate::output::{fields, table};
use crate::progress::Progress;
use crate::text::bytes;

/// Commands about the server.
#[derive(Debug, Subcommand)]
pub enum System {
    /// Show what uses disk space on the server.
    #[command(after_help = "Example:\n  raworc system df")]
    Df,
    /// Show the status of the server's background loops.
    #[command(after_help = "Example:\n  raworc system loops")]
    Loops,
    /// Remove unused data, and what the options select.
    #[command(after_help = "Examples:\n  raworc system prune\n  raworc system prune --images --deleted-before 7d")]
    Prune(Prune),
}

/// Options of `raworc system prune`.
#[derive(Debug, Args)]
pub struct Prune {
    /// Remove images that no session uses. Pulled and imported checkpoints stay.
    #[arg(long)]
    images: bool,
    /// Permanently remove files and checkpoints of sessions deleted at least this long ago, such as 7d; 0 for all
    /// deleted sessions. Conversations and logs stay.
    #[arg(long, value_name = "DURATION", value_parser = input::seconds)]
    deleted_before: Option<u64>,
}

/// Runs the command.
pub async fn run(context: &Context, command: System) -> Result<()> {
    let client = context.client()?;
    match command {
        System::Df => context.ui.show(&client.disk_usage().await?, usage),
        System::Loops => context.ui.show(&client.loops().await?, loops),
        System::Prune(Prune { images, deleted_before }) => {
            let body = Body { unused_images: images, deleted_sessions_after_seconds: deleted_before };
            let progress = Progress::start(&context.ui, "removing");
            let pruned = client.prune(&body).await?;
            drop(progress);
            context.ui.show(&pruned, |pruned| {
                let (images, sessions) = (pruned.images, pruned.sessions);
                format!("Freed {}; removed {images} images, and the files of {sessions} sessions", bytes(pruned.bytes))
            })
        }
    }
}

fn loops(list: &LoopList) -> String {
    let row = |each: &LoopStatus| {
        let last =
            each.health.last_run_seconds.map_or_else(|| "not yet".to_owned(), |seconds| format!("{seconds} s ago"));
        let restarts = each.health.restarts.to_string();
        vec![each.name.clone(), each.health.status.clone(), last, restarts, each.trigger.clone(), each.bound.clone()]
    };
    table(&["NAME", "STATUS", "LAST", "RESTARTS", "TRIGGER", "BOUND"], list.items.iter().map(row).collect())
}

fn usage(usage: &DiskUsage) -> String {
    let layers = |of: LayerUsage| format!("{} in {} layers", bytes(of.bytes), of.layers);
    let back =
        |of: LayerUsage, how: &str| if of.layers == 0 { "none".into() } else { format!("{}; {how}", layers(of)) };
    fields(&[
        ("disk", format!("{} of {} free", bytes(usage.free_bytes), bytes(usage.total_bytes))),
        ("sessions", layers(usage.sessions)),
        (
            "deleted sessions",
            back(usage.deleted_sessions, "`raworc system prune --deleted-before 0` removes them for good"),
        ),
        ("unused images", back(usage.unused_images, "`raworc system prune --images` removes them")),
        ("imported checkpoints", back(usage.imported_checkpoints, "`raworc image delete` removes one")),
        ("records", bytes(usage.records_bytes)),
        ("transfers", bytes(usage.transfers_bytes)),
        ("other", format!("{}: not saved yet, being removed, or not of Raworc", bytes(usage.other_bytes))),
        (
            "disk limits",
            match usage.limits {
                Limits::FileSystem => "kept by the file system".into(),
                Limits::Stopping => "kept by stopping what writes too much".into(),
            },
        ),
    ])
}
