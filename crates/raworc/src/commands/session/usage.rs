//! `raworc session usage` and `raworc session model-call`.

use clap::Args;
use raworc_api::model_call::{ModelCall, ModelUsage, SessionUsage};
use raworc_core::ids::ModelCallId;

use crate::context::Context;
use crate::failure::Result;
use crate::output::{fields, table};
use crate::text::{clean, clean_lines};

/// Options of `raworc session model-call`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  raworc session model-call demo 01a2b3c4-0000-7000-8000-000000000000")]
pub struct ModelCallArgs {
    /// Id or name of the session.
    session: String,
    /// The call's id, from its event model.called.
    call: ModelCallId,
}

/// Shows what a session has used.
pub async fn usage(context: &Context, session: &str) -> Result<()> {
    let usage = context.client()?.get_usage(session).await?;
    context.ui.show(&usage, sums)
}

/// Shows a call of a model.
pub async fn model_call(context: &Context, args: ModelCallArgs) -> Result<()> {
    let call = context.client()?.get_model_call(&args.session, args.call).await?;
    context.ui.show(&call, said)
}

fn sums(usage: &SessionUsage) -> String {
    if usage.calls == 0 {
        return "no model was called in this session".to_owned();
    }
    let row = |model: &ModelUsage| {
        vec![
            model.agent.as_deref().map_or_else(|| "-".to_owned(), clean),
            format!("{}/{}", clean(&model.provider), clean(&model.model)),
            model.calls.to_string(),
            model.input_tokens.to_string(),
            model.output_tokens.to_string(),
            cost(model.cost),
        ]
    };
    let mut rows: Vec<Vec<String>> = usage.models.iter().map(row).collect();
    let counts = [usage.calls, usage.input_tokens, usage.output_tokens].map(|count| count.to_string());
    let [calls, input, output] = counts;
    rows.push(vec!["TOTAL".into(), String::new(), calls, input, output, cost(usage.cost)]);
    table(&["AGENT", "MODEL", "CALLS", "INPUT TOKENS", "OUTPUT TOKENS", "COST"], rows)
}

fn said(call: &ModelCall) -> String {
    let head = fields(&[
        ("Model", format!("{}/{}", clean(&call.provider), clean(&call.model))),
        ("Agent", call.agent.as_deref().map_or_else(|| "-".to_owned(), clean)),
        ("At", call.at.strftime("%Y-%m-%d %H:%M:%S").to_string()),
    ]);
    format!("{head}\n\nRequest:\n{}\n\nAnswer:\n{}", clean_lines(&call.request), clean_lines(&call.answer))
}

/// Model calls may cost much less than a cent.
fn cost(units: f64) -> String {
    format!("{units:.6}")
}
