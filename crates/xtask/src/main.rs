//! Checks and chores.
//!
//! ```text
//! cargo xtask check      the rules of the house (ARCHITECTURE.md) that a compiler does not hold
//! cargo xtask openapi    writes docs/openapi.json anew
//! ```

mod errors;
mod house;
mod imports;
mod invariants;
mod layers;
mod links;
mod openapi;
mod text;

use std::io::Write as _;
use std::process::ExitCode;

use house::House;

/// What a check finds wrong, one sentence each.
type Faults = Vec<String>;
type Check = fn(&House) -> anyhow::Result<Faults>;

/// Every check, by the name it is reported under.
const CHECKS: [(&str, Check); 12] = [
    ("layers", layers::order),
    ("backends", layers::backends),
    ("containers", layers::containers),
    ("imports", imports::cycles),
    ("purity", text::purity),
    ("lints", text::lints),
    ("sizes", text::sizes),
    ("addresses", text::addresses),
    ("errors", errors::pages),
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
        ["openapi"] => House::open().and_then(|house| openapi::write(&house)).map(|()| true),
        _ => Err(anyhow::anyhow!(USAGE)),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say(&format!("xtask: {error:#}"));
            ExitCode::from(2)
        }
    }
}

/// Runs every check and says what each found; whether all is well.
fn check() -> anyhow::Result<bool> {
    let house = House::open()?;
    let mut all_well = true;
    for (name, check) in CHECKS {
        let faults = check(&house)?;
        say(&format!("{name}: {}", if faults.is_empty() { "ok" } else { "not as it should be" }));
        faults.iter().for_each(|fault| say(&format!("  {fault}")));
        all_well &= faults.is_empty();
    }
    Ok(all_well)
}

fn say(line: &str) {
    // Nobody is there to hear that nobody is there.
    let _ = writeln!(std::io::stderr(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_house_is_in_order() {
        let house = House::open().unwrap();
        let found = CHECKS
            .iter()
            .flat_map(|(name, check)| check(&house).unwrap().into_iter().map(move |fault| format!("{name}: {fault}")));
        let found: Vec<String> = found.collect();
        assert!(found.is_empty(), "see `cargo xtask check`:\n{}", found.join("\n"));
    }
}
