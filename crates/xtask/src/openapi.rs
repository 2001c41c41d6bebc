//! The committed OpenAPI document.

use crate::Faults;
use crate::house::House;

const PATH: &str = "docs/openapi.json";

/// What the server says of itself.
pub fn document() -> String {
    let mut text = raworc_server::openapi();
    text.push('\n');
    text
}

/// The committed document is the one that the server answers with.
pub fn is_current(house: &House) -> anyhow::Result<Faults> {
    let is_current = house.root.join(PATH).exists() && house.read(PATH)? == document();
    Ok(if is_current { Vec::new() } else { vec![format!("{PATH} is not current; `cargo xtask openapi` writes it")] })
}

/// Writes it.
pub fn write(house: &House) -> anyhow::Result<()> {
    Ok(std::fs::write(house.root.join(PATH), document())?)
}
