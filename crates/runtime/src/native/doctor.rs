//! What this machine lacks for running containers, in plain words.

use std::fs;
use std::path::Path;

use rustix::fs::{StatVfs, statvfs};

use super::rootless;

mod cgroups;

/// Free space below which sessions soon can't write, in bytes.
const FREE_BYTES_MIN: u64 = 1 << 30;
/// Free inodes below which sessions soon can't make files.
const FREE_INODES_MIN: u64 = 50_000;
/// User namespaces that a busy server needs.
const USER_NAMESPACES_MIN: u64 = 1_000;

/// Whether something is as it must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It is.
    Ok,
    /// Containers run, but not as well as they could.
    Warning,
    /// Containers don't run.
    Missing,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What, in a word or two.
    pub name: &'static str,
    /// How it is.
    pub status: Status,
    /// What was found.
    pub found: String,
    /// What to do about it; empty where nothing is to be done.
    pub remedy: String,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, status: Status::Ok, found: found.into(), remedy: String::new() }
    }

    fn warning(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, status: Status::Warning, found: found.into(), remedy: remedy.into() }
    }

    fn missing(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, status: Status::Missing, found: found.into(), remedy: remedy.into() }
    }
}

/// Looks at everything that containers need. Changes nothing. Takes a few milliseconds, on the calling thread.
#[must_use]
pub fn doctor(data_dir: &Path) -> Vec<Check> {
    let mut checks = vec![user(), kernel(), user_namespaces(), seccomp(), proc_mountable(), overlayfs()];
    checks.extend(cgroups::checks());
    checks.extend(disk(data_dir));
    checks
}

fn user() -> Check {
    const NAME: &str = "user";
    if rustix::process::geteuid().is_root() {
        return Check::ok(NAME, "running as root");
    }
    match rootless::check() {
        Ok(()) => Check::ok(NAME, "an ordinary user, who may run containers"),
        Err(obstacle) => Check::missing(NAME, obstacle.found, obstacle.remedy),
    }
}

/// The newest of the system calls that starting a container needs came with Linux 5.12 (mount_setattr).
fn kernel() -> Check {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    let mut parts = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    let version: (u32, u32) = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    if version >= (5, 12) {
        return Check::ok("kernel", format!("Linux {release}"));
    }
    Check::missing("kernel", format!("Linux {release}"), "Linux 5.12 or newer is needed; Debian 12 has 6.1.")
}

fn user_namespaces() -> Check {
    const NAME: &str = "user namespaces";
    if !Path::new("/proc/self/ns/user").exists() {
        return Check::missing(NAME, "the kernel has none", "Use a kernel with CONFIG_USER_NS.");
    }
    let most = number("/proc/sys/user/max_user_namespaces").unwrap_or(0);
    let enough = "sysctl -w user.max_user_namespaces=65536 (and a file in /etc/sysctl.d to keep it)";
    if most == 0 {
        return Check::missing(NAME, "switched off (user.max_user_namespaces is 0)", enough);
    }
    let root = rustix::process::geteuid().is_root();
    if !root && number("/proc/sys/kernel/unprivileged_userns_clone") == Some(0) {
        let remedy = "sysctl -w kernel.unprivileged_userns_clone=1, or run raworc as root";
        return Check::missing(NAME, "for root only", remedy);
    }
    if most < USER_NAMESPACES_MIN {
        return Check::warning(NAME, format!("at most {most}, one for each running session"), enough);
    }
    Check::ok(NAME, format!("at most {most}"))
}

fn seccomp() -> Check {
    let actions = fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail").unwrap_or_default();
    if actions.split_whitespace().any(|action| action == "errno") {
        return Check::ok("seccomp", "system call filters work");
    }
    Check::missing("seccomp", "the kernel has no system call filters", "Use a kernel with CONFIG_SECCOMP_FILTER.")
}

/// A new user namespace may mount `/proc` only where nothing of the one outside is covered.
fn proc_mountable() -> Check {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut covered = table.lines().filter_map(|line| line.split(' ').nth(4)).filter(|path| {
        // These may be covered anyway: they are directories made for mounting on.
        path.starts_with("/proc/") && *path != "/proc/sys/fs/binfmt_misc" && *path != "/proc/fs/nfsd"
    });
    match covered.next() {
        None => Check::ok("/proc", "can be mounted in containers"),
        Some(path) => Check::missing(
            "/proc",
            format!("something is mounted over {path}; the kernel then refuses a new /proc in a container"),
            "raworc seems to run in a container itself: run it with an unmasked /proc (`--privileged`).",
        ),
    }
}

fn overlayfs() -> Check {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let uname = rustix::system::uname();
    let modules = Path::new("/lib/modules").join(&*uname.release().to_string_lossy());
    let module = ["ko", "ko.xz", "ko.zst", "ko.gz"]
        .iter()
        .any(|end| modules.join(format!("kernel/fs/overlayfs/overlay.{end}")).exists());
    if known.split_whitespace().any(|name| name == "overlay") {
        Check::ok("overlayfs", "available")
    } else if module {
        Check::ok("overlayfs", "available as a module, loaded when first used")
    } else {
        Check::missing("overlayfs", "not available", "modprobe overlay; workspaces are made of it.")
    }
}

fn disk(data_dir: &Path) -> Vec<Check> {
    // It need not exist yet: then what counts is the directory that it will be made in.
    let existing = data_dir.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("."));
    let place = existing.display();
    match statvfs(existing) {
        Ok(statistics) => {
            let place = place.to_string();
            vec![space(&statistics, &place), inodes(&statistics, &place), limits(existing)]
        }
        Err(error) => {
            vec![Check::missing("disk space", format!("{place}: {error}"), "Choose another --data-dir.")]
        }
    }
}

fn space(statistics: &StatVfs, place: &str) -> Check {
    let free = statistics.f_bavail.saturating_mul(statistics.f_frsize);
    let found = format!("{} MiB free in {place}", free >> 20);
    if free >= FREE_BYTES_MIN {
        return Check::ok("disk space", found);
    }
    Check::warning("disk space", found, "Free some space, or choose another --data-dir: at least 1 GiB should be free.")
}

fn inodes(statistics: &StatVfs, place: &str) -> Check {
    // File systems without a fixed number of inodes say 0 of 0.
    if statistics.f_files == 0 {
        return Check::ok("inodes", format!("not limited in {place}"));
    }
    let found = format!("{} free in {place}", statistics.f_favail);
    if statistics.f_favail >= FREE_INODES_MIN {
        return Check::ok("inodes", found);
    }
    Check::warning("inodes", found, "Remove files that are not needed, or choose another --data-dir.")
}

/// Which of the two ways a session is kept within its `resources.disk`; both are all right.
fn limits(data_dir: &Path) -> Check {
    const NAME: &str = "disk limits";
    if raworc_workspace::has_limits(data_dir) {
        return Check::ok(NAME, "kept by the file system (project quotas)");
    }
    Check::ok(NAME, "kept by stopping what writes too much; the file system has no project quotas for us")
}

fn number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_complaint_has_a_remedy() {
        let checks = doctor(Path::new("/nonexistent/data"));
        assert!(checks.len() >= 9, "{checks:#?}");
        for check in checks {
            assert_eq!(check.remedy.is_empty(), check.status == Status::Ok, "{check:?}");
            assert!(!check.found.is_empty(), "{check:?}");
        }
    }
}
