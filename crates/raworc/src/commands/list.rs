//! Lists that come in pages.

use clap::Args;
use raworc_api::client;
use raworc_api::page::{Page, PageQuery};
use raworc_core::limits::PAGE_ROWS_MAX;
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
    /// As a query without filters.
    pub fn query(&self) -> PageQuery {
        let limit = if self.all { Some(PAGE_ROWS_MAX) } else { self.limit };
        PageQuery { limit, cursor: self.cursor.clone() }
    }

    /// Fetches one page, or with `--all` one after the other.
    pub async fn fetch<T>(&self, fetch: impl AsyncFn(PageQuery) -> client::Result<Page<T>>) -> Result<Page<T>> {
        let mut query = self.query();
        let mut page = fetch(query.clone()).await?;
        while self.all && page.next_cursor.is_some() {
            query.cursor = page.next_cursor.take();
            let more = fetch(query.clone()).await?;
            page.items.extend(more.items);
            page.next_cursor = more.next_cursor;
            page.damaged.extend(more.damaged);
        }
        Ok(page)
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
