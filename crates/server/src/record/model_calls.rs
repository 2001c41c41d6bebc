//! Calls of models that have ended.

use raworc_core::events::ModelCalled;
use raworc_core::ids::ModelCallId;
use raworc_core::models::TokenUsage;
use raworc_gateway::ports::CallRecord;
use raworc_store::model_calls::{self, Exchange, ModelCallRow};

use crate::app::Shared;
use crate::change::{Change, SYSTEM};
use crate::error::Failure;
use crate::gateway::calls::CallContext;

/// Most tokens that one call counts, of each kind.
const TOKENS_MAX: u64 = 1 << 40;
/// Most that one call counts of its cost, in millionths.
const COST_MICROS_MAX: u64 = 1 << 50;

/// Adds the event of a call, and what was said in it.
///
/// # Errors
/// Where the store fails.
pub async fn record(app: &Shared, context: CallContext, record: CallRecord) -> Result<(), Failure> {
    let (now, session) = (app.now(), context.container.session);
    // What a provider says is no more than a claim: sums of such numbers still fit.
    let claimed = record.usage.map(|usage| TokenUsage {
        input_tokens: usage.input_tokens.min(TOKENS_MAX),
        output_tokens: usage.output_tokens.min(TOKENS_MAX),
        cached_tokens: usage.cached_tokens.min(TOKENS_MAX),
    });
    let cost_micros = context.price.zip(claimed).map(|(price, usage)| price.cost_micros(usage).min(COST_MICROS_MAX));
    let usage = claimed.unwrap_or_default();
    let exchange = Exchange { request: text(&record.request), answer: text(&record.answer) };
    let row = ModelCallRow {
        id: ModelCallId(record.id),
        session_id: session,
        seq: 0,
        turn_id: context.turn,
        agent: context.agent.clone(),
        provider: context.provider.clone(),
        model: context.model.clone(),
        input_tokens: usage.input_tokens,
        output_tokens: usage.output_tokens,
        cost_micros: cost_micros.unwrap_or(0),
        called_at: now,
    };
    let event = ModelCalled {
        call_id: ModelCallId(record.id),
        turn_id: context.turn,
        agent: context.agent,
        provider: context.provider,
        model: context.model,
        requested_model: context.requested,
        input_tokens: claimed.map(|usage| usage.input_tokens),
        output_tokens: claimed.map(|usage| usage.output_tokens),
        cached_tokens: claimed.map(|usage| usage.cached_tokens),
        cost: cost_micros.map(|micros| micros as f64 / 1e6),
        duration_seconds: record.duration.as_secs_f64(),
        first_byte_seconds: record.first_byte.map(|time| time.as_secs_f64()),
        status: record.status.map(|status| status.as_u16()),
        end: record.end,
        attempts: record.attempts,
        error: record.error,
    };
    app.store
        .write(move |tx| {
            Box::pin(async move {
                let mut change = Change::load(tx, session, now, SYSTEM).await?;
                let seq = change.log(event).await?;
                model_calls::insert(change.tx(), &ModelCallRow { seq, ..row }, &exchange).await?;
                change.save().await?;
                Ok(())
            })
        })
        .await
}

/// Bodies are texts, nearly always; what is not is shown as such.
fn text(body: &[u8]) -> String {
    String::from_utf8_lossy(body).into_owned()
}
