//! What containers see of the machine's processors and memory: as much as their session may use. Programs ask `/sys` and
//! `/proc` how many threads to start and how much memory there is.
//!
//! ```text
//! views/cpus-N/sys/       a small /sys, with room for the container's cgroups
//! views/cpus-N/cpuinfo    the first N processors of /proc/cpuinfo
//! views/cpus-N/stat       /proc/stat for as many; it counts nothing
//! views/memory/BYTES      /proc/meminfo of as much memory, all of it free
//! ```
//!
//! They are files that stand still, shared by all containers of the same limits: what is in use tell the cgroups, which are
//! mounted in `/sys/fs/cgroup` (`launcher/view.rs`).

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use raworc_launcher::protocol::hierarchies;

use super::etc;
use super::layout::{directory, write_file};
use crate::Resources;

const CPUS: &str = "/sys/devices/system/cpu";
/// Settings of the machine that allocators ask for.
const HUGE_PAGES: &str = "sys/kernel/mm/transparent_hugepage";
/// Empty directories that `/sys` has everywhere. One of them is [`EMPTY_DIRECTORY`](raworc_launcher::protocol::EMPTY_DIRECTORY).
const DIRECTORIES: [&str; 8] = ["block", "bus", "class", "class/net", "dev", "firmware", "fs", "module"];
/// Files of memory that are kept: one for each limit that any session had.
const MEMORY_FILES_MAX: usize = 256;

/// The views of one data directory.
#[derive(Debug)]
pub struct Views {
    root: PathBuf,
    /// The names of cgroup hierarchies; version 2 has one, without a name.
    hierarchies: Vec<String>,
    /// What has been made by this server.
    made: Mutex<BTreeSet<PathBuf>>,
}

/// Where a container's are, below the directory of all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// How many processors it shows.
    pub cpus: usize,
    /// The files, and what they are mounted on.
    pub mounts: [(PathBuf, &'static str); 4],
}

impl Views {
    /// Those in `root`. What is there may be in use by containers.
    pub fn open(root: PathBuf) -> io::Result<Self> {
        directory(&root, 0o755)?;
        directory(&root.join("memory"), 0o755)?;
        let hierarchies = hierarchies(&fs::read_to_string("/proc/self/mountinfo")?);
        Ok(Self { root, hierarchies, made: Mutex::default() })
    }

    /// The directory of all.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What containers with these resources see; made where it isn't there yet.
    pub fn of(&self, resources: &Resources) -> io::Result<View> {
        let cpus = visible(resources.cpu, machine_cpus());
        let processors = PathBuf::from(format!("cpus-{cpus}"));
        let memory = Path::new("memory").join(resources.memory_bytes.to_string());
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if !made.contains(&processors) {
            self.show_processors(&self.root.join(&processors), cpus)?;
            made.insert(processors.clone());
        }
        if !made.contains(&memory) {
            self.forget_memory(&mut made)?;
            write_file(&self.root.join(&memory), meminfo(resources.memory_bytes).as_bytes(), 0o644)?;
            made.insert(memory.clone());
        }
        let mounts = [
            (processors.join("sys"), "/sys"),
            (processors.join("cpuinfo"), "/proc/cpuinfo"),
            (processors.join("stat"), "/proc/stat"),
            (memory, "/proc/meminfo"),
        ];
        Ok(View { cpus, mounts })
    }

    /// Makes room for one more file of memory. Where one is mounted, it stays there.
    fn forget_memory(&self, made: &mut BTreeSet<PathBuf>) -> io::Result<()> {
        let files: Vec<_> = fs::read_dir(self.root.join("memory"))?.collect::<io::Result<_>>()?;
        if files.len() >= MEMORY_FILES_MAX {
            files.iter().try_for_each(|file| fs::remove_file(file.path()))?;
            made.retain(|path| !path.starts_with("memory"));
        }
        Ok(())
    }

    fn show_processors(&self, place: &Path, cpus: usize) -> io::Result<()> {
        directory(place, 0o755)?;
        for (name, text) in [
            ("cpuinfo", first_processors(&fs::read_to_string("/proc/cpuinfo")?, cpus)),
            ("stat", stat(&fs::read_to_string("/proc/stat")?, cpus)),
        ] {
            write_file(&place.join(name), text.as_bytes(), 0o644)?;
        }
        for name in DIRECTORIES {
            make(place, &format!("sys/{name}"))?;
        }
        for (path, text) in files(cpus) {
            let (parent, _) = path.rsplit_once('/').ok_or(io::ErrorKind::InvalidInput)?;
            make(place, parent)?;
            write_file(&place.join(&path), text.as_bytes(), 0o444)?;
        }
        self.make_room_for_cgroups(place)
    }

    fn make_room_for_cgroups(&self, place: &Path) -> io::Result<()> {
        make(place, "sys/fs/cgroup")?;
        for name in self.hierarchies.iter().filter(|name| !name.is_empty()) {
            make(place, &format!("sys/fs/cgroup/{name}"))?;
            // Several controllers at once have each a link.
            for controller in name.split(',').filter(|controller| controller != name) {
                etc::link(&place.join("sys/fs/cgroup").join(controller), Path::new(name))?;
            }
        }
        Ok(())
    }
}

/// Makes directories, and those above them.
fn make(place: &Path, path: &str) -> io::Result<()> {
    let parts: Vec<&Path> = Path::new(path).ancestors().filter(|part| !part.as_os_str().is_empty()).collect();
    parts.into_iter().rev().try_for_each(|part| directory(&place.join(part), 0o755))
}

/// How many processors a limit fills, at least in part.
fn visible(cpu: f64, machine: usize) -> usize {
    // A float becomes an integer by cutting; one that is no number becomes 0.
    (cpu.ceil() as usize).clamp(1, machine.max(1))
}

/// How many processors the machine has.
fn machine_cpus() -> usize {
    let online = fs::read_to_string(format!("{CPUS}/online")).ok().and_then(|text| count(&text));
    online.or_else(|| std::thread::available_parallelism().map(Into::into).ok()).unwrap_or(1)
}

/// How many numbers a list as `0-3,8` has.
fn count(list: &str) -> Option<usize> {
    let length = |range: &str| match range.split_once('-') {
        None => range.parse::<usize>().ok().map(|_| 1),
        Some((first, last)) => Some(last.parse::<usize>().ok()?.checked_sub(first.parse().ok()?)? + 1),
    };
    list.trim().split(',').map(length).sum()
}

/// The files of `/sys`, with what is in them. The processors that the machine may have stay as many as they are, since the
/// numbers of those that a program runs on do.
fn files(cpus: usize) -> Vec<(String, String)> {
    let list = if cpus == 1 { "0\n".to_owned() } else { format!("0-{}\n", cpus - 1) };
    let of_machine = |path: &str| fs::read_to_string(format!("/{path}")).ok();
    let mut files: Vec<(String, String)> = Vec::new();
    let mut add = |path: &str, text: &str| files.push((path.to_owned(), text.to_owned()));
    for name in ["online", "present"] {
        add(&format!("sys/devices/system/cpu/{name}"), &list);
    }
    add("sys/devices/system/cpu/offline", "\n");
    for name in ["online", "possible", "has_cpu", "has_memory", "has_normal_memory"] {
        add(&format!("sys/devices/system/node/{name}"), "0\n");
    }
    add("sys/devices/system/node/node0/cpulist", &list);
    add("sys/devices/system/node/node0/cpumap", &mask(0..cpus));
    for cpu in 0..cpus {
        let topology = format!("sys/devices/system/cpu/cpu{cpu}/topology");
        add(&format!("{topology}/physical_package_id"), "0\n");
        add(&format!("{topology}/core_id"), &format!("{cpu}\n"));
        for (name, text) in [("thread_siblings", mask(cpu..cpu + 1)), ("core_siblings", mask(0..cpus))] {
            add(&format!("{topology}/{name}"), &text);
        }
        for (name, text) in [("thread_siblings_list", format!("{cpu}\n")), ("core_siblings_list", list.clone())] {
            add(&format!("{topology}/{name}"), &text);
        }
    }
    let copied = ["possible", "kernel_max"].map(|name| format!("sys/devices/system/cpu/{name}"));
    let huge = ["enabled", "defrag", "hpage_pmd_size", "shmem_enabled"].map(|name| format!("{HUGE_PAGES}/{name}"));
    files.extend(copied.into_iter().chain(huge).filter_map(|path| of_machine(&path).map(|text| (path, text))));
    files
}

/// A set of processors as the kernel writes it: hexadecimal, in groups of 32, the highest first.
fn mask(cpus: std::ops::Range<usize>) -> String {
    let groups = (0..=cpus.end.saturating_sub(1) / 32).rev();
    let group =
        |group: usize| (0..32).filter(|bit| cpus.contains(&(group * 32 + bit))).fold(0u32, |sum, bit| sum | 1 << bit);
    groups.map(|number| format!("{:08x}", group(number))).collect::<Vec<_>>().join(",") + "\n"
}

/// The paragraphs of the first processors.
fn first_processors(cpuinfo: &str, cpus: usize) -> String {
    let (processors, others): (Vec<&str>, Vec<&str>) =
        cpuinfo.split("\n\n").filter(|part| !part.trim().is_empty()).partition(|part| part.starts_with("processor"));
    processors.into_iter().take(cpus).chain(others).map(|part| format!("{}\n\n", part.trim_end())).collect()
}

/// When the machine started is told; what others use it for is not.
fn stat(machine: &str, cpus: usize) -> String {
    let mut text = String::from("cpu  0 0 0 0 0 0 0 0 0 0\n");
    for cpu in 0..cpus {
        let _ = writeln!(text, "cpu{cpu} 0 0 0 0 0 0 0 0 0 0");
    }
    let started = machine.lines().find(|line| line.starts_with("btime ")).unwrap_or("btime 0");
    let _ = writeln!(text, "intr 0\nctxt 0\n{started}\nprocesses 0\nprocs_running 1\nprocs_blocked 0");
    text + "softirq 0 0 0 0 0 0 0 0 0 0 0\n"
}

fn meminfo(bytes: u64) -> String {
    let all = ["MemTotal", "MemFree", "MemAvailable"].map(|name| (name, bytes / 1024));
    let none = [
        "Buffers",
        "Cached",
        "SwapCached",
        "Active",
        "Inactive",
        "Active(anon)",
        "Inactive(anon)",
        "Active(file)",
        "Inactive(file)",
        "Unevictable",
        "Mlocked",
        "SwapTotal",
        "SwapFree",
        "Dirty",
        "Writeback",
        "AnonPages",
        "Mapped",
        "Shmem",
        "KReclaimable",
        "Slab",
        "SReclaimable",
        "SUnreclaim",
        "KernelStack",
        "PageTables",
        "NFS_Unstable",
        "Bounce",
        "WritebackTmp",
    ];
    let limits = [("CommitLimit", bytes / 1024), ("Committed_AS", 0)];
    let lines = all.into_iter().chain(none.map(|name| (name, 0))).chain(limits);
    lines.map(|(name, kib)| format!("{:<16}{kib:>8} kB\n", format!("{name}:"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_become_processors() {
        let of = |cpu| visible(cpu, 4);
        assert_eq!([0.01, 1.0, 1.1, 4.0, 100.0, -1.0, f64::NAN, f64::INFINITY].map(of), [1, 1, 2, 4, 4, 1, 1, 4]);
        assert_eq!(
            ["0", "0-3", "0-3,8\n", "0,2,4-5", "", "x", "3-1"].map(count),
            [Some(1), Some(4), Some(5), Some(4), None, None, None]
        );
    }

    #[test]
    fn masks_are_as_the_kernel_writes_them() {
        assert_eq!([mask(0..1), mask(0..4), mask(1..2)], ["00000001\n", "0000000f\n", "00000002\n"]);
        assert_eq!(mask(0..33), "00000001,ffffffff\n");
        assert_eq!(mask(32..33), "00000001,00000000\n");
    }

    #[test]
    fn the_first_processors_are_shown_whole() {
        let machine = "processor\t: 0\nflags\t: a\n\nprocessor\t: 1\nflags\t: b\n\n";
        assert_eq!(first_processors(machine, 1), "processor\t: 0\nflags\t: a\n\n");
        assert_eq!(first_processors(machine, 2), machine);
        let arm = "processor\t: 0\n\nprocessor\t: 1\n\nHardware\t: x\n";
        assert_eq!(first_processors(arm, 1), "processor\t: 0\n\nHardware\t: x\n\n");
        assert_eq!(stat("cpu 1 2\nbtime 77\n", 2).lines().filter(|line| line.starts_with("cpu")).count(), 3);
    }

    #[test]
    fn memory_is_the_limit() {
        let text = meminfo(64 << 20);
        assert!(text.starts_with("MemTotal:          65536 kB\nMemFree:           65536 kB\n"), "{text}");
        assert!(text.lines().all(|line| line.ends_with(" kB") && line.contains(':')), "{text}");
    }

    #[test]
    fn files_of_memory_do_not_pile_up() {
        let directory = tempfile::tempdir().unwrap();
        let views = Views::open(directory.path().join("views")).unwrap();
        for memory_bytes in 0..2 * MEMORY_FILES_MAX as u64 {
            let view = views.of(&Resources { cpu: 1.0, memory_bytes, pids: 1 }).unwrap();
            assert!(view.mounts.iter().all(|(file, _)| views.root().join(file).exists()));
        }
        assert!(fs::read_dir(views.root().join("memory")).unwrap().count() <= MEMORY_FILES_MAX);
    }
}
