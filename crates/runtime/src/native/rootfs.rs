//! The root filesystem of containers without an image: the machine's programs, and an `/etc` of our own with nothing of the
//! machine's people, services or secrets. Built in place at each start, since running containers use it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use raworc_core::link::WORK_GIDS;
use raworc_launcher::protocol::{HOSTNAME_FILE, HOSTS_FILE};

use super::layout::directory;
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
/// What changes when something is installed on the machine, or configured.
const SIGNS: [&str; 9] = [
    "/etc",
    "/etc/alternatives",
    "/etc/ld.so.cache",
    "/usr/bin",
    "/usr/lib",
    "/usr/local/bin",
    "/usr/local/lib",
    "/usr/share",
    "/var/lib/dpkg/status",
];

/// The directories of programs that are to be mounted, as absolute paths: `/usr`, what isn't merged into it, and what is
/// registered.
pub fn program_directories() -> Vec<PathBuf> {
    let unmerged = PROGRAMS.iter().map(|name| Path::new("/").join(name)).filter(|path| is_directory(path));
    let registered = REGISTERED.iter().map(|name| Path::new("/var/lib").join(name)).filter(|path| is_directory(path));
    std::iter::once(PathBuf::from("/usr")).chain(unmerged).chain(registered).collect()
}

/// The root filesystem, as it was built last.
#[derive(Debug)]
pub struct Rootfs {
    root: PathBuf,
    /// How the machine looked then.
    built: Mutex<Vec<Option<SystemTime>>>,
}

impl Rootfs {
    /// Builds it at `root`.
    pub fn build(root: PathBuf) -> io::Result<Self> {
        let now = signs();
        build(&root, &now)?;
        Ok(Self { root, built: Mutex::new(now) })
    }

    /// Whether the machine has been changed since (installed programs want their configuration), or is just being looked at.
    pub fn is_outdated(&self) -> bool {
        self.built.try_lock().map_or(true, |built| *built != signs())
    }

    /// Builds it again, where nobody else just did.
    pub fn renew(&self) -> io::Result<()> {
        let mut built = self.built.lock().unwrap_or_else(PoisonError::into_inner);
        let now = signs();
        if *built != now {
            build(&self.root, &now)?;
            *built = now;
        }
        Ok(())
    }
}

fn signs() -> Vec<Option<SystemTime>> {
    SIGNS.iter().map(|path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok()).collect()
}

fn build(root: &Path, signs: &[Option<SystemTime>]) -> io::Result<()> {
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
    let programs = program_directories();
    for path in &programs {
        directory(&root.join(path.strip_prefix("/").unwrap_or(path)), 0o755)?;
    }
    let signs = format!("{} {signs:?}", env!("CARGO_PKG_VERSION"));
    let targets = program_links::targets(&programs, &signs, &root.with_extension("links"))?;
    etc::furnish(&root.join("etc"), &targets, &own_files(), &OWN_LINKS)
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
