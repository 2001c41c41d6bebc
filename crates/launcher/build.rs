//! Finds the static library of libseccomp, so that one file is all a machine needs, and says what to install where it is missing.
//!
//! The crate `libseccomp-sys` is told (in `.cargo/config.toml`) to link by name only. Were it told to link statically, it would
//! fail before anything here runs, with an error of the compiler's that names no package. The linker takes the library from the
//! first directory that has one, and the directory made here has only the static one.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

/// The library's file.
const LIBRARY: &str = "libseccomp.a";
/// Names a directory to look in first.
const VARIABLE: &str = "LIBSECCOMP_LIB_PATH";

fn main() {
    println!("cargo::rerun-if-env-changed={VARIABLE}");
    let processor = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    let named = env::var_os(VARIABLE).map(PathBuf::from);
    let usual = [format!("/usr/lib/{processor}-linux-gnu"), "/usr/lib64".into(), "/usr/lib".into()].map(PathBuf::from);
    let mut places = named.into_iter().chain(usual).map(|directory| directory.join(LIBRARY));
    let Some(library) = places.find(|path| path.is_file()) else {
        println!(
            "cargo::error=libseccomp is not installed. Install it: apt-get install libseccomp-dev (Debian, Ubuntu), \
             dnf install libseccomp-static libseccomp-devel (Fedora). Where {LIBRARY} is elsewhere, set {VARIABLE} to its directory"
        );
        return;
    };
    println!("cargo::rerun-if-changed={}", library.display());
    match take(&library) {
        Ok(directory) => println!("cargo::rustc-link-search=native={}", directory.display()),
        Err(error) => println!("cargo::error={} cannot be copied: {error}", library.display()),
    }
}

/// Copies the library to a directory where nothing else is.
fn take(library: &Path) -> std::io::Result<PathBuf> {
    let out = env::var_os("OUT_DIR").map(PathBuf::from).unwrap_or_default();
    let directory = out.join("lib");
    fs::create_dir_all(&directory)?;
    fs::copy(library, directory.join(LIBRARY))?;
    Ok(directory)
}
