//! The files of the repository.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// Directories that are skipped: build output, git's data, a server's data.
const SKIPPED: [&str; 3] = ["target", ".git", "raworc-data"];

/// The repository.
pub struct Repository {
    /// Its root directory.
    pub root: PathBuf,
    /// All files relative to the root, sorted.
    pub files: Vec<PathBuf>,
}

impl Repository {
    /// The repository that this program was built from.
    pub fn open() -> anyhow::Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize()?;
        let mut files = Vec::new();
        collect(&root, &root, &mut files)?;
        files.sort();
        Ok(Self { root, files })
    }

    /// The text of a file.
    pub fn read(&self, path: impl AsRef<Path>) -> anyhow::Result<String> {
        let path = path.as_ref();
        fs::read_to_string(self.root.join(path)).with_context(|| path.display().to_string())
    }

    /// Files with this extension.
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
