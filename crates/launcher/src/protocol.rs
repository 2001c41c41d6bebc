//! What the server and its launcher say to each other: one JSON value in each packet of a `SOCK_SEQPACKET` socket.
//!
//! ```text
//! server                          launcher
//! Setup (+ lock)           →
//!                          ←      Event::Ready (or Event::Failed, and it ends)
//! Request (+ descriptor)   →
//!                          ←      Event::Done, in any order
//!                          ←      Event::Exited, whenever a container's first process has ended
//! ```

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Longest packet, in bytes.
pub const PACKET_BYTES_MAX: usize = 64 * 1024;
/// Longest outcome, in bytes of JSON: a pipe passes so much on whole.
pub const OUTCOME_BYTES_MAX: usize = 4096;
/// Longest text of [`Outcome::Failed`], in characters: escaped, it still fits.
pub const FAILURE_CHARACTERS_MAX: usize = 600;
/// Workers at the same time. Further requests wait in the socket.
pub const WORKERS_MAX: usize = 8;
/// The mount point of the root filesystem, below [`Event::Ready`]'s `stage`.
pub const STAGE_ROOTFS: &str = "rootfs";
/// The mount point of the host's directory, below the stage.
pub const STAGE_HOST: &str = "host";
/// The mount point of what containers see of the machine, below the stage.
pub const STAGE_VIEWS: &str = "views";
/// A directory, inside, that is empty: `/sys` is a container's view. It masks others.
pub const EMPTY_DIRECTORY: &str = "/sys/firmware";
/// The file, inside, of addresses and names, among them the container's own. `/etc/hosts` is a link to it.
pub const HOSTS_FILE: &str = "/run/hosts";
/// The file, inside, of the container's own name. `/etc/hostname` is a link to it.
pub const HOSTNAME_FILE: &str = "/run/hostname";
/// The record of a container's first process in its bundle: `PID STARTTIME` (see `proc_pid_stat(5)`, field 22).
pub const PROCESS_FILE: &str = "process";
/// Beside it, once the container has been assigned to a session: it has its workspace, and its host its token.
pub const ASSIGNED_FILE: &str = "assigned";

/// The first packet. It carries one descriptor: a lock, which is given up when this launcher has ended, with all of
/// its workers that could give a container to a session.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Setup {
    /// The root filesystem's directory.
    pub rootfs: PathBuf,
    /// The directory of the host program and the server's socket.
    pub host: PathBuf,
    /// The directory of what containers see of the machine.
    pub views: PathBuf,
    /// An empty directory on the same file system.
    pub empty: PathBuf,
    /// Where the OCI runtime keeps its state.
    pub state: PathBuf,
    /// The cgroup below which containers' are made, relative to the root of each hierarchy.
    pub cgroup_parent: PathBuf,
    /// Another OCI runtime to use in place of the embedded one.
    pub oci_runtime: Option<PathBuf>,
    /// The system call filter (`linux.seccomp` of an OCI configuration), compiled once by the launcher.
    pub seccomp: serde_json::Value,
}

/// Something to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the server; comes back in [`Event::Done`].
    pub id: u64,
    /// What to do.
    pub action: Action,
}

/// The things a worker does.
///
/// A container is started in two steps, so that the first, which takes nearly all of the time, can be done ahead of need:
/// it is prepared (everything but the workspace is there, and its first process waits), and then assigned to a session.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Prepare a container from its bundle. With [`Prepare::has_root`], the packet carries one descriptor: its root
    /// filesystem as a detached mount.
    Prepare(Prepare),
    /// Assign a prepared container. The packet carries one descriptor: the workspace as a detached mount.
    Assign(Assign),
    /// Put another workspace in the place of a container's. The packet carries one descriptor: that workspace as a detached
    /// mount. Nothing but the container's host may be running, and it must stand still.
    Remount(Remount),
    /// Have an external OCI runtime forget a container, whatever state it is in.
    Delete {
        /// Its name.
        container: String,
    },
}

/// A container to prepare.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Prepare {
    /// Its name.
    pub container: String,
    /// The directory of its `config.json`.
    pub bundle: PathBuf,
    /// Its cgroup, relative to [`Setup::cgroup_parent`].
    pub cgroup: PathBuf,
    /// What it may use.
    pub limits: Limits,
    /// Whether it has a root filesystem of its own, in place of [`Setup::rootfs`].
    pub has_root: bool,
    /// Directories of the machine's programs that it is to see.
    pub programs: Vec<PathBuf>,
    /// Its user namespace.
    pub users: Users,
}

/// A container's user namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Users {
    /// The id outside that is 0 inside.
    pub base: u32,
    /// How many there are.
    pub count: u32,
    /// The id that makes the namespace, and for which the kernel counts what it does not count for a cgroup. `None`: this
    /// process's own, where it may have no other.
    pub owner: Option<u32>,
    /// inotify instances that it may have.
    pub inotify_instances: u32,
}

/// A prepared container to assign.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Assign {
    /// Its name.
    pub container: String,
    /// Its bundle.
    pub bundle: PathBuf,
    /// Its host name from now on.
    pub hostname: String,
    /// What its first process, which waits for it on standard input, is told: one line.
    pub token: String,
}

/// A container to get another workspace.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Remount {
    /// Its first process.
    pub process: Process,
}

/// Limits of a container, in the kernel's units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// CPU time in each period of [`CPU_PERIOD_MICROS`].
    pub cpu_quota_micros: u64,
    /// Memory; no swap on top.
    pub memory_bytes: u64,
    /// What waits in its network sockets, where the kernel does not count that as memory (cgroups of version 1).
    pub socket_bytes: u64,
    /// Processes and threads.
    pub pids: u32,
}

/// The period of the CPU limit.
pub const CPU_PERIOD_MICROS: u64 = 100_000;

/// From the launcher.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The launcher takes requests.
    Ready {
        /// Where, in the launcher's own mount namespace, the parts of containers are mounted.
        stage: PathBuf,
    },
    /// The launcher can't work on this machine, and ends.
    Failed {
        /// Why.
        message: String,
    },
    /// A request is done.
    Done {
        /// Which.
        request: u64,
        /// How it went.
        outcome: Outcome,
    },
    /// A container's first process has ended.
    Exited {
        /// Whose.
        container: String,
        /// How.
        status: Status,
    },
}

/// How a request went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The container's first process waits to be assigned. It ends if this launcher does.
    Prepared(Process),
    /// The container works for its session from now on, whatever becomes of this launcher.
    Assigned,
    /// The container has the other workspace.
    Remounted,
    /// The external runtime knows it no more.
    Deleted,
    /// It did not work. The text is for an operator.
    Failed(String),
}

/// A process, safe against reuse of its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// When it started, in clock ticks after boot.
    pub started: u64,
}

impl Process {
    /// The process that has this number now.
    #[must_use]
    pub fn find(pid: i32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The second field, the name, may contain anything; the rest starts after its closing parenthesis.
        let started = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
        Some(Self { pid, started })
    }
}

impl std::fmt::Display for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.pid, self.started)
    }
}

/// The text is not `PID STARTTIME`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadProcess;

impl std::str::FromStr for Process {
    type Err = BadProcess;
    fn from_str(text: &str) -> Result<Self, BadProcess> {
        let (pid, started) = text.trim_end().split_once(' ').ok_or(BadProcess)?;
        Ok(Self { pid: pid.parse().map_err(|_| BadProcess)?, started: started.parse().map_err(|_| BadProcess)? })
    }
}

/// Controllers of version 1 that programs ask for their limits. Java wants to see all of them but `pids`.
const SHOWN: [&str; 5] = ["cpu", "cpuacct", "cpuset", "memory", "pids"];

/// The cgroup hierarchies that containers see, after a mount table (`/proc/PID/mountinfo`), by their names in
/// `/sys/fs/cgroup`: one without a name where there is version 2 only.
#[must_use]
pub fn hierarchies(table: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in table.lines() {
        let Some((mount, source)) = line.split_once(" - ") else { continue };
        let path = mount.split(' ').nth(4).unwrap_or_default();
        let source: Vec<&str> = source.split(' ').collect();
        match source[..] {
            ["cgroup2", ..] if path == "/sys/fs/cgroup" => return vec![String::new()],
            ["cgroup", _, options] => {
                let controllers: Vec<&str> = options.split(',').filter(|option| SHOWN.contains(option)).collect();
                let name = controllers.join(",");
                if !name.is_empty() && !found.contains(&name) {
                    found.push(name);
                }
            }
            _ => {}
        }
    }
    found
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It exited with this status.
    Exited(i32),
    /// This signal ended it.
    Signalled(i32),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_those_that_are_mounted() {
        let line = |path: &str, rest: &str| format!("30 23 0:26 / {path} rw,relatime shared:4 - {rest}\n");
        let unified = line("/sys/fs/cgroup", "cgroup2 cgroup2 rw,nsdelegate");
        assert_eq!(hierarchies(&unified), [""]);
        let split = line("/sys/fs/cgroup/cpu,cpuacct", "cgroup cgroup rw,cpu,cpuacct")
            + &line("/sys/fs/cgroup/memory", "cgroup cgroup rw,memory")
            + &line("/other/place", "cgroup cgroup rw,memory")
            + &line("/sys/fs/cgroup/devices", "cgroup cgroup rw,devices")
            + &line("/sys/fs/cgroup/systemd", "cgroup cgroup rw,xattr,name=systemd")
            + &line("/sys/fs/cgroup/unified", "cgroup2 cgroup2 rw");
        assert_eq!(hierarchies(&split), ["cpu,cpuacct", "memory"]);
        assert_eq!(hierarchies("broken\n - \n"), Vec::<String>::new());
    }

    #[test]
    fn a_process_survives_its_text() {
        let me = Process::find(std::process::id() as i32).unwrap();
        assert_eq!(me.to_string().parse(), Ok(me));
        for bad in ["", "1", "1 ", " 1", "a b", "1 2 3"] {
            assert_eq!(bad.parse::<Process>(), Err(BadProcess), "{bad}");
        }
    }
}
