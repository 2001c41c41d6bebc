//! `raworc session events`.

use clap::Args;
use raworc_api::event::{Event, ListEvents};
use raworc_api::page::PageQuery;
use raworc_core::limits::PAGE_ROWS_DEFAULT;
use serde_json::{Map, Value};

use crate::commands::list;
use crate::context::Context;
use crate::failure::Result;
use crate::output::table;
use crate::text::{at, brief, clean};

/// Widest summary of an event's data.
const SUMMARY_CHARACTERS_MAX: usize = 80;

/// Options of `raworc session events`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  raworc session events demo
  raworc session events demo --after 120 --output json")]
pub struct Events {
    /// Its id or name.
    session: String,
    /// Only events after this number.
    #[arg(long, value_name = "SEQ")]
    after: Option<u64>,
    /// The newest ones, 1 to 500.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=500), conflicts_with_all = ["after", "limit"])]
    tail: Option<u32>,
    /// Rows at most, 1 to 500 [default: 50].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=500))]
    limit: Option<u32>,
}

/// Lists events.
pub async fn events(context: &Context, args: Events) -> Result<()> {
    let client = context.client()?;
    // Events are numbered from 1 without a gap.
    let after = match args.tail {
        Some(count) => Some(client.get_session(&args.session).await?.last_seq.saturating_sub(u64::from(count))),
        None => args.after,
    };
    let count = args.tail.or(args.limit).unwrap_or(PAGE_ROWS_DEFAULT);
    // The cursor of events is the number of the last one.
    let fetch = async |query: PageQuery| {
        let after = query.cursor.and_then(|seq| seq.parse().ok());
        client.list_events(&args.session, &ListEvents { after, limit: query.limit }).await
    };
    let page = list::gather(Some(count), after.map(|seq| seq.to_string()), fetch).await?;
    if context.ui.is_json() {
        return context.ui.json(&page);
    }
    let Some(last) = page.items.last() else {
        context.ui.note("there are no more events");
        return Ok(());
    };
    context.ui.line(&rows(&page.items))?;
    if page.next_cursor.is_some() {
        context.ui.note(&format!("there are more: --after {}", last.seq));
    }
    Ok(())
}

fn rows(events: &[Event]) -> String {
    let row = |event: &Event| {
        vec![event.seq.to_string(), at(event.at), clean(&event.kind), clean(&event.actor), summary(&event.data)]
    };
    table(&["SEQ", "AT", "TYPE", "ACTOR", "DATA"], events.iter().map(row).collect())
}

fn summary(data: &Map<String, Value>) -> String {
    let pairs: Vec<String> = data
        .iter()
        .filter(|(_, value)| !value.is_null())
        .map(|(key, value)| match value {
            Value::String(text) if !text.contains([' ', '\n']) => format!("{key}={text}"),
            other => format!("{key}={other}"),
        })
        .collect();
    brief(&pairs.join(" "), SUMMARY_CHARACTERS_MAX)
}
