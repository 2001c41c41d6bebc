//! The most that any session may be given, whoever makes it.

use std::fs;
use std::path::Path;

use raworc_core::limits::{MEMORY_BYTES_MIN, PIDS_MIN};
use raworc_core::quantity::Bytes;
use raworc_runtime::Resources;
use raworc_store::sessions::SessionRow;

/// Smallest `cpu`: the least a cgroup can be given (1 ms in each 100 ms period).
pub const CPU_MIN: f64 = 0.01;
/// Largest `cpu`; more than any machine has.
const CPU_MAX: f64 = 1024.0;
/// Largest `pids`: the kernel's own bound (`PID_MAX_LIMIT`).
const PIDS_MAX: u32 = 4_194_304;
/// Smallest `disk`, in bytes.
pub const DISK_BYTES_MIN: u64 = 1 << 20;
/// Largest `memory` and `disk`, in bytes; more than any machine has.
const BYTES_MAX: u64 = 1 << 50;
/// The part of the machine's processes that one session may have unless the server is told otherwise.
const PIDS_SHARE: u64 = 4;

/// Bounds of `resources`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ceilings {
    /// Processors.
    pub cpu: f64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Processes and threads.
    pub pids: u32,
    /// Bytes on the disk.
    pub disk_bytes: u64,
    /// Whether a session without a limit of its own has that one, too.
    pub disk_is_always_limited: bool,
}

impl Default for Ceilings {
    /// What no machine has.
    fn default() -> Self {
        let (memory_bytes, disk_bytes) = (BYTES_MAX, BYTES_MAX);
        Self { cpu: CPU_MAX, memory_bytes, pids: PIDS_MAX, disk_bytes, disk_is_always_limited: false }
    }
}

impl Ceilings {
    /// What this machine has; of its processes, a quarter.
    #[must_use]
    pub fn of_machine(data_dir: &Path) -> Self {
        let most = Self::default();
        let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
        let cpu = std::thread::available_parallelism().map_or(CPU_MAX, |processors| processors.get() as f64);
        let memory = fs::read_to_string("/proc/meminfo").ok().and_then(|text| memory_of(&text));
        let processes = [number("/proc/sys/kernel/pid_max"), number("/proc/sys/kernel/threads-max")];
        let pids = processes.into_iter().flatten().min().map(|all| all / PIDS_SHARE);
        let disk = rustix::fs::statvfs(data_dir).ok().map(|system| system.f_blocks.saturating_mul(system.f_frsize));
        Self {
            cpu: cpu.min(CPU_MAX),
            memory_bytes: memory.unwrap_or(BYTES_MAX).clamp(MEMORY_BYTES_MIN, BYTES_MAX),
            pids: pids.and_then(|pids| u32::try_from(pids).ok()).unwrap_or(PIDS_MAX).clamp(PIDS_MIN, PIDS_MAX),
            disk_bytes: disk.filter(|bytes| *bytes > 0).unwrap_or(BYTES_MAX).clamp(DISK_BYTES_MIN, BYTES_MAX),
            ..most
        }
    }

    /// Whether a session can be made at all.
    ///
    /// # Errors
    /// What is too little, by the name of its setting.
    pub fn check(&self) -> Result<(), String> {
        let wrong = |name: &str, most: String| Err(format!("max_{name}_per_session: must be {most}"));
        if !(CPU_MIN..=CPU_MAX).contains(&self.cpu) {
            return wrong("cpu", format!("{CPU_MIN} to {CPU_MAX}"));
        }
        if !(MEMORY_BYTES_MIN..=BYTES_MAX).contains(&self.memory_bytes) {
            return wrong("memory", format!("{MEMORY_BYTES_MIN} to {BYTES_MAX} bytes"));
        }
        if !(PIDS_MIN..=PIDS_MAX).contains(&self.pids) {
            return wrong("pids", format!("{PIDS_MIN} to {PIDS_MAX}"));
        }
        if !(DISK_BYTES_MIN..=BYTES_MAX).contains(&self.disk_bytes) {
            return wrong("disk", format!("{DISK_BYTES_MIN} to {BYTES_MAX} bytes"));
        }
        Ok(())
    }

    /// No more than these.
    #[must_use]
    pub fn clamp(&self, wanted: Resources) -> Resources {
        Resources {
            cpu: wanted.cpu.min(self.cpu),
            memory_bytes: wanted.memory_bytes.min(self.memory_bytes),
            pids: wanted.pids.min(self.pids),
        }
    }

    /// The limit on the disk that is in force, if one is, where a session wants `limit`.
    #[must_use]
    pub fn disk(&self, limit: Option<Bytes>) -> Option<Bytes> {
        match limit {
            Some(Bytes(bytes)) => Some(Bytes(bytes.min(self.disk_bytes))),
            None => self.disk_is_always_limited.then_some(Bytes(self.disk_bytes)),
        }
    }

    /// What a session's container gets.
    #[must_use]
    pub fn of(&self, row: &SessionRow) -> Resources {
        let settings = &row.settings;
        let wanted = Resources { cpu: settings.cpu, memory_bytes: settings.memory.0, pids: settings.pids };
        let given = self.clamp(wanted);
        if given != wanted {
            tracing::warn!(session = %row.id, ?wanted, ?given, "a session has more than the server gives any; it gets that");
        }
        given
    }
}

/// `MemTotal` of `/proc/meminfo`, in bytes.
fn memory_of(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_given_beyond_them() {
        let ceilings =
            Ceilings { cpu: 2.0, memory_bytes: 1 << 30, pids: 100, disk_bytes: 1 << 20, ..Ceilings::default() };
        let wanted = Resources { cpu: 1e9, memory_bytes: u64::MAX, pids: u32::MAX };
        assert_eq!(ceilings.clamp(wanted), Resources { cpu: 2.0, memory_bytes: 1 << 30, pids: 100 });
        let modest = Resources { cpu: 0.5, memory_bytes: 1 << 20, pids: 16 };
        assert_eq!(ceilings.clamp(modest), modest);
        let always = Ceilings { disk_is_always_limited: true, ..ceilings };
        for (wanted, by_default, told) in
            [(None, None, Some(1 << 20)), (Some(5), Some(5), Some(5)), (Some(1 << 40), Some(1 << 20), Some(1 << 20))]
        {
            assert_eq!(ceilings.disk(wanted.map(Bytes)), by_default.map(Bytes));
            assert_eq!(always.disk(wanted.map(Bytes)), told.map(Bytes));
        }
    }

    #[test]
    fn the_machine_has_something() {
        assert_eq!(memory_of("MemFree: 1 kB\nMemTotal:       16384 kB\n"), Some(16 << 20));
        assert_eq!(memory_of("nothing"), None);
        let machine = Ceilings::of_machine(Path::new("/"));
        let most = Ceilings::default();
        assert!(machine.cpu >= 1.0 && machine.cpu < most.cpu, "{machine:?}");
        assert!(machine.memory_bytes < most.memory_bytes && machine.disk_bytes < most.disk_bytes, "{machine:?}");
        assert!(machine.pids < most.pids, "{machine:?}");
    }
}
