//! Pages of lists.

use raworc_api::page::Page;
use raworc_store::{Batch, Sound};

/// A page from a batch of rows; `key` makes the cursor that leads on from a row.
pub fn page_of<R, T>(batch: Batch<R>, key: impl Fn(&R) -> String, show: impl FnMut(R) -> T) -> Page<T> {
    let next_cursor = batch.rows.last().filter(|_| batch.has_more).map(key);
    let damaged = batch.damaged.into_iter().map(|damage| damage.id).collect();
    Page { items: batch.rows.into_iter().map(show).collect(), next_cursor, damaged }
}

/// A page from rows that were read with one to spare; `key` makes the cursor that leads on from a row.
pub fn page<R, T>(found: Sound<R>, limit: u32, key: impl Fn(&R) -> String, show: impl FnMut(R) -> T) -> Page<T> {
    let Sound { mut rows, damaged } = found;
    let damaged = damaged.into_iter().map(|damage| damage.id).collect();
    let has_more = rows.len() > limit as usize;
    rows.truncate(limit as usize);
    let next_cursor = rows.last().filter(|_| has_more).map(key);
    Page { items: rows.into_iter().map(show).collect(), next_cursor, damaged }
}
