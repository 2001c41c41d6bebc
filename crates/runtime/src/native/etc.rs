//! What of the machine's `/etc` is in containers without an image: the configuration that programs and compilers look for,
//! and whatever links in `/usr` lead to. Never anything that may be a secret.
//!
//! Copied is only what everybody on the machine may read, what belongs to the owner of `/usr`, and what neither name nor
//! content tells to be a credential. The rest of the machine's configuration is not there.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::layout::{directory, write_file};
use super::program_links::resolve;

/// What programs want to see, below `/etc`. A `*` in a name stands for anything; a directory is meant with all that is in it.
#[rustfmt::skip]
const WANTED: &[&str] = &[
    // the system
    "alternatives", "debian_version", "*-release", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime", "timezone",
    "locale.alias", "locale.conf", "mime.types", "protocols", "services", "networks", "ethertypes", "rpc", "host.conf",
    "gai.conf", "magic", "magic.mime", "manpath.config", "man_db.conf", "groff", "papersize", "libpaper.d", "terminfo",
    "xattr.conf", "dpkg/origins", "dpkg/shlibs.default", "dpkg/shlibs.override", "glvnd", "OpenCL", "vulkan",
    // certificates of authorities
    "ssl/certs", "ssl/openssl.cnf", "pki/ca-trust", "pki/java", "pki/tls/certs", "pki/tls/cert.pem", "pki/tls/openssl.cnf",
    "ca-certificates.conf", "crypto-policies",
    // shells, editors, terminals
    "bash.bashrc", "bashrc", "inputrc", "zsh*", "ksh*", "csh*", "fish", "mkshrc", "vim*", "emacs*", "nanorc", "screenrc",
    "tmux.conf", "gdb", "gprofng.rc",
    // languages and compilers
    "java*", "maven*", "ant*", "groovy*", "scala*", "kotlin*", "perl", "python*", "ruby*", "php/*/cli",
    "php/*/mods-available", "php.ini", "php.d", "lua*", "tcl*", "guile*", "clisp*", "common-lisp", "sbclrc", "ocaml*",
    "ghc*", "haskell*", "mono", "dotnet", "fpc*", "gnat*", "erlang*", "elixir*", "julia", "R", "octave*", "maxima*",
    "prolog*", "swi-prolog", "racket", "openmpi*", "pmix*", "prte*",
    // documents, fonts, pictures
    "texmf", "fonts", "ghostscript", "ImageMagick*", "GraphicsMagick*", "X11/rgb.txt", "xml", "sgml",
    "dictionaries-common", "aspell*",
];
/// Names of files and directories that are never copied: accounts, the machine's identity and services, and where people
/// put passwords and tokens.
#[rustfmt::skip]
const REFUSED: &[&str] = &[
    "shadow*", "gshadow*", "passwd*", "group*", "subuid*", "subgid*", "sudoers*", "machine-id", "hostname", "hosts",
    "resolv.conf", "environment", "fstab", "crypttab", "ssh", "private", "*.key", "*.keytab", "*.p12", "*.pfx", "*.jks",
    "id_rsa*", "id_ed25519*", "*password*", "*secret*", "*credential*", "*token*", "*netrc*", "npmrc", "pip.conf",
    "gitconfig", "wgetrc", "curlrc", "settings.xml", "settings-security.xml", "pg_service.conf", "pgpass*", "my.cnf",
];
/// What text that is a secret contains.
const PRIVATE_KEY: &str = "PRIVATE KEY-----";

/// Directories deep, at most.
const DEPTH_MAX: usize = 24;
/// Links that are followed one after the other.
const HOPS_MAX: usize = 16;
/// Files, links and directories.
const ENTRIES_MAX: usize = 50_000;
/// Bytes of one file and of all.
const BYTES_MAX: (u64, u64) = (4 << 20, 64 << 20);
/// Files up to so large are looked into for secrets.
const SCANNED_BYTES_MAX: u64 = 1 << 20;

/// Something that is to be there.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Entry {
    Directory,
    Link(PathBuf),
    /// The machine's file of the same name.
    File,
    /// A file of our own.
    Text(String),
}

/// What is to be in one directory of containers, after the machine's directory of the same name.
struct Tree {
    /// The machine's.
    from: PathBuf,
    entries: BTreeMap<PathBuf, Entry>,
    /// The owner of what may be copied.
    owner: u32,
    bytes_left: u64,
    file_bytes_max: u64,
    /// Whether names and contents tell what is refused.
    is_guarded: bool,
}

/// Makes `to` the `/etc` of containers, with what `targets` name, and `own` files and links in it. What is there already and the same stays untouched,
/// since running containers use it.
pub fn furnish(
    to: &Path,
    targets: &BTreeSet<PathBuf>,
    own: &[(&str, String)],
    links: &[(&str, &str)],
) -> io::Result<()> {
    let mut etc = Tree::new("/etc", fs::metadata("/usr")?.uid(), BYTES_MAX);
    etc.entries.extend(own.iter().map(|(name, text)| (PathBuf::from(name), Entry::Text(text.clone()))));
    etc.entries.extend(links.iter().map(|(name, target)| (PathBuf::from(name), Entry::Link(PathBuf::from(target)))));
    WANTED.iter().for_each(|pattern| etc.take_all(pattern));
    targets.iter().filter_map(|target| target.strip_prefix("/etc").ok()).for_each(|path| etc.take(path, HOPS_MAX));
    etc.write(to)
}

/// Makes `to` a copy of the directory `from` with all that everybody may read in it, which is nothing where not everybody may enter
/// it: data, where nothing is refused by its name.
pub fn mirror(from: &Path, to: &Path) -> io::Result<()> {
    let owner = fs::metadata("/usr")?.uid();
    let mut tree = Tree { is_guarded: false, ..Tree::new(from, owner, BYTES_MAX) };
    let directory = fs::symlink_metadata(from)?;
    if directory.is_dir() && directory.uid() == owner && directory.mode() & 0o005 == 0o005 {
        tree.take_contents(Path::new(""), HOPS_MAX);
    }
    tree.write(to)?;
    // Compilers compare the times of what is registered with that of its directory.
    let directories =
        tree.entries.iter().filter(|(_, entry)| **entry == Entry::Directory).map(|(path, _)| path.as_path());
    for path in directories.chain([Path::new("")]) {
        File::open(to.join(path))?.set_modified(fs::metadata(from.join(path))?.modified()?)?;
    }
    Ok(())
}

impl Tree {
    fn new(from: impl Into<PathBuf>, owner: u32, (file_bytes_max, bytes_left): (u64, u64)) -> Self {
        Self { from: from.into(), entries: BTreeMap::new(), owner, bytes_left, file_bytes_max, is_guarded: true }
    }

    /// Takes what a pattern of [`WANTED`] means.
    fn take_all(&mut self, pattern: &str) {
        let mut found = vec![PathBuf::new()];
        for name in pattern.split('/') {
            found = match name.contains('*') {
                false => found.into_iter().map(|path| path.join(name)).collect(),
                true => found.iter().flat_map(|path| self.matching(path, name)).collect(),
            };
        }
        for path in found {
            self.take(&path, HOPS_MAX);
        }
    }

    fn matching(&self, path: &Path, pattern: &str) -> Vec<PathBuf> {
        let names = names_in(&self.from.join(path));
        names.into_iter().filter(|name| matches(pattern, &name.to_string_lossy())).map(|name| path.join(name)).collect()
    }

    /// Takes a path with what is in it, and what it is a link to.
    fn take(&mut self, path: &Path, hops: usize) {
        let names: Vec<&OsStr> = path.iter().collect();
        if names.is_empty() || names.len() > DEPTH_MAX {
            return;
        }
        let mut here = PathBuf::new();
        for (index, name) in names.iter().enumerate() {
            here.push(name);
            let is_last = index + 1 == names.len();
            if self.refuses(name) || self.entries.len() >= ENTRIES_MAX {
                return;
            }
            match self.entries.get(&here) {
                Some(Entry::Directory) if !is_last => continue,
                Some(Entry::Directory | Entry::Link(_)) | None => {}
                Some(Entry::File | Entry::Text(_)) => return,
            }
            let Ok(metadata) = fs::symlink_metadata(self.from.join(&here)) else { return };
            if metadata.is_symlink() {
                return self.take_link(&here, names.get(index + 1..).unwrap_or_default(), hops);
            }
            let is_open = metadata.uid() == self.owner && metadata.mode() & 0o004 != 0;
            if metadata.is_dir() && is_open && metadata.mode() & 0o001 != 0 {
                let is_new = self.entries.insert(here.clone(), Entry::Directory).is_none();
                if is_last && (is_new || hops == HOPS_MAX) {
                    self.take_contents(&here, hops);
                }
            } else if metadata.is_file() && is_open && is_last {
                self.take_file(&here, metadata.len());
            } else {
                return;
            }
        }
    }

    fn take_contents(&mut self, path: &Path, hops: usize) {
        for name in names_in(&self.from.join(path)) {
            self.take(&path.join(name), hops);
        }
    }

    fn take_link(&mut self, path: &Path, rest: &[&OsStr], hops: usize) {
        let full = self.from.join(path);
        let Ok(target) = fs::read_link(&full) else { return };
        let leads_to = resolve(&full, &target);
        if leads_to.iter().any(|name| self.refuses(name)) {
            return;
        }
        self.entries.insert(path.to_owned(), Entry::Link(target));
        let next = leads_to.strip_prefix(&self.from).map(|inner| rest.iter().fold(inner.to_owned(), |p, n| p.join(n)));
        if let (Ok(next), Some(hops)) = (next, hops.checked_sub(1)) {
            self.take(&next, hops);
        }
    }

    fn take_file(&mut self, path: &Path, bytes: u64) {
        let is_small = bytes <= self.file_bytes_max.min(self.bytes_left);
        // What is larger is data, not configuration.
        let is_data = !self.is_guarded || bytes > SCANNED_BYTES_MAX;
        let is_harmless = |content: Vec<u8>| content.contains(&0) || !holds_secret(&content);
        if is_small && (is_data || fs::read(self.from.join(path)).is_ok_and(is_harmless)) {
            self.bytes_left -= bytes;
            self.entries.insert(path.to_owned(), Entry::File);
        }
    }

    fn refuses(&self, name: &OsStr) -> bool {
        self.is_guarded && is_refused(name)
    }

    /// Makes `to` what this says, and nothing else.
    fn write(&self, to: &Path) -> io::Result<()> {
        directory(to, 0o755)?;
        for (path, entry) in &self.entries {
            // Of our own files, some may lie in a directory that the machine hasn't got.
            for above in path.ancestors().skip(1).filter(|above| !above.as_os_str().is_empty()) {
                make_way(&to.join(above), true)?;
            }
            let place = to.join(path);
            make_way(&place, *entry == Entry::Directory)?;
            match entry {
                Entry::Directory => directory(&place, 0o755)?,
                Entry::Link(target) => link(&place, target)?,
                Entry::Text(text) => write_file(&place, text.as_bytes(), 0o644)?,
                Entry::File => match copy(&self.from.join(path), &place) {
                    // It went in the meantime.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    result => result?,
                },
            }
        }
        let wanted = self.entries.keys().flat_map(|path| path.ancestors()).collect();
        remove_others(to, Path::new(""), &wanted)
    }
}

/// Copies a file in one step, unless it has been copied as it is now.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let source = fs::metadata(from)?;
    let (changed, executable) = (source.modified()?, source.mode() & 0o001 != 0);
    if fs::metadata(to).is_ok_and(|old| old.len() == source.len() && old.modified().is_ok_and(|at| at == changed)) {
        return Ok(());
    }
    let new = beside(to)?;
    fs::copy(from, &new)?;
    fs::set_permissions(&new, Permissions::from_mode(if executable { 0o755 } else { 0o644 }))?;
    File::options().write(true).open(&new)?.set_modified(changed)?;
    fs::rename(&new, to)
}

/// Where what will be at `path` is made.
fn beside(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    Ok(path.with_file_name(format!(".{}.new", name.to_string_lossy())))
}

/// Removes what is in the place of something of another kind.
fn make_way(path: &Path, for_directory: bool) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() && !for_directory => fs::remove_dir_all(path),
        Ok(metadata) if !metadata.is_dir() && for_directory => fs::remove_file(path),
        _ => Ok(()),
    }
}

fn remove_others(root: &Path, path: &Path, wanted: &BTreeSet<&Path>) -> io::Result<()> {
    for entry in fs::read_dir(root.join(path))? {
        let entry = entry?;
        let inner = path.join(entry.file_name());
        let is_directory = entry.file_type()?.is_dir();
        match (wanted.contains(inner.as_path()), is_directory) {
            (true, true) => remove_others(root, &inner, wanted)?,
            (true, false) => {}
            (false, true) => fs::remove_dir_all(entry.path())?,
            (false, false) => fs::remove_file(entry.path())?,
        }
    }
    Ok(())
}

/// Makes a link, in the place of another one in one step.
pub fn link(path: &Path, target: &Path) -> io::Result<()> {
    if fs::read_link(path).is_ok_and(|old| old == target) {
        return Ok(());
    }
    let new = beside(path)?;
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => symlink(target, &new)?,
    }
    fs::rename(&new, path)
}

fn names_in(path: &Path) -> Vec<OsString> {
    let mut names: Vec<_> = fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.file_name()).collect();
    names.sort();
    names
}

fn is_refused(name: &OsStr) -> bool {
    let name = name.to_string_lossy().to_lowercase();
    REFUSED.iter().any(|pattern| matches(pattern, &name))
}

/// Whether a name is what a pattern with at most two `*` means.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split('*').collect::<Vec<_>>()[..] {
        [begin, end] => name.len() >= begin.len() + end.len() && name.starts_with(begin) && name.ends_with(end),
        ["", middle, ""] => name.contains(middle),
        _ => name == pattern,
    }
}

/// Whether a file has a private key in it, or an address with a password.
fn holds_secret(content: &[u8]) -> bool {
    let text = String::from_utf8_lossy(content);
    if !text.contains("://") {
        return text.contains(PRIVATE_KEY);
    }
    let is_end = |c: char| !c.is_ascii_graphic() || "/\"'<>".contains(c);
    let mut authorities = text.split("://").skip(1).filter_map(|rest| rest.split(is_end).next());
    text.contains(PRIVATE_KEY) || authorities.any(has_password)
}

fn has_password(authority: &str) -> bool {
    let user = authority.rsplit_once('@').map(|(user, _)| user);
    user.and_then(|user| user.split_once(':')).is_some_and(|(_, password)| !password.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine's `/etc`, and what of it containers get.
    fn copied(fill: impl FnOnce(&Path), take: &[&str]) -> (tempfile::TempDir, Vec<String>) {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("etc"), directory.path().join("to"));
        fs::create_dir(&from).unwrap();
        fill(&from);
        let owner = fs::metadata(&from).unwrap().uid();
        let mut tree = Tree::new("/", owner, (1000, 5000));
        tree.from = from;
        take.iter().for_each(|pattern| tree.take_all(pattern));
        tree.write(&to).unwrap();
        let names = tree.entries.keys().map(|path| path.display().to_string()).collect();
        (directory, names)
    }

    fn put(path: &Path, text: &str, mode: u32) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn secrets_stay_outside() {
        let fill = |etc: &Path| {
            for (name, text, mode) in [
                ("java/good", "x", 0o644),
                ("java/private/good", "x", 0o644),
                ("java/closed", "x", 0o640),
                ("java/server.key", "x", 0o644),
                ("java/jmxremote.password", "x", 0o644),
                ("java/API-Token", "x", 0o644),
                ("java/settings.xml", "<password>x</password>", 0o644),
                ("java/pem", "-----BEGIN RSA PRIVATE KEY-----\nx\n", 0o644),
                ("java/url", "index = https://me:secret@example.org/simple\n", 0o644),
                ("java/fine", "index = https://me@example.org/a:b@c http://[::1]:80/\n", 0o644),
                ("java/large", &"x".repeat(1001), 0o644),
                ("shadow", "x", 0o644),
                ("other", "x", 0o644),
            ] {
                put(&etc.join(name), text, mode);
            }
            for (name, target) in [("to-shadow", "../shadow"), ("to-key", "server.key"), ("to-good", "good")] {
                symlink(target, etc.join("java").join(name)).unwrap();
            }
            fs::create_dir(etc.join("java/locked")).unwrap();
            put(&etc.join("java/locked/inner"), "x", 0o644);
            fs::set_permissions(etc.join("java/locked"), fs::Permissions::from_mode(0o711)).unwrap();
        };
        let (directory, names) = copied(fill, &["ja*", "shadow", "missing", "missing/*"]);
        assert_eq!(names, ["java", "java/fine", "java/good", "java/to-good"]);
        assert!(directory.path().join("to/java/to-good").exists());
    }

    #[test]
    fn a_mirror_has_all_that_everybody_may_read_and_its_times() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("from"), directory.path().join("to"));
        put(&from.join("package.conf.d/token-1.conf"), "url: https://me:pass@example.org", 0o644);
        put(&from.join("closed"), "x", 0o600);
        symlink("/usr/share/x", from.join("package.conf.d/link")).unwrap();
        let old = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
        for path in [from.join("package.conf.d"), from.clone()] {
            File::open(path).unwrap().set_modified(old).unwrap();
        }
        for _ in 0..2 {
            mirror(&from, &to).unwrap();
            assert_eq!(names_in(&to), ["package.conf.d"]);
            assert_eq!(names_in(&to.join("package.conf.d")), ["link", "token-1.conf"]);
            for path in [to.join("package.conf.d"), to.clone()] {
                assert_eq!(fs::metadata(path).unwrap().modified().unwrap(), old);
            }
        }
        fs::set_permissions(&from, fs::Permissions::from_mode(0o750)).unwrap();
        mirror(&from, &to).unwrap();
        assert!(names_in(&to).is_empty(), "what not everybody may enter");
    }

    #[test]
    fn links_bring_what_they_lead_to() {
        let fill = |etc: &Path| {
            put(&etc.join("conf-2/deep/file"), "two", 0o644);
            put(&etc.join("tool"), "", 0o755);
            for (name, target) in [
                ("conf", "conf-2"),
                ("conf-2/loop", "loop"),
                ("self", "."),
                ("a", "b"),
                ("b", "a"),
                ("out", "/usr/bin"),
            ] {
                symlink(target, etc.join(name)).unwrap();
            }
        };
        let (directory, names) = copied(fill, &["conf/deep/file", "conf/loop", "a", "out/x", "tool", "self"]);
        assert_eq!(
            names,
            ["a", "b", "conf", "conf-2", "conf-2/deep", "conf-2/deep/file", "conf-2/loop", "out", "self", "tool"]
        );
        assert_eq!(fs::read_to_string(directory.path().join("to/conf/deep/file")).unwrap(), "two");
        assert_eq!(fs::metadata(directory.path().join("to/tool")).unwrap().mode() & 0o777, 0o755);
    }

    #[test]
    fn what_changes_outside_changes_inside_and_nothing_else_stays() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("etc"), directory.path().join("to"));
        let again = || {
            let mut tree = Tree::new("/", fs::metadata(&from).unwrap().uid(), (1000, 5000));
            tree.from = from.clone();
            tree.entries.insert("own".into(), Entry::Text("own".into()));
            ["a", "b", "c"].iter().for_each(|name| tree.take_all(name));
            tree.write(&to).unwrap();
        };
        put(&from.join("a/one"), "1", 0o644);
        put(&from.join("b"), "b", 0o644);
        symlink("b", from.join("c")).unwrap();
        again();
        let before = fs::metadata(to.join("b")).unwrap().ino();
        fs::remove_dir_all(from.join("a")).unwrap();
        put(&from.join("a"), "a file now", 0o644);
        fs::remove_file(from.join("c")).unwrap();
        put(&from.join("c/file"), "a directory now", 0o644);
        put(&to.join("stray/file"), "", 0o644);
        again();
        assert_eq!(fs::metadata(to.join("b")).unwrap().ino(), before, "what stays the same is not touched");
        assert_eq!(fs::read_to_string(to.join("a")).unwrap(), "a file now");
        assert_eq!(fs::read_to_string(to.join("c/file")).unwrap(), "a directory now");
        assert_eq!(names_in(&to), ["a", "b", "c", "own"]);
    }

    #[test]
    fn patterns_mean_what_they_say() {
        for (pattern, name, is_meant) in [
            ("java*", "java-17", true),
            ("java*", "java", true),
            ("*-release", "os-release", true),
            ("*.key", "key", false),
            ("*token*", "a.token.b", true),
            ("ssh", "sshd", false),
            ("a*a", "a", false),
        ] {
            assert_eq!(matches(pattern, name), is_meant, "{pattern} {name}");
        }
    }
}
