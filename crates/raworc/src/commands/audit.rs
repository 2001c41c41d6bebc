//! `raworc audit`.

use clap::{Args, ValueEnum};
use jiff::{SignedDuration, Timestamp};
use raworc_api::audit::{AuditEntry, AuditOutcome, ListAudit};

use crate::commands::list::{self, Paging};
use crate::context::Context;
use crate::failure::{Failure, Result};
use crate::input;
use crate::output::table;
use crate::text::clean;

/// Show who did what and who was refused, newest first. For administrators.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  raworc audit --since 1h\n  raworc audit --actor alice --outcome refused")]
pub struct Audit {
    /// Only entries of this account name.
    #[arg(long, value_name = "ACCOUNT")]
    actor: Option<String>,
    /// Only this action, such as session.delete.
    #[arg(long)]
    action: Option<String>,
    /// Only entries about this id.
    #[arg(long)]
    target: Option<String>,
    /// Only entries with this outcome.
    #[arg(long, value_enum)]
    outcome: Option<Outcome>,
    /// Only entries of the last span of time, such as 1h.
    #[arg(long, value_name = "DURATION", value_parser = input::seconds)]
    since: Option<u64>,
    #[command(flatten)]
    paging: Paging,
}

/// The outcome of an action.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Outcome {
    Done,
    Refused,
}

/// Shows matching entries.
pub async fn run(context: &Context, args: Audit) -> Result<()> {
    let client = context.client()?;
    let outcome = args.outcome.map(|outcome| match outcome {
        Outcome::Done => AuditOutcome::Done,
        Outcome::Refused => AuditOutcome::Refused,
    });
    let too_long = || Failure::usage("--since is too long ago");
    let span = args.since.map(|seconds| i64::try_from(seconds).map(SignedDuration::from_secs));
    let span = span.transpose().map_err(|_| too_long())?;
    let after = span.map(|span| Timestamp::now().checked_sub(span)).transpose().map_err(|_| too_long())?;
    let filter = ListAudit {
        actor: args.actor,
        action: args.action,
        target: args.target,
        outcome,
        after,
        ..ListAudit::default()
    };
    let fetch = async |query: raworc_api::page::PageQuery| {
        client.list_audit(&ListAudit { limit: query.limit, cursor: query.cursor, ..filter.clone() }).await
    };
    let page = args.paging.fetch(fetch).await?;
    list::show(context, &page, "there are no such entries", rows)
}

fn rows(entries: &[AuditEntry]) -> String {
    let row = |entry: &AuditEntry| {
        let outcome = match entry.outcome {
            AuditOutcome::Done => "done",
            AuditOutcome::Refused => "refused",
        };
        let at = entry.at.strftime("%Y-%m-%d %H:%M:%S").to_string();
        vec![at, clean(&entry.actor), outcome.to_owned(), clean(&entry.action), clean(&entry.target)]
    };
    table(&["AT", "ACTOR", "OUTCOME", "ACTION", "TARGET"], entries.iter().map(row).collect())
}
