//! Checks that every error code has a page, and every page a code.

use std::collections::BTreeSet;

use anyhow::Context as _;
use raworc_api::problem::Code;
use raworc_core::session::FaultCode;
use serde_json::Value;

use crate::repository::Repository;
use crate::{Findings, openapi};

const DIRECTORY: &str = "docs/errors";
/// The list of pages, which is not a page itself.
const LIST: &str = "README";
/// Where message codes are listed; they are strings, not a type.
const MESSAGE_CODES: &str = "/components/schemas/MessageError/properties/code/description";

/// Compares codes and pages.
pub fn pages(repository: &Repository) -> anyhow::Result<Findings> {
    let codes = codes()?;
    let list = repository.read(format!("{DIRECTORY}/{LIST}.md"))?;
    let mut faults = Vec::new();
    let mut pages = BTreeSet::new();
    for path in repository.with_extension("md").filter(|path| path.starts_with(DIRECTORY)) {
        let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
        if name == LIST {
            continue;
        }
        pages.insert(name.to_owned());
        if !repository.read(path)?.starts_with(&format!("# `{name}`\n")) {
            faults.push(format!("{} does not begin with the line: # `{name}`", path.display()));
        }
        if !list.contains(&format!("({name}.md)")) {
            faults.push(format!("{DIRECTORY}/{LIST}.md does not list {name}"));
        }
    }
    faults.extend(codes.difference(&pages).map(|code| format!("{DIRECTORY}/{code}.md is missing")));
    faults.extend(pages.difference(&codes).map(|page| format!("{DIRECTORY}/{page}.md is of no code there is")));
    Ok(faults)
}

/// The codes of problems, sessions and messages.
fn codes() -> anyhow::Result<BTreeSet<String>> {
    let mut codes: BTreeSet<String> = Code::ALL.iter().map(|code| code.as_str().to_owned()).collect();
    // For an unknown variant, serde's error lists all known ones.
    let refusal = serde_json::from_str::<FaultCode>("\"\"").err().context("the empty code is known")?.to_string();
    let (_, words) = refusal.split_once("expected").context("serde says something else than before")?;
    codes.extend(quoted(words));
    let document: Value = serde_json::from_str(&openapi::document())?;
    let words = document.pointer(MESSAGE_CODES).and_then(Value::as_str).context(MESSAGE_CODES)?;
    codes.extend(quoted(words));
    Ok(codes)
}

/// The words in backticks.
fn quoted(text: &str) -> impl Iterator<Item = String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_every_kind_are_found() {
        let codes = codes().unwrap();
        for known in ["invalid_input", "disk_full", "start_failed", "container_gone", "exit_status", "host_died"] {
            assert!(codes.contains(known), "{known} is not among {codes:?}");
        }
    }
}
