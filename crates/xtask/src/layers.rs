//! Which crate may use which.

use std::path::Path;

use anyhow::Context as _;
use cargo_metadata::{DependencyKind, MetadataCommand, Package};

use crate::Findings;
use crate::repository::Repository;

/// The order: a crate may use those before it, never those after it. The ones that are yet to come keep their place.
const ORDER: [&str; 15] = [
    "raworc-core",
    "raworc-api",
    "raworc-store",
    "raworc-oci",
    "raworc-quota",
    "raworc-workspace",
    "raworc-launcher",
    "raworc-runtime",
    "raworc-host",
    "raworc-gateway",
    "raworc-server",
    "raworc",
    "raworc-bench",
    "raworc-sim",
    "raworc-xtask",
];
/// All that `core` may use from elsewhere: none of it does anything.
const CORE_USES: [&str; 7] =
    ["jiff", "serde", "serde_json", "thiserror", "unicode-normalization", "unicode-properties", "uuid"];
/// What only these crates may use, so that there is one place to look and one to change.
const ONLY: [(&str, &[&str]); 4] = [
    ("libcontainer", &["raworc-launcher"]),
    ("libseccomp", &["raworc-launcher"]),
    ("clap", &["raworc", "raworc-bench", "raworc-sim"]),
    ("miette", &["raworc"]),
];
/// Crates that may name a backend.
const KNOW_THE_BACKENDS: [&str; 2] = ["crates/raworc", "crates/runtime"];
/// Directories and files that may call the runtime.
const CALL_THE_RUNTIME: [&str; 5] = [
    "crates/server/src/loops",
    "crates/server/src/checkpoints",
    "crates/server/src/layers",
    "crates/server/src/verbs/health.rs",
    "crates/server/src/http/routes/system.rs",
];

/// Arrows point one way.
pub fn order(repository: &Repository) -> anyhow::Result<Findings> {
    let mut faults = Vec::new();
    for package in packages(repository)? {
        let name = package.name.as_str();
        let Some(place) = place_of(name) else {
            faults.push(format!("{name} has no place in the order of crates (crates/xtask/src/layers.rs)"));
            continue;
        };
        for dependency in &package.dependencies {
            let used = dependency.name.as_str();
            if dependency.path.is_some() && place_of(used).is_none_or(|other| other >= place) {
                faults.push(format!("{name} may not use {used}, which does not come before it"));
            }
            if name == "raworc-host" && dependency.path.is_some() && used != "raworc-core" {
                faults.push(format!("{name} may not use {used}: of our crates, what runs in containers has core only"));
            }
            let is_normal = dependency.kind == DependencyKind::Normal;
            if name == "raworc-core" && is_normal && !CORE_USES.contains(&used) {
                faults.push(format!("{name} may not use {used}: it has no effects"));
            }
            if let Some((_, owners)) = ONLY.iter().find(|(only, owners)| *only == used && !owners.contains(&name)) {
                faults.push(format!("{name} may not use {used}: only {} may", owners.join(" and ")));
            }
        }
    }
    Ok(faults)
}

/// Only `main` and the rooms themselves know which runtime is in use.
pub fn backends(repository: &Repository) -> anyhow::Result<Findings> {
    let mut faults = Vec::new();
    for path in repository.with_extension("rs").filter(|path| path.starts_with("crates") && !knows_backends(path)) {
        if repository.read(path)?.contains(concat!("raworc_runtime::", "native")) {
            faults.push(format!("{} names a backend; crates/raworc/src/serve.rs picks them", path.display()));
        }
    }
    Ok(faults)
}

/// Checks that only loops, and what they use to change workspaces, call the runtime; besides them `/health` and `/metrics` ask it.
pub fn containers(repository: &Repository) -> anyhow::Result<Findings> {
    let mut faults = Vec::new();
    let of_server = repository.with_extension("rs").filter(|path| path.starts_with("crates/server/src"));
    for path in of_server.filter(|path| !CALL_THE_RUNTIME.iter().any(|place| path.starts_with(place))) {
        if repository.read(path)?.contains("app.runtime") {
            faults.push(format!("{} calls the runtime; loops do", path.display()));
        }
    }
    Ok(faults)
}

fn knows_backends(path: &Path) -> bool {
    KNOW_THE_BACKENDS.iter().any(|place| path.starts_with(place))
}

fn packages(repository: &Repository) -> anyhow::Result<Vec<Package>> {
    let metadata = MetadataCommand::new().current_dir(&repository.root).no_deps().exec();
    Ok(metadata.context("cargo metadata")?.packages)
}

fn place_of(name: &str) -> Option<usize> {
    ORDER.iter().position(|known| *known == name)
}
