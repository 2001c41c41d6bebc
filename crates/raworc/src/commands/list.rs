//! Lists that come in pages.

use clap::Args;
use raworc_api::client;
use raworc_api::page::{Page, PageQuery};
use raworc_core::limits::{PAGE_ROWS_DEFAULT, PAGE_ROWS_MAX};
use serde::Serialize;

use crate::context::Context;
use crate::failure::Result;
use crate::text::clean;

/// Which part of a list.
#[derive(Clone, Debug, Default, Args)]
pub struct Paging {
    /// Rows at most, 1 to 500 [default: 50].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=500))]
    pub limit: Option<u32>,
    /// Go on where an earlier list ended.
    #[arg(long, value_name = "CURSOR")]
    pub cursor: Option<String>,
    /// Everything, page after page.
    #[arg(long, conflicts_with_all = ["limit", "cursor"])]
    pub all: bool,
}

impl Paging {
    /// Fetches as many rows as are asked for, in as many pages as the server needs for them.
    pub async fn fetch<T>(&self, fetch: impl AsyncFn(PageQuery) -> client::Result<Page<T>>) -> Result<Page<T>> {
        let rows = if self.all { None } else { Some(self.limit.unwrap_or(PAGE_ROWS_DEFAULT)) };
        gather(rows, self.cursor.clone(), fetch).await
    }
}

/// Fetches pages from `cursor` on until there are `rows` of them, or, where that is none, until the end of the list. A server ends a
/// page early where its rows are large.
pub async fn gather<T>(
    rows: Option<u32>,
    mut cursor: Option<String>,
    fetch: impl AsyncFn(PageQuery) -> client::Result<Page<T>>,
) -> Result<Page<T>> {
    let mut gathered = Page { items: Vec::new(), next_cursor: None, damaged: Vec::new() };
    loop {
        let missing = rows.map(|rows| rows.saturating_sub(u32::try_from(gathered.items.len()).unwrap_or(u32::MAX)));
        let limit = Some(missing.unwrap_or(PAGE_ROWS_MAX).min(PAGE_ROWS_MAX));
        let page = fetch(PageQuery { limit, cursor: cursor.take() }).await?;
        gathered.items.extend(page.items);
        gathered.damaged.extend(page.damaged);
        gathered.next_cursor = page.next_cursor;
        let is_enough = rows.is_some_and(|rows| gathered.items.len() >= rows as usize);
        if is_enough || gathered.next_cursor.is_none() {
            return Ok(gathered);
        }
        cursor.clone_from(&gathered.next_cursor);
    }
}

/// Shows a page: for people what `text` makes of it, `empty` where there is nothing.
pub fn show<T: Serialize>(
    context: &Context,
    page: &Page<T>,
    empty: &str,
    text: impl FnOnce(&[T]) -> String,
) -> Result<()> {
    if context.ui.is_json() {
        return context.ui.json(page);
    }
    if !page.damaged.is_empty() {
        let ids: Vec<String> = page.damaged.iter().map(|id| clean(id)).collect();
        context.ui.note(&format!("left out, since their records are damaged (`raworc health`): {}", ids.join(", ")));
    }
    if page.items.is_empty() {
        context.ui.note(empty);
        return Ok(());
    }
    context.ui.line(&text(&page.items))?;
    if let Some(cursor) = &page.next_cursor {
        context.ui.note(&format!("there are more: --cursor {cursor}, or --all"));
    }
    Ok(())
}
