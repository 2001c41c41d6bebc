//! Read calls of models: what was said, and what they come to.

use raworc_api::model_call::{ModelCall, ModelUsage, SessionUsage};
use raworc_core::ids::ModelCallId;
use raworc_core::permissions::Actor;
use raworc_store::model_calls::{self, Exchange, ModelCallRow, ModelUsageRow};

use super::find::{self, Purpose};
use crate::app::Shared;
use crate::error::Failure;

/// A call in a session, with what was said.
///
/// # Errors
/// 404 where there is no such session or call for this actor.
pub async fn get(app: &Shared, actor: &Actor, session: &str, id: ModelCallId) -> Result<ModelCall, Failure> {
    let mut connection = app.store.read().await?;
    let session = find::session(&mut connection, actor, session, Purpose::Read).await?;
    let found = model_calls::find(&mut connection, session.id, id).await?;
    let (row, exchange) = found.ok_or_else(|| Failure::not_found("call of a model", &id.to_string()))?;
    Ok(body(row, exchange))
}

/// What a session has used.
///
/// # Errors
/// 404 where there is no such session for this actor.
pub async fn usage(app: &Shared, actor: &Actor, session: &str) -> Result<SessionUsage, Failure> {
    let id = {
        let mut connection = app.store.read().await?;
        find::session(&mut connection, actor, session, Purpose::Read).await?.id
    };
    let scanned =
        app.scan(move |connection| Box::pin(async move { Ok(model_calls::usage(connection, id).await?) })).await?;
    let (rows, _place): (Vec<ModelUsageRow>, _) = scanned;
    let total = |count: fn(&ModelUsageRow) -> u64| rows.iter().map(count).sum::<u64>();
    Ok(SessionUsage {
        calls: total(|row| row.calls),
        input_tokens: total(|row| row.input_tokens),
        output_tokens: total(|row| row.output_tokens),
        cost: units(total(|row| row.cost_micros)),
        models: rows.into_iter().map(of_model).collect(),
    })
}

fn body(row: ModelCallRow, exchange: Exchange) -> ModelCall {
    ModelCall {
        id: row.id,
        session_id: row.session_id,
        seq: row.seq,
        at: row.called_at.to_timestamp(),
        turn_id: row.turn_id,
        agent: row.agent,
        provider: row.provider,
        model: row.model,
        request: exchange.request,
        answer: exchange.answer,
    }
}

fn of_model(row: ModelUsageRow) -> ModelUsage {
    ModelUsage {
        agent: row.agent,
        provider: row.provider,
        model: row.model,
        calls: row.calls,
        input_tokens: row.input_tokens,
        output_tokens: row.output_tokens,
        cost: units(row.cost_micros),
    }
}

/// Millionths of a currency, in units of it.
fn units(micros: u64) -> f64 {
    micros as f64 / 1e6
}
