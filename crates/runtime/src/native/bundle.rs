//! The OCI bundle of a container: its `config.json`.

use std::io;
use std::path::{Path, PathBuf};

use raworc_core::link::{HOST_DIRECTORY, HOST_PATH};
use raworc_launcher::protocol::{CPU_PERIOD_MICROS, Limits, STAGE_HOST, STAGE_ROOTFS};
use rustix::process::{Resource, getrlimit};
use serde_json::{Value, json};

use super::layout::{Layout, Slot, directory, write_file};
use super::{Ids, image, rootfs, seccomp};
use crate::{Resources, Root};

/// What the host needs: to run agents as another user, and to end them. Agents themselves have none.
const CAPABILITIES: [&str; 3] = ["CAP_KILL", "CAP_SETUID", "CAP_SETGID"];
const NAMESPACES: [&str; 7] = ["user", "pid", "mount", "network", "ipc", "uts", "cgroup"];
/// Open files of a process, unless it asks for more, and at most.
const OPEN_FILES: (u64, u64) = (1024, 65_536);
/// The least CPU limit that the kernel takes.
const CPU_QUOTA_MICROS_MIN: u64 = 1_000;
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
        pids: resources.pids,
    }
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
    let config = config(layout, slot, resources, image, stage);
    write_file(&bundle.join("config.json"), &serde_json::to_vec(&config)?, 0o600)
}

fn config(layout: &Layout, slot: &Slot, resources: &Resources, image: Option<&Root>, stage: &Path) -> Value {
    // An image has programs of its own, and may be written to.
    let programs = if image.is_none() { rootfs::program_directories() } else { Vec::new() };
    let ids = json!([{ "containerID": 0, "hostID": layout.ids.base, "size": Ids::COUNT }]);
    json!({
        "ociVersion": "1.0.2",
        "root": { "path": stage.join(STAGE_ROOTFS), "readonly": image.is_none() },
        "hostname": "raworc",
        "process": process(image),
        "mounts": mounts(&programs, resources.memory_bytes, stage),
        "linux": {
            "namespaces": NAMESPACES.map(|kind| json!({ "type": kind })),
            "uidMappings": ids,
            "gidMappings": ids,
            "cgroupsPath": Path::new("/").join(&layout.cgroup_parent).join(layout.cgroup(slot)),
            "resources": resource_limits(&limits(resources)),
            "seccomp": seccomp::profile(),
            "maskedPaths": MASKED,
            "readonlyPaths": READ_ONLY,
        },
    })
}

fn process(image: Option<&Root>) -> Value {
    // An unprivileged process can't raise its hard limit, so ours is the most there is.
    let most = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    json!({
        "terminal": false,
        "user": { "uid": 0, "gid": 0, "umask": 0o022 },
        "args": [HOST_PATH],
        // The workspace comes later.
        "cwd": "/",
        "env": image::environment(image.map_or(&[], |image| &image.env)),
        "capabilities": {
            "bounding": CAPABILITIES,
            "effective": CAPABILITIES,
            "permitted": CAPABILITIES,
            "inheritable": [],
            "ambient": [],
        },
        "noNewPrivileges": true,
        "rlimits": [
            { "type": "RLIMIT_NOFILE", "soft": OPEN_FILES.0.min(most), "hard": OPEN_FILES.1.min(most) },
            { "type": "RLIMIT_CORE", "soft": 0, "hard": 0 },
        ],
    })
}

/// There is no `/sys`: nothing an agent needs is in it, and much that would have to be masked. tmpfs counts as the
/// container's memory; the sizes only keep one of them from taking all of it.
fn mounts(programs: &[PathBuf], memory: u64, stage: &Path) -> Value {
    let tmpfs = |path: &str, mode: &str, bytes: u64| {
        let options = ["nosuid".into(), "nodev".into(), format!("mode={mode}"), format!("size={bytes}")];
        json!({ "destination": path, "type": "tmpfs", "source": "tmpfs", "options": options })
    };
    let bind = |source: &Path, path: &Path, mode: &str| {
        let options = ["bind", mode, "nosuid", "nodev"];
        json!({ "destination": path, "type": "bind", "source": source, "options": options })
    };
    let mut mounts: Vec<Value> = programs.iter().map(|path| bind(path, path, "ro")).collect();
    // Terminals belong to the agent, also those that the host opens for it.
    let device_options = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "uid=1000", "gid=5"];
    mounts.extend([
        json!({ "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"] }),
        json!({ "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=64k"] }),
        json!({ "destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": device_options }),
        tmpfs("/dev/shm", "1777", memory / 4),
        tmpfs("/run", "755", memory / 8),
        tmpfs("/tmp", "1777", memory / 2),
        bind(&stage.join(STAGE_HOST), Path::new(HOST_DIRECTORY), "ro"),
    ]);
    Value::Array(mounts)
}

/// For an external runtime; the embedded one is started in a cgroup that has these limits already.
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
