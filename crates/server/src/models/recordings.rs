//! Recordings of models, which providers of kind `replay` answer from: files `recordings/NAME.jsonl` of the data directory.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use raworc_core::names;
use raworc_gateway::replay;

/// The ending of a recording's file.
const ENDING: &str = "jsonl";
/// Recordings that are listed.
const LISTED_MAX: usize = 1000;

/// The recordings of a data directory.
#[derive(Clone, Debug)]
pub struct Recordings {
    directory: PathBuf,
}

impl Recordings {
    /// Those of this data directory.
    pub fn of(data_dir: &Path) -> Self {
        Self { directory: data_dir.join("recordings") }
    }

    /// The file of the recording of this name, if there is one. A name that might lead out of the directory is none.
    pub fn path(&self, name: &str) -> Option<PathBuf> {
        names::check_handle(name).ok()?;
        Some(self.directory.join(format!("{name}.{ENDING}"))).filter(|path| path.is_file())
    }

    /// Where the gateway finds the recording of this name, if there is one: a file, or a recording of the program's own.
    pub fn place(&self, name: &str) -> Option<String> {
        let file = self.path(name).and_then(|path| path.into_os_string().into_string().ok());
        file.or_else(|| replay::builtin(name).map(|_| format!("{}{name}", replay::BUILTIN)))
    }

    /// The names of all of them, in order.
    pub fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let named = entries.filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let name = name.strip_suffix(ENDING)?.strip_suffix('.')?.to_owned();
            self.path(&name).map(|_| name)
        });
        let own = replay::BUILTIN_NAMES.into_iter().map(str::to_owned);
        let names: BTreeSet<String> = named.take(LISTED_MAX).chain(own).collect();
        names.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn names_lead_to_files_of_the_directory_only() {
        let directory = tempfile::tempdir().unwrap();
        let recordings = Recordings::of(directory.path());
        assert_eq!(recordings.names(), replay::BUILTIN_NAMES);
        let inside = directory.path().join("recordings");
        fs::create_dir_all(inside.join("directory.jsonl")).unwrap();
        for name in ["b.jsonl", "a.1.jsonl", ".hidden.jsonl", "other.json", "jsonl", ".jsonl", "ä.jsonl"] {
            fs::write(inside.join(name), "").unwrap();
        }
        fs::write(directory.path().join("out.jsonl"), "").unwrap();
        assert_eq!(recordings.names(), ["a.1", "b", "fix-the-tests"], "those of the program are always there");
        assert_eq!(recordings.path("b"), Some(inside.join("b.jsonl")));
        for name in ["", ".", "..", "../out", "/etc/passwd", "directory", ".hidden", "none", "b\0", "b.jsonl"] {
            assert_eq!(recordings.path(name), None, "{name:?}");
        }
    }
}
