//! Parts of conversations that remixes share with the sessions they come from.
//!
//! A segment names messages of another session by their numbers. Nothing removes or changes a message that has ended, so a segment
//! shows the same for good, whatever its source does later. In the log of the remix each of them is a `message.inherited`: these
//! entries are computed when they are read, and take the numbers that the segment has set aside for them.

use std::ops::RangeInclusive;

use raworc_api::message::{Role, Status};
use raworc_core::events::{LogEvent, MessageInherited, RecordDamaged};
use raworc_core::ids::{Generation, MessageId, SessionId};
use raworc_core::time::Time;

use crate::StoreError;
use crate::events::EventRow;
use crate::messages::{MessageRow, numbered};
use crate::rows::{COUNT_MAX, Row, bigint, damaged, word};
use crate::sql::{Batch, Read, Sound, Statement, sql};
use crate::tx::Tx;

/// The table of segments.
pub(crate) const TABLE: &str = "conversation_segments";
/// What is counted for an entry of a log that is computed, in bytes.
const ENTRY_BYTES: usize = 256;
/// The last place that segments of a session have in its log, within a statement on `sessions`.
pub(crate) const LAST_SEQ: &str = "SELECT MAX(seq + to_n - from_n) FROM conversation_segments WHERE session_id = sessions.id \
     AND typeof(seq) = 'integer' AND typeof(from_n) = 'integer' AND typeof(to_n) = 'integer' AND typeof(to_seq) = 'integer' \
     AND seq < 1152921504606846976 AND to_seq < 1152921504606846976 AND from_n > 0 AND from_n <= to_n AND to_n <= to_seq";

/// Messages of a session that follow one another, all of which had ended by a point of its log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Whose they are.
    pub source: SessionId,
    /// Their numbers there.
    pub numbers: RangeInclusive<u64>,
    /// None of them was added after this event there.
    pub until: u64,
}

/// A segment of the conversation of a session that is not its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentRow {
    /// Whose conversation.
    pub session_id: SessionId,
    /// The place of the first message in it; the others follow without a gap.
    pub seq: u64,
    /// Which messages.
    pub segment: Segment,
    /// What the entries in the log say: in which container,
    pub generation: Generation,
    /// who,
    pub actor: String,
    /// and when.
    pub at: Time,
}

pub(crate) fn segment(row: &Row<'_>) -> Result<SegmentRow, StoreError> {
    row.record(TABLE, |row| {
        let (seq, from, to): (u64, u64, u64) = (row.count("seq")?, row.count("from_n")?, row.count("to_n")?);
        let until = row.count("to_seq")?;
        // Each message has an event of its own, so its number is at most the number of that event.
        if from == 0 || from > to || to > until {
            return Err(damaged("to_n", "is less than from_n, or greater than to_seq"));
        }
        Ok(SegmentRow {
            session_id: row.id("session_id")?,
            seq,
            segment: Segment { source: row.id("source_id")?, numbers: from..=to, until },
            generation: row.count("generation")?,
            actor: row.text("actor")?,
            at: row.time("at")?,
        })
    })
}

impl Segment {
    /// How many messages.
    pub fn count(&self) -> u64 {
        self.numbers.end() - self.numbers.start() + 1
    }

    /// Those with a number greater than `after`, in order, each with its number: at most so many, and about so many bytes.
    ///
    /// # Errors
    /// Where the store fails.
    pub async fn messages(
        &self,
        connection: &mut Read,
        after: u64,
        bounds: (u32, usize),
    ) -> Result<Batch<(u64, MessageRow)>, StoreError> {
        let from = after.saturating_add(1).max(*self.numbers.start());
        self.select("*", from, None, "ORDER BY n")?.fetch_batch(connection, bounds, numbered).await
    }

    fn select(&self, what: &str, from: u64, status: Option<Status>, order: &str) -> Result<Statement, StoreError> {
        let of_status = if status.is_some() { "AND status = $5" } else { "" };
        let text = format!(
            "SELECT {what} FROM messages WHERE session_id = $1 AND n >= $2 AND n <= $3 AND seq <= $4 {of_status} {order}"
        );
        let statement = sql(text)
            .bind(self.source.to_string())
            .bind(bigint(from))
            .bind(bigint(*self.numbers.end()))
            .bind(bigint(self.until));
        Ok(match status {
            Some(status) => statement.bind(word(status)?),
            None => statement,
        })
    }
}

impl SegmentRow {
    /// The place of the last message.
    pub fn last_seq(&self) -> u64 {
        self.seq.saturating_add(self.segment.count() - 1)
    }

    /// Whether this part of the log has it: a session has all it shares from its beginning, and goes back to no point before that.
    pub(crate) fn is_in(&self, range: &RangeInclusive<u64>) -> bool {
        range.contains(&self.seq) && range.contains(&self.last_seq())
    }

    /// The number of the message at this place; of a place outside of the segment, the number nearest to it.
    fn number_at(&self, seq: u64) -> u64 {
        self.segment.numbers.start().saturating_add(seq.saturating_sub(self.seq))
    }

    /// A message of the source as one of this conversation.
    fn show(&self, (n, message): (u64, MessageRow)) -> MessageRow {
        show(self.session_id, self.seq, *self.segment.numbers.start(), n, message)
    }

    /// Adds those behind the place `after` to a batch, in order.
    pub(crate) async fn extend(
        &self,
        connection: &mut Read,
        batch: &mut Batch<MessageRow>,
        (status, after): (Option<Status>, u64),
        bounds: (u32, usize),
    ) -> Result<(), StoreError> {
        let from = self.number_at(after.saturating_add(1));
        let query = self.segment.select("*", from, status, "ORDER BY n")?;
        query.extend_batch(connection, batch, bounds, |row| numbered(row).map(|message| self.show(message))).await
    }

    /// The newest, the last one first, that are not longer than `bytes_max` together, but at least one.
    pub(crate) async fn newest(
        &self,
        connection: &mut Read,
        bytes_max: usize,
    ) -> Result<Batch<MessageRow>, StoreError> {
        let query = self.segment.select("*", *self.segment.numbers.start(), None, "ORDER BY n DESC")?;
        query
            .fetch_batch(connection, (u32::MAX, bytes_max), |row| numbered(row).map(|message| self.show(message)))
            .await
    }

    /// Adds the entries of the log behind `after` to a batch: one for each message, and in the place of one that cannot be read one
    /// that says so.
    pub(crate) async fn extend_log(
        &self,
        connection: &mut Read,
        batch: &mut Batch<EventRow>,
        after: u64,
        (limit, bytes_max): (u32, usize),
    ) -> Result<(), StoreError> {
        let first = after.saturating_add(1).max(self.seq);
        if batch.has_more || first > self.last_seq() {
            return Ok(());
        }
        let by_rows = (limit as usize).saturating_sub(batch.rows.len());
        let by_bytes = bytes_max.saturating_sub(batch.bytes) / ENTRY_BYTES;
        let room = by_rows.min(by_bytes.max(usize::from(batch.rows.is_empty()))) as u64;
        let last = self.last_seq().min((first - 1).saturating_add(room));
        batch.has_more = last < self.last_seq();
        let part = Segment { numbers: self.number_at(first)..=self.number_at(last), ..self.segment.clone() };
        let mut found = match room {
            0 => Vec::new(),
            _ => {
                let query = part.select("id, n, role, agent", *part.numbers.start(), None, "ORDER BY n")?;
                query.fetch_sound(connection, spoken).await?.rows
            }
        }
        .into_iter()
        .peekable();
        for seq in first..=last {
            let n = self.number_at(seq);
            while found.next_if(|(number, _)| *number < n).is_some() {}
            let event = match found.next_if(|(number, _)| *number == n) {
                Some((_, inherited)) => LogEvent::from(inherited),
                None => LogEvent::from(RecordDamaged { column: "n".into() }),
            };
            batch.bytes += ENTRY_BYTES;
            batch.rows.push(self.entry(seq, &event)?);
        }
        Ok(())
    }

    fn entry(&self, seq: u64, event: &LogEvent) -> Result<EventRow, StoreError> {
        Ok(EventRow {
            session_id: self.session_id,
            seq,
            kind: event.kind().to_owned(),
            at: self.at,
            actor: self.actor.clone(),
            generation: self.generation,
            data: event.data()?,
        })
    }
}

fn show(session: SessionId, seq: u64, from_n: u64, n: u64, message: MessageRow) -> MessageRow {
    let seq = seq.saturating_add(n.saturating_sub(from_n));
    MessageRow { session_id: session, seq, started_seq: None, finished_seq: Some(seq), ..message }
}

/// What the log says of a message that is inherited.
fn spoken(row: &Row<'_>) -> Result<(u64, MessageInherited), StoreError> {
    row.record("messages", |row| {
        let (message_id, role): (MessageId, Role) = (row.id("id")?, row.word("role")?);
        let (from, agent) = (Some(message_id), row.optional_text("agent")?);
        Ok((row.count("n")?, MessageInherited { message_id, role: role.into(), from, agent }))
    })
}

/// Has a session share this part of another one's conversation.
///
/// # Errors
/// Where the store fails.
pub async fn insert(tx: &mut Tx, row: &SegmentRow) -> Result<(), StoreError> {
    sql("INSERT INTO conversation_segments (session_id, seq, source_id, from_n, to_n, to_seq, generation, actor, at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)")
    .bind(row.session_id.to_string())
    .bind(bigint(row.seq))
    .bind(row.segment.source.to_string())
    .bind(bigint(*row.segment.numbers.start()))
    .bind(bigint(*row.segment.numbers.end()))
    .bind(bigint(row.segment.until))
    .bind(i64::from(row.generation))
    .bind(row.actor.clone())
    .bind(row.at.0)
    .execute(tx)
    .await?;
    Ok(())
}

/// What a session shares of others' conversations, as far as it reaches beyond the place `after`, in order.
///
/// # Errors
/// Where the store fails.
pub async fn of_session(
    connection: &mut Read,
    session: SessionId,
    after: u64,
) -> Result<Sound<SegmentRow>, StoreError> {
    sql("SELECT * FROM conversation_segments WHERE session_id = $1 AND seq + to_n - from_n > $2 ORDER BY seq")
        .bind(session.to_string())
        .bind(bigint(after))
        .fetch_sound(connection, segment)
        .await
}

/// All that a session shares of others' conversations, in order, for those that pass it on.
///
/// # Errors
/// [`StoreError::Damaged`] where a part of it is: what is passed on would lack it for good.
pub(crate) async fn all_of_session(connection: &mut Read, session: SessionId) -> Result<Vec<SegmentRow>, StoreError> {
    let shared = of_session(connection, session, 0).await?;
    match shared.damaged.into_iter().next() {
        Some(damage) => Err(StoreError::Damaged(Box::new(damage))),
        None => Ok(shared.rows),
    }
}

/// The conversation in these parts of a session's log, as another one is to share it: what the session itself shares, and of its own
/// messages those that had ended by the end of their part.
///
/// # Errors
/// Where the store fails; [`StoreError::Damaged`] where a part that it shares is.
pub async fn segments_in(
    connection: &mut Read,
    session: SessionId,
    ranges: &[RangeInclusive<u64>],
) -> Result<Vec<Segment>, StoreError> {
    let shared = all_of_session(connection, session).await?;
    let mut segments = Vec::new();
    for range in ranges {
        segments.extend(shared.iter().filter(|row| row.is_in(range)).map(|row| row.segment.clone()));
        let Some(numbers) = numbers_in(connection, session, range).await? else { continue };
        let open = open_in(connection, session, range).await?;
        let until = *range.end();
        segments.extend(without(numbers, &open).map(|numbers| Segment { source: session, numbers, until }));
    }
    Ok(segments)
}

/// The numbers of a session's own messages from the first to the last in a part of its log.
async fn numbers_in(
    connection: &mut Read,
    session: SessionId,
    range: &RangeInclusive<u64>,
) -> Result<Option<RangeInclusive<u64>>, StoreError> {
    let mut ends = Vec::new();
    for order in ["ASC", "DESC"] {
        let text = format!(
            "SELECT n FROM messages WHERE session_id = $1 AND seq >= $2 AND seq <= $3 AND n > 0 AND n <= seq ORDER BY seq {order}"
        );
        let query = sql(text).bind(session.to_string()).bind(bigint(*range.start())).bind(bigint(*range.end()));
        ends.extend(query.fetch_first(connection, |row| row.count::<u64>("n")).await?);
    }
    Ok(match ends[..] {
        [first, last] if first <= last => Some(first..=last),
        _ => None,
    })
}

/// The numbers of those among them that had not ended by the end of that part, in order.
async fn open_in(
    connection: &mut Read,
    session: SessionId,
    range: &RangeInclusive<u64>,
) -> Result<Vec<u64>, StoreError> {
    let mut open = Vec::new();
    // (`+` keeps the database from looking through the whole part by its places: those that are open are few.)
    for condition in ["status IN ('queued', 'processing')", "finished_seq > $3"] {
        let text =
            format!("SELECT n FROM messages WHERE session_id = $1 AND +seq >= $2 AND +seq <= $3 AND {condition}");
        let query = sql(text).bind(session.to_string()).bind(bigint(*range.start())).bind(bigint(*range.end()));
        open.extend(query.fetch_sound(connection, |row| row.count::<u64>("n")).await?.rows);
    }
    open.sort_unstable();
    open.dedup();
    Ok(open)
}

/// What is left of `numbers` without these.
fn without(numbers: RangeInclusive<u64>, left_out: &[u64]) -> impl Iterator<Item = RangeInclusive<u64>> {
    let starts = std::iter::once(*numbers.start()).chain(left_out.iter().map(|n| n + 1));
    let ends = left_out.iter().map(|n| n.saturating_sub(1)).chain(std::iter::once(*numbers.end()));
    let parts: Vec<_> = starts
        .zip(ends)
        .map(|(start, end)| start.max(*numbers.start())..=end.min(*numbers.end()))
        .filter(|part| !part.is_empty())
        .collect();
    parts.into_iter()
}

/// The message of this id that a session shares, or the newest one that answers it.
pub(crate) async fn find(
    connection: &mut Read,
    session: SessionId,
    id: MessageId,
    column: &str,
) -> Result<Option<MessageRow>, StoreError> {
    // (`|| ''` keeps the database from looking through whole conversations: the message is found by its column.)
    let text = format!(
        "SELECT messages.*, conversation_segments.seq AS place_, conversation_segments.from_n AS from_n_ \
         FROM conversation_segments JOIN messages ON messages.session_id || '' = conversation_segments.source_id \
         AND messages.n >= conversation_segments.from_n AND messages.n <= conversation_segments.to_n \
         AND messages.seq <= conversation_segments.to_seq \
         WHERE conversation_segments.session_id = $1 AND messages.{column} = $2 ORDER BY messages.seq DESC LIMIT 1"
    );
    sql(text)
        .bind(session.to_string())
        .bind(id.to_string())
        .fetch_optional(connection, |row| {
            let (n, message) = numbered(row)?;
            let (seq, from_n) = row.record(TABLE, |row| Ok((row.count("place_")?, row.count("from_n_")?)))?;
            Ok(show(session, seq, from_n, n, message))
        })
        .await
}

/// The last place that segments of a session have in its log, or 0.
pub(crate) async fn last_seq(connection: &mut Read, session: SessionId) -> Result<u64, StoreError> {
    let found = sql(format!("SELECT COALESCE(({LAST_SEQ}), 0) AS seq FROM sessions WHERE id = $1"))
        .bind(session.to_string())
        .fetch_optional(connection, |row| row.count("seq"))
        .await?;
    Ok(found.unwrap_or(0))
}

/// The number of a session's next message.
pub(crate) async fn next_number(connection: &mut Read, session: SessionId) -> Result<u64, StoreError> {
    let newest = sql("SELECT n FROM messages WHERE session_id = $1 AND n <= seq ORDER BY n DESC")
        .bind(session.to_string())
        .fetch_first(connection, |row| row.count::<u64>("n"))
        .await?;
    // Numbers that are damaged (texts come after all integers, too) are kept free, for when they are mended.
    let damaged = sql("SELECT COUNT(*) AS count FROM messages WHERE session_id = $1 AND n > $2")
        .bind(session.to_string())
        .bind(COUNT_MAX)
        .fetch_optional(connection, |row| row.count::<u64>("count"))
        .await?;
    Ok(newest.unwrap_or(0) + damaged.unwrap_or(0) + 1)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that can't go on should say where")]
mod tests;
