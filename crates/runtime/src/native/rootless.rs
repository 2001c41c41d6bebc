//! Without root: a process of an ordinary user enters a user namespace of its own, in which it is root over a range of ids
//! that the machine's administrator gave that user (`/etc/subuid`, `/etc/subgid`), and in which everything else here works
//! as it does for root. Limits need cgroups that the user may change: systemd gives them to its user sessions.

use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid, User, getpid, getuid, setgroups, setresgid};
use rustix::fs::{Access, access};
use rustix::mount::{MountPropagationFlags, mount_change};

use super::Ids;

/// Subordinate ids that a user needs: a container's, and one more. What useradd gives.
const RANGE: u32 = Ids::COUNT + 1;
/// Where cgroups of version 2 are.
const CGROUPS: &str = "/sys/fs/cgroup";
/// Set in a process that was started again inside a scope of the user's own.
const SCOPED: &str = "RAWORC_SCOPED";
/// Has the ids of process `$0` mapped once it is told to: from inside its new namespace it could not ask for that itself.
/// Root in there is the user `$1`, but not the user's group: whoever keeps that may not give up groups, and then agents
/// would have it too (user_namespaces(7), setgroups).
const MAP: &str = "read -r _ && newuidmap $0 0 $1 1 1 $2 $4 && newgidmap $0 0 $3 $(($4 + 1))";

/// What keeps an ordinary user from running containers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{found}")]
pub struct Obstacle {
    /// What was found.
    pub found: String,
    /// What to do about it.
    pub remedy: String,
}

fn obstacle(found: impl Into<String>, remedy: impl Into<String>) -> Obstacle {
    Obstacle { found: found.into(), remedy: remedy.into() }
}

/// Makes this process root in a user namespace of its own, in a cgroup that it may divide; does nothing where it is root.
/// May start the program again with the same arguments, inside a scope of the user's systemd. To be called while the
/// process has one thread.
///
/// # Errors
/// What is missing on this machine.
pub fn enter() -> Result<(), Obstacle> {
    if getuid().is_root() {
        return Ok(());
    }
    let ranges = ranges()?;
    if delegated().is_none() {
        return Err(start_again());
    }
    let [uids, gids] = ranges;
    let me = [getpid().as_raw() as u32, getuid().as_raw(), uids, gids, Ids::COUNT];
    let mut mapper = Command::new("/bin/sh")
        .args(["-c", MAP])
        .args(me.map(|number| number.to_string()))
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| obstacle(format!("/bin/sh cannot be started: {error}"), "Install a shell."))?;
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS).map_err(|error| {
        let remedy =
            "sysctl -w kernel.unprivileged_userns_clone=1 user.max_user_namespaces=65536, or run raworc as root";
        obstacle(format!("this user may not make user namespaces: {error}"), remedy)
    })?;
    let told = mapper.stdin.take().map(|mut stdin| stdin.write_all(b"go\n"));
    let output = mapper.wait_with_output();
    match (told, output) {
        (Some(Ok(())), Ok(output)) if output.status.success() => {}
        (_, output) => {
            let said =
                output.map(|output| String::from_utf8_lossy(&output.stderr).trim().to_owned()).unwrap_or_default();
            return Err(obstacle(format!("the user's ids could not be mapped: {said}"), REMEDY_IDS));
        }
    }
    let root = Gid::from_raw(0);
    setgroups(&[])
        .and_then(|()| setresgid(root, root, root))
        .map_err(|error| obstacle(format!("the user's groups cannot be given up: {error}"), "Run raworc as root."))?;
    // What is mounted outside still arrives; nothing leaves.
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::DOWNSTREAM)
        .map_err(|error| obstacle(format!("mounts cannot be kept to this process: {error}"), "Run raworc as root."))
}

const REMEDY_IDS: &str = "Install newuidmap (Debian: uidmap) and give the user 65536 subordinate ids: \
                          usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER";

/// Looks whether [`enter`] can work. Changes nothing.
///
/// # Errors
/// What is missing on this machine.
pub fn check() -> Result<(), Obstacle> {
    ranges()?;
    if delegated().is_some() || user_runtime_dir().is_some_and(|dir| dir.join("systemd/private").exists()) {
        return Ok(());
    }
    Err(no_cgroups())
}

/// The first of this user's subordinate user ids, and of the group ids.
fn ranges() -> Result<[u32; 2], Obstacle> {
    for program in ["newuidmap", "newgidmap"] {
        let path = std::env::var_os("PATH").unwrap_or_default();
        if !std::env::split_paths(&path).any(|dir| dir.join(program).exists()) {
            return Err(obstacle(format!("{program} is not installed"), REMEDY_IDS));
        }
    }
    let name = User::from_uid(getuid()).ok().flatten().map(|user| user.name).unwrap_or_default();
    let range = |file: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        let found = find_range(&text, &name, getuid());
        found.ok_or_else(|| obstacle(format!("{file} gives {name} no {RANGE} ids"), REMEDY_IDS))
    };
    Ok([range("/etc/subuid")?, range("/etc/subgid")?])
}

/// The first range that is large enough: `NAME-OR-UID:FIRST:COUNT` (subuid(5)).
fn find_range(text: &str, name: &str, uid: Uid) -> Option<u32> {
    let uid = uid.to_string();
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (owner, first, count) = (fields.next()?, fields.next()?, fields.next()?);
        let count: u32 = count.trim().parse().ok()?;
        if (owner == name || owner == uid) && count >= RANGE { first.parse().ok() } else { None }
    })
}

/// The highest cgroup above this process (or its own) that this user may divide, relative to the mount point.
pub fn delegated() -> Option<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let is_ours = |path: &Path| {
        let path = Path::new(CGROUPS).join(path);
        ["", "cgroup.procs", "cgroup.subtree_control"]
            .iter()
            .all(|file| access(path.join(file), Access::WRITE_OK).is_ok())
    };
    Path::new(own).ancestors().take_while(|path| is_ours(path)).last().map(Path::to_path_buf)
}

/// Leaves the cgroup of this process for one below it, where it is the one to be divided: a cgroup that has been divided
/// has no processes of its own (cgroups(7), "no internal processes").
pub fn make_room(parent: &Path) -> std::io::Result<()> {
    let text = fs::read_to_string("/proc/self/cgroup")?;
    if text.lines().find_map(|line| line.strip_prefix("0::/")).is_none_or(|own| Path::new(own) != parent) {
        return Ok(());
    }
    let leaf = Path::new(CGROUPS).join(parent).join("raworc-server");
    match fs::create_dir(&leaf) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    fs::write(leaf.join("cgroup.procs"), "0")
}

/// Starts this program again in a scope that systemd has delegated to the user; returns only where that does not work.
fn start_again() -> Obstacle {
    if std::env::var_os(SCOPED).is_some() {
        return no_cgroups();
    }
    let Some(runtime_dir) = user_runtime_dir() else { return no_cgroups() };
    let Ok(program) = std::env::current_exe() else { return no_cgroups() };
    let error = Command::new("systemd-run")
        .args(["--user", "--scope", "--quiet", "--collect", "--property=Delegate=yes", "--"])
        .arg(program)
        .args(std::env::args_os().skip(1))
        .env(SCOPED, "1")
        .env("XDG_RUNTIME_DIR", runtime_dir)
        .exec();
    let mut obstacle = no_cgroups();
    obstacle.found = format!("{}; systemd-run: {error}", obstacle.found);
    obstacle
}

fn user_runtime_dir() -> Option<PathBuf> {
    let named = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    named.or_else(|| Some(format!("/run/user/{}", getuid()).into())).filter(|dir| dir.is_dir())
}

fn no_cgroups() -> Obstacle {
    obstacle(
        "this user has no cgroups to set limits with",
        "Log in through systemd (ssh or a console, not su), on a machine with cgroup version 2; `loginctl enable-linger` \
         keeps sessions running after you log out. Or run raworc as root.",
    )
}

/// Whether this process is root of the machine, not only of a user namespace.
#[must_use]
pub fn is_root() -> bool {
    ids().is_ok_and(|ids| ids.base == Ids::BASE_OF_ROOT)
}

/// The ids of this process's user namespace that containers get: a range far up where all are there, else the first after
/// that of the user.
pub fn ids() -> std::io::Result<Ids> {
    let map = fs::read_to_string("/proc/self/uid_map")?;
    Ok(ids_of(&map))
}

fn ids_of(map: &str) -> Ids {
    let is_everything = map.split_whitespace().eq(["0", "0", "4294967295"]);
    Ids { base: if is_everything { Ids::BASE_OF_ROOT } else { 1 } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_found_by_name_and_by_number() {
        let text = "# comment\nother:1:65536\ndev:100000:1000\ndev:200000:65536\n1000:300000:65536\nbroken\n";
        assert_eq!(find_range(text, "dev", Uid::from_raw(1000)), Some(200_000));
        assert_eq!(find_range(text, "someone", Uid::from_raw(1000)), Some(300_000));
        assert_eq!(find_range(text, "nobody", Uid::from_raw(65_534)), None);
    }

    #[test]
    fn ids_depend_on_the_namespace() {
        assert_eq!(ids_of("         0          0 4294967295\n").base, Ids::BASE_OF_ROOT);
        assert_eq!(ids_of("         0       1000          1\n         1     100000      65535\n").base, 1);
    }
}
