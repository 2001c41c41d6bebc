//! Where links of the machine's programs lead in `/etc`.
//!
//! To find them takes a walk through `/usr`, half a second of it. So what was found is kept in a file, for as long as the machine
//! looks the same.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use super::layout::write_file;

/// Directories of documents and names, tens of thousands of them, whose links are to alternatives at most.
const DOCUMENTS: [&str; 7] = [
    "/usr/share/doc",
    "/usr/share/icons",
    "/usr/share/info",
    "/usr/share/locale",
    "/usr/share/man",
    "/usr/share/zoneinfo",
    "/usr/include",
];

/// Entries that are looked at, at most.
const VISITED_MAX: usize = 4_000_000;
/// What separates the paths in the file.
const SEPARATOR: u8 = 0;

/// Where links in the directories `programs` lead in `/etc`: as the file `kept` says, where it was written when the machine had the
/// same `signs`, and otherwise found anew and written there.
pub fn targets(programs: &[PathBuf], signs: &str, kept: &Path) -> io::Result<BTreeSet<PathBuf>> {
    if let Some(found) = read(kept, signs) {
        return Ok(found);
    }
    let found: BTreeSet<PathBuf> = programs.iter().flat_map(|directory| links_in(directory)).collect();
    let mut content = signs.as_bytes().to_vec();
    for path in &found {
        content.push(SEPARATOR);
        content.extend_from_slice(path.as_os_str().as_bytes());
    }
    write_file(kept, &content, 0o600)?;
    Ok(found)
}

fn read(kept: &Path, signs: &str) -> Option<BTreeSet<PathBuf>> {
    let content = fs::read(kept).ok()?;
    let mut parts = content.split(|byte| *byte == SEPARATOR);
    if parts.next()? != signs.as_bytes() {
        return None;
    }
    Some(parts.map(|path| PathBuf::from(OsStr::from_bytes(path))).collect())
}

/// Where the links below `directory` lead, on its own file system.
fn links_in(directory: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let Ok(device) = fs::metadata(directory).map(|metadata| metadata.dev()) else { return found };
    let (mut open, mut visited) = (vec![directory.to_owned()], 0);
    while let Some(directory) = open.pop() {
        if !fs::symlink_metadata(&directory).is_ok_and(|metadata| metadata.dev() == device) {
            continue;
        }
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            visited += 1;
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() {
                let path = entry.path();
                if visited < VISITED_MAX && !DOCUMENTS.iter().any(|documents| path == Path::new(documents)) {
                    open.push(path);
                }
            } else if kind.is_symlink() {
                let path = entry.path();
                let target = fs::read_link(&path).map(|target| resolve(&path, &target)).unwrap_or_default();
                if target.starts_with("/etc") {
                    found.insert(target);
                }
            }
        }
    }
    found
}

/// Where a link leads, by its text alone.
pub fn resolve(link: &Path, target: &Path) -> PathBuf {
    let mut path = link.parent().unwrap_or(Path::new("/")).to_owned();
    for component in target.components() {
        match component {
            Component::RootDir => path = PathBuf::from("/"),
            Component::ParentDir => drop(path.pop()),
            Component::Normal(name) => path.push(name),
            Component::CurDir | Component::Prefix(_) => {}
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn what_was_found_is_kept_while_the_machine_looks_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let (programs, kept) = (directory.path().join("usr"), directory.path().join("kept"));
        fs::create_dir_all(programs.join("lib")).unwrap();
        let find = |signs: &str| targets(std::slice::from_ref(&programs), signs, &kept).unwrap();
        let paths = |names: &[&str]| names.iter().map(PathBuf::from).collect::<BTreeSet<_>>();
        assert_eq!(find("1"), paths(&[]));
        symlink("/etc/one", programs.join("lib/a")).unwrap();
        symlink(OsStr::from_bytes(b"/etc/t\xffwo"), programs.join("b")).unwrap();
        symlink("/opt/three", programs.join("c")).unwrap();
        assert_eq!(find("1"), paths(&[]), "it is not looked for again");
        let both = BTreeSet::from(["/etc/one".into(), PathBuf::from(OsStr::from_bytes(b"/etc/t\xffwo"))]);
        assert_eq!((find("2"), find("2")), (both.clone(), both));
        fs::write(&kept, "").unwrap();
        assert_eq!(find("3").len(), 2);
    }
}
