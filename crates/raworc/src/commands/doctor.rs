//! `raworc doctor`.

use raworc_runtime::native::{Check, Status, doctor};
use serde_json::json;

use crate::context::Context;
use crate::failure::{EXIT_FAILED, Failure, Result};
use crate::output::{Style, Ui};
use crate::text::clean_lines;

/// Looks at this machine.
pub fn run(context: &Context) -> Result<()> {
    let checks = doctor(&context.global.data_dir()?);
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
    if checks.iter().any(|check| check.status == Status::Missing) {
        "Containers can't run here yet. Do what the arrows say, then run `raworc doctor` again."
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
}
