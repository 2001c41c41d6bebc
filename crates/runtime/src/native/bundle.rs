//! The OCI bundle of a container: its `config.json`.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use raworc_core::link::{HOST_DIRECTORY, HOST_PATH};
use raworc_launcher::protocol::{CPU_PERIOD_MICROS, Limits, STAGE_HOST, STAGE_ROOTFS, STAGE_VIEWS, Users};
use rustix::process::{Resource, getrlimit};
use serde_json::{Value, json};

use super::layout::{Layout, Slot, directory, write_file};
use super::view::View;
use super::{Ids, image, seccomp};
use crate::{Resources, Root};

/// What the host needs: to run agents as another user, and to end them. Agents themselves have none.
const CAPABILITIES: [&str; 3] = ["CAP_KILL", "CAP_SETUID", "CAP_SETGID"];
const NAMESPACES: [&str; 7] = ["user", "pid", "mount", "network", "ipc", "uts", "cgroup"];
/// Open files of a process, unless it asks for more, and at most; all of a session's processes together may have
/// [`SHARE`] of the machine's.
const OPEN_FILES: (u64, u64) = (1024, 65_536);
/// The part of what the kernel counts for the whole machine that one session may have.
const SHARE: u64 = 4;
/// Signals, timers included, that wait for the processes of a user.
const PENDING_SIGNALS_MAX: u64 = 4_096;
/// Bytes of POSIX message queues of a user.
const MESSAGE_QUEUES_BYTES_MAX: u64 = 819_200;
/// Bytes of memory that a process may lock.
const LOCKED_BYTES_MAX: u64 = 8 << 20;
/// Pseudo-terminals of a container; the machine has 4096.
const TERMINALS_MAX: u32 = 64;
/// inotify instances of a container: what the kernel gives a user by default, and where all containers are the same user's,
/// a part of it.
const INOTIFY_INSTANCES_MAX: (u32, u32) = (128, 16);
/// What sockets may hold on top of the memory limit where that does not count them: an eighth of it, and at least so much.
const SOCKET_BYTES: (u64, u64) = (8, 1 << 20);
/// Buffers of TCP sockets: at least, at first, and at most, in bytes. Past its limit, version 1 still lets each socket have what
/// it has at first: the kernel's own 128 KiB for each are more than they look. Transfers grow theirs.
const TCP_BUFFERS: [(&str, &str); 2] =
    [("net.ipv4.tcp_rmem", "4096 8192 6291456"), ("net.ipv4.tcp_wmem", "4096 8192 4194304")];
/// The ids that make containers' user namespaces: so many from here on, far from those inside.
const OWNERS: (u32, u32) = (2_100_000_000, 1 << 30);
/// The least CPU limit that the kernel takes.
const CPU_QUOTA_MICROS_MIN: u64 = 1_000;
/// Harmless in a network of its own, where only loopback is: everybody may listen at any port, and send pings.
const SYSCTLS: [(&str, &str); 2] =
    [("net.ipv4.ip_unprivileged_port_start", "0"), ("net.ipv4.ping_group_range", "0 65534")];
const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/sysrq-trigger",
    "/proc/timer_list",
    "/proc/timer_stats",
];
const READ_ONLY: [&str; 4] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys"];

/// A container's limits in the kernel's units.
pub fn limits(resources: &Resources) -> Limits {
    // A float becomes an integer by cutting; one that is no number becomes 0, and then the minimum.
    let quota = (resources.cpu * CPU_PERIOD_MICROS as f64) as u64;
    Limits {
        cpu_quota_micros: quota.max(CPU_QUOTA_MICROS_MIN),
        memory_bytes: resources.memory_bytes,
        socket_bytes: (resources.memory_bytes / SOCKET_BYTES.0).max(SOCKET_BYTES.1),
        pids: resources.pids,
    }
}

/// The user namespace of a slot's container.
pub fn users(layout: &Layout, slot: &Slot) -> Users {
    let is_root = layout.ids.base == Ids::BASE_OF_ROOT;
    Users {
        base: layout.ids.base,
        count: Ids::COUNT,
        // Without root, whatever its owner, the kernel counts it for the server's user in the end.
        owner: is_root.then(|| OWNERS.0 + slot.number() % OWNERS.1),
        inotify_instances: if is_root { INOTIFY_INSTANCES_MAX.0 } else { INOTIFY_INSTANCES_MAX.1 },
    }
}

/// Open files that each process of a container may have.
fn open_files(pids: u32) -> u64 {
    let machine = fs::read_to_string("/proc/sys/fs/file-max").ok().and_then(|text| text.trim().parse().ok());
    let share = machine.unwrap_or(u64::MAX) / SHARE / u64::from(pids.max(1));
    share.clamp(OPEN_FILES.0, OPEN_FILES.1)
}

/// Writes the bundle of a container that is nobody's yet. `stage` is where the launcher has mounted the parts.
pub fn write(
    layout: &Layout,
    slot: &Slot,
    resources: &Resources,
    image: Option<&Root>,
    stage: &Path,
) -> io::Result<()> {
    let bundle = layout.spare(slot);
    directory(&bundle, 0o700)?;
    slot.write(&bundle)?;
    let view = layout.views.of(resources)?;
    let config = config(layout, slot, resources, image, &view, stage);
    write_file(&bundle.join("config.json"), &serde_json::to_vec(&config)?, 0o600)
}

fn config(
    layout: &Layout,
    slot: &Slot,
    resources: &Resources,
    image: Option<&Root>,
    view: &View,
    stage: &Path,
) -> Value {
    // Limits and filter are for an external runtime: the launcher starts what it starts itself in a cgroup that has the ones, and loads the
    // other.
    let is_external = layout.oci_runtime.is_some();
    let ids = json!([{ "containerID": 0, "hostID": layout.ids.base, "size": Ids::COUNT }]);
    json!({
        "ociVersion": "1.0.2",
        // An image may be written to.
        "root": { "path": stage.join(STAGE_ROOTFS), "readonly": image.is_none() },
        "hostname": "raworc",
        "process": process(image, resources.pids, view.cpus),
        "mounts": mounts(image.is_some(), resources.memory_bytes, view, stage),
        "linux": {
            "sysctl": SYSCTLS.into_iter().chain(TCP_BUFFERS).collect::<BTreeMap<_, _>>(),
            "namespaces": NAMESPACES.map(|kind| json!({ "type": kind })),
            "uidMappings": ids,
            "gidMappings": ids,
            "cgroupsPath": Path::new("/").join(&layout.cgroup_parent).join(layout.cgroup(slot)),
            "resources": is_external.then(|| resource_limits(&limits(resources))),
            "seccomp": is_external.then(seccomp::profile),
            "maskedPaths": MASKED,
            "readonlyPaths": READ_ONLY,
        },
    })
}

fn process(image: Option<&Root>, pids: u32, cpus: usize) -> Value {
    // An unprivileged process can't raise its hard limit, so ours is the most there is.
    let at_most = |resource, wanted: u64| wanted.min(getrlimit(resource).maximum.unwrap_or(u64::MAX));
    let files = at_most(Resource::Nofile, open_files(pids));
    let same = |name: &str, value: u64| json!({ "type": name, "soft": value, "hard": value });
    json!({
        "terminal": false,
        "user": { "uid": 0, "gid": 0, "umask": 0o022 },
        "args": [HOST_PATH],
        // The workspace comes later.
        "cwd": "/",
        "env": image::environment(image.map_or(&[], |image| &image.env), cpus),
        "capabilities": {
            "bounding": CAPABILITIES,
            "effective": CAPABILITIES,
            "permitted": CAPABILITIES,
            "inheritable": [],
            "ambient": [],
        },
        "noNewPrivileges": true,
        "rlimits": [
            { "type": "RLIMIT_NOFILE", "soft": OPEN_FILES.0.min(files), "hard": files },
            same("RLIMIT_CORE", 0),
            same("RLIMIT_SIGPENDING", at_most(Resource::Sigpending, PENDING_SIGNALS_MAX)),
            same("RLIMIT_MSGQUEUE", at_most(Resource::Msgqueue, MESSAGE_QUEUES_BYTES_MAX)),
            same("RLIMIT_MEMLOCK", at_most(Resource::Memlock, LOCKED_BYTES_MAX)),
        ],
    })
}

/// What is mounted beside the machine's programs, which are in the root filesystem already (see the launcher's stage). The kernel's own
/// `/sys` is not there: it tells of the machine, and much in it would have to be masked. tmpfs counts as the container's memory; the
/// sizes only keep one of them from taking all of it.
fn mounts(has_image: bool, memory: u64, view: &View, stage: &Path) -> Value {
    let tmpfs = |path: &str, mode: &str, bytes: u64| {
        let options = ["nosuid".into(), "nodev".into(), format!("mode={mode}"), format!("size={bytes}")];
        json!({ "destination": path, "type": "tmpfs", "source": "tmpfs", "options": options })
    };
    let bind = |source: &Path, path: &Path, mode: &str| {
        let options = ["bind", mode, "nosuid", "nodev"];
        json!({ "destination": path, "type": "bind", "source": source, "options": options })
    };
    let terminals = format!("max={TERMINALS_MAX}");
    let device_options = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5", &terminals];
    let mut mounts = vec![
        json!({ "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"] }),
        json!({ "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=64k"] }),
        json!({ "destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": device_options }),
        tmpfs("/dev/shm", "1777", memory / 4),
        tmpfs("/run", "755", memory / 8),
        tmpfs("/tmp", "1777", memory / 2),
    ];
    // An image has a disk to write to, and keeps its own.
    if !has_image {
        mounts.push(tmpfs("/var/tmp", "1777", memory / 2));
    }
    mounts.push(bind(&stage.join(STAGE_HOST), Path::new(HOST_DIRECTORY), "ro"));
    let views = stage.join(STAGE_VIEWS);
    mounts.extend(view.mounts.iter().map(|(source, path)| bind(&views.join(source), Path::new(path), "ro")));
    Value::Array(mounts)
}

fn resource_limits(limits: &Limits) -> Value {
    json!({
        "cpu": { "quota": limits.cpu_quota_micros, "period": CPU_PERIOD_MICROS },
        // On version 1, `swap` is memory and swap together, and refused without swap accounting.
        "memory": match swap_accounting() {
            true => json!({ "limit": limits.memory_bytes, "swap": limits.memory_bytes }),
            false => json!({ "limit": limits.memory_bytes }),
        },
        "pids": { "limit": limits.pids },
    })
}

fn swap_accounting() -> bool {
    let v1 = Path::new("/sys/fs/cgroup/memory");
    !v1.exists() || v1.join("memory.memsw.limit_in_bytes").exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_cpu_values_become_possible_limits() {
        let quota = |cpu| limits(&Resources { cpu, memory_bytes: 1, pids: 1 }).cpu_quota_micros;
        assert_eq!([1.5, 0.0, -1.0, f64::NAN].map(quota), [150_000, 1_000, 1_000, 1_000]);
    }
}
