//! What a job of the store may not do, since it may be run again.

use crate::Findings;
use crate::repository::Repository;

/// What would make a second run differ, or outlive a rollback; and what there is instead.
const FORBIDDEN: [(&str, &str); 13] = [
    ("Uuid::now_v7()", NEW_ID),
    ("Uuid::new_v4()", NEW_ID),
    ("new_layer()", NEW_ID),
    ("new_secret()", INPUT),
    (".now()", INPUT),
    ("::now()", INPUT),
    ("store.read()", "a job reads in its transaction"),
    ("lock(", "nothing in memory is changed in a job"),
    (".send(", AFTER_COMMIT),
    (".enqueue(", AFTER_COMMIT),
    (".notify", AFTER_COMMIT),
    (".sweep_soon(", AFTER_COMMIT),
    (".look_again(", AFTER_COMMIT),
];
const NEW_ID: &str = "ids come from tx.new_id()";
const INPUT: &str = "it is made before the job and captured";
const AFTER_COMMIT: &str = "what follows from a commit goes through tx.after_commit";

/// How jobs begin, and the parameters of functions that run in one.
const BEGINNINGS: [&str; 2] = [".write(move |tx|", ".write(|tx|"];
const PARAMETERS: [&str; 2] = ["&mut Tx", "&mut Change<'_>"];

/// Checks that jobs of the server's store, and the functions that take a transaction, can be run again.
pub fn can_run_again(repository: &Repository) -> anyhow::Result<Findings> {
    let mut faults = Vec::new();
    for path in repository.with_extension("rs").filter(|path| path.starts_with("crates/server/src")) {
        for (found, instead) in faults_of(&repository.read(path)?) {
            faults.push(format!(
                "{} has {found:?} in a job of the store, which may run again: {instead}",
                path.display()
            ));
        }
    }
    Ok(faults)
}

fn faults_of(source: &str) -> Vec<(&'static str, &'static str)> {
    let mut faults = Vec::new();
    for part in jobs(source).into_iter().chain(functions(source)) {
        let part = without_effects(part);
        faults.extend(FORBIDDEN.into_iter().filter(|(forbidden, _)| part.contains(forbidden)));
    }
    faults
}

/// The closures that are given to `store.write`.
fn jobs(source: &str) -> Vec<&str> {
    let starts = BEGINNINGS.iter().flat_map(|beginning| source.match_indices(beginning));
    starts.map(|(start, _)| balanced(&source[start..], ('(', ')'))).collect()
}

/// The bodies of functions that take a transaction.
fn functions(source: &str) -> Vec<&str> {
    let mut bodies = Vec::new();
    for (start, _) in source.match_indices("fn ") {
        let rest = &source[start..];
        let Some(brace) = rest.find('{') else { continue };
        if PARAMETERS.iter().any(|parameter| rest[..brace].contains(parameter)) {
            bodies.push(balanced(&rest[brace..], ('{', '}')));
        }
    }
    bodies
}

/// The same without what is done after the commit.
fn without_effects(part: &str) -> String {
    let mut kept = String::new();
    let mut rest = part;
    while let Some(start) = rest.find(".after_commit(") {
        kept.push_str(&rest[..start]);
        let effect = balanced(&rest[start..], ('(', ')'));
        rest = &rest[start + effect.len()..];
    }
    kept + rest
}

/// The text up to the bracket that closes the first one in it. (Brackets in texts are taken for some, and mostly come in pairs, too.)
fn balanced(text: &str, (open, close): (char, char)) -> &str {
    let mut depth = 0_usize;
    for (place, c) in text.char_indices() {
        if c == open {
            depth += 1;
        } else if c == close {
            depth = depth.saturating_sub(1);
            if depth == 0 {
                return &text[..place + c.len_utf8()];
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_second_run_would_repeat_is_found() {
        let good = [
            "let now = app.now(); app.store.write(move |tx| Box::pin(async move { insert(tx, now).await })).await?; app.queue.enqueue(id);",
            "store.write(|tx| { tx.after_commit(move || app.queue.enqueue(lock(&all))); Ok(tx.new_id()) });",
            "fn find(connection: &mut Read) { Uuid::now_v7() }",
        ];
        for source in good {
            assert_eq!(faults_of(source), [], "{source}");
        }
        let bad = [
            ("app.store.write(move |tx| { row(app.now()) })", ".now()"),
            ("store.write(|tx| { tx.after_commit(|| ()); queue.enqueue(id) })", ".enqueue("),
            ("async fn add(tx: &mut Tx, n: u64) -> Result<(), E> { if n > 1 { Uuid::now_v7() } }", "Uuid::now_v7()"),
            ("fn step(change: &mut Change<'_>) { lock(&all).insert(1); }", "lock("),
        ];
        for (source, expected) in bad {
            let found: Vec<_> = faults_of(source).into_iter().map(|(found, _)| found).collect();
            assert_eq!(found, [expected], "{source}");
        }
    }
}
