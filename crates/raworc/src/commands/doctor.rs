//! `raworc doctor`.

use raworc_api::health::Health;
use raworc_runtime::native::{Check, Status, doctor};
use serde_json::json;

use crate::connect;
use crate::context::Context;
use crate::failure::{EXIT_FAILED, Failure, Result};
use crate::output::{Style, Ui};
use crate::text::clean_lines;

/// The name of the server's checks.
const SERVER: &str = "server";

/// Checks this machine, and the server if one is known.
pub async fn run(context: &Context) -> Result<()> {
    let mut checks = doctor(&context.global.data_dir()?);
    checks.extend(server(context).await);
    let ui = context.ui;
    if ui.is_json() {
        let documents: Vec<_> = checks.iter().map(document).collect();
        ui.json(&documents)?;
    } else {
        let width = checks.iter().map(|check| check.name.chars().count()).max().unwrap_or_default();
        for check in &checks {
            ui.line(&line(ui, check, width))?;
        }
        ui.line(&format!("\n{}", verdict(&checks)))?;
    }
    if checks.iter().any(|check| check.status == Status::Missing) { Err(Failure::Status(EXIT_FAILED)) } else { Ok(()) }
}

async fn server(context: &Context) -> Vec<Check> {
    let check = |status, found: String, remedy: String| vec![Check { name: SERVER, status, found, remedy }];
    let target = match connect::find_here(&context.global) {
        Ok(Some(target)) => target,
        Ok(None) => return check(Status::Ok, "none runs here; `raworc serve` starts one".into(), String::new()),
        Err(failure) => return check(Status::Warning, failure_text(failure), String::new()),
    };
    // Only administrators see problems; everyone sees the status.
    let client = match target.client().or_else(|_| target.anonymous()) {
        Ok(client) => client,
        Err(failure) => return check(Status::Warning, failure_text(failure), String::new()),
    };
    match client.health().await {
        Ok(health) => complaints(&target.url, health),
        Err(error) => {
            let found = format!("{} does not say how it is: {error}", target.url);
            check(Status::Warning, found, connect::what_to_do(&context.global))
        }
    }
}

fn failure_text(failure: Failure) -> String {
    match failure {
        Failure::Message { message, .. } => message,
        Failure::Client(error) => error.to_string(),
        _ => "it cannot be looked up which server runs here".to_owned(),
    }
}

/// The problems that a server reports, each with a remedy, or that it is healthy.
fn complaints(url: &str, health: Health) -> Vec<Check> {
    let check = |status, found: String, remedy: String| Check { name: SERVER, status, found, remedy };
    if health.status == "ok" {
        return vec![check(Status::Ok, format!("{url} is well"), String::new())];
    }
    if health.problems.is_empty() {
        let bad: Vec<String> = health
            .parts
            .iter()
            .filter(|(_, word)| *word != "ok")
            .map(|(part, word)| format!("{part} {word}"))
            .collect();
        let remedy = "run `raworc health` with an administrator's token: it says what exactly is wrong";
        return vec![check(Status::Missing, format!("{url} is {}: {}", health.status, bad.join(", ")), remedy.into())];
    }
    let problems = health.problems.into_iter();
    problems.map(|found| check(Status::Missing, format!("{}: {}", found.part, found.problem), found.remedy)).collect()
}

fn document(check: &Check) -> serde_json::Value {
    json!({ "name": check.name, "status": word(check.status), "found": check.found, "remedy": check.remedy })
}

fn word(status: Status) -> &'static str {
    match status {
        Status::Ok => "ok",
        Status::Warning => "warning",
        Status::Missing => "missing",
    }
}

fn line(ui: Ui, check: &Check, width: usize) -> String {
    let (mark, style) = match check.status {
        Status::Ok => ("✓", Style::Good),
        Status::Warning => ("!", Style::Warning),
        Status::Missing => ("✗", Style::Bad),
    };
    let mut text = format!("{} {:width$}  {}", ui.paint(style, mark), check.name, clean_lines(&check.found));
    let indent = " ".repeat(width + 4);
    for remedy in check.remedy.lines() {
        text.push_str(&format!("\n{indent}→ {}", clean_lines(remedy)));
    }
    text
}

fn verdict(checks: &[Check]) -> &'static str {
    let lacks = |name: fn(&str) -> bool| checks.iter().any(|check| name(check.name) && check.status == Status::Missing);
    if lacks(|name| name != SERVER) {
        "Containers can't run here yet. Do what the arrows say, then run `raworc doctor` again."
    } else if lacks(|name| name == SERVER) {
        "Containers can run here, but the server is not well. Do what the arrows say."
    } else if checks.iter().any(|check| check.status == Status::Warning) {
        "Containers run here, though not everything is as good as it could be."
    } else {
        "Containers run here."
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Format;

    #[test]
    fn checks_are_told_with_their_remedies() {
        let check =
            |status, remedy: &str| Check { name: "cgroups", status, found: "none".into(), remedy: remedy.into() };
        let ui = Ui::new(Format::Json);
        assert_eq!(line(ui, &check(Status::Ok, ""), 9), "✓ cgroups    none");
        let missing = check(Status::Missing, "mount them\nor reboot");
        assert_eq!(line(ui, &missing, 7), "✗ cgroups  none\n           → mount them\n           → or reboot");
        assert!(verdict(&[check(Status::Ok, ""), missing]).contains("can't run"));
        assert_eq!(verdict(&[check(Status::Ok, "")]), "Containers run here.");
    }

    #[test]
    fn the_server_is_told_with_what_is_wrong() {
        let health = |text: &str| serde_json::from_str::<Health>(text).unwrap();
        let well = complaints("http://here", health(r#"{"status": "ok", "parts": {"store": "ok"}}"#));
        assert_eq!((well[0].status, well[0].found.as_str()), (Status::Ok, "http://here is well"));
        let secret = complaints("u", health(r#"{"status": "degraded", "parts": {"disk": "full", "store": "ok"}}"#));
        assert_eq!((secret[0].status, secret[0].found.as_str()), (Status::Missing, "u is degraded: disk full"));
        let told = complaints(
            "u",
            health(
                r#"{"status": "degraded", "parts": {"disk": "full", "layers": "missing"}, "problems": [
                    {"part": "disk", "problem": "it is full", "remedy": "prune"},
                    {"part": "layers", "problem": "one is missing", "remedy": "put it back"}]}"#,
            ),
        );
        let seen: Vec<_> = told.iter().map(|check| (check.found.as_str(), check.remedy.as_str())).collect();
        assert_eq!(seen, [("disk: it is full", "prune"), ("layers: one is missing", "put it back")]);
        assert!(verdict(&told).contains("the server is not well"));
    }
}
