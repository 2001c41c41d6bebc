//! `raworc health` and `raworc version`.

use serde_json::json;

use crate::connect;
use crate::context::Context;
use crate::failure::{EXIT_FAILED, Failure, Result};
use crate::output::{Style, fields};
use crate::text::clean;

/// Shows the server's health.
pub async fn health(context: &Context) -> Result<()> {
    let target = connect::find(&context.global)?;
    // Only administrators see problems; everyone sees the status.
    let client = target.client().or_else(|_| target.anonymous())?;
    let health = client.health().await?;
    let is_well = health.status == "ok";
    let ui = context.ui;
    ui.show(&health, |health| {
        let colour = |status: &str| ui.paint(if status == "ok" { Style::Good } else { Style::Bad }, &clean(status));
        let mut pairs = vec![("status", colour(&health.status))];
        pairs.extend(health.parts.iter().map(|(part, status)| (part.as_str(), colour(status))));
        let mut text = fields(&pairs);
        for found in &health.problems {
            text.push_str(&format!(
                "\n\n{}: {}\n→ {}",
                clean(&found.part),
                clean(&found.problem),
                clean(&found.remedy)
            ));
        }
        for record in &health.damaged {
            let [table, id, column, reason] =
                [&record.table, &record.id, &record.column, &record.reason].map(|text| clean(text));
            text.push_str(&format!("\n  {table} {id}: {column} {reason}"));
        }
        text
    })?;
    if is_well { Ok(()) } else { Err(Failure::Status(EXIT_FAILED)) }
}

/// Shows both versions. It is no error if no server answers.
pub async fn version(context: &Context) -> Result<()> {
    let own = env!("CARGO_PKG_VERSION");
    let server = match connect::find(&context.global).and_then(|target| target.anonymous()) {
        Ok(client) => client.version().await.ok(),
        Err(_) => None,
    };
    if context.ui.is_json() {
        return context.ui.json(&json!({ "name": "raworc", "version": own, "server": server }));
    }
    let there = server.map_or_else(|| "does not answer".to_owned(), |server| clean(&server.version));
    context.ui.line(&fields(&[("raworc", own.to_owned()), ("server", there)]))
}
