//! Checks that the tests named in ARCHITECTURE.md exist.

use anyhow::Context as _;

use crate::Findings;
use crate::repository::Repository;

const FILE: &str = "ARCHITECTURE.md";
const SECTION: &str = "\n## Invariants\n";
const HELD_BY: &str = "*Held by*";

/// Looks for each test.
pub fn are_held(repository: &Repository) -> anyhow::Result<Findings> {
    let text = repository.read(FILE)?;
    let (_, section) = text.split_once(SECTION).with_context(|| format!("{FILE} has no section of invariants"))?;
    let section = section.split("\n## ").next().unwrap_or_default();
    let sources =
        repository.with_extension("rs").map(|path| repository.read(path)).collect::<anyhow::Result<Vec<_>>>()?;
    let exists = |test: &str| sources.iter().any(|source| source.contains(&format!("fn {test}(")));
    let missing = named(section).filter(|test| !exists(test));
    Ok(missing.map(|test| format!("{FILE} names the test {test}, which is not there")).collect())
}

/// The words in backticks after each “held by” that are long enough for a test's name.
fn named(section: &str) -> impl Iterator<Item = &str> {
    let held_by = section.split(HELD_BY).skip(1).map(this_item);
    let words = held_by.flat_map(|text| text.split('`').skip(1).step_by(2));
    words.filter(|word| word.matches('_').count() >= 2 && word.chars().all(|c| c.is_ascii_lowercase() || c == '_'))
}

/// The text before the next numbered item.
fn this_item(text: &str) -> &str {
    let next = text.match_indices('\n').find(|(at, _)| text[at + 1..].starts_with(|c: char| c.is_ascii_digit()));
    next.map_or(text, |(at, _)| &text[..at])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_tests_are_taken() {
        let section = "1. `a_b_c` is. *Held by* `x_y_z` and `Code::ALL`.\n2. `q_r_s`. *Held by* `d_e_f`,\n   `g`.";
        assert_eq!(named(section).collect::<Vec<_>>(), ["x_y_z", "d_e_f"]);
    }
}
