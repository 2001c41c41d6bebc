//! Builds the host, the static program inside every container, and has it embedded.
//!
//! It is a build of its own because it needs its own flags: linked statically, small, and none of that for procedural
//! macros and build scripts, which is why the target is named although it is this machine's.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

fn main() {
    let out = PathBuf::from(variable("OUT_DIR"));
    let root = Path::new(&variable("CARGO_MANIFEST_DIR")).join("../..");
    let target = variable("TARGET");
    for path in [
        "crates/host/src",
        "crates/host/Cargo.toml",
        "crates/core/src",
        "crates/core/Cargo.toml",
        "Cargo.toml",
        "Cargo.lock",
    ] {
        println!("cargo:rerun-if-changed={}", root.join(path).display());
    }
    let directory = out.join("host-target");
    let mut cargo = Command::new(variable("CARGO"));
    cargo
        .args(["build", "--quiet", "--locked", "--profile", "host", "--package", "raworc-host", "--target", &target])
        .arg("--target-dir")
        .arg(&directory)
        .current_dir(&root)
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static");
    // What the outer build was told about itself is not meant for this one.
    for name in ["RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "CARGO_TARGET_DIR", "CARGO_BUILD_TARGET"] {
        cargo.env_remove(name);
    }
    for name in ["CARGO_BUILD_RUSTC_WRAPPER", "CARGO_BUILD_RUSTC_WORKSPACE_WRAPPER", "CARGO_BUILD_BUILD_DIR"] {
        cargo.env_remove(name);
    }
    match cargo.status() {
        Ok(status) if status.success() => {}
        Ok(status) => fail(&format!("building raworc-host ended with {status}; the reason is above")),
        Err(error) => fail(&format!("cargo could not be started to build raworc-host: {error}")),
    }
    println!("cargo:rustc-env=RAWORC_HOST={}", directory.join(target).join("host/raworc-host").display());
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| fail(&format!("cargo did not set {name}")))
}

fn fail(why: &str) -> ! {
    eprintln!("{why}");
    exit(1)
}
