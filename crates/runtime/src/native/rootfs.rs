//! The root filesystem of containers without an image: the machine's programs, and an `/etc` of our own with nothing of the
//! machine's people, services or secrets. Built in place at each start, since running containers use it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use raworc_core::link::WORK_GIDS;
use raworc_launcher::protocol::{HOSTNAME_FILE, HOSTS_FILE};

use super::layout::{self, directory};
use super::{etc, image, program_links};

/// Directories that are mounted over, or empty: what programs expect on any Linux. Nothing of the machine's is in those
/// that are its own (`/opt`, `/srv`, `/var` and so on).
const DIRECTORIES: [&str; 19] = [
    "dev",
    "etc",
    "home",
    "media",
    "mnt",
    "opt",
    "proc",
    "run",
    "srv",
    "sys",
    "usr",
    "var",
    "var/cache",
    "var/lib",
    "var/log",
    "var/mail",
    "var/opt",
    "var/spool",
    "workspace",
];
/// Directories in which everybody may write once something is mounted there. Some runtimes give it this mode then.
const TEMPORARY: [&str; 2] = ["tmp", "var/tmp"];
/// Links that programs expect.
const LINKS: [(&str, &str); 3] = [("var/lock", "/run/lock"), ("var/run", "/run"), ("var/spool/mail", "../mail")];
/// Where programs and libraries are: links into `/usr` nowadays, directories on older systems.
const PROGRAMS: [&str; 6] = ["bin", "sbin", "lib", "lib32", "lib64", "libx32"];
/// Where packages of some compilers and of documents have registered what there is, below `/var/lib`: data that everybody may
/// read.
const REGISTERED: [&str; 8] =
    ["aspell", "dictionaries-common", "ghc", "ghostscript", "ocaml", "sgml-base", "texmf", "xml-core"];
/// What is registered is copied up to so many entries, and bytes, of each directory: a mount costs every container more.
const COPIED_MAX: (usize, u64) = (2_000, 4 << 20);
/// What changes when something is installed on the machine, or configured.
const SIGNS: [&str; 10] = [
    "/etc",
    "/etc/alternatives",
    "/etc/ld.so.cache",
    "/usr/bin",
    "/usr/lib",
    "/usr/local/bin",
    "/usr/local/lib",
    "/usr/share",
    "/var/lib/dpkg/status",
    "/var/lib/ghc/package.conf.d",
];

/// The directories of programs, as absolute paths: `/usr`, and what isn't merged into it.
fn program_directories() -> Vec<PathBuf> {
    let unmerged = PROGRAMS.iter().map(|name| Path::new("/").join(name)).filter(|path| is_directory(path));
    std::iter::once(PathBuf::from("/usr")).chain(unmerged).collect()
}

/// The directories of what is registered, as absolute paths.
fn registered_directories() -> Vec<PathBuf> {
    REGISTERED.iter().map(|name| Path::new("/var/lib").join(name)).filter(|path| is_directory(path)).collect()
}

/// The root filesystem, as it was built last.
#[derive(Debug)]
pub struct Rootfs {
    root: PathBuf,
    built: Mutex<Built>,
}

#[derive(Debug)]
struct Built {
    /// How the machine looked then.
    signs: Vec<Option<SystemTime>>,
    /// Directories that are to be mounted in it, as absolute paths.
    mounted: Vec<PathBuf>,
}

impl Rootfs {
    /// Builds it at `root`.
    pub fn build(root: PathBuf) -> io::Result<Self> {
        let built = build(&root, signs())?;
        Ok(Self { root, built: Mutex::new(built) })
    }

    /// Whether the machine has been changed since (installed programs want their configuration), or is just being looked at.
    pub fn is_outdated(&self) -> bool {
        self.built.try_lock().map_or(true, |built| built.signs != signs())
    }

    /// Builds it again, where nobody else just did.
    pub fn renew(&self) -> io::Result<()> {
        let mut built = self.built.lock().unwrap_or_else(PoisonError::into_inner);
        let now = signs();
        if built.signs != now {
            *built = build(&self.root, now)?;
        }
        Ok(())
    }

    /// Directories of the machine that are to be mounted in it, as absolute paths.
    pub fn mounted(&self) -> Vec<PathBuf> {
        self.built.lock().unwrap_or_else(PoisonError::into_inner).mounted.clone()
    }
}

fn signs() -> Vec<Option<SystemTime>> {
    SIGNS.iter().map(|path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok()).collect()
}

fn build(root: &Path, signs: Vec<Option<SystemTime>>) -> io::Result<Built> {
    directory(root, 0o755)?;
    for name in DIRECTORIES {
        directory(&root.join(name), 0o755)?;
    }
    for name in TEMPORARY {
        directory(&root.join(name), 0o1777)?;
    }
    for (name, target) in LINKS {
        etc::link(&root.join(name), Path::new(target))?;
    }
    for name in PROGRAMS {
        let here = Path::new("/").join(name);
        if is_directory(&here) {
            directory(&root.join(name), 0o755)?;
        } else if let Ok(target) = fs::read_link(&here) {
            etc::link(&root.join(name), &target)?;
        }
    }
    let (programs, registered) = (program_directories(), registered_directories());
    let place = |path: &Path| root.join(path.strip_prefix("/").unwrap_or(path));
    for path in programs.iter().chain(&registered) {
        directory(&place(path), 0o755)?;
    }
    let all = [&programs[..], &registered[..]].concat();
    let text = format!("{} {signs:?}", env!("CARGO_PKG_VERSION"));
    let targets = program_links::targets(&all, &text, &root.with_extension("links"))?;
    etc::furnish(&root.join("etc"), &targets, &own_files(), &OWN_LINKS)?;
    let (copied, large): (Vec<_>, Vec<_>) = registered.into_iter().partition(|path| is_small(path, COPIED_MAX));
    copied.iter().try_for_each(|path| etc::mirror(path, &place(path)))?;
    // What is not installed any more.
    let mut gone =
        REGISTERED.map(|name| Path::new("/var/lib").join(name)).into_iter().filter(|path| !is_directory(path));
    gone.try_for_each(|path| layout::remove(&place(&path)))?;
    Ok(Built { signs, mounted: [programs, large].concat() })
}

/// Whether there are no more entries in a directory, and bytes in its files, than that.
fn is_small(directory: &Path, (entries_max, bytes_max): (usize, u64)) -> bool {
    let (mut open, mut entries, mut bytes) = (vec![directory.to_owned()], 0, 0);
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            entries += 1;
            if metadata.is_dir() {
                open.push(entry.path());
            } else {
                bytes += metadata.len();
            }
            if entries > entries_max || bytes > bytes_max {
                return false;
            }
        }
    }
    true
}

/// Files of `/etc` that are ours, whatever the machine has there.
fn own_files() -> [(&'static str, String); 6] {
    let shell = if Path::new("/bin/bash").exists() { "/bin/bash" } else { "/bin/sh" };
    let passwd = format!(
        "root:x:0:0:root:/workspace:{shell}\nagent:x:1000:1000:agent:/workspace:{shell}\n\
         nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
    );
    // So that `id` and `groups` have names for them.
    let of_work = WORK_GIDS.map(|id| format!("work{}:x:{id}:\n", id - WORK_GIDS.start()));
    let group = format!("root:x:0:\ntty:x:5:\nagent:x:1000:\nnogroup:x:65534:\n{}", of_work.collect::<String>());
    [
        ("passwd", passwd),
        ("group", group),
        ("nsswitch.conf", image::NSSWITCH.into()),
        ("profile", "PS1='\\u@\\h:\\w\\$ '\n".into()),
        ("resolv.conf", String::new()),
        ("shells", "/bin/sh\n/bin/bash\n".into()),
    ]
}

/// Links of `/etc` that are ours. The files in `/run` are made when the container gets its name.
const OWN_LINKS: [(&str, &str); 3] =
    [("hostname", HOSTNAME_FILE), ("hosts", HOSTS_FILE), ("mtab", "/proc/self/mounts")];

fn is_directory(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_small_is_copied() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        fs::create_dir(path.join("inner")).unwrap();
        fs::write(path.join("inner/file"), "1234").unwrap();
        std::os::unix::fs::symlink("..", path.join("inner/up")).unwrap();
        assert_eq!([(3, 6), (2, 6), (3, 5)].map(|most| is_small(path, most)), [true, false, false]);
    }
}
