//! The OpenAPI document in docs/.

use crate::Findings;
use crate::repository::Repository;

const PATH: &str = "docs/openapi.json";

/// The document that the server generates.
pub fn document() -> String {
    let mut text = raworc_server::openapi();
    text.push('\n');
    text
}

/// Checks that the document in docs/ is current.
pub fn is_current(repository: &Repository) -> anyhow::Result<Findings> {
    let is_current = repository.root.join(PATH).exists() && repository.read(PATH)? == document();
    Ok(if is_current { Vec::new() } else { vec![format!("{PATH} is not current; `cargo xtask openapi` writes it")] })
}

/// Writes the document to docs/.
pub fn write(repository: &Repository) -> anyhow::Result<()> {
    Ok(std::fs::write(repository.root.join(PATH), document())?)
}
