//! Cgroups of containers, made and entered without moving a running process: that would cost about 10 ms.
//!
//! - Version 2: the worker is forked inside the cgroup (`CLONE_INTO_CGROUP`).
//! - Version 1: the worker, which is single-threaded, moves its own thread (`0` into `tasks`). The kernel then skips the
//!   lock whose first taker waits for every CPU.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};

use crate::protocol::{CPU_PERIOD_MICROS, Limits};

const ROOT: &str = "/sys/fs/cgroup";
/// Controllers of version 1 that limit, count and freeze. Devices need none: a container's root can't make device nodes
/// outside its user namespace, and every mount of ours is `nodev`. Sets of processors are not limited: a container has one of
/// its own because Java, which finds none, looks for no limits at all.
const CONTROLLERS: [&str; 6] = ["cpu", "cpuacct", "cpuset", "memory", "pids", "freezer"];

/// How often making a cgroup is tried.
const CREATE_ATTEMPTS_MAX: u32 = 5;

/// The cgroup hierarchies of this machine, as directories that stay open after they have been hidden.
pub enum Cgroups {
    /// One hierarchy for everything.
    V2(OwnedFd),
    /// One hierarchy for each controller, or for a few at once.
    V1(Vec<Hierarchy>),
}

/// A hierarchy of version 1.
pub struct Hierarchy {
    controllers: Vec<String>,
    directory: OwnedFd,
}

/// A container's cgroup.
pub enum Cgroup {
    /// One directory.
    V2(OwnedFd),
    /// A directory in each hierarchy.
    V1(Vec<OwnedFd>),
}

impl Cgroups {
    /// Finds the hierarchies, and `parent` in each.
    pub fn open(parent: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string("/proc/self/mountinfo").map_err(|e| format!("/proc/self/mountinfo: {e}"))?;
        let mounts: Vec<Mount<'_>> = text.lines().filter_map(Mount::parse).collect();
        if let Some(unified) = mounts.iter().find(|m| m.kind == "cgroup2" && m.path == Path::new(ROOT)) {
            return open(CWD, &unified.path.join(parent)).map(Self::V2).map_err(|e| format!("{ROOT}: {e}"));
        }
        let mut hierarchies = Vec::new();
        for mount in mounts.iter().filter(|m| m.kind == "cgroup") {
            let wanted = CONTROLLERS.iter().filter(|c| mount.options.split(',').any(|o| o == **c));
            let controllers: Vec<String> = wanted.map(ToString::to_string).collect();
            if !controllers.is_empty() {
                let directory =
                    open(CWD, &mount.path.join(parent)).map_err(|e| format!("{}: {e}", mount.path.display()))?;
                hierarchies.push(Hierarchy { controllers, directory });
            }
        }
        for needed in ["cpu", "memory", "pids"] {
            if !hierarchies.iter().any(|h| h.controllers.iter().any(|c| c == needed)) {
                return Err(format!("the cgroup controller {needed} is not mounted; `raworc doctor` says more"));
            }
        }
        Ok(Self::V1(hierarchies))
    }

    /// Makes the cgroup at `path` with its limits. One that is there already is used.
    pub fn create(&self, path: &Path, limits: &Limits) -> Result<Cgroup, String> {
        // Another instance may remove a directory above, which it found empty, just before something is made in it.
        let mut attempts = CREATE_ATTEMPTS_MAX;
        loop {
            attempts -= 1;
            match self.try_create(path, limits) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && attempts > 0 => {}
                result => return result.map_err(|e| format!("its cgroup can't be made: {e}")),
            }
        }
    }

    fn try_create(&self, path: &Path, limits: &Limits) -> io::Result<Cgroup> {
        match self {
            Self::V2(root) => create_v2(root, path, limits).map(Cgroup::V2),
            Self::V1(hierarchies) => {
                hierarchies.iter().map(|h| h.create(path, limits)).collect::<io::Result<_>>().map(Cgroup::V1)
            }
        }
    }
}

impl Cgroup {
    /// The directory to fork into.
    pub fn fork_into(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::V2(directory) => Some(directory.as_fd()),
            Self::V1(_) => None,
        }
    }

    /// Moves this single-threaded process in, where it was not forked inside.
    pub fn enter(&self) -> Result<(), String> {
        let Self::V1(directories) = self else {
            return Ok(());
        };
        let result = directories.iter().try_for_each(|directory| write(directory, "tasks", "0"));
        result.map_err(|e| format!("its cgroup can't be entered: {e}"))
    }
}

impl Hierarchy {
    fn create(&self, path: &Path, limits: &Limits) -> io::Result<OwnedFd> {
        let is_cpuset = self.controllers.iter().any(|controller| controller == "cpuset");
        let (mut directory, rest) = existing(&self.directory, path)?;
        for name in rest {
            let inner = make(&directory, Path::new(name))?;
            if is_cpuset {
                inherit_cpuset(&directory, &inner).map_err(|e| within("cpuset", &e))?;
            }
            directory = inner;
        }
        for controller in &self.controllers {
            limit_v1(&directory, controller, limits).map_err(|e| within(controller, &e))?;
        }
        Ok(directory)
    }
}

fn limit_v1(directory: &OwnedFd, controller: &str, limits: &Limits) -> io::Result<()> {
    match controller {
        "cpu" => {
            write(directory, "cpu.cfs_period_us", &CPU_PERIOD_MICROS.to_string())?;
            write(directory, "cpu.cfs_quota_us", &limits.cpu_quota_micros.to_string())
        }
        "memory" => {
            let bytes = limits.memory_bytes.to_string();
            write(directory, "memory.limit_in_bytes", &bytes)?;
            // Kernels without swap accounting don't have it; swappiness then keeps the container out of swap.
            optional(write(directory, "memory.memsw.limit_in_bytes", &bytes))?;
            // What TCP and UDP sockets hold is counted apart, and only once there is a limit.
            optional(write(directory, "memory.kmem.tcp.limit_in_bytes", &limits.socket_bytes.to_string()))?;
            optional(write(directory, "memory.swappiness", "0"))
        }
        "pids" => write(directory, "pids.max", &limits.pids.to_string()),
        _ => Ok(()),
    }
}

/// A set that is empty takes no processes.
fn inherit_cpuset(outer: &OwnedFd, inner: &OwnedFd) -> io::Result<()> {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        if read(inner, name)?.trim().is_empty() {
            write(inner, name, read(outer, name)?.trim())?;
        }
    }
    Ok(())
}

fn create_v2(root: &OwnedFd, path: &Path, limits: &Limits) -> io::Result<OwnedFd> {
    let (mut directory, rest) = existing(root, path)?;
    for name in rest {
        // A cgroup has the controllers that its parent hands down. Handing down what is handed down is not an error.
        write(&directory, "cgroup.subtree_control", "+cpu +memory +pids").map_err(|e| within("subtree_control", &e))?;
        directory = make(&directory, Path::new(name))?;
    }
    write(&directory, "cpu.max", &format!("{} {CPU_PERIOD_MICROS}", limits.cpu_quota_micros))
        .map_err(|e| within("cpu", &e))?;
    write(&directory, "memory.max", &limits.memory_bytes.to_string()).map_err(|e| within("memory", &e))?;
    optional(write(&directory, "memory.swap.max", "0"))?;
    write(&directory, "pids.max", &limits.pids.to_string()).map_err(|e| within("pids", &e))?;
    Ok(directory)
}

fn within(what: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

fn optional(result: io::Result<()>) -> io::Result<()> {
    result.or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) })
}

fn open(at: impl AsFd, path: &Path) -> io::Result<OwnedFd> {
    // Not O_PATH: CLONE_INTO_CGROUP wants a directory that is really open.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(at, path, flags, Mode::empty())?)
}

/// What is there already, which is nearly always all but the last name of `path`; and what has to be made in it.
fn existing<'a>(root: &OwnedFd, path: &'a Path) -> io::Result<(OwnedFd, &'a Path)> {
    let (Some(above), Some(name)) = (path.parent().filter(|above| above.file_name().is_some()), path.file_name())
    else {
        return Ok((root.try_clone()?, path));
    };
    match open(root, above) {
        Ok(directory) => Ok((directory, Path::new(name))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok((root.try_clone()?, path)),
        Err(error) => Err(error),
    }
}

fn make(at: &OwnedFd, name: &Path) -> io::Result<OwnedFd> {
    match rustix::fs::mkdirat(at, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => open(at, name),
        Err(error) => Err(error.into()),
    }
}

fn write(at: &OwnedFd, name: &str, value: &str) -> io::Result<()> {
    let file = rustix::fs::openat(at, name, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, value.as_bytes())?;
    Ok(())
}

fn read(at: &OwnedFd, name: &str) -> io::Result<String> {
    let file = rustix::fs::openat(at, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    io::read_to_string(std::fs::File::from(file))
}

/// A line of `/proc/self/mountinfo`, as far as it matters here.
struct Mount<'a> {
    path: PathBuf,
    kind: &'a str,
    options: &'a str,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (mount, source) = line.split_once(" - ")?;
        let mut source = source.split(' ');
        let (kind, _device, options) = (source.next()?, source.next()?, source.next()?);
        Some(Self { path: PathBuf::from(mount.split(' ').nth(4)?), kind, options })
    }
}
