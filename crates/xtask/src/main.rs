//! Checks and generators of the repository.
//!
//! ```text
//! cargo xtask check      the rules of the repository (ARCHITECTURE.md) that a compiler does not hold
//! cargo xtask openapi    writes docs/openapi.json anew
//! ```

mod errors;
mod events;
mod imports;
mod invariants;
mod jobs;
mod layers;
mod links;
mod openapi;
mod repository;
mod text;

use std::io::Write as _;
use std::process::ExitCode;

use repository::Repository;

/// The findings of a check, one sentence each.
type Findings = Vec<String>;
type Check = fn(&Repository) -> anyhow::Result<Findings>;

/// All checks by name.
const CHECKS: [(&str, Check); 14] = [
    ("layers", layers::order),
    ("backends", layers::backends),
    ("containers", layers::containers),
    ("imports", imports::cycles),
    ("jobs", jobs::can_run_again),
    ("purity", text::purity),
    ("lints", text::lints),
    ("sizes", text::sizes),
    ("addresses", text::addresses),
    ("errors", errors::pages),
    ("events", events::are_listed),
    ("openapi", openapi::is_current),
    ("links", links::resolve),
    ("invariants", invariants::are_held),
];

const USAGE: &str = "usage: cargo xtask check | openapi";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["check"] => check(),
        ["openapi"] => Repository::open().and_then(|repository| openapi::write(&repository)).map(|()| true),
        _ => Err(anyhow::anyhow!(USAGE)),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            print_error(&format!("xtask: {error:#}"));
            ExitCode::from(2)
        }
    }
}

/// Runs all checks and prints their findings. Returns whether all passed.
fn check() -> anyhow::Result<bool> {
    let repository = Repository::open()?;
    let mut all_well = true;
    for (name, check) in CHECKS {
        let faults = check(&repository)?;
        print_error(&format!("{name}: {}", if faults.is_empty() { "ok" } else { "not as it should be" }));
        faults.iter().for_each(|fault| print_error(&format!("  {fault}")));
        all_well &= faults.is_empty();
    }
    Ok(all_well)
}

fn print_error(line: &str) {
    // If standard error is closed, there is nobody to tell.
    let _ = writeln!(std::io::stderr(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_check_passes() {
        let repository = Repository::open().unwrap();
        let found = CHECKS.iter().flat_map(|(name, check)| {
            check(&repository).unwrap().into_iter().map(move |fault| format!("{name}: {fault}"))
        });
        let found: Vec<String> = found.collect();
        assert!(found.is_empty(), "see `cargo xtask check`:\n{}", found.join("\n"));
    }
}
