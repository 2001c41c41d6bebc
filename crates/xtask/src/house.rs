//! The repository as the checks see it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// Directories that are not ours: what is built, what is kept by git, what a server left behind.
const SKIPPED: [&str; 3] = ["target", ".git", "raworc-data"];

/// The repository.
pub struct House {
    /// Its directory.
    pub root: PathBuf,
    /// Every file in it, relative to the root, in order.
    pub files: Vec<PathBuf>,
}

impl House {
    /// The one this program was built from.
    pub fn open() -> anyhow::Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize()?;
        let mut files = Vec::new();
        collect(&root, &root, &mut files)?;
        files.sort();
        Ok(Self { root, files })
    }

    /// A file's text.
    pub fn read(&self, path: impl AsRef<Path>) -> anyhow::Result<String> {
        let path = path.as_ref();
        fs::read_to_string(self.root.join(path)).with_context(|| path.display().to_string())
    }

    /// Files whose names end so.
    pub fn with_extension<'h>(&'h self, extension: &'h str) -> impl Iterator<Item = &'h PathBuf> {
        self.files.iter().filter(move |path| path.extension().is_some_and(|found| found == extension))
    }
}

fn collect(root: &Path, directory: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        if kind.is_dir() {
            if !SKIPPED.iter().any(|name| entry.file_name() == *name) {
                collect(root, &path, files)?;
            }
        } else if kind.is_file() {
            files.push(path.strip_prefix(root)?.to_path_buf());
        }
    }
    Ok(())
}
