//! The root filesystem of containers without an image: the machine's programs, and an `/etc` of our own with nothing of the
//! machine's people, services or secrets. Built in place at each start, since running containers use it.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use raworc_core::link::WORK_GIDS;

use super::layout::{directory, write_file};

/// Directories that are mounted over, or empty.
const DIRECTORIES: [&str; 8] = ["dev", "etc", "home", "proc", "run", "sys", "usr", "workspace"];
/// Where programs and libraries are: links into `/usr` nowadays, directories on older systems.
const PROGRAMS: [&str; 6] = ["bin", "sbin", "lib", "lib32", "lib64", "libx32"];
/// Files of the machine that programs want to see and that say nothing secret.
const COPIES: [&str; 10] = [
    "debian_version",
    "ld.so.cache",
    "ld.so.conf",
    "localtime",
    "mime.types",
    "os-release",
    "protocols",
    "services",
    "ssl/certs/ca-certificates.crt",
    "ssl/openssl.cnf",
];
/// Directories of such files, or of links.
const COPIED_DIRECTORIES: [&str; 2] = ["alternatives", "ld.so.conf.d"];

/// The directories of programs that are to be mounted, as absolute paths: `/usr` and what isn't merged into it.
pub fn program_directories() -> Vec<PathBuf> {
    let unmerged = PROGRAMS.iter().map(|name| Path::new("/").join(name)).filter(|path| is_directory(path));
    std::iter::once(PathBuf::from("/usr")).chain(unmerged).collect()
}

/// Builds the root filesystem at `root`.
pub fn build(root: &Path) -> io::Result<()> {
    directory(root, 0o755)?;
    for name in DIRECTORIES {
        directory(&root.join(name), 0o755)?;
    }
    // Some runtimes give this mode to what they mount there.
    directory(&root.join("tmp"), 0o1777)?;
    for name in PROGRAMS {
        let here = Path::new("/").join(name);
        if is_directory(&here) {
            directory(&root.join(name), 0o755)?;
        } else if let Ok(target) = fs::read_link(&here) {
            link(&root.join(name), &target)?;
        }
    }
    etc(&root.join("etc"))
}

fn etc(etc: &Path) -> io::Result<()> {
    let shell = if Path::new("/bin/bash").exists() { "/bin/bash" } else { "/bin/sh" };
    let passwd = format!(
        "root:x:0:0:root:/workspace:{shell}\nagent:x:1000:1000:agent:/workspace:{shell}\n\
         nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
    );
    // So that `id` and `groups` have names for them.
    let of_work = WORK_GIDS.map(|id| format!("work{}:x:{id}:\n", id - WORK_GIDS.start()));
    let group = format!("root:x:0:\ntty:x:5:\nagent:x:1000:\nnogroup:x:65534:\n{}", of_work.collect::<String>());
    let own = [
        ("passwd", passwd.as_str()),
        ("group", group.as_str()),
        ("hosts", "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"),
        ("nsswitch.conf", "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n"),
        ("profile", "PS1='\\u@\\h:\\w\\$ '\n"),
        ("resolv.conf", ""),
        ("shells", "/bin/sh\n/bin/bash\n"),
    ];
    for (name, text) in own {
        write_file(&etc.join(name), text.as_bytes(), 0o644)?;
    }
    link(&etc.join("mtab"), Path::new("/proc/self/mounts"))?;
    for name in COPIES {
        copy(&Path::new("/etc").join(name), &etc.join(name))?;
    }
    COPIED_DIRECTORIES.iter().try_for_each(|name| copy_directory(&Path::new("/etc").join(name), &etc.join(name)))
}

/// Copies a file, or a link as a link; what isn't there is left out.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let Ok(kind) = fs::symlink_metadata(from).map(|metadata| metadata.file_type()) else {
        return Ok(());
    };
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    if kind.is_symlink() {
        link(to, &fs::read_link(from)?)
    } else if kind.is_file() {
        write_file(to, &fs::read(from)?, 0o644)
    } else {
        Ok(())
    }
}

fn copy_directory(from: &Path, to: &Path) -> io::Result<()> {
    let Ok(entries) = fs::read_dir(from) else {
        return Ok(());
    };
    directory(to, 0o755)?;
    for entry in entries {
        let name = entry?.file_name();
        copy(&from.join(&name), &to.join(&name))?;
    }
    Ok(())
}

fn link(path: &Path, target: &Path) -> io::Result<()> {
    match fs::read_link(path) {
        Ok(old) if old == target => Ok(()),
        Ok(_) => fs::remove_file(path).and_then(|()| symlink(target, path)),
        Err(_) => symlink(target, path),
    }
}

fn is_directory(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir())
}
