//! Calls of models: what was counted of each, and what was said.

use raworc_core::ids::{ModelCallId, SessionId, TurnId};
use raworc_core::time::Time;

use crate::StoreError;
use crate::Tx;
use crate::rows::{Row, bigint};
use crate::sql::{Read, sql};

/// A call, without what was said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelCallRow {
    /// Its id.
    pub id: ModelCallId,
    /// In which session.
    pub session_id: SessionId,
    /// The number of its event.
    pub seq: u64,
    /// In which turn.
    pub turn_id: Option<TurnId>,
    /// Whose turn.
    pub agent: Option<String>,
    /// The provider's name.
    pub provider: String,
    /// The model's name there.
    pub model: String,
    /// Tokens that the model read; 0 where the provider has not told.
    pub input_tokens: u64,
    /// Tokens that it wrote.
    pub output_tokens: u64,
    /// Its cost in millionths.
    pub cost_micros: u64,
    /// When it ended.
    pub called_at: Time,
}

/// What was said in a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// The body that the provider was sent.
    pub request: String,
    /// The body that it answered.
    pub answer: String,
}

/// What the calls of one model by one agent come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelUsageRow {
    /// Whose turns; none for programs that ran in no turn.
    pub agent: Option<String>,
    /// The provider's name.
    pub provider: String,
    /// The model's name there.
    pub model: String,
    /// How many calls.
    pub calls: u64,
    /// Tokens that the model read.
    pub input_tokens: u64,
    /// Tokens that it wrote.
    pub output_tokens: u64,
    /// The cost in millionths.
    pub cost_micros: u64,
}

/// The whole record, as it is read to see whether it is damaged.
pub(crate) fn with_exchange(row: &Row<'_>) -> Result<(ModelCallRow, Exchange), StoreError> {
    row.record("model_calls", |row| {
        Ok((read(row)?, Exchange { request: row.text("request")?, answer: row.text("answer")? }))
    })
}

fn read(row: &Row<'_>) -> Result<ModelCallRow, StoreError> {
    Ok(ModelCallRow {
        id: row.id("id")?,
        session_id: row.id("session_id")?,
        seq: row.count("seq")?,
        turn_id: row.optional_id("turn_id")?,
        agent: row.optional_text("agent")?,
        provider: row.text("provider")?,
        model: row.text("model")?,
        input_tokens: row.count("input_tokens")?,
        output_tokens: row.count("output_tokens")?,
        cost_micros: row.count("cost_micros")?,
        called_at: row.time("called_at")?,
    })
}

/// Adds one that has ended.
///
/// # Errors
/// Where the store fails.
pub async fn insert(tx: &mut Tx, row: &ModelCallRow, exchange: &Exchange) -> Result<(), StoreError> {
    sql("INSERT INTO model_calls (id, session_id, seq, turn_id, agent, provider, model, input_tokens, output_tokens, cost_micros, \
         called_at, request, answer) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)")
    .bind(row.id.to_string())
    .bind(row.session_id.to_string())
    .bind(bigint(row.seq))
    .bind(row.turn_id.map(|turn| turn.to_string()))
    .bind(row.agent.clone())
    .bind(row.provider.clone())
    .bind(row.model.clone())
    .bind(bigint(row.input_tokens))
    .bind(bigint(row.output_tokens))
    .bind(bigint(row.cost_micros))
    .bind(row.called_at.0)
    .bind(exchange.request.clone())
    .bind(exchange.answer.clone())
    .execute(tx)
    .await?;
    Ok(())
}

/// The one of this id in this session, with what was said.
///
/// # Errors
/// Where the store fails.
pub async fn find(
    connection: &mut Read,
    session: SessionId,
    id: ModelCallId,
) -> Result<Option<(ModelCallRow, Exchange)>, StoreError> {
    sql("SELECT * FROM model_calls WHERE id = $1 AND session_id = $2")
        .bind(id.to_string())
        .bind(session.to_string())
        .fetch_optional(connection, with_exchange)
        .await
}

/// What the calls in a session come to, by agent and model.
///
/// # Errors
/// Where the store fails.
pub async fn usage(connection: &mut Read, session: SessionId) -> Result<Vec<ModelUsageRow>, StoreError> {
    sql("SELECT agent, provider, model, COUNT(*) AS calls, SUM(input_tokens) AS input_tokens, \
         SUM(output_tokens) AS output_tokens, SUM(cost_micros) AS cost_micros FROM model_calls WHERE session_id = $1 \
         GROUP BY agent, provider, model ORDER BY agent, provider, model")
    .bind(session.to_string())
    .fetch_all(connection, |row| {
        Ok(ModelUsageRow {
            agent: row.optional_text("agent")?,
            provider: row.text("provider")?,
            model: row.text("model")?,
            calls: row.count("calls")?,
            input_tokens: row.count("input_tokens")?,
            output_tokens: row.count("output_tokens")?,
            cost_micros: row.count("cost_micros")?,
        })
    })
    .await
}
