//! Every kind of event is in the table for people, with its fields, and in the document; and nothing else is.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context as _;
use raworc_core::events::{Kind, kinds};
use serde_json::Value;

use crate::repository::Repository;
use crate::{Findings, openapi};

/// Where the table is.
const PAGE: &str = "docs/messages-and-events.md";
/// What its first line begins with.
const HEAD: &str = "| type | `data` |";
/// Where the document maps kinds to schemas.
const MAPPING: &str = "/components/schemas/Event/discriminator/mapping";

/// Compares the kinds of `core` with the table and with the document.
pub fn are_listed(repository: &Repository) -> anyhow::Result<Findings> {
    let kinds = kinds();
    let mut faults = compare(&kinds, &repository.read(PAGE)?);
    let document: Value = serde_json::from_str(&openapi::document())?;
    let mapping = document.pointer(MAPPING).and_then(Value::as_object).context(MAPPING)?;
    let told: BTreeSet<&str> = mapping.keys().map(String::as_str).collect();
    let known: BTreeSet<&str> = kinds.iter().map(|kind| kind.name).collect();
    faults.extend(
        known.symmetric_difference(&told).map(|kind| format!("{kind} is not in both core and the OpenAPI document")),
    );
    Ok(faults)
}

fn compare(kinds: &[Kind], page: &str) -> Findings {
    let rows = page.lines().skip_while(|line| !line.starts_with(HEAD)).skip(2).take_while(|line| line.starts_with('|'));
    let mut told: BTreeMap<&str, &str> = rows.filter_map(cells).collect();
    let mut faults = Vec::new();
    for kind in kinds {
        let fields = fields(&kind.data);
        match told.remove(kind.name) {
            // In whichever order is the best to read.
            Some(said) if names(said) == names(&fields) => {}
            _ => faults.push(format!("{PAGE} has no row | `{}` | {fields} |", kind.name)),
        }
    }
    faults.extend(told.keys().map(|kind| format!("{PAGE} has a row of {kind:?}, which is no kind of event")));
    faults
}

/// The kind and the fields that a row speaks of.
fn cells(row: &str) -> Option<(&str, &str)> {
    let mut cells = row.split('|').map(str::trim).skip(1);
    Some((cells.next()?.trim_matches('`'), cells.next()?))
}

/// The fields that a cell names: those that are always there, and those that may be left out.
fn names(cell: &str) -> [BTreeSet<&str>; 2] {
    let (always, sometimes) = cell.split_once("perhaps").unwrap_or((cell, ""));
    [always, sometimes]
        .map(|part| part.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|name| !name.is_empty()).collect())
}

/// The fields of `data`, as the table shows them: those that are always there, and those that may be left out.
fn fields(data: &Value) -> String {
    let is_required = |name: &&str| data["required"].as_array().is_some_and(|all| all.iter().any(|one| one == name));
    let names: Vec<&str> =
        data["properties"].as_object().into_iter().flat_map(|all| all.keys()).map(String::as_str).collect();
    let (always, sometimes): (Vec<&str>, Vec<&str>) = names.into_iter().partition(is_required);
    let shown = |names: &[&str]| format!("`{}`", names.join(", "));
    match (always.is_empty(), sometimes.is_empty()) {
        (true, true) => "–".to_owned(),
        (false, true) => shown(&always),
        (true, false) => format!("perhaps {}", shown(&sometimes)),
        (false, false) => format!("{}, perhaps {}", shown(&always), shown(&sometimes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_that_is_missing_wrong_or_too_many_is_named() {
        let kind = |name: &str| kinds().into_iter().find(|kind| kind.name == name).unwrap();
        let some = [kind("checkpoint.deleted"), kind("session.paused"), kind("file.written")];
        let page = "# Events\n\n| type | `data` | |\n| --- | --- | --- |\n| `checkpoint.deleted` | `n` | gone |\n\
                    | `session.paused` | `why` | paused |\n| `session.danced` | – | no |\n\n| `file.written` | – | elsewhere |\n";
        let expected = [
            format!("{PAGE} has no row | `session.paused` | – |"),
            format!("{PAGE} has no row | `file.written` | `path`, perhaps `path_bytes` |"),
            format!("{PAGE} has a row of \"session.danced\", which is no kind of event"),
        ];
        assert_eq!(compare(&some, page), expected);
    }
}
